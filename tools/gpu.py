"""Everything that needs a GPU, in one go: build in place, test, sanitize, time. Run by `make gpu`.

It uses the python3 and torch that it finds, no network, and at most eight minutes. What it measures is written to
benchmarks/results/<gpu>.json with GPU, driver, versions and commit.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUDGET = 8 * 60
START = time.monotonic()

# Every operator, forward and backward: rows of 16 bytes and of any length, kernels of known and of any size.
SANITIZED = """
import torch
from stylekern import ops

device = "cuda"
for dtype, n, c, h, w in ((torch.float32, 1, 2, 5, 7), (torch.float32, 2, 4, 16, 32), (torch.float16, 1, 4, 8, 32)):
    def randn(*shape):
        return torch.randn(shape, device=device, dtype=dtype, requires_grad=True)

    def check(operator, *inputs, **options):
        outputs = operator(*inputs, **options)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        outputs = [y for y in outputs if y.requires_grad]
        torch.autograd.grad(outputs, inputs, [torch.randn_like(y) for y in outputs])

    x = randn(n, c, h, w)
    for composition in ("sequential", "outer"):
        for k in (3, 5):
            filters, bias = (randn(n, c, k, h, w), randn(n, c, 3, h, w)), randn(n, c, h, w)
            check(ops.style_kernel_conv, x, *filters, bias, composition=composition, normalize=True)
    for k, padding in ((3, "reflect"), (2, "replicate")):
        for size in (1, 2):
            kernels, bias = (randn(n, c, size, k, k), randn(n, 2 * c, size)), randn(n, 2 * c)
            check(ops.adaconv, x, *kernels, bias, padding_mode=padding)
    check(ops.adain, x, randn(n, c, 9, 8))
    check(ops.factorized_instance_norm, x, randn(c), randn(c), randn(n, c, h, w), randn(n, c, h, w))
    for odd in ("floor", "pad"):
        check(ops.wavelet_pool, x, odd=odd)
    gates = randn(n, h), randn(n, h)
    for options in ({"gate_grad": "straight_through", "renormalize": True}, {"cosine": False}):
        check(ops.cgm_attention, randn(n, h, c), randn(n, w, c), randn(n, w, 3), *gates, alpha=2.0, **options)
    check(ops.wavelet_unpool, *(randn(n, c, h, w) for _ in range(4)), size=(2 * h - 1, 2 * w))
    for metric in ("cosine", "euclidean"):
        for d in (3, 8 * w):
            check(ops.min_distances, randn(n, 9 * h, d), randn(n, 9 * w, d), metric=metric)
if device == "cuda":
    torch.cuda.synchronize()
"""


def step(name: str, command: list[str], environment: dict[str, str] | None = None) -> bool:
    """Runs a command from the repository root within what is left of the budget; says how it went."""
    left = BUDGET - (time.monotonic() - START)
    print(f"== {name} ({left:.0f} s left)", flush=True)
    try:
        code = subprocess.call(command, cwd=ROOT, timeout=max(left, 1), env={**os.environ, **(environment or {})})
    except subprocess.TimeoutExpired:
        code = -1
    print(f"== {name}: {'passed' if code == 0 else f'FAILED ({code})'}", flush=True)
    return code == 0


def output(*command: str) -> str:
    """What a command prints, or nothing where it fails."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def main() -> int:
    """Exit status: 0 where every step passed."""
    gpu = output("nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader").splitlines()
    if not gpu:
        print("make gpu: nvidia-smi finds no GPU here; nothing was run", file=sys.stderr)
        return 1
    name, driver, capability = (field.strip() for field in gpu[0].split(","))
    python, results = sys.executable, ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    report = results / f"{name.replace(' ', '_')}.json"
    build = {"STYLEKERN_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST", capability)}
    passed = [
        step("build", [python, "setup.py", "build_ext", "--inplace"], build),
        step("info", [python, "-m", "stylekern", "info"]),
        step("tests", [python, "-m", "pytest", "-q", "-m", "cuda or not slow", "-k", "cuda", "tests/ops"]),
    ]
    if shutil.which("compute-sanitizer"):
        for backend in ("compiled", "triton"):
            for tool in ("memcheck", "racecheck"):
                command = ["compute-sanitizer", f"--tool={tool}", "--error-exitcode=9", python, "-c", SANITIZED]
                passed.append(step(f"{tool}, {backend}", command, {"STYLEKERN_BACKEND": backend}))
    bench = [python, "-m", "pytest", "-q", "benchmarks", "--benchmark-only", f"--benchmark-json={report}"]
    passed.append(step("benchmarks", bench))
    if report.is_file():
        data = json.loads(report.read_text())
        data["gpu"] = {"name": name, "driver": driver, "compute_capability": capability}
        data["commit"] = output("git", "rev-parse", "HEAD")
        report.write_text(json.dumps(data, indent=1) + "\n")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())

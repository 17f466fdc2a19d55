"""Everything that needs a GPU, in one go: build in place, test, sanitize, time. Run by `make gpu`.

It uses the python3 and torch that it finds, no network, and at most eight minutes. Tests and sanitizers run beside each
other; timing, at the end, alone. What is measured is written to benchmarks/results/<gpu>.json with GPU, driver,
versions and commit, what each step printed to build/gpu/<step>.log.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "build" / "gpu"
BUDGET = 8 * 60
LINES = {"info": 40, "benchmarks": 130}  # the ends of logs that are printed; of others three
START = time.monotonic()

# Every operator, forward and backward: rows of 16 bytes and of any length, kernels of known and of any size, many
# planes and large ones.
SANITIZED = """
import torch
from stylekern import ops

device = "cuda"
dtype = torch.float32


def randn(*shape):
    return torch.randn(shape, device=device, dtype=dtype, requires_grad=True)


def check(operator, *inputs, **options):
    outputs = operator(*inputs, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    outputs = [y for y in outputs if y.requires_grad]
    torch.autograd.grad(outputs, inputs, [torch.randn_like(y) for y in outputs])


for c, h, w in ((128, 20, 16), (128, 7, 13)):
    for k in (3, 5):
        filters = randn(2, c, k, h, w), randn(2, c, k, h, w)
        check(ops.style_kernel_conv, randn(2, c, h, w), *filters, normalize=True)
large = [randn(1, 2, 150, 140) for _ in range(3)]
check(ops.adain, large[0], randn(1, 2, 9, 8))
check(ops.factorized_instance_norm, large[0], randn(2), randn(2), *large[1:])
for dtype, n, c, h, w in (
    (torch.float32, 1, 2, 5, 7),
    (torch.float32, 2, 4, 16, 32),
    (torch.float16, 1, 4, 8, 32),
    (torch.float64, 1, 2, 6, 8),
):
    x = randn(n, c, h, w)
    for composition in ("sequential", "outer"):
        for kv, kh in ((3, 3), (5, 5), (5, 3)):
            filters, bias = (randn(n, c, kv, h, w), randn(n, c, kh, h, w)), randn(n, c, h, w)
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
    """Runs a command from the repository root within what is left of the budget; prints the end of what it printed."""
    start, log = time.monotonic(), LOGS / f"{name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **(environment or {})}, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait(max(BUDGET - (start - START), 1))
            result = "passed" if code == 0 else f"FAILED ({code})"
        except subprocess.TimeoutExpired:
            code, result = -1, "FAILED: the time is over"
            process.send_signal(signal.SIGINT)  # pytest then reports what it has
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
    last = log.read_text(errors="replace").splitlines()[-(LINES.get(name, 3) if code == 0 else 60) :]
    print("\n".join([f"== {name}: {result} after {time.monotonic() - start:.0f} s", *last]), flush=True)
    return code == 0


def output(*command: str) -> str:
    """What a command prints, or nothing where it fails."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def checks(python: str) -> list[tuple[str, list[str], dict[str, str]]]:
    """What may run side by side: the operators' tests, each sanitizer, and the benchmarks without timing.

    Those compile what they compare with, which torch keeps for the run that times.
    """
    pytest = [python, "-m", "pytest", "-q"]
    workers = ["-n", str(max((os.cpu_count() or 1) * 3 // 8, 1))] if importlib.util.find_spec("xdist") else []
    found = [
        ("tests", [*pytest, *workers, "-m", "cuda or not slow", "-k", "cuda and not two_billion", "tests/ops"], {}),
        ("large-tensors", [*pytest, "-k", "two_billion", "tests/ops"], {}),  # one at a time: they take up to 30 GB
        ("benchmarks-untimed", [*pytest, *workers, "--benchmark-disable", "benchmarks"], {}),
    ]
    if shutil.which("compute-sanitizer"):
        for backend in ("auto", "triton"):  # compiled where there is such a kernel, which is not so for each operator
            for tool in ("memcheck", "racecheck"):
                command = ["compute-sanitizer", f"--tool={tool}", "--error-exitcode=9", python, "-c", SANITIZED]
                found.append((f"{tool}-{backend}", command, {"STYLEKERN_BACKEND": backend}))
    return found


def main() -> int:
    """Exit status: 0 where every step passed."""
    gpu = output("nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader").splitlines()
    if not gpu:
        print("make gpu: nvidia-smi finds no GPU here; nothing was run", file=sys.stderr)
        return 1
    name, driver, capability = (field.strip() for field in gpu[0].split(","))
    python, results = sys.executable, ROOT / "benchmarks" / "results"
    for folder in (LOGS, results):
        folder.mkdir(parents=True, exist_ok=True)
    # Where an installation has the Triton kernels. Nothing is installed here: the python3 is not ours.
    if not (ROOT / "stylekern" / "triton_kernels").exists():
        (ROOT / "stylekern" / "triton_kernels").symlink_to("../triton_kernels")
    report = results / f"{name.replace(' ', '_')}.json"
    build = {"STYLEKERN_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST", capability)}
    passed = [
        step("build", [python, "setup.py", "build_ext", "--inplace"], build),
        step("info", [python, "-m", "stylekern", "info"]),
    ]
    with ThreadPoolExecutor() as pool:
        passed += pool.map(lambda check: step(*check), checks(python))
    bench = [python, "-m", "pytest", "-q", "benchmarks", "--benchmark-only", f"--benchmark-json={report}"]
    passed.append(step("benchmarks", bench))
    if report.is_file() and report.stat().st_size:
        data = json.loads(report.read_text())
        data["gpu"] = {"name": name, "driver": driver, "compute_capability": capability}
        del data["commit_info"]  # with names of branches and folders
        data["commit"] = output("git", "rev-parse", "--short", "HEAD") + (
            " and changes" if output("git", "status", "-s") else ""
        )
        report.write_text(json.dumps(data, indent=1) + "\n")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())

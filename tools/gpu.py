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

SANITIZED = """
import torch
from stylekern.ops import style_kernel_conv as f
for composition in ("sequential", "outer"):
    for shape in ((1, 2, 5, 7), (2, 4, 16, 32)):
        n, c, h, w = shape
        shapes = (shape, (n, c, 3, h, w), (n, c, 5, h, w), shape)
        xs = [torch.randn(s, device="cuda", requires_grad=True) for s in shapes]
        y = f(*xs, composition=composition, normalize=True)
        torch.autograd.grad(y, xs, torch.randn_like(y))
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

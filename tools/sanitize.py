"""The operators' tests on a library compiled with g++'s address and undefined-behaviour sanitizers, by `make sanitize`.

It is built in build/sanitize, in some minutes, and tested once an instruction set that the processor has. ARGS goes to
pytest. Tests are left out that a sanitizer's allocator answers, or that compile with a compiler of their own. Before
them a mistake is planted, which has to be caught.
"""

from __future__ import annotations

import os
import subprocess
import sys

import build_library
from built_copy import make_copy

from stylekern import _library

COPY = build_library.ROOT / "build" / "sanitize"
FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
RUNTIMES = ("libasan.so", "libubsan.so", "libstdc++.so")
OPTIONS = {
    # What torch and Python leave behind is theirs. A test asks for more memory than there is.
    "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
# A plane of one row more than was allocated.
PLANTED = """
import numpy, torch
from stylekern.ops import adain
rows = numpy.ones((64, 64), dtype=numpy.float32)
longer = numpy.lib.stride_tricks.as_strided(rows, (65, 64))
adain(torch.from_numpy(longer)[None, None], torch.from_numpy(rows)[None, None])
"""
LEFT_OUT = ("heap", "memory", "guarded_memory")
TESTS = ["-q", "-m", "not slow", "-k", "not triton and not graph and not export", "tests/ops"]


def main(arguments: list[str]) -> int:
    """Returns the number of instruction sets whose tests failed."""
    compiler, torch = build_library.cxx(), build_library.torch_root()
    if not compiler or not torch:
        print("make sanitize needs g++ and torch")
        return 2
    make_copy(COPY, compiler, torch, ["-O1", "-g1", *FLAGS], FLAGS)
    where = [
        subprocess.run(
            [*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in RUNTIMES
    ]
    tests = arguments or TESTS + [f"--deselect=tests/ops/test_{name}.py" for name in LEFT_OUT]
    failed = 0
    for target in ("baseline", "avx2", "avx512"):
        environment = os.environ | OPTIONS | {"LD_PRELOAD": " ".join(where), "STYLEKERN_CPU_TARGET": target}
        print(f"stylekern: instruction set {target}", flush=True)
        caught = catches_planted(environment)
        for tool, log in (("ASAN_OPTIONS", "address"), ("UBSAN_OPTIONS", "undefined")):
            environment[tool] += f":log_path={COPY / log}"
        passed = subprocess.call([sys.executable, "-m", "pytest", *tests], cwd=COPY, env=environment) == 0
        failed += not (caught and passed)
        if target == _library.build_options["cpu_target"]:  # the processor's best
            break
    for log in sorted(COPY.glob("address.*")) + sorted(COPY.glob("undefined.*")):
        print(log.read_text())
    return failed


def catches_planted(environment: dict[str, str]) -> bool:
    """Whether a report names the planted mistake."""
    ran = subprocess.run([sys.executable, "-c", PLANTED], cwd=COPY, env=environment, capture_output=True, text=True)
    caught = "heap-buffer-overflow" in ran.stderr and "stylekern::" in ran.stderr
    print("stylekern: the planted mistake was", "caught" if caught else f"missed:\n{ran.stderr}", flush=True)
    return caught


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

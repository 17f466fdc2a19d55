"""The operators' tests on a library compiled with g++'s address and undefined-behaviour sanitizers, by `make sanitize`.

It is built in build/sanitize, in some minutes, and tested once an instruction set that the processor has. ARGS goes to
pytest. Tests are left out that a sanitizer's allocator answers, or that compile with a compiler of their own.
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
    "ASAN_OPTIONS": f"detect_leaks=0:detect_odr_violation=0:allocator_may_return_null=1:log_path={COPY}/address",
    "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={COPY}/undefined",
}
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
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in RUNTIMES
    ]
    tests = arguments or TESTS + [f"--deselect=tests/ops/test_{name}.py" for name in LEFT_OUT]
    failed = 0
    for target in ("baseline", "avx2", "avx512"):
        environment = os.environ | OPTIONS | {"LD_PRELOAD": " ".join(where), "STYLEKERN_CPU_TARGET": target}
        print(f"stylekern: instruction set {target}", flush=True)
        failed += subprocess.call([sys.executable, "-m", "pytest", *tests], cwd=COPY, env=environment) != 0
        if target == _library.build_options["cpu_target"]:  # the processor's best
            break
    for log in sorted(COPY.glob("address.*")) + sorted(COPY.glob("undefined.*")):
        print(log.read_text())
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

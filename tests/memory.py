"""Peak memory, measured in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

#: Defines `peak()`. Of the process itself: what getrusage tells may be its parent's.
PEAK = """
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
"""


def measured(code: str, **environment: str) -> int:
    """The number that the code, which knows `peak()`, prints; `environment` beside this process's own."""
    root = Path(__file__).parent.parent  # from where the code can import the tests' modules
    result = subprocess.run(
        [sys.executable, "-c", PEAK + code], capture_output=True, text=True, cwd=root, env=os.environ | environment
    )
    assert result.returncode == 0, result.stderr
    return int(result.stdout)

"""Fixtures: the CUDA kernels compiled for the CPU. Skips, with the reason, where they cannot be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from . import build

TESTS = Path(__file__).resolve().parents[1]


def compiled(source: str, *, sanitize: bool = False) -> Path:
    try:
        return build.build(source, sanitize=sanitize)
    except build.Unavailable as reason:
        pytest.skip(str(reason))


def source_of(request: pytest.FixtureRequest) -> str:
    """test_<op>.py tests the kernels of <op>_host.cpp, unless it names another file."""
    return getattr(request.module, "SOURCE", f"{Path(request.module.__file__).stem.removeprefix('test_')}_host.cpp")


@pytest.fixture(scope="module")
def host(request):
    """The kernels of the operator that the test module is named after."""
    return build.load(compiled(source_of(request)))


@pytest.fixture(scope="session")
def harness():
    """Small kernels, some of them wrong, that show what the harness notices."""
    return build.load(compiled("harness_host.cpp"))


@pytest.fixture(scope="session")
def sanitized():
    """Runs a Python program with the sanitized build of a source as module `host`; returns the finished process."""

    def run(source: str, program: str) -> subprocess.CompletedProcess[str]:
        path = compiled(source, sanitize=True)
        start = f"import sys; sys.path.insert(0, {str(path.parent)!r}); import {path.stem} as host\n"
        command = [sys.executable, "-c", start + program]
        return subprocess.run(command, env=build.sanitizer_environment(), capture_output=True, text=True, timeout=600)

    return run


@pytest.fixture
def assert_sanitized(sanitized, request):
    """Runs the cases SANITIZED of the test module through its assert_matches_reference, under the sanitizers."""

    def run() -> None:
        program = f"""
sys.path[:0] = {[str(TESTS), str(TESTS.parent)]!r}
from cuda_host.{Path(request.module.__file__).stem} import SANITIZED, assert_matches_reference
for order in ("ascending", "shuffled"):
    host.set_order(order, 1)
    for case in SANITIZED:
        assert_matches_reference(host, case)
print("passed")
"""
        done = sanitized(source_of(request), program)
        assert done.returncode == 0 and "passed" in done.stdout, done.stderr[-4000:]

    return run

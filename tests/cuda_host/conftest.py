"""Fixtures: the CUDA kernels compiled for the CPU. Skips, with the reason, where they cannot be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from . import build


def compiled(source: str, *, sanitize: bool = False) -> Path:
    try:
        return build.build(source, sanitize=sanitize)
    except build.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def host():
    """The kernels of style_kernel_conv."""
    return build.load(compiled("style_kernel_conv_host.cpp"))


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

"""The CPU kernels, compiled by what this machine does not build with: clang, and g++ for aarch64."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import build_library
import pytest

COMPILERS = {"clang++": "clang", "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu"}  # and the Debian packages of them


def python_config(compiler: str, folder: Path) -> Path:
    """Debian's pyconfig.h includes that of the compiler's architecture; where only this one's is installed, it serves:
    the types that it describes have the same sizes on both."""
    architecture = subprocess.run([compiler, "-dumpmachine"], capture_output=True, text=True, check=True).stdout.strip()
    (folder / architecture).symlink_to(f"/usr/include/{sysconfig.get_config_var('MULTIARCH')}")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("source", build_library.sources("cpu"))
@pytest.mark.parametrize("compiler", COMPILERS)
def test_source_compiles_without_a_warning(compiler: str, source: str, tmp_path: Path) -> None:
    path, torch = shutil.which(compiler), build_library.torch_root()
    if not path:
        pytest.skip(f"{compiler} is not installed (on Debian: apt-get install {COMPILERS[compiler]})")
    assert torch is not None
    flags = [*build_library.cxx_flags([path], torch), "-idirafter", str(python_config(path, tmp_path))]
    # Down to instructions: what a target lacks shows there only. Optimising takes most of the time.
    command = [path, *flags, "-O0", "-Werror", "-S", "-o", os.devnull, str(build_library.ROOT / source)]
    compiled = subprocess.run(command, capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr

"""The CUDA kernels, compiled ahead of time for every generation that is supported: no spills, 16-byte access."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "aot"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
FLAGS = ("-std=c++20", "-O3", "-cubin", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DUSE_CUDA")
TYPES = {"float": 4, "double": 2, "__half": 8, "__nv_bfloat16": 8}  # and their values in 16 bytes


def cuobjdump() -> str:
    """Of the toolkit, or the one that Triton's wheel carries."""
    try:
        from triton.backends import nvidia

        bundled = Path(nvidia.__path__[0]) / "bin" / "cuobjdump"
    except ImportError:
        bundled = Path()
    found = shutil.which("cuobjdump") or (bundled.is_file() and os.access(bundled, os.X_OK) and str(bundled))
    return found or pytest.skip("no cuobjdump: neither of the CUDA toolkit nor in Triton's wheel")


@functools.cache
def cubin(source: str, architecture: str) -> Path:
    """Compiles a file of csrc/cuda, once for each content of what it includes."""
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc") or pytest.skip("no nvcc")
    include = Path(torch.__file__).parent / "include"
    if not (include / "torch" / "csrc" / "stable" / "ops.h").is_file():
        pytest.skip(f"torch {torch.__version__} has no stable ABI headers")
    folders = [ROOT / "csrc" / "cuda", ROOT / "csrc" / "common"]
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256("\0".join((version, torch.__version__, *FLAGS)).encode())
    for path in sorted(path for folder in folders for path in folder.iterdir() if path.is_file()):
        digest.update(path.name.encode() + path.read_bytes())
    target = BUILD / digest.hexdigest()[:16] / f"{Path(source).stem}.{architecture}.cubin"
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:  # of several test processes one compiles
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                output = Path(folder) / target.name
                command = [nvcc, *FLAGS, f"-arch={architecture}", "-isystem", str(include)]
                command += [str(folders[0] / source), "-o", str(output)]
                done = subprocess.run(command, capture_output=True, text=True)
                assert done.returncode == 0, done.stderr[-8000:]
                assert "warning" not in done.stderr, done.stderr[-8000:]
                output.replace(target)
    return target


def demangled(names: list[str]) -> list[str]:
    """Short names: style_kernel_conv_fwd_kernel<float, 4, 3>."""
    tool = shutil.which("c++filt") or pytest.skip("no c++filt")
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    return [re.sub(r"^void stylekern::cuda::|\(stylekern::.*$", "", line) for line in done.stdout.splitlines()]


@functools.cache
def resources(architecture: str) -> dict[str, dict[str, int]]:
    """Registers, stack and local bytes of each kernel."""
    command = [cuobjdump(), "--dump-resource-usage", str(cubin("style_kernel_conv.cu", architecture))]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"Function (\S+):\s*REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    names = demangled([row[0] for row in found])
    return {
        name: {"registers": int(reg), "stack": int(stack), "local": int(local)}
        for name, (_, reg, stack, local) in zip(names, found, strict=True)
    }


@functools.cache
def machine_code(architecture: str) -> dict[str, str]:
    command = [cuobjdump(), "-sass", str(cubin("style_kernel_conv.cu", architecture))]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parts = re.split(r"Function : (\S+)", text)[1:]
    return dict(zip(demangled(parts[::2]), parts[1::2], strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_kernel_spills(architecture):
    kernels = resources(architecture)
    assert {f"style_kernel_conv_{name}_kernel<float, 4, 3>" for name in ("fwd", "outer_fwd", "bwd")} <= kernels.keys()
    spilling = {name: use for name, use in kernels.items() if use["stack"] or use["local"]}
    assert not spilling


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_two_blocks_of_256_threads_fit_into_the_registers(architecture):
    """65,536 registers a multiprocessor. The single-pass backward needs one block only, except in float."""
    for name, use in resources(architecture).items():
        one_block = "conv_bwd_kernel" in name and "<float, 4" not in name
        assert use["registers"] <= (255 if one_block else 128), name


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_fast_path_moves_16_bytes_at_a_time(architecture, dtype):
    code, width = machine_code(architecture), TYPES[dtype]
    for kernel, loads, stores in (
        ("fwd", 3 + 3 + 3 + 1, 1),  # three rows of x, vertical, horizontal, bias; y
        ("outer_fwd", 3 + 3 + 3 + 1, 1),
        ("bwd", 3 + 3 + 3 + 1, 1 + 3 + 3),  # three rows of x, vertical, horizontal, grad; their gradients
    ):
        name = f"style_kernel_conv_{kernel}_kernel<{dtype}, {width}, 3>"
        assert len(re.findall(r"\bLDG\.E\.128\b", code[name])) >= loads, name
        assert len(re.findall(r"\bSTG\.E\.128\b", code[name])) >= stores, name
    assert re.search(r"\bLDG\.E\.128\b", code[f"style_kernel_conv_stats_kernel<{dtype}, {width}>"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_is_accumulated_with_atomics(architecture):
    for name, code in machine_code(architecture).items():
        assert not re.search(r"\b(ATOM|ATOMG|ATOMS|RED|REDG|REDUX)\b", code), name

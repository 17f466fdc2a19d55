"""The CUDA kernels, compiled ahead of time for every generation that is supported: no spills, 16-byte access."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "aot"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
FLAGS = ("-std=c++20", "-O3", "-cubin", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DUSE_CUDA")
TYPES = {"float": 4, "double": 2, "__half": 8, "__nv_bfloat16": 8}  # and their values in 16 bytes
# Of each source the fast paths, with the loads and stores of 16 bytes that they have at least: one a tensor and pass,
# or one a vector of those that a thread holds in registers, 2 at least.
HELD = 2
NORMALIZE = {
    "instance_norm_stats_kernel<{}, true>": (HELD, 0),  # x
    # x and its gradient, and again where a plane is larger than what a block holds; that of the input
    "instance_norm_bwd_kernel<{}, true>": (HELD * (2 + 2), HELD),
}
# of parts of planes: x; grad, x and a factor
PARTS = {"part_moments_kernel<{}, true>": (HELD, 0), "part_sums_kernel<{}, true>": (HELD * 3, 0)}
WAVELET = {f"wavelet_{way}_fwd_kernel<{{}}>": (4, 4) for way in ("pool", "unpool")}  # two rows of two; four bands
FAST = {
    "style_kernel_conv": {
        # as many rows of x as taps, vertical, horizontal, bias; y
        **{f"style_kernel_conv_fwd_kernel<{{}}, {k}>": (k + k + k + 1, 1) for k in (3, 5)},
        # x for its statistics too
        **{f"style_kernel_conv_plane_fwd_kernel<{{}}, {k}>": (HELD + k + k + k + 1, 1) for k in (3, 5)},
        "style_kernel_conv_outer_fwd_kernel<{}, 3>": (3 + 3 + 3 + 1, 1),
        # a row of x, vertical, horizontal, grad; their gradients
        **{f"style_kernel_conv_bwd_strip_kernel<{{}}, {k}>": (1 + k + k + 1, 1 + k + k) for k in (3, 5)},
        # three rows of x
        "style_kernel_conv_bwd_kernel<{}, 3>": (3 + 3 + 3 + 1, 1 + 3 + 3),
        **NORMALIZE,
    },
    "adaconv": {
        **{f"adaconv_fwd_kernel<{{}}, {outputs}, 3>": (1, 1) for outputs in (1, 2, 4, 8)},  # x; y
        "adaconv_bwd_taps_kernel<{}, 1, 3>": (3 + 1, 0),  # three rows of x, grad
        "adaconv_bwd_taps_kernel<{}, 2, 3>": (3 + 2, 0),
        "adaconv_bwd_taps_kernel<{}, 4, 3>": (3 + 4, 0),
        "adaconv_bwd_bias_kernel<{}>": (1, 0),  # grad
        # of two rows, or more: x; y
        "adaconv_depthwise_fwd_kernel<{}>": (2, 2),
        "adaconv_depthwise_bwd_kernel<{}>": (2 + 2, 2),  # x, grad; the gradient of x
        **NORMALIZE,
    },
    # again: what is read once more of a plane that is larger than what a block holds
    "adain": {
        "adain_fwd_kernel<{}, true>": (HELD * (2 + 1), HELD),  # content and style, content again; y
        "adain_bwd_kernel<{}, true>": (HELD * (3 + 3), HELD * 2),  # grad, content and style, again; two gradients
        **PARTS,
    },
    "factorized_instance_norm": {
        "factorized_instance_norm_fwd_kernel<{}, true>": (HELD * (3 + 3), HELD),  # content, gamma and beta, again; y
        # grad, content and gamma, again; two gradients
        "factorized_instance_norm_bwd_kernel<{}, true>": (HELD * (3 + 3), HELD * 2),
        **PARTS,
    },
    "wavelet_pool": WAVELET,
    "wavelet_unpool": WAVELET,
}
# Of 16 bits these move 8 bytes: four values a thread, whose float32 fills the registers.
FOUR_VALUES = r"style_kernel_conv_bwd_"
# The most registers of a kernel, by the first pattern that fits its name. A multiprocessor has 65,536, and so room for
# 256 threads, 390, 682, 390, 819, 819, 1,024 and 512.
REGISTERS = {
    r"style_kernel_conv_bwd_(kernel<(?!float, 4)|strip_kernel<double, \d, 5)|adaconv_bwd_taps_kernel<\w+, \d, 4": 255,
    r"(adain|factorized_instance_norm)_\w+_kernel<(double|__\w+, 1)": 168,
    r"factorized_instance_norm_fwd_kernel": 96,
    r"style_kernel_conv_(((plane_)?fwd|bwd_strip)_kernel<double|plane_fwd_kernel<__\w+, 8, 5)": 168,
    r"(adain|factorized_instance_norm|part)_\w+_kernel": 80,
    r"wavelet_unpool_fwd_kernel<\w+, 8|wavelet_\w+_kernel<\w+, (1|long)": 80,
    r"(instance_norm_\w+|adaconv_(bwd_bias|depthwise_fwd)|wavelet_\w+)_kernel<(?!double)": 64,
    "": 128,
}


def cuobjdump() -> str:
    """Of the toolkit, or the one that Triton's wheel carries."""
    try:
        from triton.backends import nvidia

        bundled = Path(nvidia.__path__[0]) / "bin" / "cuobjdump"
    except ImportError:
        bundled = Path()
    found = shutil.which("cuobjdump") or (bundled.is_file() and os.access(bundled, os.X_OK) and str(bundled))
    return found or pytest.skip("no cuobjdump: neither of the CUDA toolkit nor in Triton's wheel")


def once(target: Path, make: Callable[[Path], None]) -> Path:
    """Makes a file, unless an earlier test did: of several test processes one works and the others wait."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{target}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                make(Path(folder) / target.name)
                (Path(folder) / target.name).replace(target)
    return target


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

    def compile(output: Path) -> None:
        command = [nvcc, *FLAGS, f"-arch={architecture}", "-isystem", str(include)]
        command += [str(folders[0] / source), "-o", str(output)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-8000:]
        assert "warning" not in done.stderr, done.stderr[-8000:]

    return once(target, compile)


def demangled(names: list[str]) -> list[str]:
    """Short names: style_kernel_conv_fwd_kernel<float, 4, 3>."""
    tool = shutil.which("c++filt") or pytest.skip("no c++filt")
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    return [re.sub(r"^void stylekern::cuda::|(?<=>)\(.*$", "", line) for line in done.stdout.splitlines()]


def listing(source: str, architecture: str, option: str) -> str:
    """What cuobjdump prints; a disassembly takes about as long as the compiler did."""
    compiled = cubin(f"{source}.cu", architecture)

    def dump(output: Path) -> None:
        with output.open("w") as file:
            subprocess.run([cuobjdump(), option, str(compiled)], stdout=file, check=True)

    return once(compiled.with_suffix(f".{option.strip('-')}"), dump).read_text()


@functools.cache
def resources(source: str, architecture: str) -> dict[str, dict[str, int]]:
    """Registers, stack and local bytes of each kernel."""
    text = listing(source, architecture, "--dump-resource-usage")
    found = re.findall(r"Function (\S+):\s*REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    names = demangled([row[0] for row in found])
    return {
        name: {"registers": int(reg), "stack": int(stack), "local": int(local)}
        for name, (_, reg, stack, local) in zip(names, found, strict=True)
    }


@functools.cache
def machine_code(source: str, architecture: str) -> dict[str, str]:
    parts = re.split(r"Function : (\S+)", listing(source, architecture, "-sass"))[1:]
    return dict(zip(demangled(parts[::2]), parts[1::2], strict=True))


# Of module scope: the tests of one compiled file stay together, so that two processes do not wait for one compiler.
on_every_architecture = pytest.mark.parametrize(
    "target", list(itertools.product(FAST, ARCHITECTURES)), ids="-".join, scope="module"
)


def test_every_source_has_its_row():
    assert FAST.keys() == {path.stem for path in (ROOT / "csrc" / "cuda").glob("*.cu")}


@on_every_architecture
def test_no_kernel_spills(target):
    kernels = resources(*target)
    assert {name.format("float, 4") for name in FAST[target[0]]} <= kernels.keys()
    spilling = {name: use for name, use in kernels.items() if use["stack"] or use["local"]}
    assert not spilling


@on_every_architecture
def test_blocks_fit_into_the_registers(target):
    for name, use in resources(*target).items():
        bound = next(bound for pattern, bound in REGISTERS.items() if re.match(pattern, name))
        assert use["registers"] <= bound, name


@pytest.mark.parametrize("dtype", TYPES)
@on_every_architecture
def test_the_fast_path_moves_16_bytes_at_a_time(target, dtype):
    code = machine_code(*target)
    for kernel, (loads, stores) in FAST[target[0]].items():
        values = min(TYPES[dtype], 4) if re.match(FOUR_VALUES, kernel) else TYPES[dtype]
        name, bits = kernel.format(f"{dtype}, {values}"), 128 * values // TYPES[dtype]
        assert len(re.findall(rf"\bLDG\.E\.{bits}\b", code[name])) >= loads, name
        assert len(re.findall(rf"\bSTG\.E\.{bits}\b", code[name])) >= stores, name


@on_every_architecture
def test_nothing_is_accumulated_with_atomics(target):
    for name, code in machine_code(*target).items():
        assert not re.search(r"\b(ATOM|ATOMG|ATOMS|RED|REDG|REDUX)\b", code), name

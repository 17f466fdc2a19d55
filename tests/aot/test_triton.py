"""Every Triton kernel compiles ahead of time, for each architecture, spills nothing, and loads 16 bytes a thread.

What is compiled is what a launch would compile: a subprocess without the interpreter calls the host functions on CPU
tensors with the launch itself replaced by a recorder of its arguments. It needs neither a GPU nor a driver.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ARCHS = (80, 90, 100)

# name: (dtype, taps, padding, composition, normalize)
CASES = {
    "k3": ("float32", 3, "reflect", "sequential", False),
    "k3-bf16": ("bfloat16", 3, "reflect", "sequential", False),
    "k3-normalize": ("float32", 3, "reflect", "sequential", True),
    "k3-normalize-bf16": ("bfloat16", 3, "replicate", "sequential", True),
    "k5": ("float32", 5, "zeros", "sequential", False),
    "k13": ("float32", 13, "reflect", "sequential", True),
    "k13-bf16": ("bfloat16", 13, "replicate", "sequential", False),
    "k3-outer": ("float32", 3, "replicate", "outer", False),
    "k51-outer": ("float32", 51, "none", "outer", False),
}
FORWARD = "_style_kernel_conv_fwd_kernel"
KERNELS = {
    FORWARD,
    "_style_kernel_conv_bwd_kernel",
    "_style_kernel_conv_bwd_filter_kernel",
    "_style_kernel_conv_bwd_source_kernel",
    "_fold_kernel",
    "_moments_kernel",
    "_statistics_kernel",
    "_gradient_sums_kernel",
    "_normalize_bwd_kernel",
}


@functools.cache
def compiled(arch: int) -> list[dict]:
    """What :func:`main` found for one architecture."""
    pytest.importorskip("triton", reason="triton is not installed")
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    found = subprocess.run([sys.executable, __file__, str(arch)], env=env, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_kernel_is_compiled(arch: int) -> None:
    assert {found["kernel"] for found in compiled(arch)} == KERNELS


@pytest.mark.parametrize("arch", ARCHS)
def test_no_kernel_spills_or_uses_local_memory(arch: int) -> None:
    spilling = [found for found in compiled(arch) if found["stack"] or found["local"] or found["spills"]]
    assert not spilling


@pytest.mark.parametrize("case", ["k3", "k3-bf16"])
@pytest.mark.parametrize("arch", ARCHS)
def test_streaming_forward_kernel_loads_16_bytes_a_thread(arch: int, case: str) -> None:
    (forward,) = (found for found in compiled(arch) if (found["case"], found["kernel"]) == (case, FORWARD))
    # v and x at the pixel's own column, three rows each; three taps of h; the bias
    assert forward["loads_of_16_bytes"] >= 10
    assert forward["stores_of_16_bytes"] >= 1


def launches(case: str) -> list[tuple]:
    """(kernel, arguments by name, launch options) of one forward and backward pass, none of which runs."""
    import torch
    from stylekern.triton_kernels import style_kernel_conv as op
    from triton.runtime import JITFunction

    recorded = []

    def record(self: JITFunction, *args: object, grid: object, warmup: object, **kwargs: object) -> None:
        options = {"num_warps": kwargs.pop("num_warps", 4)}
        recorded.append((self, dict(zip(self.arg_names, args, strict=False)) | kwargs, options))

    run, JITFunction.run = JITFunction.run, record
    try:
        dtype, k, padding, composition, normalize = CASES[case]
        dtype = getattr(torch, dtype)
        n, c, h, w, margin = 1, 32, 64, 256, k - 1 if padding == "none" else 0
        x = torch.empty(n, c, h + margin, w + margin, dtype=dtype)
        packed = torch.empty(n, c, 2 * k + 1, h, w, dtype=dtype)
        vertical, horizontal, bias = packed[:, :, :k], packed[:, :, k : 2 * k], packed[:, :, 2 * k]
        y, mean, rstd = op.forward(x, vertical, horizontal, bias, padding, composition, normalize, 1e-5, 0)
        op.backward(y, x, vertical, horizontal, mean, rstd, padding, composition, normalize, 0, True, True, True)
    finally:
        JITFunction.run = run
    return recorded


def source(kernel, arguments: dict):
    """The specialisation that a launch with these arguments compiles."""
    import torch
    from triton.compiler import ASTSource

    pointers = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name], aligned = pointers[value.dtype], value.data_ptr() % 16 == 0
        else:
            signature[parameter.name], aligned = "i32" if value < 2**31 else "i64", value % 16 == 0
        if aligned:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, stack and local memory, by the cuobjdump of Triton's wheel."""
    import triton

    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.check_output([cuobjdump, "--dump-resource-usage", file.name], text=True)
    return {name.lower(): int(re.search(rf"\b{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL")}


def main(arch: int) -> None:
    """Prints, as JSON, what became of every kernel that the cases launch."""
    import triton
    from triton.backends.compiler import GPUTarget

    def build(case: str, kernel, arguments: dict, options: dict) -> dict:
        built = triton.compile(source(kernel, arguments), target=GPUTarget("cuda", arch, 32), options=options)
        ptx = built.asm["ptx"]
        return {
            "case": case,
            "kernel": kernel.__name__,
            "spills": getattr(built, "n_spills", None) or 0,  # known once loaded on a GPU; stack and local tell without
            "loads_of_16_bytes": len(re.findall(r"\bld\.global[\w.:]*\.v(?:4\.[bfu]32|2\.[bfu]64)\b", ptx)),
            "stores_of_16_bytes": len(re.findall(r"\bst\.global[\w.:]*\.v(?:4\.[bfu]32|2\.[bfu]64)\b", ptx)),
            **resources(built.asm["cubin"]),
        }

    wanted, seen = [], set()
    for case in CASES:
        for kernel, arguments, options in launches(case):
            wants = source(kernel, arguments)
            key = (kernel.__name__, *map(str, (wants.signature, wants.constants, wants.attrs, options)))
            if key not in seen:
                seen.add(key)
                wanted.append((case, kernel, arguments, options))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        print(json.dumps(list(pool.map(lambda job: build(*job), wanted))))


if __name__ == "__main__":
    main(int(sys.argv[1]))

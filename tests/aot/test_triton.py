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

# name: (the function below that makes its calls, its arguments)
CASES = {
    "conv-k3": ("style_kernel_conv", "float32", 3, "reflect", "sequential", False),
    "conv-k3-bf16": ("style_kernel_conv", "bfloat16", 3, "reflect", "sequential", False),
    "conv-k3-normalize": ("style_kernel_conv", "float32", 3, "reflect", "sequential", True),
    "conv-k3-normalize-bf16": ("style_kernel_conv", "bfloat16", 3, "replicate", "sequential", True),
    "conv-k5": ("style_kernel_conv", "float32", 5, "zeros", "sequential", False),
    "conv-k13": ("style_kernel_conv", "float32", 13, "reflect", "sequential", True),
    "conv-k13-bf16": ("style_kernel_conv", "bfloat16", 13, "replicate", "sequential", False),
    "conv-k3-outer": ("style_kernel_conv", "float32", 3, "replicate", "outer", False),
    "conv-k51-outer": ("style_kernel_conv", "float32", 51, "none", "outer", False),
    "pool": ("wavelet", "float32", "floor", (64, 256)),
    "pool-bf16": ("wavelet", "bfloat16", "floor", (64, 256)),
    "pool-pad": ("wavelet", "float32", "pad", (63, 256)),
    "pool-odd-bf16": ("wavelet", "bfloat16", "pad", (63, 255)),
    "adain": ("adain", "float32", (64, 256)),
    "adain-bf16": ("adain", "bfloat16", (64, 256)),
    "adain-whole": ("adain", "float32", (64, 128)),
    "adain-whole-bf16": ("adain", "bfloat16", (64, 128)),
    "adain-small": ("adain", "float32", (15, 17)),
    "fin": ("factorized_instance_norm", "float32", (64, 256)),
    "fin-bf16": ("factorized_instance_norm", "bfloat16", (64, 256)),
    "fin-whole": ("factorized_instance_norm", "float32", (64, 128)),
    "fin-whole-bf16": ("factorized_instance_norm", "bfloat16", (64, 128)),
    "pool-fp64": ("wavelet", "float64", "pad", (63, 255)),
    "adain-whole-fp64": ("adain", "float64", (64, 64)),
    "fin-whole-fp64": ("factorized_instance_norm", "float64", (64, 64)),
    "adaconv-g8-fp64": ("adaconv", "float64", 4, 32, 3, "reflect", True),
    "adaconv-g1": ("adaconv", "float32", 32, 32, 3, "reflect", True),
    "adaconv-g1-bf16": ("adaconv", "bfloat16", 32, 32, 3, "reflect", True),
    "adaconv-g8": ("adaconv", "float32", 4, 32, 3, "replicate", True),
    "adaconv-g8-bf16": ("adaconv", "bfloat16", 4, 32, 3, "zeros", False),
    "adaconv-co3": ("adaconv", "float32", 1, 3, 3, "reflect", False),
    "adaconv-k4": ("adaconv", "float32", 16, 32, 4, "reflect", True),
    "adaconv-k1": ("adaconv", "float32", 16, 32, 1, "reflect", False),
    "adaconv-k7": ("adaconv", "float32", 8, 32, 7, "zeros", False),
    "cgm": ("cgm_attention", "float32", 512, 512, "none", False),
    "cgm-surrogate": ("cgm_attention", "float32", 512, 512, "straight_through", True),
    "cgm-bf16": ("cgm_attention", "bfloat16", 512, 512, "none", True),
    "cgm-surrogate-bf16": ("cgm_attention", "bfloat16", 512, 512, "straight_through", False),
    "cgm-surrogate-fp16": ("cgm_attention", "float16", 512, 512, "straight_through", True),
    "cgm-fp64": ("cgm_attention", "float64", 64, 64, "straight_through", True),
    "cosine": ("min_distances", "float32", "cosine", 512),
    "cosine-odd": ("min_distances", "float32", "cosine", 2179),
    "cosine-bf16": ("min_distances", "bfloat16", "cosine", 512),
    "cosine-fp64": ("min_distances", "float64", "cosine", 512),
    "euclidean": ("min_distances", "float32", "euclidean", 512),
    "euclidean-bf16": ("min_distances", "bfloat16", "euclidean", 67),
    "euclidean-fp64": ("min_distances", "float64", "euclidean", 512),
    "cosine-palette": ("min_distances", "float32", "cosine", 3),
    "cosine-palette-fp64": ("min_distances", "float64", "cosine", 3),
    "palette": ("min_distances", "float32", "euclidean", 3),
    "palette-fp64": ("min_distances", "float64", "euclidean", 3),
}
KERNELS = {
    kernel
    for path in (Path(__file__).parents[2] / "triton_kernels").glob("*.py")
    for kernel in re.findall(r"^def (_\w+_kernel)\(", path.read_text(), re.MULTILINE)
}
# (cases, kernel): (loads, stores) of 16 bytes, at least
STREAMS = {
    # v and x at the pixel's own column, three rows each; three taps of h; the bias
    (("conv-k3", "conv-k3-bf16"), "_style_kernel_conv_fwd_kernel"): (10, 1),
    (("pool", "pool-bf16", "pool-pad"), "_wavelet_pool_fwd_kernel"): (2, 0),
    (("pool", "pool-bf16", "pool-pad"), "_wavelet_pool_bwd_kernel"): (0, 2),
    (("adain", "adain-bf16", "adain-whole", "adain-whole-bf16"), "_adain_fwd_kernel"): (2, 2),
    (("adain", "adain-bf16", "adain-whole", "adain-whole-bf16"), "_adain_bwd_kernel"): (4, 2),
    (("adain", "adain-bf16"), "_adain_bwd_style_kernel"): (2, 2),
    (("adain", "adain-bf16"), "_moments_kernel"): (4, 0),
    (("adain", "adain-bf16"), "_gradient_sums_kernel"): (8, 0),
    (("fin", "fin-bf16", "fin-whole", "fin-whole-bf16"), "_factorized_instance_norm_fwd_kernel"): (6, 2),
    (("fin", "fin-bf16", "fin-whole", "fin-whole-bf16"), "_factorized_instance_norm_bwd_kernel"): (6, 4),
    (("fin", "fin-bf16"), "_gradient_sums_kernel"): (12, 0),
    (("cgm", "cgm-surrogate"), "_column_factor_kernel"): (4, 6),
    # a row twice, the second time to write its halves three times
    (("cgm", "cgm-surrogate"), "_row_factor_kernel"): (4, 3),
    (("cgm", "cgm-surrogate"), "_tie_kernel"): (4, 6),
    (("cgm", "cgm-bf16", "cgm-surrogate-fp16", "cgm-fp64"), "_finish_kernel"): (2, 1),
    # scores twice, backward three times and g . value too; of weights, a part or three
    (("cgm", "cgm-surrogate"), "_cgm_attention_fwd_kernel"): (4, 3),
    (("cgm-bf16", "cgm-surrogate-fp16", "cgm-fp64"), "_cgm_attention_fwd_kernel"): (4, 1),
    (("cgm", "cgm-surrogate"), "_cgm_attention_bwd_kernel"): (10, 6),
    (("cgm-bf16", "cgm-surrogate-fp16", "cgm-fp64"), "_cgm_attention_bwd_kernel"): (9, 2),
    # three rows of the pixel's own column; of several channels, the rows are in a loop
    (("adaconv-g1", "adaconv-g1-bf16"), "_adaconv_fwd_kernel"): (3, 1),
    (("adaconv-g8",), "_adaconv_fwd_kernel"): (1, 8),
    # a row twice, the second time to write its halves three times
    (("cosine", "euclidean"), "_rows_kernel"): (4, 3),
    (("cosine", "cosine-bf16", "euclidean"), "_minima_kernel"): (8, 0),
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


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream[1])
@pytest.mark.parametrize("arch", ARCHS)
def test_streaming_kernels_access_16_bytes_a_thread(arch: int, stream: tuple[tuple[str, ...], str]) -> None:
    cases, kernel = stream
    loads, stores = STREAMS[stream]
    for case in cases:
        found = [found for found in compiled(arch) if case in found["cases"] and found["kernel"] == kernel]
        assert found, case
        # the first launch of the case
        assert found[0]["loads_of_16_bytes"] >= loads and found[0]["stores_of_16_bytes"] >= stores, case


def style_kernel_conv(dtype, k: int, padding: str, composition: str, normalize: bool) -> None:
    import torch
    from stylekern.triton_kernels import style_kernel_conv as op

    n, c, h, w, margin = 1, 32, 64, 256, k - 1 if padding == "none" else 0
    x = torch.empty(n, c, h + margin, w + margin, dtype=dtype)
    packed = torch.empty(n, c, 2 * k + 1, h, w, dtype=dtype)
    vertical, horizontal, bias = packed[:, :, :k], packed[:, :, k : 2 * k], packed[:, :, 2 * k]
    y, mean, rstd = op.forward(x, vertical, horizontal, bias, padding, composition, normalize, 1e-5, 0)
    op.backward(y, x, vertical, horizontal, mean, rstd, padding, composition, normalize, 0, True, True, True)


def wavelet(dtype, odd: str, size: tuple[int, int]) -> None:
    import torch
    from stylekern.triton_kernels import wavelet_pool, wavelet_unpool

    x = torch.empty(1, 32, *size, dtype=dtype)
    bands = wavelet_pool.forward(x, odd)
    wavelet_pool.backward(*bands, *size, odd)
    if odd == "pad":
        wavelet_unpool.backward(wavelet_unpool.forward(*bands, *size))


def adain(dtype, size: tuple[int, int]) -> None:
    import torch
    from stylekern.triton_kernels import adain as op

    content, style = (torch.empty(1, 32, *size, dtype=dtype) for _ in range(2))
    y, *statistics = op.forward(content, style, 1e-5, 1)
    op.backward(y, content, style, *statistics, 1, True, True)


def factorized_instance_norm(dtype, size: tuple[int, int]) -> None:
    import torch
    from stylekern.triton_kernels import factorized_instance_norm as op

    content, gamma, beta = (torch.empty(1, 32, *size, dtype=dtype) for _ in range(3))
    gamma_ind, beta_ind = (torch.empty(32, dtype=dtype) for _ in range(2))
    y, mean, rstd = op.forward(content, gamma_ind, beta_ind, gamma, beta, 1e-5, 1)
    op.backward(y, content, gamma_ind, beta_ind, gamma, mean, rstd, 1, True, True)


def adaconv(dtype, groups: int, out: int, k: int, padding: str, normalize: bool) -> None:
    import torch
    from stylekern.triton_kernels import adaconv as op

    x = torch.empty(2, 32, 64, 128, dtype=dtype)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    kernel, bias = (torch.empty(*shape, dtype=accumulator) for shape in ((2, out, 32 // groups, k, k), (2, out)))
    y, mean, rstd = op.forward(x, kernel, None, bias, normalize, padding, 1e-5, 0)
    op.backward(y, x, kernel, mean, rstd, normalize, padding, 0, True, True, True)


def cgm_attention(dtype, depth: int, width: int, gate_grad: str, renormalize: bool) -> None:
    import torch
    from stylekern.triton_kernels import cgm_attention as op

    n, lq, lk = 2, 64, 2048  # the library's products do run
    q, k, v = (torch.zeros(n, *shape, dtype=dtype) for shape in ((lq, depth), (lk, depth), (lk, width)))
    gate = torch.empty(n, lq, dtype=dtype)
    options = (10.0, True, gate_grad, 1.0, renormalize, 1e-12)
    y, lse, mass = op.forward(q, k, v, gate, gate, *options)
    op.backward(y, q, k, v, gate, gate, y, lse, mass, *options, *[True] * 4)


def min_distances(dtype, metric: str, d: int) -> None:
    import torch
    from stylekern.triton_kernels import min_distances as op

    x, y = torch.empty(1, 128, d, dtype=dtype), torch.empty(1, 256, d, dtype=dtype)
    row_min, row_argmin, col_min, col_argmin, *found = op.forward(x, y, metric, 1e-12)
    op.backward(row_min, col_min, x, y, row_argmin, col_argmin, *found, metric, 1e-12, True, True)


def launches(case: str) -> list[tuple]:
    """(kernel, arguments by name, launch options) of one forward and backward pass, none of which runs."""
    import torch
    from triton.runtime import JITFunction

    recorded = []

    def record(self: JITFunction, *args: object, grid: object, warmup: object, **kwargs: object) -> None:
        options = {
            name: kwargs.pop(name)
            for name in ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")
            if name in kwargs
        }
        recorded.append((self, dict(zip(self.arg_names, args, strict=False)) | kwargs, options))

    run, JITFunction.run = JITFunction.run, record
    try:
        function, dtype, *arguments = CASES[case]
        globals()[function](getattr(torch, dtype), *arguments)
    finally:
        JITFunction.run = run
    return recorded


def source(kernel, arguments: dict):
    """The specialisation that a launch with these arguments compiles."""
    import torch
    from triton.compiler import ASTSource

    floats = {torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
    pointers = {**floats, torch.int64: "*i64"}
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

    def build(cases: list[str], kernel, arguments: dict, options: dict) -> dict:
        built = triton.compile(source(kernel, arguments), target=GPUTarget("cuda", arch, 32), options=options)
        ptx = built.asm["ptx"]
        return {
            "cases": cases,
            "kernel": kernel.__name__,
            "spills": getattr(built, "n_spills", None) or 0,  # known once loaded on a GPU; stack and local tell without
            "loads_of_16_bytes": len(re.findall(r"\bld\.global[\w.:]*\.v(?:4\.[bfu]32|2\.[bfu]64)\b", ptx)),
            "stores_of_16_bytes": len(re.findall(r"\bst\.global[\w.:]*\.v(?:4\.[bfu]32|2\.[bfu]64)\b", ptx)),
            **resources(built.asm["cubin"]),
        }

    wanted: dict[tuple, tuple] = {}
    for case in CASES:
        for kernel, arguments, options in launches(case):
            wants = source(kernel, arguments)
            key = (kernel.__name__, *map(str, (wants.signature, wants.constants, wants.attrs, options)))
            wanted.setdefault(key, ([], kernel, arguments, options))[0].append(case)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        print(json.dumps(list(pool.map(lambda job: build(*job), wanted.values()))))


if __name__ == "__main__":
    main(int(sys.argv[1]))

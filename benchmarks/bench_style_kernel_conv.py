"""style_kernel_conv at the paper's shapes: relu4_1 features of pictures of 256 to 1024 pixels, 3 taps, normalised."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stylekern import reference
from stylekern.ops import style_kernel_conv

from .kit import DEVICE, copy_of, forward_backward, interleaved


def ours(x: Tensor, vertical: Tensor, horizontal: Tensor, bias: Tensor) -> Tensor:
    return style_kernel_conv(x, vertical, horizontal, bias, normalize=True)


def eager(x: Tensor, vertical: Tensor, horizontal: Tensor, bias: Tensor) -> Tensor:
    return reference.style_kernel_conv(x, vertical, horizontal, bias, normalize=True)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_style_kernel_conv(benchmark: Any, table: list[dict[str, str]], size: int, dtype: torch.dtype, backward: bool):
    torch.manual_seed(0)
    torch._dynamo.reset()
    x = torch.randn(1, 512, size, size, device=DEVICE).to(dtype)
    packed = torch.randn(1, 512, 7, size, size, device=DEVICE).to(dtype)
    tensors = [x, packed[:, :, :3], packed[:, :, 3:6], packed[:, :, 6]]
    compiled = torch.compile(eager, dynamic=False)

    truth = eager(*(t.double() for t in tensors))
    error = (ours(*tensors).double() - truth).norm() / truth.norm()
    assert error < (2e-5 if dtype == torch.float32 else 8e-3)

    if backward:
        upstream = torch.randn_like(x)
        runs = {f.__name__: forward_backward(f, tensors, upstream) for f in (ours, eager)}
        runs["compiled"] = forward_backward(compiled, tensors, upstream)
        values = 9 + 15  # then read g, x, 3 + 3 taps, write 3 + 3 gradients of taps and that of x
    else:
        runs = {
            "ours": lambda: ours(*tensors),
            "eager": lambda: eager(*tensors),
            "compiled": lambda: compiled(*tensors),
        }
        values = 9  # read x, 3 + 3 taps, bias, write y
    size_in_bytes = values * x.numel() * x.element_size()
    with torch.set_grad_enabled(backward):
        seconds = interleaved(runs | {"copy": copy_of(size_in_bytes)})
        benchmark.pedantic(runs["ours"], rounds=5, iterations=3, warmup_rounds=1)
    benchmark.extra_info["median_seconds"] = seconds
    benchmark.extra_info["bytes"] = size_in_bytes
    table.append(
        {
            "shape": f"512x{size}x{size}",
            "dtype": str(dtype).removeprefix("torch."),
            "pass": "fwd+bwd" if backward else "fwd",
            "GB/s": f"{size_in_bytes / seconds['ours'] / 1e9:.1f}",
            "of a copy": f"{seconds['copy'] / seconds['ours']:.2f}",
            "x eager": f"{seconds['eager'] / seconds['ours']:.1f}",
            "x compiled": f"{seconds['compiled'] / seconds['ours']:.1f}",
        }
    )

"""style_kernel_conv at the paper's shapes, relu4_1 features of pictures of 256 to 1024 pixels, 3 taps, normalised; then
at sizes that are no power of two, and with more taps. And as adaptive separable convolution: a picture whose channels
share wide filters.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from stylekern import reference
from stylekern.ops import style_kernel_conv

from .kit import DEVICE, compare


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("taps", "h", "w"), [(3, 32, 32), (3, 64, 64), (3, 128, 128), (3, 45, 67), (5, 45, 67), (5, 64, 64)]
)
def test_style_kernel_conv(
    benchmark: Any, table: list[dict[str, str]], taps: int, h: int, w: int, dtype: torch.dtype, backward: bool
):
    torch.manual_seed(0)
    x = torch.randn(1, 512, h, w, device=DEVICE).to(dtype)
    packed = torch.randn(1, 512, 2 * taps + 1, h, w, device=DEVICE).to(dtype)
    compare(
        benchmark,
        table,
        operator="style_kernel_conv",
        ours=partial(style_kernel_conv, normalize=True),
        eager=partial(reference.style_kernel_conv, normalize=True),
        tensors=[x, packed[:, :, :taps], packed[:, :, taps : 2 * taps], packed[:, :, 2 * taps]],
        backward=backward,
        # read x, taps, bias, write y; then read g, x, taps, write gradients of taps and that of x
        values=((2 * taps + 3) + (4 * taps + 3 if backward else 0)) * x.numel(),
        shape=f"512x{h}x{w}" + (f", {taps} taps" if taps > 3 else ""),
    )


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("taps", "h", "w"), [(11, 512, 512)])
def test_style_kernel_conv_outer(
    benchmark: Any, table: list[dict[str, str]], taps: int, h: int, w: int, dtype: torch.dtype, backward: bool
):
    torch.manual_seed(0)
    x = torch.randn(1, 3, h + taps - 1, w + taps - 1, device=DEVICE).to(dtype)
    vertical, horizontal = (torch.randn(1, 1, taps, h, w, device=DEVICE).to(dtype) for _ in range(2))
    options = {"composition": "outer", "padding_mode": "none"}
    compare(
        benchmark,
        table,
        operator="style_kernel_conv",
        ours=partial(style_kernel_conv, **options),
        eager=partial(reference.style_kernel_conv, **options),
        tensors=[x, vertical, horizontal],
        backward=backward,
        # read x, taps, write y; then read g, x, taps, write gradients of taps and that of x
        values=x.numel() + (2 * taps + 3) * h * w + (2 * x.numel() + (4 * taps + 3) * h * w if backward else 0),
        shape=f"3x{h}x{w}, {taps} taps, outer",
    )

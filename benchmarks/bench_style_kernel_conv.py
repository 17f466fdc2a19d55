"""style_kernel_conv at the paper's shapes: relu4_1 features of pictures of 256 to 1024 pixels, 3 taps, normalised."""

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
@pytest.mark.parametrize("size", [32, 64, 128])
def test_style_kernel_conv(benchmark: Any, table: list[dict[str, str]], size: int, dtype: torch.dtype, backward: bool):
    torch.manual_seed(0)
    x = torch.randn(1, 512, size, size, device=DEVICE).to(dtype)
    packed = torch.randn(1, 512, 7, size, size, device=DEVICE).to(dtype)
    compare(
        benchmark,
        table,
        operator="style_kernel_conv",
        ours=partial(style_kernel_conv, normalize=True),
        eager=partial(reference.style_kernel_conv, normalize=True),
        tensors=[x, packed[:, :, :3], packed[:, :, 3:6], packed[:, :, 6]],
        backward=backward,
        # read x, 3 + 3 taps, bias, write y; then read g, x, 3 + 3 taps, write 3 + 3 gradients of taps and that of x
        values=(9 + 15 if backward else 9) * x.numel(),
        shape=f"512x{size}x{size}",
    )

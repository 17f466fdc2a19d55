"""wavelet_pool where SAFIN pools: after conv1_2, conv2_2 and conv3_4 of a picture of 256 pixels, and an odd size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stylekern import reference
from stylekern.ops import wavelet_pool

from .kit import DEVICE, compare, shape_name

SIGNS = (
    torch.tensor([[1.0, 1, 1, 1], [-1, 1, -1, 1], [-1, -1, 1, 1], [1, -1, -1, 1]], device=DEVICE).view(4, 1, 1, 2, 2)
    / 2
)


def strided(x: Tensor) -> tuple[Tensor, ...]:
    """Four strided depthwise convolutions, as WCT2 and SAFIN have it."""
    c = x.shape[1]
    return tuple(F.conv2d(x, k.to(x).expand(c, -1, -1, -1), stride=2, groups=c) for k in SIGNS)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize(
    "shape",
    [(4, 64, 256, 256), (4, 128, 128, 128), (4, 256, 64, 64), (2, 256, 99, 131), (1, 256, 99, 131)],
    ids=shape_name,
)
def test_wavelet_pool(benchmark: Any, table: list[dict[str, str]], shape: tuple[int, ...], backward: bool):
    torch.manual_seed(0)
    x = torch.randn(shape, device=DEVICE)
    compare(
        benchmark,
        table,
        operator="wavelet_pool",
        ours=wavelet_pool,
        eager=reference.wavelet_pool,
        others={"strided": strided},
        tensors=[x],
        backward=backward,
        values=(4 if backward else 2) * x.numel(),  # read x, write the bands; then the same of their gradients
        shape=shape_name(shape),
    )

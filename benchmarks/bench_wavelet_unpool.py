"""wavelet_unpool where SAFIN unpools: before conv3, conv2 and conv1 of the mirrored decoder, and an odd size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stylekern import reference
from stylekern.ops import wavelet_unpool

from .bench_wavelet_pool import SIGNS
from .kit import DEVICE, compare, shape_name


def strided(*bands: Tensor) -> Tensor:
    """Four strided depthwise transposed convolutions, as WCT2 and SAFIN have it."""
    c = bands[0].shape[1]
    kernels = (k.to(bands[0]).expand(c, -1, -1, -1) for k in SIGNS)
    return sum(F.conv_transpose2d(x, k, stride=2, groups=c) for x, k in zip(bands, kernels, strict=True))


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize(
    "shape", [(4, 256, 32, 32), (4, 128, 64, 64), (4, 64, 128, 128), (2, 256, 49, 65), (1, 256, 49, 65)], ids=shape_name
)
def test_wavelet_unpool(benchmark: Any, table: list[dict[str, str]], shape: tuple[int, ...], backward: bool):
    torch.manual_seed(0)
    bands = [torch.randn(shape, device=DEVICE) for _ in range(4)]
    compare(
        benchmark,
        table,
        operator="wavelet_unpool",
        ours=wavelet_unpool,
        eager=reference.wavelet_unpool,
        others={"strided": strided},
        tensors=bands,
        backward=backward,
        values=(16 if backward else 8) * bands[0].numel(),  # read the bands, write x; then the same of the gradients
        shape=shape_name(shape),
    )

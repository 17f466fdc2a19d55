"""adain at relu4_1 to relu1_1 of pictures of 256 pixels, batches of 8 and 1, odd sizes, and planes of 8 x 8."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stylekern import reference
from stylekern.ops import adain

from .kit import DEVICE, compare, shape_name


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize(
    "shape",
    [(8, 512, 32, 32), (8, 256, 64, 64), (1, 64, 256, 256), (4, 512, 45, 67), (1, 512, 45, 67), (8, 512, 8, 8)],
    ids=shape_name,
)
def test_adain(benchmark: Any, table: list[dict[str, str]], shape: tuple[int, ...], backward: bool):
    torch.manual_seed(0)
    content, style = torch.randn(shape, device=DEVICE), 2 * torch.randn(shape, device=DEVICE) + 1
    compare(
        benchmark,
        table,
        operator="adain",
        ours=adain,
        eager=reference.adain,
        tensors=[content, style],
        backward=backward,
        # read content and style, write y; then read g, content, style, write two gradients
        values=(3 + 5 if backward else 3) * content.numel(),
        shape=shape_name(shape),
    )

"""factorized_instance_norm where SAFIN has it, 512 and 256 channels, at sizes that are no power of two, on 8 x 8."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stylekern import reference
from stylekern.ops import factorized_instance_norm

from .kit import DEVICE, compare, shape_name


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize(
    "shape",
    [(8, 512, 32, 32), (8, 256, 64, 64), (1, 512, 64, 64), (4, 512, 45, 67), (1, 512, 45, 67), (8, 512, 8, 8)],
    ids=shape_name,
)
def test_factorized_instance_norm(benchmark: Any, table: list[dict[str, str]], shape: tuple[int, ...], backward: bool):
    torch.manual_seed(0)
    content, gamma_style, beta_style = (torch.randn(shape, device=DEVICE) for _ in range(3))
    gamma_ind, beta_ind = (torch.randn(shape[1], device=DEVICE) for _ in range(2))
    compare(
        benchmark,
        table,
        operator="factorized_instance_norm",
        ours=factorized_instance_norm,
        eager=reference.factorized_instance_norm,
        tensors=[content, gamma_ind, beta_ind, gamma_style, beta_style],
        backward=backward,
        # read content, gamma_style and beta_style, write y; then read g, content, gamma_style, write two gradients
        values=(4 + 5 if backward else 4) * content.numel(),
        shape=shape_name(shape),
    )

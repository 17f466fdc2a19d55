"""remd at STROTSS's size (1024 samples of a picture, 5 x 1000 of a style), relu4_1 of 512 pixels, an odd size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stylekern.ops import remd

from .kit import DEVICE, compare


def dense_distances(x: Tensor, y: Tensor) -> Tensor:
    return 1 - F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).mT


def dense(x: Tensor, y: Tensor) -> Tensor:
    """The formula as it is written: the matrix of distances, twice reduced."""
    d = dense_distances(x, y)
    return torch.maximum(d.min(2).values.mean(1), d.min(1).values.mean(1)).mean()


def product(x: Tensor, y: Tensor) -> Tensor:
    """The floor: a bare matrix product."""
    return x @ y.mT


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize(("rows", "columns", "d"), [(1024, 5000, 2179), (4096, 4096, 512), (1999, 3001, 387)])
def test_remd(benchmark: Any, table: list[dict[str, str]], rows: int, columns: int, d: int, backward: bool):
    torch.manual_seed(0)
    x, y = torch.randn(1, rows, d, device=DEVICE), torch.randn(1, columns, d, device=DEVICE)
    compare(
        benchmark,
        table,
        operator="remd",
        ours=remd,
        eager=dense,
        others={} if backward else {"product": product},  # whose gradient is two more products
        tensors=[x, y],
        backward=backward,
        # read x and y; then read them again, write two gradients
        values=(3 if backward else 1) * (x.numel() + y.numel()),
        shape=f"{rows}x{columns}x{d}",
    )

"""min_distances of the features of two pictures, forward and through both minima; and of a batch of small ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stylekern.ops import min_distances

from .bench_remd import dense_distances, product
from .kit import DEVICE, compare


def ours(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    found = min_distances(x, y)
    return found.row_min, found.col_min


def dense(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    d = dense_distances(x, y)
    return d.min(2).values, d.min(1).values


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize(("n", "rows", "columns", "d"), [(1, 1024, 5000, 2179), (1, 4096, 4096, 512), (8, 64, 64, 512)])
def test_min_distances(
    benchmark: Any, table: list[dict[str, str]], n: int, rows: int, columns: int, d: int, backward: bool
):
    torch.manual_seed(0)
    x, y = torch.randn(n, rows, d, device=DEVICE), torch.randn(n, columns, d, device=DEVICE)
    compare(
        benchmark,
        table,
        operator="min_distances",
        ours=ours,
        eager=dense,
        others={} if backward else {"product": product},
        tensors=[x, y],
        backward=backward,
        # read x and y; then read them again, write two gradients
        values=(3 if backward else 1) * (x.numel() + y.numel()),
        shape=(f"{n}x" if n > 1 else "") + f"{rows}x{columns}x{d}",
    )

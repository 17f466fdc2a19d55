"""The relaxed earth mover's distance of feature maps, against the matrix of distances."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stylekern.losses import REMDLoss
from tests.losses.common import assert_equal


def dense(x: Tensor, y: Tensor, metric: str) -> float:
    """STROTSS, eq. 5, of two lists of positions [C, L] and [C, M]."""
    rows, cols = x.T.tolist(), y.T.tolist()

    def distance(a: list[float], b: list[float]) -> float:
        if metric == "euclidean":
            return math.sqrt(sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / len(a))
        return 1 - sum(p * q for p, q in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    d = [[distance(a, b) for b in cols] for a in rows]
    to_style = sum(min(row) for row in d) / len(rows)
    return max(to_style, sum(min(row[j] for row in d) for j in range(len(cols))) / len(cols))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("sizes", [((4, 5), (4, 5)), ((3, 7), (2, 2)), ((1, 2), (6, 5))], ids=str)
def test_it_is_equation_5(metric: str, sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    x, y = (torch.randn(2, 6, *size, dtype=torch.float64) for size in sizes)
    truth = sum(dense(a.flatten(1), b.flatten(1), metric) for a, b in zip(x, y, strict=True)) / 2
    assert math.isclose(REMDLoss(metric).between(x, y).item(), truth, rel_tol=1e-9)


@pytest.mark.parametrize(
    ("limit", "rows", "columns"),
    [
        (None, range(0, 6), range(0, 8)),
        (48, range(0, 6), range(0, 8)),
        (47, range(0, 6, 2), range(0, 8, 2)),
        (12, range(0, 6, 2), range(0, 8, 2)),
        (11, range(1, 6, 3), range(1, 8, 3)),
        (1, range(2, 6, 6), range(2, 8, 6)),
    ],
)
def test_fewer_positions_lie_on_a_regular_grid(limit: int | None, rows: range, columns: range) -> None:
    x = torch.randn(1, 5, 6, 8)
    (kept,) = REMDLoss(max_positions=limit).target(x)
    assert torch.equal(kept, x[:, :, rows][..., columns])
    assert kept.shape[2] * kept.shape[3] <= (limit or 48)
    assert kept.untyped_storage().nbytes() == 4 * kept.numel()  # not a view, which keeps all positions alive
    y = torch.randn(1, 5, 6, 8)
    given = REMDLoss(max_positions=limit).between(x, y)
    assert_equal(given, REMDLoss().between(x[:, :, rows][..., columns], y[:, :, rows][..., columns]))


def test_a_narrow_map_keeps_a_row() -> None:
    (kept,) = REMDLoss(max_positions=2).target(torch.rand(1, 2, 1, 40))
    assert kept.shape[2] == 1 and 1 <= kept.shape[3] <= 2


def test_options_that_are_unknown_are_refused() -> None:
    with pytest.raises(ValueError, match="REMDLoss: metric must be one of cosine, euclidean, got 'l1'"):
        REMDLoss("l1")
    with pytest.raises(TypeError, match=r"max_positions must be an integer or None, got 2\.5"):
        REMDLoss(max_positions=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_positions must be at least 1, or None for all, got 0"):
        REMDLoss(max_positions=0)

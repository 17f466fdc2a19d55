"""Self-similarity, by loops over pairs of positions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stylekern.losses import SelfSimilarityLoss
from tests.losses.common import assert_equal
from tests.ops.cases import relative_error


def matrix(x: Tensor) -> list[list[float]]:
    """Cosine distances of one sample's positions, each column divided by its sum."""
    rows = x.flatten(1).T.tolist()
    d = [
        [1 - sum(p * q for p, q in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b) for b in rows]
        for a in rows
    ]
    sums = [sum(d[i][j] for i in range(len(rows))) for j in range(len(rows))]
    return [[d[i][j] / sums[j] for j in range(len(rows))] for i in range(len(rows))]


@pytest.mark.parametrize("reduction", ["mean", "columns"])
def test_it_is_the_equation_of_strotss(reduction: str) -> None:
    x, y = torch.randn(2, 5, 3, 4, dtype=torch.float64), torch.randn(2, 7, 3, 4, dtype=torch.float64)
    truth = 0.0
    for n in range(2):
        own, other = matrix(x[n]), matrix(y[n])
        total = sum(abs(own[i][j] - other[i][j]) for i in range(12) for j in range(12))
        truth += total / (144 if reduction == "mean" else 12) / 2
    loss = SelfSimilarityLoss(reduction=reduction)
    assert math.isclose(loss.between(x, y).item(), truth, rel_tol=1e-9)
    assert relative_error(loss.between(x.float(), y.float()), torch.tensor(truth)) < 1e-5


def test_a_limit_takes_the_same_grid_of_both() -> None:
    x, y = torch.randn(2, 1, 5, 6, 8, dtype=torch.float64)
    given = SelfSimilarityLoss(max_positions=12).between(x, y)
    truth = SelfSimilarityLoss(max_positions=None).between(x[..., ::2, ::2], y[..., ::2, ::2])
    assert_equal(given, truth)
    (kept,) = SelfSimilarityLoss().target(torch.rand(1, 2, 70, 70))
    assert kept.shape[1] <= 1024


def test_scale_of_positions_does_not_matter() -> None:
    x, y = torch.randn(2, 1, 5, 3, 4, dtype=torch.float64)
    scaled = x * torch.rand(1, 1, 3, 4, dtype=torch.float64).add(0.1)
    assert_equal(SelfSimilarityLoss().between(scaled, y), SelfSimilarityLoss().between(x, y))


def test_rounding_in_a_blank_picture_is_no_structure() -> None:
    (kept,) = SelfSimilarityLoss().target(0.3 + 1e-5 * torch.randn(1, 5, 3, 4))
    assert kept.abs().sum(1).max() < 0.5  # a column of distances has sum 1


def test_a_blank_picture_and_zero_positions_have_finite_gradients() -> None:
    y = torch.randn(1, 5, 3, 4)
    blank = torch.full((1, 5, 3, 4), 0.3, requires_grad=True)
    zero = torch.randn(1, 5, 3, 4)
    zero[..., 1, 1] = 0
    zero.requires_grad_()
    for x in (blank, zero):
        value = SelfSimilarityLoss(reduction="columns").between(x, y)
        (gradient,) = torch.autograd.grad(value, x)
        assert 0 <= value <= 2
        assert gradient.isfinite().all()
    assert gradient.abs().max() < 10  # not 1 over the least norm


def test_maps_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="same positions, got grids of 3 x 4 and 4 x 3; resize one of the pictures"):
        SelfSimilarityLoss().between(torch.rand(1, 5, 3, 4), torch.rand(1, 5, 4, 3))
    with pytest.raises(ValueError, match="max_positions must be at least 1, or None for all, got -1"):
        SelfSimilarityLoss(max_positions=-1)
    with pytest.raises(ValueError, match="reduction must be one of mean, columns, got 'sum'"):
        SelfSimilarityLoss(reduction="sum")

"""Losses of moments are the papers' equations, entry by entry."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stylekern.losses import MeanStdLoss, MomentMatchingLoss
from tests.losses.common import assert_equal


def moments(x: Tensor, guide: Tensor, *, unbiased: bool) -> tuple[list[float], list[list[float]]]:
    """Weighted mean and covariance of one sample's channels, by loops over lists."""
    rows, weights = x.flatten(1).tolist(), guide.flatten().tolist()
    total = math.fsum(weights)
    divisor = total - math.fsum(w * w for w in weights) / total if unbiased else total
    mean = [math.fsum(w * v for w, v in zip(weights, row, strict=True)) / total for row in rows]
    covariance = [
        [
            math.fsum(w * (a - p) * (b - q) for w, a, b in zip(weights, one, two, strict=True)) / divisor
            for two, q in zip(rows, mean, strict=True)
        ]
        for one, p in zip(rows, mean, strict=True)
    ]
    return mean, covariance


@pytest.fixture(params=[False, True], ids=["whole", "guided"])
def pictures(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    x, y = torch.randn(1, 3, 4, 5, dtype=torch.float64), 2 * torch.randn(1, 3, 6, 2, dtype=torch.float64) + 1
    if not request.param:
        return x, y, None, None
    return x, y, torch.rand(1, 1, 4, 5, dtype=torch.float64), torch.rand(1, 1, 6, 2, dtype=torch.float64)


Pictures = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


@pytest.mark.parametrize("kind", ["euclidean", "mse"])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_mean_and_deviation(pictures: Pictures, kind: str, eps: float) -> None:
    x, y, g, h = pictures
    sides = [moments(f[0], torch.ones_like(f[0, 0]) if w is None else w, unbiased=True) for f, w in ((x, g), (y, h))]
    means = [(a - b) ** 2 for a, b in zip(sides[0][0], sides[1][0], strict=True)]
    deviations = [(math.sqrt(sides[0][1][c][c] + eps) - math.sqrt(sides[1][1][c][c] + eps)) ** 2 for c in range(3)]
    norms = math.sqrt(sum(means)) + math.sqrt(sum(deviations))
    truth = norms if kind == "euclidean" else (sum(means) + sum(deviations)) / 3
    assert math.isclose(MeanStdLoss(kind, eps=eps).between(x, y, g, h).item(), truth, rel_tol=1e-10)


def test_moment_matching(pictures: Pictures) -> None:
    x, y, g, h = pictures
    (mean, covariance), (other_mean, other_covariance) = (
        moments(f[0], torch.ones_like(f[0, 0]) if w is None else w, unbiased=False) for f, w in ((x, g), (y, h))
    )
    truth = sum(abs(a - b) for a, b in zip(mean, other_mean, strict=True)) / 3
    truth += sum(abs(covariance[c][d] - other_covariance[c][d]) for c in range(3) for d in range(3)) / 9
    assert math.isclose(MomentMatchingLoss().between(x, y, g, h).item(), truth, rel_tol=1e-10)


def test_a_constant_channel_has_a_finite_gradient() -> None:
    x = torch.ones(1, 2, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(MeanStdLoss().between(x, torch.randn(1, 2, 3, 3)), x)
    assert gradient.isfinite().all() and (gradient != 0).all()


def test_large_means_do_not_cost_the_deviation_its_digits() -> None:
    x = torch.randn(1, 2, 32, 32) + 1000
    guide = torch.ones(1, 1, 32, 32)
    truth = x.double().std((2, 3))
    for kept in (MeanStdLoss().target(x), MeanStdLoss().target(x, guide)):
        torch.testing.assert_close(kept[1].double(), truth, rtol=1e-4, atol=0)


def test_a_region_of_one_position_has_no_deviation() -> None:
    x, guide = torch.randn(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    guide[..., 1, 2] = 0.3
    mean, deviation = MeanStdLoss().target(x, guide)
    assert_equal(mean, x[:, :, 1, 2])
    torch.testing.assert_close(deviation, torch.full_like(deviation, 1e-5**0.5), rtol=1e-3, atol=0)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"variance of one position is not defined, got features \[1, 3, 1, 1\]"):
        MeanStdLoss().target(torch.rand(1, 3, 1, 1))
    for eps in (0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"eps must be positive and finite, got {eps}"):
            MeanStdLoss(eps=eps)
    with pytest.raises(TypeError, match="eps must be a number, got str"):
        MeanStdLoss(eps="1e-5")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kind must be one of euclidean, mse, got 'l1'"):
        MeanStdLoss("l1")

"""Content losses are the papers' equations, and can start where both features are equal."""

from __future__ import annotations

import math

import pytest
import torch

from stylekern.losses import ContentLoss

KINDS = ["mse", "chw", "sum", "half", "euclidean", "relative"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guided", [False, True], ids=["whole", "guided"])
def test_each_kind_is_its_equation(kind: str, guided: bool) -> None:
    x, y = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    guide = torch.rand(2, 1, 4, 5, dtype=torch.float64) if guided else None
    total = 0.0
    for n in range(2):
        weights = torch.ones(4, 5, dtype=torch.float64) if guide is None else guide[n, 0]
        square = sum(
            (weights[i, j] * (x[n, c, i, j] - y[n, c, i, j]) ** 2).item()
            for c in range(3)
            for i in range(4)
            for j in range(5)
        )
        mean = square / (3 * weights.sum().item())
        size = sum((weights * y[n, c] ** 2).sum().item() for c in range(3))
        kinds = {"mse": mean, "chw": mean, "sum": square, "half": square / 2, "euclidean": math.sqrt(square)}
        total += (kinds | {"relative": square / size})[kind]
    assert math.isclose(ContentLoss(kind).between(x, y, guide).item(), total / 2, rel_tol=1e-12)


def test_the_norm_has_a_gradient_of_zero_at_equal_features_and_the_right_one_elsewhere() -> None:
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    y = x.detach().clone()
    y[1] += 1e-3
    (gradient,) = torch.autograd.grad(ContentLoss("euclidean").between(x, y), x)
    assert (gradient[0] == 0).all()
    torch.testing.assert_close(gradient[1], torch.full_like(gradient[1], -0.5 / 60**0.5), rtol=1e-3, atol=0)


def test_maps_of_two_sizes_and_guides_of_a_target_are_refused() -> None:
    loss, x = ContentLoss(), torch.rand(1, 3, 4, 5)
    with pytest.raises(ValueError, match=r"of the target's size \[1, 3, 4, 6\], got \[1, 3, 4, 5\]; resize one of"):
        loss.between(x, torch.rand(1, 3, 4, 6))
    with pytest.raises(ValueError, match=r"ContentLoss: a target takes no guide; give forward\(\) one"):
        loss.target(x, torch.ones(1, 1, 4, 5))
    with pytest.raises(ValueError, match="kind must be one of mse, chw, sum, half, euclidean, relative, got 'l2'"):
        ContentLoss("l2")

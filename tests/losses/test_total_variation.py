"""Total variation, by loops over neighbours."""

from __future__ import annotations

import math

import pytest
import torch

from stylekern.losses import total_variation
from tests.losses.common import assert_equal


@pytest.mark.parametrize("power", [1, 1.5, 2])
def test_it_is_the_mean_of_differences_down_and_across(power: float) -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    v = x.tolist()
    down = [
        abs(v[n][c][i + 1][j] - v[n][c][i][j]) ** power
        for n in range(2)
        for c in range(3)
        for i in range(3)
        for j in range(5)
    ]
    across = [
        abs(v[n][c][i][j + 1] - v[n][c][i][j]) ** power
        for n in range(2)
        for c in range(3)
        for i in range(4)
        for j in range(4)
    ]
    truth = sum(down) / len(down) + sum(across) / len(across)
    assert math.isclose(total_variation(x, power).item(), truth, rel_tol=1e-12)
    assert torch.autograd.gradcheck(lambda images: total_variation(images, power), x.requires_grad_())


def test_two_is_the_default_and_16_bits_are_float32() -> None:
    x = torch.rand(1, 3, 8, 8).half()
    given = total_variation(x)
    assert given.dtype == torch.float32
    assert_equal(given, total_variation(x.double(), 2).float())


def test_pixels_without_neighbours_add_nothing() -> None:
    x = torch.rand(1, 3, 1, 6)
    assert_equal(total_variation(x), (x[..., 1:] - x[..., :-1]).square().mean())
    assert total_variation(torch.rand(1, 3, 1, 1)) == 0


@pytest.mark.parametrize("power", [1, 1.5, 2])
def test_equal_pixels_have_a_gradient_of_zero(power: float) -> None:
    x = torch.ones(1, 3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(total_variation(x, power), x)
    assert (gradient == 0).all()


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="power must be at least 1 and finite, got inf"):
        total_variation(torch.rand(1, 3, 4, 4), float("inf"))
    with pytest.raises(ValueError, match=r"power must be at least 1 and finite, got 0\.5"):
        total_variation(torch.rand(1, 3, 4, 4), 0.5)
    with pytest.raises(ValueError, match=r"images must be \[N, C, h, w\], none of them 0, got \[3, 4, 4\]"):
        total_variation(torch.rand(3, 4, 4))

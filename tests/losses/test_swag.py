"""Activation smoothing: the four transformations, and equations 13 and 14 written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stylekern.losses import ContentLoss, GramLoss, Smoothed, smooth
from tests.losses.common import assert_equal

FORMULAS = {
    "softmax": lambda x: x.exp() / x.exp().sum(1, keepdim=True),
    "softmax-all": lambda x: x.exp() / x.exp().sum((1, 2, 3), keepdim=True),
    "tanh": lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
    "softsign": lambda x: x / (1 + x.abs()),
    "scale": lambda x: x / 1000,
}


def options(name: str) -> dict[str, Any]:
    return {"kind": "softmax", "over": "all"} if name == "softmax-all" else {"kind": name}


@pytest.mark.parametrize("name", FORMULAS)
def test_each_smoothing_is_its_formula(name: str) -> None:
    x = 3 * torch.randn(2, 5, 4, 3, dtype=torch.float64)
    assert_equal(smooth(x, **options(name)), FORMULAS[name](x))
    half = smooth(x.half(), **options(name))
    assert half.dtype == torch.float32
    assert_equal(half, FORMULAS[name](x.half().double()).float())


@pytest.mark.parametrize("name", FORMULAS)
def test_equation_13(name: str) -> None:
    x, y = torch.randn(2, 1, 5, 4, 3, dtype=torch.float64)
    truth = (FORMULAS[name](x) - FORMULAS[name](y)).square().sum() / 2
    assert_equal(Smoothed(ContentLoss("half"), **options(name)).between(x, y), truth)


@pytest.mark.parametrize("name", FORMULAS)
def test_equation_14(name: str) -> None:
    x, y = torch.randn(2, 1, 5, 4, 3, dtype=torch.float64)

    def gram(features: Tensor) -> Tensor:
        return torch.einsum("chw,dhw->cd", FORMULAS[name](features)[0], FORMULAS[name](features)[0])

    truth = (gram(x) - gram(y)).square().sum() / (4 * 5**2 * (4 * 3) ** 2)
    assert_equal(Smoothed(GramLoss("gatys"), **options(name)).between(x, y), truth)


def test_large_activations_do_not_overflow() -> None:
    x = 1e4 * torch.randn(1, 5, 4, 3)
    for name in FORMULAS:
        assert smooth(x, **options(name)).isfinite().all()


def test_the_scale_is_an_option() -> None:
    x, y = torch.randn(2, 1, 5, 4, 3, dtype=torch.float64)
    given = Smoothed(ContentLoss("sum"), "scale", scale=0.5).between(x, y)
    assert_equal(given, ContentLoss("sum").between(x, y) / 4)


def test_unknown_options_and_losses_are_refused() -> None:
    with pytest.raises(ValueError, match="Smoothed: kind must be one of softmax, tanh, softsign, scale, got 'relu'"):
        Smoothed(GramLoss(), "relu")
    with pytest.raises(ValueError, match="Smoothed: over must be one of channels, all, got 'positions'"):
        Smoothed(GramLoss(), over="positions")
    with pytest.raises(ValueError, match="smooth: over must be one of channels, all, got 'positions'"):
        smooth(torch.rand(1, 2, 3, 4), over="positions")
    with pytest.raises(TypeError, match=r"loss must be a FeatureLoss such as GramLoss\(\), got MSELoss"):
        Smoothed(torch.nn.MSELoss())  # type: ignore[arg-type]

"""Gram losses are the papers' equations, written out in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stylekern.losses import GramLoss, gram_matrix
from tests.losses.common import assert_equal
from tests.ops.cases import relative_error


def gram_of(x: Tensor) -> Tensor:
    """One sample's, entry by entry: equation 3."""
    c = x.shape[0]
    return torch.stack([torch.stack([(x[i] * x[j]).sum() for j in range(c)]) for i in range(c)])


@pytest.mark.parametrize("normalize", ["none", "chw"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_gram_matrix_is_equations_3_and_6(normalize: str, dtype: torch.dtype) -> None:
    x = torch.randn(2, 5, 7, 3).to(dtype)
    truth = torch.stack([gram_of(sample) for sample in x.double()]) / (1 if normalize == "none" else 5 * 7 * 3)
    given = gram_matrix(x, normalize)
    assert given.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert relative_error(given, truth) < 1e-6


def test_gram_matrix_does_not_overflow_float16() -> None:
    x = torch.full((1, 2, 64, 64), 30.0, dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (gram_matrix(x, "none") == 900 * 4096).all()


def test_the_raw_loss_is_equation_4() -> None:
    x, y = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    truth = sum((gram_of(a) - gram_of(b)).square().sum() for a, b in zip(x, y, strict=True)) / 3
    assert_equal(GramLoss("none").between(x, y), truth)


def test_the_loss_of_johnson_is_equation_7_for_pictures_of_two_sizes() -> None:
    x, y = torch.randn(1, 4, 5, 6, dtype=torch.float64), torch.randn(1, 4, 3, 8, dtype=torch.float64)
    truth = (gram_of(x[0]) / (4 * 5 * 6) - gram_of(y[0]) / (4 * 3 * 8)).square().sum()
    assert_equal(GramLoss().between(x, y), truth)
    assert_equal(GramLoss("chw").between(x, y), truth)


def test_the_loss_of_gatys_is_equation_14_for_pictures_of_one_size() -> None:
    x, y = torch.randn(2, 1, 4, 5, 6, dtype=torch.float64)
    truth = (gram_of(x[0]) - gram_of(y[0])).square().sum() / (4 * 4**2 * (5 * 6) ** 2)
    assert_equal(GramLoss("gatys").between(x, y), truth)
    assert_equal(GramLoss("gatys").between(x, y), GramLoss("chw").between(x, y) / 4)


def test_the_loss_of_gatys_divides_each_matrix_by_its_own_positions() -> None:
    x, y = torch.randn(1, 4, 5, 6, dtype=torch.float64), torch.randn(1, 4, 3, 8, dtype=torch.float64)
    truth = (gram_of(x[0]) / 30 - gram_of(y[0]) / 24).square().sum() / (4 * 4**2)
    assert_equal(GramLoss("gatys").between(x, y), truth)


def test_the_relative_loss_does_not_depend_on_the_features_scale() -> None:
    x, y = torch.randn(1, 4, 5, 6, dtype=torch.float64), torch.randn(1, 4, 3, 8, dtype=torch.float64)
    style = gram_of(y[0]) / (4 * 24)
    truth = (gram_of(x[0]) / (4 * 30) - style).square().sum() / style.square().sum()
    loss = GramLoss("relative")
    assert_equal(loss.between(x, y), truth)
    assert_equal(loss.between(1e3 * x, 1e3 * y), truth)
    assert_equal(loss.between(0 * x, y), torch.ones((), dtype=torch.float64))
    assert_equal(loss.between(0 * x, 0 * y), torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("normalize", ["none", "chw", "gatys"])
def test_a_guide_weighs_the_products_of_positions(normalize: str) -> None:
    x, y = torch.randn(2, 1, 4, 3, 5, dtype=torch.float64)
    g, h = torch.rand(2, 1, 1, 3, 5, dtype=torch.float64)
    grams = []
    for features, guide in ((x, g), (y, h)):
        gram = torch.einsum("cp,dp,p->cd", features[0].flatten(1), features[0].flatten(1), guide.flatten())
        grams.append(gram / {"none": 1.0, "chw": 4 * guide.sum(), "gatys": 2 * 4 * guide.sum()}[normalize])
    truth = (grams[0] - grams[1]).square().sum()
    assert_equal(GramLoss(normalize).between(x, y, g, h), truth)


def test_what_is_kept_does_not_grow_with_the_picture() -> None:
    (kept,) = GramLoss().target(torch.randn(2, 4, 30, 40))
    assert kept.shape == (2, 4, 4)


def test_options_and_features_that_are_unknown_are_refused() -> None:
    with pytest.raises(ValueError, match="GramLoss: normalize must be one of none, chw, gatys, relative, got 'hw'"):
        GramLoss("hw")
    with pytest.raises(ValueError, match="gram_matrix: normalize must be one of none, chw, got 'gatys'"):
        gram_matrix(torch.rand(1, 2, 3, 4), "gatys")
    with pytest.raises(ValueError, match=r"gram_matrix: x must be \[N, C, h, w\], none of them 0, got \[2, 3, 4\]"):
        gram_matrix(torch.rand(2, 3, 4))

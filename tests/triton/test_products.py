"""Products of float16 halves keep float32's digits, in the interpreter."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from stylekern.triton_kernels._products import column_factor, product, row_factor, tied

from ..ops.cases import relative_error


def multiplied(x: torch.Tensor, y: torch.Tensor, dim: int) -> torch.Tensor:
    """x @ y^T, of which y is a factor by its rows, or by its columns as y^T."""
    a = row_factor(x)
    if dim == 2:
        b = row_factor(y, second=True)
        result = product(a.factor, b.factor.mT) * b.scale.unsqueeze(1)
    else:
        b, inverse = column_factor(y.mT, a.factor.shape[2] // (3 if x.dtype == torch.float32 else 1))
        result = product(a.factor, b)[..., : y.shape[1]]
        result = result if inverse is None else result * inverse.unsqueeze(1)
    return result * a.scale.unsqueeze(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("depth", [1, 8, 77])
def test_products_are_those_of_float64(depth: int, dim: int, dtype: torch.dtype) -> None:
    x, y = (torch.randn(2, length, depth).to(dtype) for length in (5, 19))
    exact = x.double() @ y.double().mT
    assert relative_error(multiplied(x, y, dim), exact) < (1e-14 if dtype == torch.float64 else 1e-6)


def test_each_row_and_column_has_its_own_scale() -> None:
    x, y = torch.randn(1, 6, 40), torch.randn(1, 7, 40)
    for tensor in (x, y):
        tensor *= torch.logspace(-30, 30, tensor.shape[1]).view(1, -1, 1).pow(0.6)
    x[0, 2] = 0
    given, exact = multiplied(x, y, 2), x.double() @ y.double().mT
    error = (given - exact).abs() / (x.double().norm(dim=2)[:, :, None] * y.double().norm(dim=2)[:, None]).clamp_min(
        1e-90
    )
    assert error.max() < 1e-6


def test_values_that_are_not_finite_stay_in_their_row() -> None:
    x, y = torch.randn(1, 4, 9), torch.randn(1, 5, 9)
    x[0, 1, 3], x[0, 2, 0] = torch.inf, torch.nan
    finite = multiplied(x, y, 2).isfinite()
    assert finite[0, [0, 3]].all() and not finite[0, 1:3].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_factor_tied_to_another_one_takes_its_rows_scales(dtype: torch.dtype) -> None:
    """Sums over rows, of which the first factor has a scale each."""
    x, y = torch.randn(2, 21, 8), torch.randn(2, 21, 11).to(dtype)
    x *= torch.logspace(-20, 5, 21).view(1, -1, 1)
    y[1, 3] = 0
    if dtype == torch.float32:
        first, weight, *_ = row_factor(x)
        first = first.view(2, 63, 8)
    else:
        weight = torch.exp2(x.abs().amax(2).log2().ceil() - 15)
        first = (x / weight.unsqueeze(2)).half()
        x = first.float() * weight.unsqueeze(2)
    second, inverse = tied(y, weight, row_factor(y).peak)
    given = product(first.mT, second)[..., :11] * inverse.view(2, 1, 1)
    exact = x.double().mT @ y.double()
    assert all(relative_error(given[n], exact[n]) < (1e-6 if dtype == torch.float32 else 1e-3) for n in range(2))


def test_autocast_leaves_factors_their_type() -> None:
    x, y = row_factor(torch.ones(1, 1, 8) * 1.001).factor, row_factor(torch.ones(1, 1, 8), second=True).factor
    plain = product(x, y.mT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(product(x, y.mT), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_numbers_of_rows(dtype: torch.dtype) -> None:
    """1 / max(|x|, eps), what alpha and halves add to that, its mantissa and power of two, and the largest |x|."""
    x = torch.randn(2, 5, 11).to(dtype)
    x[0, 1] = 0
    x[1, 2, 3], x[1, 3, 4] = torch.inf, torch.nan
    rows, sums = row_factor(x, rows=8, eps=0.25, alpha=0.1), torch.float64 if dtype == torch.float64 else torch.float32
    norm, close = x.to(sums).norm(dim=2), {"rtol": 4 * torch.finfo(sums).eps, "atol": 0, "equal_nan": True}
    torch.testing.assert_close(rows.rnorm[:, :5], 1 / torch.where(norm < 0.25, 0.25, norm), **close)
    torch.testing.assert_close(rows.weight, rows.rnorm * 0.1, **close)
    torch.testing.assert_close(rows.mantissa * rows.power, rows.rnorm, rtol=0, atol=0, equal_nan=True)
    sound = rows.rnorm > 0
    assert rows.mantissa[sound].ge(0.5).all() and rows.mantissa[sound].lt(1).all()
    assert rows.power[sound].frexp().mantissa.eq(0.5).all() and rows.mantissa[1, 2] == 1 and rows.power[1, 2] == 0
    assert torch.equal(rows.peak[:, :5], x.to(sums).nan_to_num(0, 0, 0).abs().amax(2))
    assert not rows.factor[:, 5:].any() and rows.factor.shape[2] % 8 == 0
    plain = row_factor(x)
    assert plain.rnorm.eq(1).all() and plain.weight.eq(1).all()

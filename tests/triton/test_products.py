"""Products of float16 halves keep float32's digits, in the interpreter."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from stylekern.triton_kernels._products import factor, peaks, product, tied

from ..ops.cases import relative_error


def multiplied(x: torch.Tensor, y: torch.Tensor, dim: int) -> torch.Tensor:
    """x @ y^T for dim 2, x^T @ y for dim 1."""
    (a, a_inverse), (b, b_inverse) = factor(x, dim), factor(y, dim, second=True)
    result = product(a, b.mT) if dim == 2 else product(a.mT, b)
    result = result[:, : x.shape[3 - dim], : y.shape[3 - dim]]
    for inverse, shape in ((a_inverse, (-1, 1)), (b_inverse, (1, -1))):
        if inverse is not None:
            result = result * inverse.view(len(x), *shape)
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("depth", [1, 8, 77])
def test_products_are_those_of_float64(depth: int, dim: int, dtype: torch.dtype) -> None:
    x, y = (torch.randn(2, length, depth).to(dtype) for length in (5, 19))
    if dim == 1:
        x, y = x.mT.contiguous(), y.mT
    exact = x.double() @ y.double().mT if dim == 2 else x.double().mT @ y.double()
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
        first, weight = factor(x, 2)
        first = first.view(2, 63, 8)
    else:
        weight = torch.exp2(x.abs().amax(2).log2().ceil() - 15)
        first = (x / weight.unsqueeze(2)).half()
        x = first.float() * weight.unsqueeze(2)
    second, inverse = tied(y, weight, peaks(y))
    given = product(first.mT, second)[..., :11] * inverse.view(2, 1, 1)
    exact = x.double().mT @ y.double()
    assert all(relative_error(given[n], exact[n]) < (1e-6 if dtype == torch.float32 else 1e-3) for n in range(2))


def test_autocast_leaves_factors_their_type() -> None:
    (x, _), (y, _) = factor(torch.ones(1, 1, 8) * 1.001, 2), factor(torch.ones(1, 1, 8), 2, second=True)
    plain = product(x, y.mT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(product(x, y.mT), plain)

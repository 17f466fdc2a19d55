"""The Triton kernels of wavelet_pool against the float64 reference, forward and backward, in the interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from stylekern.triton_kernels import wavelet_pool as op

from stylekern import reference

from ..ops.cases import LAYOUTS, assert_close

BANDS = ("ll", "lh", "hl", "hh")
# One pixel, one row, one column; even, odd; more columns, and more rows, than a tile has
SIZES = [(1, 1), (1, 6), (5, 1), (4, 6), (5, 7), (4, 7), (3, 6), (3, 299), (67, 5)]


def check(x: Tensor, odd: str, layout: str = "contiguous") -> None:
    truth = x.double().requires_grad_()
    expected = reference.wavelet_pool(truth, odd=odd)
    grads = [torch.randn(band.shape).to(x.dtype) for band in expected]
    wanted = torch.autograd.grad(expected, truth, [grad.double() for grad in grads])[0]

    for name, band, want in zip(BANDS, op.forward(LAYOUTS[layout](x), odd), expected, strict=True):
        assert_close(band, want, x.dtype, name)
        assert band.is_contiguous(), name
    grad_x = op.backward(*(LAYOUTS[layout](grad) for grad in grads), *x.shape[2:], odd)
    assert_close(grad_x, wanted, x.dtype, "grad_input")
    assert grad_x.is_contiguous()


@pytest.mark.parametrize("odd", ["floor", "pad"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_size_agrees_with_the_reference(size: tuple[int, int], odd: str) -> None:
    check(torch.randn(1, 2, *size), odd)


@pytest.mark.parametrize("odd", ["floor", "pad"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype: torch.dtype, odd: str) -> None:
    check(torch.randn(1, 2, 7, 21).to(dtype), odd)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    check(torch.randn(2, 3, 5, 6), "pad", layout)


def test_bands_of_different_strides() -> None:
    grads = [torch.randn(2, 3, 2, 4), torch.ones(()).expand(2, 3, 2, 4), torch.randn(2, 3, 7, 9)[:, :, 1:3, 2:6]]
    grads.append(torch.randn(3, 2, 4, 2).permute(1, 0, 3, 2))
    plain = op.backward(*(grad.contiguous() for grad in grads), 5, 8, "floor")
    assert torch.equal(op.backward(*grads, 5, 8, "floor"), plain)


@pytest.mark.parametrize("odd", ["floor", "pad"])
@pytest.mark.parametrize("shape", [(0, 2, 4, 5), (2, 0, 4, 5), (1, 2, 0, 5), (1, 2, 4, 0)], ids=str)
def test_empty(shape: tuple[int, ...], odd: str) -> None:
    check(torch.randn(shape), odd)


def test_a_dropped_row_has_no_gradient() -> None:
    """Bands of no rows, of a picture of one: nothing is read, and zeros are written."""
    grads = [torch.randn(1, 2, 0, 3) for _ in BANDS]
    assert torch.equal(op.backward(*grads, 1, 6, "floor"), torch.zeros(1, 2, 1, 6))


def test_the_same_bits_every_time() -> None:
    x = torch.randn(1, 2, 5, 7)
    first, second = op.forward(x, "pad"), op.forward(x, "pad")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(op.backward(*first, 5, 7, "pad"), op.backward(*second, 5, 7, "pad"))

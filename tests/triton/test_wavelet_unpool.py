"""The Triton kernels of wavelet_unpool against the float64 reference, forward and backward, in the interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from stylekern.triton_kernels import wavelet_pool
from stylekern.triton_kernels import wavelet_unpool as op

from stylekern import reference

from ..ops.cases import LAYOUTS, assert_close

# One pixel, one row, one column; whole, cropped; more columns, and more rows, than a tile has
SIZES = [(1, 1), (1, 6), (5, 1), (4, 6), (5, 7), (4, 7), (3, 6), (3, 299), (67, 5)]


def bands_of(n: int, c: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(n, c, (height + 1) // 2, (width + 1) // 2).to(dtype) for _ in range(4)]


def check(bands: list[Tensor], size: tuple[int, int], layout: str = "contiguous") -> None:
    dtype = bands[0].dtype
    truth = [band.double().requires_grad_() for band in bands]
    expected = reference.wavelet_unpool(*truth, size=size)
    grad = torch.randn(expected.shape).to(dtype)
    wanted = torch.autograd.grad(expected, truth, grad.double())

    output = op.forward(*(LAYOUTS[layout](band) for band in bands), *size)
    assert_close(output, expected, dtype, "output")
    assert output.is_contiguous()
    for name, got, want in zip(("ll", "lh", "hl", "hh"), op.backward(LAYOUTS[layout](grad)), wanted, strict=True):
        assert_close(got, want, dtype, f"grad_{name}")
        assert got.is_contiguous(), name


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_size_agrees_with_the_reference(size: tuple[int, int]) -> None:
    check(bands_of(1, 2, *size), size)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    check(bands_of(1, 2, 7, 21, dtype), (7, 21))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    check(bands_of(2, 3, 5, 6), (5, 6), layout)


@pytest.mark.parametrize("shape", [(0, 2, 4, 5), (2, 0, 4, 5), (1, 2, 0, 5), (1, 2, 4, 0)], ids=str)
def test_empty(shape: tuple[int, int, int, int]) -> None:
    check(bands_of(*shape), shape[2:])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_restores_the_picture(size: tuple[int, int]) -> None:
    x = torch.randint(-64, 64, (1, 2, *size)).float()  # halves of such sums are exact
    assert torch.equal(op.forward(*wavelet_pool.forward(x, "pad"), *size), x)


def test_the_same_bits_every_time() -> None:
    bands = bands_of(1, 2, 5, 7)
    first, second = op.forward(*bands, 5, 7), op.forward(*bands, 5, 7)
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(op.backward(first), op.backward(second), strict=True))

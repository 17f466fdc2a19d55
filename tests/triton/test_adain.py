"""The Triton kernels of adain against the float64 reference, forward and backward, in the interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from stylekern.triton_kernels import adain as op

from stylekern import reference

from ..ops.cases import LAYOUTS, assert_close

LARGE = (95, 97)  # more than a program holds


class Case:
    """Random tensors, and what both implementations make of them."""

    def __init__(
        self, n=1, c=2, size=(4, 7), style=(3, 5), correction=1, dtype=torch.float32, layout="contiguous"
    ) -> None:
        change = LAYOUTS[layout]
        self.content, self.grad = (change(torch.randn(n, c, *size).to(dtype)) for _ in range(2))
        self.style = change((3 + 2 * torch.randn(n, c, *style)).to(dtype))
        self.eps, self.correction = 1e-5, correction

    def forward(self) -> tuple[Tensor, ...]:
        return op.forward(self.content, self.style, self.eps, self.correction)

    def backward(self, needs: tuple[bool, bool] = (True, True)) -> tuple[Tensor, Tensor]:
        return op.backward(self.grad, self.content, self.style, *self.forward()[1:], self.correction, *needs)

    def check(self) -> None:
        leaves = [x.double().detach().requires_grad_() for x in (self.content, self.style)]
        output = reference.adain(*leaves, eps=self.eps, correction=self.correction)
        wanted = (output.detach(), *torch.autograd.grad(output, leaves, self.grad.double()))
        given = (self.forward()[0], *self.backward())
        for name, got, want in zip(("output", "grad_content", "grad_style"), given, wanted, strict=True):
            assert_close(got, want, self.content.dtype, name)
            assert got.is_contiguous(), name


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("style", [(1, 9), (4, 7), LARGE], ids=str)
@pytest.mark.parametrize("size", [(9, 1), (4, 7), LARGE], ids=str)
def test_every_size_agrees_with_the_reference(size: tuple[int, int], style: tuple[int, int], correction: int) -> None:
    Case(size=size, style=style, correction=correction).check()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(4, 7), (67, 65)], ids=str)
def test_dtypes(dtype: torch.dtype, size: tuple[int, int]) -> None:
    case = Case(size=size, dtype=dtype)
    case.check()
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    assert [x.dtype for x in case.forward()[1:]] == [accumulator] * 4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    Case(n=2, c=3, size=(5, 6), layout=layout).check()


def test_rows_of_a_wider_picture() -> None:
    case = Case(size=LARGE)
    case.content = torch.randn(1, 2, 99, 130)[:, :, 2:97, 7:104]
    case.check()


def test_one_style_for_many_contents() -> None:
    case = Case(n=3)
    case.style, case.grad = torch.randn(1, 2, 3, 5).expand(3, -1, -1, -1), torch.randn(4, 7).expand(3, 2, -1, -1)
    case.check()


@pytest.mark.parametrize("size", [(63, 65), LARGE], ids=str)
def test_statistics(size: tuple[int, int]) -> None:
    """Planes far from zero, in one program and in several: E[x^2] - E[x]^2 would lose every digit."""
    content, style = 1000 + torch.randn(2, 2, *size), 2000 + torch.randn(2, 2, *size)
    found = op.forward(content, style, 1e-5, 1)[1:]
    for x, mean, rstd in ((content, *found[:2]), (style, *found[2:])):
        var, want = torch.var_mean(x.double(), dim=(2, 3), correction=1)
        torch.testing.assert_close(mean.double(), want, rtol=1e-6, atol=0)
        torch.testing.assert_close(rstd.double(), (var + 1e-5).rsqrt(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [(4, 7), LARGE], ids=str)
def test_only_the_gradients_needed(size: tuple[int, int]) -> None:
    case = Case(size=size)
    everything = case.backward()
    for needs in ((False, False), (False, True), (True, False)):
        for got, full, need in zip(case.backward(needs), everything, needs, strict=True):
            assert torch.equal(got, full) if need else got.shape == (0,)


@pytest.mark.parametrize("size", [(4, 7), LARGE], ids=str)
def test_the_same_bits_every_time(size: tuple[int, int]) -> None:
    case = Case(size=size)
    for first, second in zip((*case.forward(), *case.backward()), (*case.forward(), *case.backward()), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("shape", [{"n": 0}, {"c": 0}, {"size": (0, 3)}, {"size": (3, 0)}], ids=str)
def test_empty(shape: dict) -> None:
    case = Case(**shape)
    output, *statistics = case.forward()
    assert output.shape == case.content.shape
    assert [x.shape for x in statistics] == [case.content.shape[:2]] * 4
    for got, like in zip(case.backward(), (case.content, case.style), strict=True):
        assert got.shape == like.shape and not got.any()

"""The Triton kernels of factorized_instance_norm against the float64 reference, both ways, in the interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from stylekern.triton_kernels import factorized_instance_norm as op

from stylekern import reference

from ..ops.cases import LAYOUTS, assert_close

LARGE = (95, 97)  # more than a program holds


class Case:
    """Random tensors, and what both implementations make of them."""

    def __init__(self, n=1, c=2, size=(4, 7), correction=1, dtype=torch.float32, layout="contiguous") -> None:
        change = LAYOUTS[layout]
        self.content, self.gamma, self.beta, self.grad = (change(torch.randn(n, c, *size).to(dtype)) for _ in range(4))
        self.gamma_ind, self.beta_ind = torch.randn(c, 3).to(dtype)[:, 1], torch.randn(c).to(dtype)
        self.eps, self.correction = 1e-5, correction

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        return op.forward(self.content, self.gamma_ind, self.beta_ind, self.gamma, self.beta, self.eps, self.correction)

    def backward(self, needs: tuple[bool, bool] = (True, True)) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        _, mean, rstd = self.forward()
        return op.backward(
            self.grad, self.content, self.gamma_ind, self.beta_ind, self.gamma, mean, rstd, self.correction, *needs
        )

    def check(self) -> None:
        tensors = (self.content, self.gamma_ind, self.beta_ind, self.gamma, self.beta)
        leaves = [x.double().detach().requires_grad_() for x in tensors]
        output = reference.factorized_instance_norm(*leaves, eps=self.eps, correction=self.correction)
        wanted = (output.detach(), *torch.autograd.grad(output, leaves[:4], self.grad.double()))
        y, (grad_content, grad_gamma, sum_gx, sum_g) = self.forward()[0], self.backward()
        assert sum_gx.shape == sum_g.shape == self.content.shape[:2] and sum_gx.dtype == self.accumulator
        given = (y, grad_content, sum_gx.sum(0).to(y.dtype), sum_g.sum(0).to(y.dtype), grad_gamma)
        names = ("output", "grad_content", "grad_gamma_ind", "grad_beta_ind", "grad_gamma_style")
        for name, got, want in zip(names, given, wanted, strict=True):
            assert_close(got, want, self.content.dtype, name)
            assert got.is_contiguous(), name

    @property
    def accumulator(self) -> torch.dtype:
        return torch.float64 if self.content.dtype == torch.float64 else torch.float32


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("size", [(1, 9), (9, 1), (4, 7), (3, 131), LARGE], ids=str)
def test_every_size_agrees_with_the_reference(size: tuple[int, int], correction: int) -> None:
    Case(n=2, c=3, size=size, correction=correction).check()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(4, 7), (67, 65)], ids=str)
def test_dtypes(dtype: torch.dtype, size: tuple[int, int]) -> None:
    case = Case(size=size, dtype=dtype)
    case.check()
    _, mean, rstd = case.forward()
    assert mean.dtype == rstd.dtype == case.accumulator


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    Case(n=2, c=3, size=(5, 6), layout=layout).check()


@pytest.mark.parametrize("size", [(4, 7), LARGE], ids=str)
def test_each_tensor_has_strides_of_its_own(size: tuple[int, int]) -> None:
    """Rows of a wider picture; one style for all channels; an expanded gradient."""
    case, (h, w) = Case(n=2, size=size), size
    case.content = torch.randn(2, 2, h + 3, w + 5)[:, :, 2 : h + 2, 4 : w + 4]
    case.gamma = torch.randn(2, 1, h, w).expand(-1, 2, -1, -1)
    case.grad = torch.randn(2, 2, 1, w).expand(-1, -1, h, -1)
    case.check()


@pytest.mark.parametrize("size", [(63, 65), LARGE], ids=str)
def test_statistics(size: tuple[int, int]) -> None:
    """Planes far from zero, in one program and in several: E[x^2] - E[x]^2 would lose every digit."""
    case = Case(size=size)
    case.content += 1000
    var, want = torch.var_mean(case.content.double(), dim=(2, 3), correction=1)
    _, mean, rstd = case.forward()
    torch.testing.assert_close(mean.double(), want, rtol=1e-6, atol=0)
    torch.testing.assert_close(rstd.double(), (var + 1e-5).rsqrt(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [(4, 7), LARGE], ids=str)
def test_only_the_gradients_needed(size: tuple[int, int]) -> None:
    """The sums are what the gradients of gamma_ind and beta_ind need, and are always there."""
    case = Case(size=size)
    everything = case.backward()
    for needs in ((False, False), (False, True), (True, False)):
        for got, full, need in zip(case.backward(needs), everything, (*needs, True, True), strict=True):
            assert torch.equal(got, full) if need else got.shape == (0,)


@pytest.mark.parametrize("size", [(4, 7), LARGE], ids=str)
def test_the_same_bits_every_time(size: tuple[int, int]) -> None:
    case = Case(size=size)
    for first, second in zip((*case.forward(), *case.backward()), (*case.forward(), *case.backward()), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("shape", [{"n": 0}, {"c": 0}, {"size": (0, 3)}, {"size": (3, 0)}], ids=str)
def test_empty(shape: dict) -> None:
    case = Case(**shape)
    output, mean, rstd = case.forward()
    assert output.shape == case.content.shape and mean.shape == rstd.shape == case.content.shape[:2]
    for got, like in zip(case.backward(), (case.content, case.gamma, mean, mean), strict=True):
        assert got.shape == like.shape and not got.any()

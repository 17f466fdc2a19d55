"""The Triton kernels of adaconv against the float64 reference, forward and backward, in the interpreter."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from stylekern.triton_kernels import adaconv as op

from stylekern import reference
from stylekern.ops.adaconv import OPERATOR

from ..ops.cases import LAYOUTS, assert_close

PADDING_MODES = ("reflect", "replicate", "zeros")


class Case:
    """Random tensors, and what both implementations make of them; the kernels' arguments are composed as callers do."""

    def __init__(
        self, n=1, c=2, out=2, size=1, taps=(3, 3), h=4, w=5, padding="reflect", normalize=True, correction=0,
        bias=True, dtype=torch.float32, layout="contiguous",
    ) -> None:  # fmt: skip
        self.input = LAYOUTS[layout](torch.randn(n, c, h, w).to(dtype))
        self.spatial = torch.randn(n, c, size, *taps).to(dtype)
        self.pointwise = torch.randn(n, out, size).to(dtype)
        self.bias = torch.randn(n, out).to(dtype) if bias else None
        self.grad = LAYOUTS[layout](torch.randn(n, out, h, w).to(dtype))
        self.normalize, self.padding, self.eps, self.correction = normalize, padding, 1e-5, correction

    def composed(self, spatial: Tensor, pointwise: Tensor) -> tuple:
        """The arguments of forward, without a scale: the kernel has it."""
        input, kernel, scale, *others = OPERATOR.prepare(
            self.input, spatial, pointwise, self.bias, self.normalize, self.padding, self.eps, self.correction
        )
        return input, kernel if scale is None else kernel * scale[:, :, None, None, None], None, *others

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        return op.forward(*self.composed(self.spatial, self.pointwise))

    def backward(self, needs: tuple[bool, bool, bool] = (True, True, True)) -> tuple[Tensor, Tensor, Tensor]:
        kernel, (_, mean, rstd) = self.composed(self.spatial, self.pointwise)[1], self.forward()
        return op.backward(
            self.grad, self.input, kernel, mean, rstd, self.normalize, self.padding, self.correction, *needs
        )

    def expected(self) -> tuple[Tensor, ...]:
        """The output and the gradients of input, spatial, pointwise and bias, in float64."""
        tensors = (self.input, self.spatial, self.pointwise, self.bias)
        leaves = [None if x is None else x.double().detach().requires_grad_() for x in tensors]
        output = reference.adaconv(
            *leaves, normalize=self.normalize, padding_mode=self.padding, eps=self.eps, correction=self.correction
        )
        return output.detach(), *torch.autograd.grad(output, [x for x in leaves if x is not None], self.grad.double())

    def check(self) -> None:
        dtype = self.input.dtype
        output, (grad_input, grad_kernel, grad_bias) = self.forward()[0], self.backward()
        factors = [x.detach().requires_grad_() for x in (self.spatial, self.pointwise)]
        kernel = self.composed(*factors)[1]
        assert grad_kernel.dtype == grad_bias.dtype == kernel.dtype and grad_kernel.is_contiguous()
        given = [output, grad_input, *torch.autograd.grad(kernel, factors, grad_kernel), grad_bias.to(dtype)]
        names = ("output", "grad_input", "grad_spatial", "grad_pointwise", "grad_bias")
        for name, got, want in zip(names, given, self.expected(), strict=False):
            if name == "grad_bias" and self.bias is None:
                break
            assert_close(got, want, dtype, name)
        assert output.is_contiguous() and grad_input.is_contiguous()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("padding", PADDING_MODES)
@pytest.mark.parametrize("taps", [(3, 3), (4, 2), (1, 1)], ids=str)
def test_every_mode_agrees_with_the_reference(taps: tuple[int, int], padding: str, normalize: bool) -> None:
    Case(taps=taps, padding=padding, normalize=normalize).check()


@pytest.mark.parametrize(
    ("c", "out", "size"),
    [
        (2, 4, 1),  # more channels out than in
        (4, 2, 2),  # fewer
        (6, 9, 2),  # three out for two in: no power of two
        (8, 8, 8),
        (5, 11, 5),  # eleven, a prime above what a program makes
        (16, 1, 16),
    ],
    ids=str,
)
def test_channels_of_a_group(c: int, out: int, size: int) -> None:
    Case(c=c, out=out, size=size, taps=(2, 3) if c * out > 20 else (3, 3), h=3, w=3).check()


@pytest.mark.parametrize("padding", PADDING_MODES)
@pytest.mark.parametrize("taps", [(5, 5), (1, 7), (7, 1), (2, 11)], ids=str)
def test_other_taps(taps: tuple[int, int], padding: str) -> None:
    """Rows of taps in a loop, columns too, and more of them than one program sums."""
    Case(c=1, out=1, taps=taps, h=6, w=7, padding=padding).check()


def test_rows_in_a_loop_of_unrolled_columns() -> None:
    Case(c=1, out=4, taps=(3, 3)).check()


def test_a_gradient_for_each_element_of_the_kernel() -> None:
    """With the identity as pointwise kernel the composed kernel is the spatial one, and so is its gradient."""
    case = Case(n=2, c=4, out=4, size=2)
    case.pointwise = torch.eye(2).repeat(2, 2, 1)
    assert_close(case.backward()[1], case.expected()[2], torch.float32, "grad_kernel")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1, 2])
def test_dtypes(dtype: torch.dtype, size: int) -> None:
    case = Case(size=size, dtype=dtype, correction=1)
    case.check()
    _, mean, rstd = case.forward()
    assert mean.dtype == rstd.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    Case(n=2, c=3, out=3, h=3, w=4, layout=layout).check()


def test_an_expanded_gradient_and_rows_of_a_wider_picture() -> None:
    case = Case(bias=False)
    case.input, case.grad = torch.randn(1, 2, 7, 11)[..., 1:5, 3:8], torch.ones(()).expand(1, 2, 4, 5)
    case.check()


def test_several_tiles() -> None:
    """More columns and rows than a tile has, and more rows than one program sums."""
    Case(c=1, out=1, h=9, w=131, padding="replicate").check()
    Case(c=1, out=1, h=257, w=3, taps=(2, 1)).check()


def test_small_pictures() -> None:
    Case(h=1, w=1, padding="replicate", normalize=False).check()
    Case(h=1, w=1, taps=(2, 5), padding="zeros", normalize=False).check()
    Case(h=1, w=9, taps=(1, 3)).check()
    Case(h=9, w=1, taps=(3, 1)).check()
    Case(h=2, w=3, taps=(3, 5)).check()  # the smallest that reflects


def test_only_the_gradients_needed() -> None:
    case = Case(c=1, out=1)
    everything = case.backward()
    for needs in itertools.product((False, True), repeat=3):
        for got, full, need in zip(case.backward(needs), everything, needs, strict=True):
            assert torch.equal(got, full) if need else got.shape == (0,)


def test_the_same_bits_every_time() -> None:
    case = Case(out=4)
    for first, second in zip((*case.forward(), *case.backward()), (*case.forward(), *case.backward()), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shape", [{"n": 0}, {"h": 0}, {"w": 0}, {"out": 0}], ids=str)
def test_empty(shape: dict[str, int], normalize: bool) -> None:
    case = Case(**shape, padding="zeros", normalize=normalize)
    output, mean, rstd = case.forward()
    assert output.shape == case.grad.shape
    assert mean.shape == rstd.shape == (case.input.shape[:2] if normalize else (0,))
    kernel = case.composed(case.spatial, case.pointwise)[1]
    for got, like in zip(case.backward(), (case.input, kernel, case.bias), strict=True):
        assert got.shape == like.shape and not got.any()


def test_statistics_are_empty_without_normalize() -> None:
    _, mean, rstd = Case(normalize=False).forward()
    assert mean.shape == rstd.shape == (0,) and mean.data_ptr() == rstd.data_ptr() == 0

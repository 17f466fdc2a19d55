"""The Triton kernels of style_kernel_conv against the float64 reference, forward and backward, in the interpreter."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from stylekern.triton_kernels import style_kernel_conv as op

from stylekern import reference

# Of the norm, a small multiple of what rounding each result once costs; float32 also sums in float32.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}

MODES = [
    (composition, padding, normalize)
    for composition, padding in itertools.product(("sequential", "outer"), ("reflect", "replicate", "zeros"))
    for normalize in (False, True)
] + [("outer", "none", False)]


@pytest.fixture(autouse=True)
def poison_uninitialised_memory() -> Iterator[None]:
    """torch.empty gives NaN: a value that no program writes cannot pass."""
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)


class Case:
    """Random tensors, filters packed as a predictor gives them, and what both implementations make of them."""

    def __init__(
        self, n=1, c=2, h=4, w=7, groups=2, taps=(3, 3), padding="reflect", composition="sequential", normalize=False,
        correction=0, dtype=torch.float32, bias="group",
    ) -> None:  # fmt: skip
        kv, kh = taps
        self.margins = (kv - 1, kh - 1) if padding == "none" else (0, 0)
        self.input = torch.randn(n, c, h + self.margins[0], w + self.margins[1], dtype=dtype)
        packed = torch.randn(n, groups, kv + kh + 1, h, w, dtype=dtype)
        self.vertical, self.horizontal = packed[:, :, :kv], packed[:, :, kv : kv + kh]
        self.bias = {"group": packed[:, :, -1], "channel": torch.randn(n, c, h, w, dtype=dtype), None: None}[bias]
        self.grad = torch.randn(n, c, h, w, dtype=dtype)
        self.padding, self.composition = padding, composition
        self.normalize, self.correction, self.eps = normalize, correction, 1e-5

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        return op.forward(
            self.input, self.vertical, self.horizontal, self.bias, self.padding, self.composition, self.normalize,
            self.eps, self.correction,
        )  # fmt: skip

    def backward(self, needs: tuple[bool, bool, bool] = (True, True, True)) -> tuple[Tensor, Tensor, Tensor]:
        _, mean, rstd = self.forward()
        return op.backward(
            self.grad, self.input, self.vertical, self.horizontal, mean, rstd, self.padding, self.composition,
            self.normalize, self.correction, *needs,
        )  # fmt: skip

    def expected(self) -> tuple[Tensor, ...]:
        """The output and the gradients of input, vertical and horizontal, in float64."""
        leaves = [x.double().detach().requires_grad_() for x in (self.input, self.vertical, self.horizontal)]
        output = reference.style_kernel_conv(
            *leaves, None if self.bias is None else self.bias.double(), padding_mode=self.padding,
            composition=self.composition, normalize=self.normalize, eps=self.eps, correction=self.correction,
        )  # fmt: skip
        return output.detach(), *torch.autograd.grad(output, leaves, self.grad.double())

    def check(self) -> None:
        names = ("output", "grad_input", "grad_vertical", "grad_horizontal")
        for name, got, want in zip(names, (self.forward()[0], *self.backward()), self.expected(), strict=True):
            assert got.dtype == self.input.dtype and got.shape == want.shape and got.is_contiguous(), name
            error = (got.double() - want).norm() / want.norm().clamp_min(1e-3)
            assert error <= TOLERANCE[got.dtype], f"{name}: relative error {error:.1e}"


# 3 taps: one kernel each way; 5 and 3: one kernel forward, several backward; 7 and 3: several both ways
@pytest.mark.parametrize("taps", [(3, 3), (5, 3)], ids=str)
@pytest.mark.parametrize(("composition", "padding", "normalize"), MODES)
def test_every_mode_agrees_with_the_reference(composition: str, padding: str, normalize: bool, taps) -> None:
    Case(h=4, w=5, taps=taps, composition=composition, padding=padding, normalize=normalize).check()


@pytest.mark.parametrize("padding", ["reflect", "replicate", "zeros"])
@pytest.mark.parametrize("taps", [(7, 3), (1, 7), (1, 3), (3, 1), (1, 1)], ids=str)
def test_any_two_tap_counts(taps, padding: str) -> None:
    Case(c=1, groups=1, h=5, w=5, taps=taps, padding=padding, normalize=True).check()


@pytest.mark.parametrize("taps", [(3, 3), (7, 7)], ids=str)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_channels_share_a_group_of_filters(groups: int, taps) -> None:
    Case(c=4, groups=groups, taps=taps, padding="replicate", bias="channel", normalize=True).check()


def test_outer_channels_share_a_group_of_filters() -> None:
    Case(c=4, groups=2, composition="outer", padding="none").check()


@pytest.mark.parametrize(("c", "groups"), [(2, 1), (2, 2), (1, 1)])
@pytest.mark.parametrize("bias", ["channel", "group", None])
def test_bias_of_a_channel_or_a_group(bias: str | None, c: int, groups: int) -> None:
    case = Case(c=c, groups=groups, bias=bias)
    torch.testing.assert_close(case.forward()[0].double(), case.expected()[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("taps", [(3, 3), (7, 3)], ids=str)
def test_dtypes(dtype: torch.dtype, taps) -> None:
    Case(dtype=dtype, taps=taps, normalize=True, correction=1).check()
    _, mean, rstd = Case(dtype=dtype, taps=taps, normalize=True).forward()
    assert mean.dtype == rstd.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("taps", [(3, 3), (1, 51), (51, 51)], ids=str)
@pytest.mark.parametrize("padding", ["replicate", "zeros"])
def test_a_single_pixel(padding: str, taps) -> None:
    Case(c=1, groups=1, h=1, w=1, taps=taps, padding=padding).check()


@pytest.mark.parametrize(("h", "w"), [(1, 9), (9, 1)])
def test_a_single_row_or_column(h: int, w: int) -> None:
    Case(h=h, w=w, taps=(1, 3) if h == 1 else (3, 1), normalize=True).check()
    Case(h=h, w=w, taps=(5, 5), padding="replicate").check()


def test_the_smallest_picture_that_reflects() -> None:
    Case(h=2, w=2, taps=(3, 3)).check()
    Case(h=4, w=4, taps=(7, 7)).check()


def test_51_taps() -> None:
    Case(c=1, groups=1, h=26, w=27, taps=(51, 51)).check()
    Case(c=1, groups=1, h=2, w=3, taps=(1, 51), composition="outer", padding="none").check()


def test_several_tiles() -> None:
    """More rows and columns than a tile has, in every kernel, and a width that no vector divides."""
    Case(c=1, groups=1, h=9, w=131, taps=(3, 3)).check()
    Case(c=1, groups=1, h=9, w=131, taps=(7, 1), padding="replicate").check()
    Case(c=1, groups=1, h=9, w=131, taps=(3, 1), composition="outer", padding="none").check()


@pytest.mark.parametrize("correction", [0, 1])
def test_statistics(correction: int) -> None:
    """Planes of several chunks, far from zero: E[x^2] - E[x]^2 would lose every digit."""
    x = 1000 + torch.randn(2, 2, 95, 97)
    ones = torch.ones(2, 1, 1, 95, 97)
    _, mean, rstd = op.forward(x, ones, ones, None, "reflect", "sequential", True, 1e-5, correction)
    var, want = torch.var_mean(x.double(), dim=(2, 3), correction=correction)
    torch.testing.assert_close(mean.double(), want, rtol=1e-6, atol=0)
    torch.testing.assert_close(rstd.double(), (var + 1e-5).rsqrt(), rtol=1e-5, atol=0)


def test_gradient_through_statistics_of_several_chunks() -> None:
    Case(c=1, groups=1, h=95, w=97, taps=(1, 1), normalize=True, correction=1).check()


def test_any_strides() -> None:
    """Channels last, rows of a wider picture, transposed filters, an expanded gradient: no copy is asked of callers."""
    for layout in ("channels_last", "cropped", "transposed"):
        case = Case(h=5, w=6, normalize=True, bias="channel")
        if layout == "channels_last":
            case.input, case.bias, case.grad = (
                x.contiguous(memory_format=torch.channels_last) for x in (case.input, case.bias, case.grad)
            )
        elif layout == "cropped":
            case.input = torch.randn(1, 2, 7, 11)[..., 1:6, 3:9]
        else:
            case.vertical, case.horizontal = (
                x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in (case.vertical, case.horizontal)
            )
            case.grad = torch.ones(()).expand(1, 2, 5, 6)
        case.check()


def test_packed_filters_are_read_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    monkeypatch.setattr(Tensor, "contiguous", lambda *_: pytest.fail("a copy was made"))
    case.forward()
    case.backward()


@pytest.mark.parametrize("composition", ["sequential", "outer"])
@pytest.mark.parametrize("taps", [(3, 3), (7, 1)], ids=str)
def test_only_the_gradients_needed(taps, composition: str) -> None:
    case = Case(c=1, groups=1, taps=taps, composition=composition, normalize=True)
    everything = case.backward()
    for needs in itertools.product((False, True), repeat=3):
        for got, full, need in zip(case.backward(needs), everything, needs, strict=True):
            assert torch.equal(got, full) if need else got.shape == (0,)


@pytest.mark.parametrize("taps", [(3, 3), (7, 3)], ids=str)
@pytest.mark.parametrize("padding", ["reflect", "replicate"])
def test_the_same_bits_every_time(padding: str, taps) -> None:
    case = Case(groups=1, taps=taps, padding=padding, normalize=True)
    for first, second in zip((*case.forward(), *case.backward()), (*case.forward(), *case.backward()), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("shape", [{"n": 0}, {"h": 0}, {"w": 0}, {"c": 0, "groups": 0}], ids=str)
@pytest.mark.parametrize("mode", [("sequential", "zeros", True), ("outer", "none", False)], ids=str)
def test_empty(shape: dict[str, int], mode: tuple[str, str, bool]) -> None:
    composition, padding, normalize = mode
    case = Case(**shape, composition=composition, padding=padding, normalize=normalize)
    output, mean, rstd = case.forward()
    assert output.shape == case.grad.shape
    assert mean.shape == rstd.shape == (case.input.shape[:2] if normalize else (0,))
    for got, like in zip(case.backward(), (case.input, case.vertical, case.horizontal), strict=True):
        assert got.shape == like.shape and not got.any()


def test_statistics_are_empty_without_normalize() -> None:
    _, mean, rstd = Case().forward()
    assert mean.shape == rstd.shape == (0,) and mean.data_ptr() == rstd.data_ptr() == 0


def test_the_bare_name_is_refused() -> None:
    """`triton_kernels` belongs to another project: a source tree on sys.path must not stand in for it."""
    init = Path(op.__file__).with_name("__init__.py")
    spec = importlib.util.spec_from_file_location("triton_kernels", init)
    with pytest.raises(ImportError, match=r"stylekern\.triton_kernels"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))

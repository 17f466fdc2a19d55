"""Haar pooling: a picture into four bands of half its size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stylekern import reference
from stylekern.ops._checks import check_option, check_tensors
from stylekern.ops._operator import Operator

ODD = ("floor", "pad")


class WaveletBands(NamedTuple):
    """The bands of Haar pooling, each [N, C, h, w]."""

    ll: Tensor
    lh: Tensor
    hl: Tensor
    hh: Tensor


def wavelet_pool(input: Tensor, *, odd: str = "floor") -> WaveletBands:
    r"""Haar wavelet pooling, of which `wavelet_unpool` is the exact inverse (WCT2, sec. 3.1; SAFIN's base network).

    With a b / c d the 2 x 2 blocks of the input::

        ll = ( a + b + c + d) / 2        the low-pass: twice the mean
        lh = (-a + b - c + d) / 2        right minus left
        hl = (-a - b + c + d) / 2        bottom minus top
        hh = ( a - b - c + d) / 2

    Args:
        input: [N, C, H, W], float32, float64, float16 or bfloat16.
        odd: "floor" drops the last row or column of an odd size, as strided convolutions do (WCT2's rule); "pad"
            repeats it, so that `wavelet_unpool` with `size` restores the input.

    Returns:
        ll, lh, hl, hh, each [N, C, H // 2, W // 2] ("pad": halves rounded up), contiguous, of the input's dtype. Sums
        run in float32, or float64 for float64.

    Raises:
        ValueError: A wrong number of dimensions, an unknown option.
        TypeError: Not a tensor, or a dtype that is not floating point.
        RuntimeError: A backend asked for by name that cannot run; a forward-mode derivative.

    Deterministic, forward and backward. Gradient once, for the input, from all four bands in one pass: the transform is
    orthogonal, so that is `wavelet_unpool` of the bands' gradients. Under autocast the input takes the autocast dtype.
    """
    return WaveletBands(*OPERATOR(input, odd))


def _check(input: Tensor, odd: str) -> torch.dtype | None:
    cast = check_tensors("wavelet_pool", (("input", input, 4, "[N, C, H, W]"),))
    check_option("wavelet_pool", "odd", odd, ODD)
    return cast


def _fake(input: Tensor, odd: str) -> tuple[Tensor, ...]:
    up = 1 if odd == "pad" else 0
    shape = (*input.shape[:2], (input.shape[2] + up) // 2, (input.shape[3] + up) // 2)
    return tuple(input.new_empty(shape) for _ in range(4))


def _backward_fake(ll: Tensor, lh: Tensor, hl: Tensor, hh: Tensor, height: int, width: int, odd: str) -> Tensor:
    return ll.new_empty((*ll.shape[:2], height, width))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, ctx.odd = inputs
    ctx.size = input.shape[2:]


def _backward(ctx: Any, run: Callable[..., Any], *grads: Tensor) -> tuple[Tensor | None, ...]:
    return run(*grads, *ctx.size, ctx.odd), None


OPERATOR = Operator(
    name="wavelet_pool",
    schema="(Tensor input, str odd) -> (Tensor, Tensor, Tensor, Tensor)",
    backward_schema="(Tensor ll, Tensor lh, Tensor hl, Tensor hh, SymInt height, SymInt width, str odd) -> Tensor",
    fake=_fake,
    backward_fake=_backward_fake,
    setup_context=_setup_context,
    backward=_backward,
    reference=reference.wavelet_pool,
    check=_check,
    outputs=4,
)

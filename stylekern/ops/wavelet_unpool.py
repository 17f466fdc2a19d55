"""Haar unpooling: four bands into the picture of twice their size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stylekern import reference
from stylekern.ops._checks import check_tensors, is_integer, shape
from stylekern.ops._operator import Operator


def wavelet_unpool(ll: Tensor, lh: Tensor, hl: Tensor, hh: Tensor, *, size: tuple[int, int] | None = None) -> Tensor:
    r"""The inverse of Haar pooling, `wavelet_pool` (WCT2, sec. 3.1; SAFIN's base network).

    The 2 x 2 block a b / c d of a position is::

        a = (ll - lh - hl + hh) / 2        b = (ll + lh - hl - hh) / 2
        c = (ll - lh + hl - hh) / 2        d = (ll + lh + hl + hh) / 2

    Args:
        ll: [N, C, h, w], float32, float64, float16 or bfloat16.
        lh: [N, C, h, w].
        hl: [N, C, h, w].
        hh: [N, C, h, w].
        size: (height, width) to crop to, at most (2h, 2w): that of the picture that `wavelet_pool` with odd="pad" took
            restores it exactly. None: no crop.

    Returns:
        [N, C, 2h, 2w], or [N, C, *size], contiguous, of the dtype of ll. Sums run in float32, or float64 for float64.

    Raises:
        ValueError: Bands whose shapes differ, a size that they cannot fill.
        TypeError: Not a tensor, or dtypes that differ or are not floating point.
        RuntimeError: Devices that differ; a backend asked for by name that cannot run; a forward-mode derivative.

    Deterministic, forward and backward. Gradients once, for all four bands in one pass: the transform is orthogonal, so
    they are `wavelet_pool` of the gradient. Under autocast the bands take the autocast dtype.
    """
    output: Tensor = OPERATOR(ll, lh, hl, hh, size)
    return output


def _check(ll: Tensor, lh: Tensor, hl: Tensor, hh: Tensor, size: Any) -> torch.dtype | None:
    bands = (("ll", ll), ("lh", lh), ("hl", hl), ("hh", hh))
    cast = check_tensors("wavelet_unpool", ((name, x, 4, "[N, C, h, w]") for name, x in bands))
    for name, x in bands[1:]:
        if x.shape != ll.shape:
            raise ValueError(f"wavelet_unpool: {name} must have the shape of ll, {shape(ll)}, got {shape(x)}")
    if size is not None:
        _check_size(size, ll)
    return cast


def _check_size(size: Any, ll: Tensor) -> None:
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(f"wavelet_unpool: size must be (height, width) or None, got {size!r}")
    height, width = size
    if not all(is_integer(side) for side in size):
        raise TypeError(f"wavelet_unpool: size must be two integers, got {size!r}")
    h, w = ll.shape[2:]
    if not (0 <= height <= 2 * h and 0 <= width <= 2 * w):
        raise ValueError(
            f"wavelet_unpool: size must be at most {(2 * h, 2 * w)} for bands of {h} x {w}, got {tuple(size)}; a "
            "picture of odd size is restored only from bands that wavelet_pool made with odd='pad'"
        )


def _prepare(ll: Tensor, lh: Tensor, hl: Tensor, hh: Tensor, size: tuple[int, int] | None) -> tuple[Any, ...]:
    """The picture's size, and what it needs of the bands: all, unless it is cropped by more than an odd line."""
    if size is None:
        return ll, lh, hl, hh, 2 * ll.shape[2], 2 * ll.shape[3]
    height, width = size
    h, w = (height + 1) // 2, (width + 1) // 2
    if (h < ll.shape[2] or w < ll.shape[3]) and ll.shape == lh.shape == hl.shape == hh.shape:
        ll, lh, hl, hh = (x[:, :, :h, :w] for x in (ll, lh, hl, hh))
    return ll, lh, hl, hh, height, width


def _fake(ll: Tensor, lh: Tensor, hl: Tensor, hh: Tensor, height: int, width: int) -> Tensor:
    return ll.new_empty((*ll.shape[:2], height, width))


def _backward_fake(grad: Tensor) -> tuple[Tensor, ...]:
    shape = (*grad.shape[:2], (grad.shape[2] + 1) // 2, (grad.shape[3] + 1) // 2)
    return tuple(grad.new_empty(shape) for _ in range(4))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pass


def _backward(ctx: Any, run: Callable[..., Any], grad: Tensor) -> tuple[Tensor | None, ...]:
    bands = run(grad)
    return *(x if need else None for x, need in zip(bands, ctx.needs_input_grad[:4], strict=True)), None, None


OPERATOR = Operator(
    name="wavelet_unpool",
    schema="(Tensor ll, Tensor lh, Tensor hl, Tensor hh, SymInt height, SymInt width) -> Tensor",
    backward_schema="(Tensor grad) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
    backward_fake=_backward_fake,
    setup_context=_setup_context,
    backward=_backward,
    reference=reference.wavelet_unpool,
    check=_check,
    prepare=_prepare,
)

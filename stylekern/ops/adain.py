"""Adaptive instance normalisation: the content's features with the mean and deviation of the style's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stylekern import reference
from stylekern.ops._checks import check_numbers, check_tensors, check_variance, shape, sums_dtype
from stylekern.ops._operator import Operator


def adain(content: Tensor, style: Tensor, *, eps: float = 1e-5, correction: int = 1) -> Tensor:
    r"""Adaptive instance normalisation (Huang & Belongie 2017, "Arbitrary style transfer in real-time ...", eq. 8).

    Per sample and channel, with the mean and std(.) = sqrt(var(.) + eps) of all positions::

        y = (content - mean(content)) / std(content) * std(style) + mean(style)

    Args:
        content: [N, C, H, W], float32, float64, float16 or bfloat16.
        style: [N, C, Hs, Ws], of any size of its own. One style for many contents: `style.expand(n, -1, -1, -1)`.
        eps: Inside both roots; 1e-5 is the original's.
        correction: The variances divide by the positions less this; 1 is the original's (`torch.var`), 0 the biased
            one, which some projects use. They differ by sqrt((n - 1) / n).

    Returns:
        [N, C, H, W], contiguous, of the content's dtype. Sums run in float32 or better, variances by deviations.

    Raises:
        ValueError: Shapes that do not fit; a variance of too few positions.
        TypeError: Not a tensor, or dtypes that differ or are not floating point.
        RuntimeError: Devices that differ; a backend asked for by name that cannot run; a forward-mode derivative.

    Deterministic, forward and backward. Gradients once, for content and style: saved are these and their statistics.
    Under autocast both take the autocast dtype.
    """
    output: Tensor = OPERATOR(content, style, eps, correction)
    return output


def _check(content: Tensor, style: Tensor, eps: float, correction: int) -> torch.dtype | None:
    tensors = (("content", content, 4, "[N, C, H, W]"), ("style", style, 4, "[N, C, Hs, Ws]"))
    cast = check_tensors("adain", tensors)
    check_numbers("adain", eps, correction)
    if style.shape[:2] != content.shape[:2]:
        raise ValueError(
            f"adain: style must be [{content.shape[0]}, {content.shape[1]}, Hs, Ws], as content {shape(content)} is, "
            f"got {shape(style)}; expand one that is for all"
        )
    check_variance("adain", "content", content, correction)
    if content.numel():
        check_variance("adain", "style", style, correction)
        if style.numel() == 0:
            raise ValueError(f"adain: style must have at least one position, got {shape(style)}")
    return cast


def _fake(content: Tensor, style: Tensor, eps: float, correction: int) -> tuple[Tensor, ...]:
    dtype = sums_dtype(content)
    statistics = (content.new_empty(content.shape[:2], dtype=dtype) for _ in range(4))
    return content.new_empty(content.shape), *statistics


def _backward_fake(
    grad: Tensor,
    content: Tensor,
    style: Tensor,
    content_mean: Tensor,
    content_rstd: Tensor,
    style_mean: Tensor,
    style_rstd: Tensor,
    correction: int,
    need_content: bool,
    need_style: bool,
) -> tuple[Tensor, Tensor]:
    return (
        content.new_empty(content.shape if need_content else (0,)),
        style.new_empty(style.shape if need_style else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    content, style, _eps, ctx.correction = inputs
    ctx.save_for_backward(content, style, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, run: Callable[..., Any], grad: Tensor | None, *_statistics: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None
    needed = ctx.needs_input_grad[:2]
    computed = run(grad, *ctx.saved_tensors, ctx.correction, *needed)
    return *(x if need else None for x, need in zip(computed, needed, strict=True)), None, None


OPERATOR = Operator(
    name="adain",
    schema="(Tensor content, Tensor style, float eps, int correction) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    backward_schema="(Tensor grad, Tensor content, Tensor style, Tensor content_mean, Tensor content_rstd, "
    "Tensor style_mean, Tensor style_rstd, int correction, bool need_content, bool need_style) -> (Tensor, Tensor)",
    fake=_fake,
    backward_fake=_backward_fake,
    setup_context=_setup_context,
    backward=_backward,
    reference=reference.adain,
    check=_check,
)

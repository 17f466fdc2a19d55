"""Factorized instance normalisation: SAFIN's style, per position, over one of the channel alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stylekern import reference
from stylekern.ops._checks import check_numbers, check_tensors, check_variance, shape, sums_dtype
from stylekern.ops._operator import Operator


def factorized_instance_norm(
    content: Tensor,
    gamma_ind: Tensor,
    beta_ind: Tensor,
    gamma_style: Tensor,
    beta_style: Tensor,
    *,
    eps: float = 1e-5,
    correction: int = 1,
) -> Tensor:
    r"""Factorized instance normalisation ("SAFIN: Arbitrary style transfer with self-attentive FIN", eq. 1).

    With norm(x) = (x - mean) / sqrt(var + eps) per sample and channel, a style-independent affine map a channel, and
    one a position that the style gave::

        y = gamma_style * (gamma_ind * norm(content) + beta_ind) + beta_style

    Args:
        content: [N, C, H, W], float32, float64, float16 or bfloat16.
        gamma_ind: [C].
        beta_ind: [C].
        gamma_style: [N, C, H, W].
        beta_style: [N, C, H, W].
        eps: Inside the root; 1e-5 is torch's own default.
        correction: The variance divides by H * W less this; 1 is the paper's code (`torch.var`), 0 `F.instance_norm`'s.

    Returns:
        [N, C, H, W], contiguous, of the content's dtype. Sums run in float32 or better, variances by deviations.

    Raises:
        ValueError: Shapes that do not fit; a variance of too few positions.
        TypeError: Not a tensor, or dtypes that differ or are not floating point.
        RuntimeError: Devices that differ; a backend asked for by name that cannot run; a forward-mode derivative.

    Deterministic, forward and backward. Gradients once, for all five tensors; saved are content, gamma_ind, beta_ind,
    gamma_style and the statistics. Under autocast all tensors take the autocast dtype.
    """
    output: Tensor = OPERATOR(content, gamma_ind, beta_ind, gamma_style, beta_style, eps, correction)
    return output


def _check(
    content: Tensor,
    gamma_ind: Tensor,
    beta_ind: Tensor,
    gamma_style: Tensor,
    beta_style: Tensor,
    eps: float,
    correction: int,
) -> torch.dtype | None:
    tensors = (
        ("content", content, 4, "[N, C, H, W]"),
        ("gamma_ind", gamma_ind, 1, "[C]"),
        ("beta_ind", beta_ind, 1, "[C]"),
        ("gamma_style", gamma_style, 4, "[N, C, H, W]"),
        ("beta_style", beta_style, 4, "[N, C, H, W]"),
    )
    cast = check_tensors("factorized_instance_norm", tensors)
    check_numbers("factorized_instance_norm", eps, correction)
    for name, x, _, _ in tensors[1:]:
        wanted = content.shape if x.dim() == 4 else content.shape[1:2]
        if x.shape != wanted:
            raise ValueError(
                f"factorized_instance_norm: {name} must be {list(wanted)} for content {shape(content)}, got {shape(x)}"
            )
    check_variance("factorized_instance_norm", "content", content, correction)
    return cast


def _fake(
    content: Tensor,
    gamma_ind: Tensor,
    beta_ind: Tensor,
    gamma_style: Tensor,
    beta_style: Tensor,
    eps: float,
    correction: int,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = sums_dtype(content)
    mean, rstd = (content.new_empty(content.shape[:2], dtype=dtype) for _ in range(2))
    return content.new_empty(content.shape), mean, rstd


def _backward_fake(
    grad: Tensor,
    content: Tensor,
    gamma_ind: Tensor,
    beta_ind: Tensor,
    gamma_style: Tensor,
    mean: Tensor,
    rstd: Tensor,
    correction: int,
    need_content: bool,
    need_gamma_style: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        content.new_empty(content.shape if need_content else (0,)),
        content.new_empty(content.shape if need_gamma_style else (0,)),
        mean.new_empty(mean.shape),
        mean.new_empty(mean.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    content, gamma_ind, beta_ind, gamma_style, _beta_style, _eps, ctx.correction = inputs
    _, mean, rstd = output
    ctx.save_for_backward(content, gamma_ind, beta_ind, gamma_style, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, run: Callable[..., Any], grad: Tensor | None, *_statistics: Tensor | None
) -> tuple[Tensor | None, ...]:
    gradients: list[Tensor | None] = [None] * 7
    if grad is None:
        return tuple(gradients)
    need_content, need_gamma_ind, need_beta_ind, need_gamma_style, need_beta_style = ctx.needs_input_grad[:5]
    if any(ctx.needs_input_grad[:4]):
        computed = run(grad, *ctx.saved_tensors, ctx.correction, need_content, need_gamma_style)
        grad_content, grad_gamma_style, sum_gx, sum_g = computed
        gradients[0] = grad_content if need_content else None
        gradients[3] = grad_gamma_style if need_gamma_style else None
        # gamma_ind and beta_ind are one for the whole batch: sums a sample and channel, over the samples
        gradients[1] = _over_samples(sum_gx).to(grad.dtype) if need_gamma_ind else None
        gradients[2] = _over_samples(sum_g).to(grad.dtype) if need_beta_ind else None
    gradients[4] = grad if need_beta_style else None
    return tuple(gradients)


def _over_samples(sums: Tensor) -> Tensor:  # [C] of [N, C]; of one sample without another launch
    return sums[0] if len(sums) == 1 else sums.sum(0)


OPERATOR = Operator(
    name="factorized_instance_norm",
    schema="(Tensor content, Tensor gamma_ind, Tensor beta_ind, Tensor gamma_style, Tensor beta_style, float eps, "
    "int correction) -> (Tensor, Tensor, Tensor)",
    backward_schema="(Tensor grad, Tensor content, Tensor gamma_ind, Tensor beta_ind, Tensor gamma_style, Tensor mean, "
    "Tensor rstd, int correction, bool need_content, bool need_gamma_style) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
    backward_fake=_backward_fake,
    setup_context=_setup_context,
    backward=_backward,
    reference=reference.factorized_instance_norm,
    check=_check,
)

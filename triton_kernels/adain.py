"""adain: y = (content - mean_c) * rstd_c / rstd_s + mean_s.

A content plane that fits a program's registers is read once and gives its statistics on the way; larger ones are read a
second time. The fewest bytes: read content and style, write y.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import dense_rows, on_device_of, strides, torch_accumulator
from ._instance_norm import (
    gradient_sums,
    instance_statistics,
    load_chunk,
    normalize_gradient,
    normalized,
    plane_at,
    plane_size,
    plane_statistics,
    plane_sums,
    store_chunk,
    streaming,
    variance_divisor,
)


@triton.jit
def _adain_fwd_kernel(
    x_ptr, mean_ptr, rstd_ptr, style_mean_ptr, style_rstd_ptr, y_ptr, channels, size, width, parts, divisor,
    stride_xn, stride_xc, stride_xh,
    EPS: tl.constexpr, WHOLE: tl.constexpr, DENSE: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    plane = pid // parts
    i = pid % parts * BLOCK + tl.arange(0, BLOCK)
    x_ptr = plane_at(x_ptr, plane, channels, stride_xn, stride_xc)
    x = load_chunk(x_ptr, i, size, width, stride_xh, DENSE, ACC)
    mean, rstd = plane_statistics(x, x_ptr, i, mean_ptr, rstd_ptr, plane, size, divisor, WHOLE, EPS)
    scale = rstd / tl.load(style_rstd_ptr + plane)
    store_chunk(y_ptr, plane, i, size, (x - mean) * scale + tl.load(style_mean_ptr + plane))


@triton.jit
def _adain_bwd_kernel(
    grad_ptr, x_ptr, mean_ptr, rstd_ptr, style_rstd_ptr, sum_ptr, dot_ptr, grad_x_ptr,
    channels, size, width, parts, divisor,
    stride_gn, stride_gc, stride_gh,
    stride_xn, stride_xc, stride_xh,
    WHOLE: tl.constexpr, DENSE: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The content's gradient, where wanted; of a whole plane also the sums for the style's."""
    pid = tl.program_id(0).to(tl.int64)
    plane = pid // parts
    i = pid % parts * BLOCK + tl.arange(0, BLOCK)
    grad = load_chunk(plane_at(grad_ptr, plane, channels, stride_gn, stride_gc), i, size, width, stride_gh, DENSE, ACC)
    x = load_chunk(plane_at(x_ptr, plane, channels, stride_xn, stride_xc), i, size, width, stride_xh, DENSE, ACC)
    rstd = tl.load(rstd_ptr + plane)
    xhat = normalized(x, i, tl.load(mean_ptr + plane), rstd, size)
    total, dot = plane_sums(grad, xhat, sum_ptr, dot_ptr, plane, WHOLE)
    if grad_x_ptr is not None:
        # grad_content = rstd_c / rstd_s * (grad - sum(grad) / n_c - xhat * sum(grad * xhat) / (n_c - correction))
        scale = rstd / tl.load(style_rstd_ptr + plane)
        store_chunk(grad_x_ptr, plane, i, size, normalize_gradient(grad, xhat, total, dot, scale, size, divisor))


@triton.jit
def _adain_bwd_style_kernel(
    x_ptr, mean_ptr, rstd_ptr, sum_ptr, dot_ptr, grad_x_ptr, channels, size, width, parts, divisor,
    stride_xn, stride_xc, stride_xh,
    WHOLE: tl.constexpr, DENSE: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    plane = pid // parts
    i = pid % parts * BLOCK + tl.arange(0, BLOCK)
    x = load_chunk(plane_at(x_ptr, plane, channels, stride_xn, stride_xc), i, size, width, stride_xh, DENSE, ACC)
    xhat = normalized(x, i, tl.load(mean_ptr + plane), tl.load(rstd_ptr + plane), size)
    # grad_style = sum(grad) / n_s + (style - mean_s) * rstd_s * sum(grad * xhat) / (n_s - correction)
    grad_x = tl.load(sum_ptr + plane) / size + xhat * (tl.load(dot_ptr + plane) / divisor)
    store_chunk(grad_x_ptr, plane, i, size, grad_x)


def forward(
    content: Tensor,  # [N, C, H, W]
    style: Tensor,  # [N, C, Hs, Ws]
    eps: float,
    correction: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The output [N, C, H, W]; mean and 1 / sqrt(var + eps), each [N, C], of the content, then of the style."""
    y = torch.empty(content.shape, dtype=content.dtype, device=content.device)
    if content.numel() == 0:
        return y, *(content.new_zeros(content.shape[:2], dtype=torch_accumulator(content)) for _ in range(4))
    x, style = dense_rows(content), dense_rows(style)
    style_mean, style_rstd = instance_statistics(style, eps, correction)
    grid, parts, options = streaming(x)
    if options["WHOLE"]:
        mean, rstd = torch.empty_like(style_mean), torch.empty_like(style_mean)
    else:
        mean, rstd = instance_statistics(x, eps, correction)
    with on_device_of(x):
        _adain_fwd_kernel[grid](
            x, mean, rstd, style_mean, style_rstd, y, x.shape[1], plane_size(x), x.shape[3], parts,
            variance_divisor(x, correction), *strides(x, 3), EPS=eps, **options,
        )  # fmt: skip
    return y, mean, rstd, style_mean, style_rstd


def backward(
    grad: Tensor,  # [N, C, H, W]
    content: Tensor,  # [N, C, H, W]
    style: Tensor,  # [N, C, Hs, Ws]
    content_mean: Tensor,  # [N, C], as forward gave it, and so on
    content_rstd: Tensor,
    style_mean: Tensor,
    style_rstd: Tensor,
    correction: int,
    need_content: bool,
    need_style: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of content and style; size [0] where not needed."""
    if grad.numel() == 0 or not (need_content or need_style):
        return content.new_zeros(content.shape if need_content else 0), style.new_zeros(
            style.shape if need_style else 0
        )
    g, x = dense_rows(grad), dense_rows(content)
    grad_content = torch.empty(x.shape, dtype=x.dtype, device=x.device) if need_content else None
    grad_style = torch.empty(style.shape if need_style else 0, dtype=style.dtype, device=style.device)
    grid, parts, options = streaming(x, g)
    if options["WHOLE"]:
        total, dot = torch.empty_like(content_mean), torch.empty_like(content_mean)
    else:
        total, dot = gradient_sums(g, x, content_mean, content_rstd)
    if need_content or options["WHOLE"]:
        with on_device_of(x):
            _adain_bwd_kernel[grid](
                g, x, content_mean, content_rstd, style_rstd, total, dot, grad_content,
                x.shape[1], plane_size(x), x.shape[3], parts, variance_divisor(x, correction),
                *strides(g, 3), *strides(x, 3), **options,
            )  # fmt: skip
    if need_style:
        style = dense_rows(style)
        grid, parts, options = streaming(style)
        with on_device_of(x):
            _adain_bwd_style_kernel[grid](
                style, style_mean, style_rstd, total, dot, grad_style, style.shape[1], plane_size(style),
                style.shape[3], parts, variance_divisor(style, correction), *strides(style, 3), **options,
            )  # fmt: skip
    return content.new_empty(0) if grad_content is None else grad_content, grad_style

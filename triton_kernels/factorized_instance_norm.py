"""factorized_instance_norm: y = gamma_style * (gamma_ind * xhat + beta_ind) + beta_style, xhat the normalised content.

A plane that fits a program's registers is read once and gives its statistics, or the backward's sums, on the way; of
larger ones what the sums need is read a second time. The fewest bytes: read content, gamma_style and beta_style, write
y; backward, read grad, content and gamma_style, write two gradients.
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
def _factorized_instance_norm_fwd_kernel(
    x_ptr, gamma_ind_ptr, beta_ind_ptr, gamma_ptr, beta_ptr, mean_ptr, rstd_ptr, y_ptr,
    channels, size, width, parts, divisor, stride_gamma_ind, stride_beta_ind,
    stride_xn, stride_xc, stride_xh,
    stride_gn, stride_gc, stride_gh,
    stride_bn, stride_bc, stride_bh,
    EPS: tl.constexpr, WHOLE: tl.constexpr, DENSE: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    plane = pid // parts
    c = plane % channels
    i = pid % parts * BLOCK + tl.arange(0, BLOCK)
    x_ptr = plane_at(x_ptr, plane, channels, stride_xn, stride_xc)
    x = load_chunk(x_ptr, i, size, width, stride_xh, DENSE, ACC)
    mean, rstd = plane_statistics(x, x_ptr, i, mean_ptr, rstd_ptr, plane, size, divisor, WHOLE, EPS)
    gamma_ind = tl.load(gamma_ind_ptr + c * stride_gamma_ind).to(ACC)
    beta_ind = tl.load(beta_ind_ptr + c * stride_beta_ind).to(ACC)
    gamma_ptr = plane_at(gamma_ptr, plane, channels, stride_gn, stride_gc)
    beta_ptr = plane_at(beta_ptr, plane, channels, stride_bn, stride_bc)
    gamma = load_chunk(gamma_ptr, i, size, width, stride_gh, DENSE, ACC)
    beta = load_chunk(beta_ptr, i, size, width, stride_bh, DENSE, ACC)
    store_chunk(y_ptr, plane, i, size, gamma * ((x - mean) * (rstd * gamma_ind) + beta_ind) + beta)


@triton.jit
def _factorized_instance_norm_bwd_kernel(
    grad_ptr, x_ptr, gamma_ind_ptr, beta_ind_ptr, gamma_ptr, mean_ptr, rstd_ptr, sum_ptr, dot_ptr,
    grad_x_ptr, grad_gamma_ptr, channels, size, width, parts, divisor, stride_gamma_ind, stride_beta_ind,
    stride_gn, stride_gc, stride_gh,
    stride_xn, stride_xc, stride_xh,
    stride_fn, stride_fc, stride_fh,
    WHOLE: tl.constexpr, DENSE: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradients of content and gamma_style, where wanted; of a whole plane also the sums."""
    pid = tl.program_id(0).to(tl.int64)
    plane = pid // parts
    c = plane % channels
    i = pid % parts * BLOCK + tl.arange(0, BLOCK)
    grad = load_chunk(plane_at(grad_ptr, plane, channels, stride_gn, stride_gc), i, size, width, stride_gh, DENSE, ACC)
    x = load_chunk(plane_at(x_ptr, plane, channels, stride_xn, stride_xc), i, size, width, stride_xh, DENSE, ACC)
    rstd = tl.load(rstd_ptr + plane)
    xhat = normalized(x, i, tl.load(mean_ptr + plane), rstd, size)
    gamma_ind = tl.load(gamma_ind_ptr + c * stride_gamma_ind).to(ACC)
    if grad_gamma_ptr is not None:
        # grad_gamma_style = grad * (gamma_ind * xhat + beta_ind)
        beta_ind = tl.load(beta_ind_ptr + c * stride_beta_ind).to(ACC)
        store_chunk(grad_gamma_ptr, plane, i, size, grad * (gamma_ind * xhat + beta_ind))
    if WHOLE or grad_x_ptr is not None:
        # with g = grad * gamma_style: grad_content = rstd * gamma_ind * (g - sum(g) / n - xhat * sum(g * xhat) / ...)
        gamma_ptr = plane_at(gamma_ptr, plane, channels, stride_fn, stride_fc)
        grad *= load_chunk(gamma_ptr, i, size, width, stride_fh, DENSE, ACC)
        total, dot = plane_sums(grad, xhat, sum_ptr, dot_ptr, plane, WHOLE)
        if grad_x_ptr is not None:
            grad_x = normalize_gradient(grad, xhat, total, dot, rstd * gamma_ind, size, divisor)
            store_chunk(grad_x_ptr, plane, i, size, grad_x)


def forward(
    content: Tensor,  # [N, C, H, W]
    gamma_ind: Tensor,  # [C]
    beta_ind: Tensor,  # [C]
    gamma_style: Tensor,  # [N, C, H, W]
    beta_style: Tensor,  # [N, C, H, W]
    eps: float,
    correction: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output [N, C, H, W]; mean and 1 / sqrt(var + eps) [N, C]."""
    y = torch.empty(content.shape, dtype=content.dtype, device=content.device)
    if content.numel() == 0:
        return y, *(content.new_zeros(content.shape[:2], dtype=torch_accumulator(content)) for _ in range(2))
    x, gamma, beta = dense_rows(content), dense_rows(gamma_style), dense_rows(beta_style)
    grid, parts, options = streaming(x, gamma, beta)
    if options["WHOLE"]:
        mean = torch.empty(x.shape[:2], dtype=torch_accumulator(x), device=x.device)
        rstd = torch.empty_like(mean)
    else:
        mean, rstd = instance_statistics(x, eps, correction)
    with on_device_of(x):
        _factorized_instance_norm_fwd_kernel[grid](
            x, gamma_ind, beta_ind, gamma, beta, mean, rstd, y,
            x.shape[1], plane_size(x), x.shape[3], parts, variance_divisor(x, correction),
            *gamma_ind.stride(), *beta_ind.stride(), *strides(x, 3), *strides(gamma, 3), *strides(beta, 3),
            EPS=eps, **options,
        )  # fmt: skip
    return y, mean, rstd


def backward(
    grad: Tensor,  # [N, C, H, W]
    content: Tensor,  # [N, C, H, W]
    gamma_ind: Tensor,  # [C]
    beta_ind: Tensor,  # [C]
    gamma_style: Tensor,  # [N, C, H, W]
    mean: Tensor,  # [N, C], as forward gave it
    rstd: Tensor,  # [N, C], as forward gave it
    correction: int,
    need_content: bool,
    need_gamma_style: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of content and gamma_style, size [0] where not needed; the sums over each plane, [N, C], of
    grad * gamma_style * xhat and of grad * gamma_style: what each sample gives to gamma_ind's and beta_ind's gradients.
    """
    needs = (need_content, need_gamma_style)
    if grad.numel() == 0:
        gradients = (content.new_zeros(content.shape if need else 0) for need in needs)
        return *gradients, torch.zeros_like(mean), torch.zeros_like(mean)
    g, x, gamma = dense_rows(grad), dense_rows(content), dense_rows(gamma_style)
    grad_x, grad_gamma = (torch.empty(x.shape, dtype=x.dtype, device=x.device) if need else None for need in needs)
    grid, parts, options = streaming(x, g, gamma)
    if options["WHOLE"]:
        total, dot = torch.empty_like(mean), torch.empty_like(mean)
    else:
        total, dot = gradient_sums(g, x, mean, rstd, gamma)
    if x.dtype == torch.float32:
        options["num_warps"] *= 2  # 16 values a thread, of three tensors, fit two programs only with spills
    # A fused grad * gamma - total / size subtracts a rounded product from an exact one: of one position, where both are
    # the same product, something would be left.
    options["enable_fp_fusion"] = False
    if any(needs) or options["WHOLE"]:
        with on_device_of(x):
            _factorized_instance_norm_bwd_kernel[grid](
                g, x, gamma_ind, beta_ind, gamma, mean, rstd, total, dot, grad_x, grad_gamma,
                x.shape[1], plane_size(x), x.shape[3], parts, variance_divisor(x, correction),
                *gamma_ind.stride(), *beta_ind.stride(), *strides(g, 3), *strides(x, 3), *strides(gamma, 3), **options,
            )  # fmt: skip
    return *(content.new_empty(0) if y is None else y for y in (grad_x, grad_gamma)), dot, total

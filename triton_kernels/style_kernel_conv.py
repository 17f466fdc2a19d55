"""style_kernel_conv: the forward kernel and the host functions.

  sequential  t[i,j] = sum_a v[a,i,j] * x[pad(i+a-rv), j];  y[i,j] = sum_b h[b,i,j] * t[i, pad(j+b-rh)] + bias[i,j]
  outer       y[i,j] = sum_a sum_b v[a,i,j] * h[b,i,j] * x[pad(i+a-rv), pad(j+b-rh)] + bias[i,j]

A program makes a tile of y. Registers cannot be shifted in Triton, so `sequential` with few taps computes t again at
each of a pixel's kh neighbours: the L1 cache serves the kh - 1 re-reads of x and v, and memory sees the fewest bytes
(k = 3, G = C: 9 values a value of x). With many taps that would be kh * kv loads, so t goes through memory: the same
kernel runs twice, with the vertical filter alone, then with the horizontal one; a write and a read more, against 2k.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import (
    accumulator,
    border,
    dense_rows,
    filter_of,
    inside,
    load_filter,
    offsets,
    on_device_of,
    plane_of,
    strides,
    taps,
    tile,
    tile_of,
    tiles,
    torch_accumulator,
    vertical_sum,
)
from ._instance_norm import instance_norm_backward, instance_statistics
from .style_kernel_conv_backward import FUSED_TAPS as FUSED_BACKWARD_TAPS
from .style_kernel_conv_backward import filter_gradient, fused_gradients, source_gradient

FUSED_TAPS = 5  # computing t again takes 2 kv kh loads a value, from L1; memory would serve about 2 (kv + kh) + 2


@triton.jit
def _horizontal_tap(
    y, b, q, x, v, h, rows, cols, mask, height,
    KV: tl.constexpr, PADDING: tl.constexpr, SEQUENTIAL: tl.constexpr, UNROLL: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """y + h[b] * (t at columns q, or the inner sum of `outer`)."""
    t = vertical_sum(x, v, rows, q, q if SEQUENTIAL else cols, mask, height, KV, PADDING, UNROLL, ACC)
    if len(h) != 0:
        t *= load_filter(h, b, rows, cols, mask, ACC)
    return y + t


@triton.jit
def _style_kernel_conv_fwd_kernel(
    x_ptr, v_ptr, h_ptr, bias_ptr, mean_ptr, rstd_ptr, y_ptr, channels, group_size, bias_group_size, height, width,
    stride_xn, stride_xc, stride_xh,
    stride_vn, stride_vg, stride_vk, stride_vh,
    stride_hn, stride_hg, stride_hk, stride_hh,
    stride_bn, stride_bc, stride_bh,
    KV: tl.constexpr, KH: tl.constexpr, PADDING: tl.constexpr, SEQUENTIAL: tl.constexpr, UNROLL: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One tile of y. A filter that is None, with one tap, is left out: half of `sequential`."""
    plane, rows, cols = tile_of(height, width, BLOCK_H, BLOCK_W)
    plane = plane.to(tl.int64)
    n, c = plane // channels, plane % channels
    g = c // group_size
    mask = inside(rows, cols, height, width)
    x = plane_of(x_ptr, mean_ptr, rstd_ptr, n, c, plane, stride_xn, stride_xc, stride_xh)
    v = filter_of(v_ptr, n, g, stride_vn, stride_vg, stride_vk, stride_vh)
    h = filter_of(h_ptr, n, g, stride_hn, stride_hg, stride_hk, stride_hh)

    y = tl.zeros([BLOCK_H, BLOCK_W], ACC)
    if UNROLL:
        for b in tl.static_range(KH):
            q = cols if b == KH // 2 and PADDING != "none" else border(cols, b, KH, width, PADDING)
            y = _horizontal_tap(y, b, q, x, v, h, rows, cols, mask, height, KV, PADDING, SEQUENTIAL, UNROLL, ACC)
    else:
        for b in range(KH):
            q = border(cols, b, KH, width, PADDING)
            y = _horizontal_tap(y, b, q, x, v, h, rows, cols, mask, height, KV, PADDING, SEQUENTIAL, UNROLL, ACC)
    if bias_ptr is not None:
        bias_ptr += n * stride_bn + c // bias_group_size * stride_bc
        y += tl.load(bias_ptr + offsets(rows, cols, stride_bh), mask=mask, other=0.0).to(ACC)
    y_ptr += plane * height * width
    tl.store(y_ptr + offsets(rows, cols, width), y.to(y_ptr.dtype.element_ty), mask=mask)


def _convolve(
    x: Tensor,  # [N, C, H, W]
    vertical: Tensor | None,  # [N, G, kv, H, W]
    horizontal: Tensor | None,  # [N, G, kh, H, W]
    bias: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    padding_mode: str,
    sequential: bool,
    dtype: torch.dtype,
) -> Tensor:
    (n, c), kv, kh = x.shape[:2], taps(vertical), taps(horizontal)
    groups, _, h, w = (horizontal if vertical is None else vertical).shape[1:]
    bias_group_size = 1 if bias is None else c // bias.shape[1]
    y = torch.empty((n, c, h, w), dtype=dtype, device=x.device)
    block = tile(x, w)
    with on_device_of(x):
        _style_kernel_conv_fwd_kernel[tiles(n * c, h, w, block)](
            x, vertical, horizontal, bias, mean, rstd, y, c, c // groups, bias_group_size, h, w,
            *strides(x, 3), *strides(vertical, 4), *strides(horizontal, 4), *strides(bias, 3),
            KV=kv, KH=kh, PADDING=padding_mode, SEQUENTIAL=sequential, UNROLL=max(kv, kh) <= FUSED_TAPS,
            ACC=accumulator(x), num_warps=4, **block,
        )  # fmt: skip
    return y


def forward(
    input: Tensor,  # [N, C, H, W], or [N, C, H+kv-1, W+kh-1] with padding "none"
    vertical: Tensor,  # [N, G, kv, H, W]
    horizontal: Tensor,  # [N, G, kh, H, W]
    bias: Tensor | None,  # [N, C, H, W] or [N, G, H, W]
    padding_mode: str,
    composition: str,
    normalize: bool,
    eps: float,
    correction: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output [N, C, H, W], and mean and 1 / sqrt(var + eps) [N, C] (size [0] without `normalize`)."""
    if 0 in (*input.shape[:2], *vertical.shape[3:]):
        mean = input.new_zeros(input.shape[:2] if normalize else 0, dtype=torch_accumulator(input))
        return input.new_empty((*input.shape[:2], *vertical.shape[3:])), mean, mean.clone()
    x, v, h = dense_rows(input), dense_rows(vertical), dense_rows(horizontal)
    bias = None if bias is None else dense_rows(bias)
    mean, rstd = instance_statistics(x, eps, correction) if normalize else (None, None)
    if composition == "outer" or max(taps(v), taps(h)) <= FUSED_TAPS:
        y = _convolve(x, v, h, bias, mean, rstd, padding_mode, composition == "sequential", input.dtype)
    else:
        t = _convolve(x, v, None, None, mean, rstd, padding_mode, True, torch_accumulator(x))
        y = _convolve(t, None, h, bias, None, None, padding_mode, True, input.dtype)
    if mean is None:
        mean, rstd = (torch.empty(0, dtype=torch_accumulator(x), device=x.device) for _ in range(2))
    return y, mean, rstd


def backward(
    grad: Tensor,  # [N, C, H, W]
    input: Tensor,  # [N, C, H, W], or [N, C, H+kv-1, W+kh-1] with padding "none"
    vertical: Tensor,  # [N, G, kv, H, W]
    horizontal: Tensor,  # [N, G, kh, H, W]
    mean: Tensor,  # [N, C], as forward gave it
    rstd: Tensor,  # [N, C], as forward gave it
    padding_mode: str,
    composition: str,
    normalize: bool,
    correction: int,
    need_input: bool,
    need_vertical: bool,
    need_horizontal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, vertical and horizontal; size [0] where not needed."""
    needs = (need_input, need_vertical, need_horizontal)
    if grad.numel() == 0 or not any(needs):
        tensors = (input, vertical, horizontal)
        return tuple(x.new_zeros(x.shape if need else 0) for x, need in zip(tensors, needs, strict=True))
    g, x, v, h = dense_rows(grad), dense_rows(input), dense_rows(vertical), dense_rows(horizontal)
    statistics = (mean, rstd) if normalize else (None, None)
    acc = torch_accumulator(x)
    x_dtype = acc if normalize else x.dtype
    grad_x = grad_v = grad_h = None

    if composition == "outer":
        if need_input:
            grad_x = source_gradient(g, v, h, padding_mode, x_dtype)
        if need_vertical:
            grad_v = filter_gradient(g, x, *statistics, h, v, padding_mode, "vertical")
        if need_horizontal:
            grad_h = filter_gradient(g, x, *statistics, v, h, padding_mode, "horizontal")
    elif max(taps(v), taps(h)) <= FUSED_BACKWARD_TAPS:
        grad_x, grad_v, grad_h = fused_gradients(g, x, v, h, *statistics, padding_mode, x_dtype, needs)
    else:
        if need_horizontal:
            t = _convolve(x, v, None, None, *statistics, padding_mode, True, acc)
            grad_h = filter_gradient(g, t, None, None, None, h, padding_mode, "horizontal")
        if need_input or need_vertical:
            grad_t = source_gradient(g, None, h, padding_mode, acc)
        if need_vertical:
            grad_v = filter_gradient(grad_t, x, *statistics, None, v, padding_mode, "vertical")
        if need_input:
            grad_x = source_gradient(grad_t, v, None, padding_mode, x_dtype)

    if normalize and need_input:
        grad_x = instance_norm_backward(grad_x, x, mean, rstd, correction)
    return tuple(input.new_empty(0) if x is None else x for x in (grad_x, grad_v, grad_h))

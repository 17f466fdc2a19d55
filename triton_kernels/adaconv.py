"""adaconv: each sample's own grouped convolution, whose kernel [N, Co, C/G, kh, kw] is composed before.

  y[o,i,j] = bias[o] + sum over the input channels m of o's group, a, b of
                       kernel[o,m,a,b] * x[m, pad(i + a - kh // 2), pad(j + b - kw // 2)]

A program makes a tile of several output channels of one group, so that a value of x, once loaded and normalised, serves
them all; the L1 cache serves the taps. The gradient of the padded x is the same correlation with the kernel flipped and
its channels exchanged, over a grad that zeros extend.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import (
    accumulator,
    dense_rows,
    inner,
    inside,
    load_x,
    offsets,
    on_device_of,
    plane_of,
    strides,
    tile,
    tile_of,
    tiles,
    torch_accumulator,
)
from ._instance_norm import instance_norm_backward, instance_statistics
from .adaconv_backward import kernel_gradient
from .style_kernel_conv_backward import _fold_kernel

MOST_OUT = 8  # output channels of a program: 4 values a thread each, in registers
UNROLLED_TAPS = 9  # of all output channels: their loads are in flight together; those of more would take the registers
UNROLLED_COLUMNS = 3


@triton.jit
def _tap(
    y, a, b, x, k_ptr, rows, cols, mask, height, width, stride_ko,
    KH: tl.constexpr, KW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr, FLIP: tl.constexpr,
    PADDING: tl.constexpr, CENTRE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """y + kernel[a,b] * x through this tap, for each output channel."""
    j = cols if CENTRE else inner(cols + b - LEFT, width, PADDING)  # a contiguous range is loaded in vectors
    value = load_x(x, inner(rows + a - TOP, height, PADDING), j, mask, ACC)
    tap = a * KW + b
    if FLIP:
        tap = KH * KW - 1 - tap
    sums = ()
    for r in tl.static_range(len(y)):
        sums += (y[r] + value * tl.load(k_ptr + r * stride_ko + tap),)
    return sums


@triton.jit
def _row_of_taps(
    y, a, x, k_ptr, rows, cols, mask, height, width, kw, stride_ko,
    KH: tl.constexpr, KW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr, FLIP: tl.constexpr,
    PADDING: tl.constexpr, CENTRE: tl.constexpr, UNROLL: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    if UNROLL:
        for b in tl.static_range(KW):
            y = _tap(
                y, a, b, x, k_ptr, rows, cols, mask, height, width, stride_ko,
                KH, KW, TOP, LEFT, FLIP, PADDING, CENTRE and b == LEFT, ACC,
            )  # fmt: skip
    else:
        for b in range(kw):
            y = _tap(
                y, a, b, x, k_ptr, rows, cols, mask, height, width, stride_ko,
                KH, KW, TOP, LEFT, FLIP, PADDING, False, ACC,
            )  # fmt: skip
    return y


@triton.jit
def _adaconv_fwd_kernel(
    x_ptr, k_ptr, bias_ptr, mean_ptr, rstd_ptr, y_ptr,
    group_in, group_out, in_channels, out_channels, height, width, out_h, out_w, kh, kw,
    stride_xn, stride_xc, stride_xh,
    stride_kg, stride_ko, stride_ki,
    KH: tl.constexpr, KW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr, FLIP: tl.constexpr,
    PADDING: tl.constexpr, CENTRE: tl.constexpr, OUT: tl.constexpr, UNROLL: tl.constexpr, UNROLL_ROWS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A tile of OUT output channels. x is read from TOP rows above and LEFT columns before a position on."""
    block, rows, cols = tile_of(out_h, out_w, BLOCK_H, BLOCK_W)
    plane = block.to(tl.int64) * OUT  # the first of [N, Co]
    n, o = plane // out_channels, plane % out_channels
    g = o // group_out
    mask = inside(rows, cols, out_h, out_w)
    # of [N, G] kernels: a group's are together
    k_ptr += (n * (out_channels // group_out) + g) * stride_kg + o % group_out * stride_ko
    y = (tl.zeros([BLOCK_H, BLOCK_W], ACC),) * OUT
    for m in range(group_in):
        c = g * group_in + m
        x = plane_of(x_ptr, mean_ptr, rstd_ptr, n, c, n * in_channels + c, stride_xn, stride_xc, stride_xh)
        k = k_ptr + tl.full((), m, tl.int64) * stride_ki
        if UNROLL_ROWS:
            for a in tl.static_range(KH):
                y = _row_of_taps(
                    y, a, x, k, rows, cols, mask, height, width, kw, stride_ko,
                    KH, KW, TOP, LEFT, FLIP, PADDING, CENTRE, UNROLL, ACC,
                )  # fmt: skip
        else:
            for a in range(kh):  # KH is constant, and the compiler would unroll this all the same, and spill
                y = _row_of_taps(
                    y, a, x, k, rows, cols, mask, height, width, kw, stride_ko,
                    KH, KW, TOP, LEFT, FLIP, PADDING, CENTRE, UNROLL, ACC,
                )  # fmt: skip
    size = tl.full((), out_h, tl.int64) * out_w
    out = offsets(rows, cols, out_w)
    for r in tl.static_range(OUT):
        value = y[r]
        if bias_ptr is not None:
            value += tl.load(bias_ptr + plane + r)
        tl.store(y_ptr + (plane + r) * size + out, value.to(y_ptr.dtype.element_ty), mask=mask)


def _correlate(
    x: Tensor,  # [N, C, H, W], or of Co channels if flipped
    kernel: Tensor,  # [N, Co, C/G, kh, kw]
    bias: Tensor | None,  # [N, Co]
    statistics: tuple[Tensor | None, Tensor | None],
    groups: int,
    padding_mode: str,
    origin: tuple[int, int],
    size: tuple[int, int],
    dtype: torch.dtype,
    flip: bool = False,
) -> Tensor:
    """[N, Co, *size] of x; with `flip` [N, C, *size]. Position (0, 0) reads x from `origin` above and left of it on."""
    n, co, group_in, kh, kw = kernel.shape
    group_out, taps = co // groups, kh * kw
    stride_g, stride_o, stride_i = group_out * group_in * taps, group_in * taps, taps
    if flip:
        group_in, group_out, stride_o, stride_i = group_out, group_in, stride_i, stride_o
    out = max(r for r in range(1, MOST_OUT + 1) if group_out % r == 0)
    channels = groups * group_out
    y = torch.empty((n, channels, *size), dtype=dtype, device=x.device)
    block = tile(x, size[1], most=8 if out == 1 else 4)
    with on_device_of(x):
        _adaconv_fwd_kernel[tiles(n * channels // out, *size, block)](
            x, kernel, bias, *statistics, y, group_in, group_out, x.shape[1], channels, *x.shape[2:], *size, kh, kw,
            *strides(x, 3), stride_g, stride_o, stride_i,
            KH=kh, KW=kw, TOP=origin[0], LEFT=origin[1], FLIP=flip, PADDING=padding_mode,
            CENTRE=size[1] == x.shape[3], OUT=out, UNROLL=kw <= UNROLLED_COLUMNS,
            UNROLL_ROWS=out * taps <= UNROLLED_TAPS, ACC=accumulator(x), num_warps=4, **block,
        )  # fmt: skip
    return y


def _source_gradient(
    grad: Tensor,  # [N, Co, H, W]
    kernel: Tensor,  # [N, Co, C/G, kh, kw]
    groups: int,
    padding_mode: str,
    dtype: torch.dtype,
) -> Tensor:
    """The gradient [N, C, H, W] of what was padded and convolved."""
    (n, _, h, w), (group_in, kh, kw) = grad.shape, kernel.shape[2:]
    unused = (None, None)
    rv, rh = kh // 2, kw // 2
    if padding_mode == "zeros" or rv == rh == 0:
        # grad_x[m,p,q] = sum over o, a, b of kernel[o,m,a,b] * grad[o, p - a + rv, q - b + rh]
        origin = (kh - 1 - rv, kw - 1 - rh)
        return _correlate(grad, kernel, None, unused, groups, "zeros", origin, (h, w), dtype, flip=True)
    # The gradient of the padded x comes first and is folded then, which keeps the border out of the sum over taps. Its
    # margins are equal: an even kernel never reads the last row, whose gradient is zero.
    size = (h + 2 * rv, w + 2 * rh)
    padded = _correlate(
        grad, kernel, None, unused, groups, "zeros", (kh - 1, kw - 1), size, torch_accumulator(grad), flip=True
    )
    out = torch.empty((n, groups * group_in, h, w), dtype=dtype, device=grad.device)
    block = tile(padded, w)
    reflect = padding_mode == "reflect"
    row_images, col_images = (1 if r == 0 else 3 if reflect else 1 + 2 * r for r in (rv, rh))
    with on_device_of(grad):
        _fold_kernel[tiles(n * groups * group_in, h, w, block)](
            padded, out, h, w, RV=rv, RH=rh, ROW_IMAGES=row_images, COL_IMAGES=col_images, REFLECT=reflect,
            ACC=accumulator(padded), num_warps=4, **block,
        )  # fmt: skip
    return out


def forward(
    input: Tensor,  # [N, C, H, W]
    kernel: Tensor,  # [N, Co, C/G, kh, kw], float32 (float64)
    scale: Tensor | None,  # [N, Co], the same: of each kernel
    bias: Tensor | None,  # [N, Co], the same
    normalize: bool,
    padding_mode: str,
    eps: float,
    correction: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output [N, Co, H, W], and mean and 1 / sqrt(var + eps) [N, C] (size [0] without `normalize`)."""
    (n, c, h, w), co = input.shape, kernel.shape[1]
    if scale is not None:
        kernel = kernel * scale[:, :, None, None, None]
    if 0 in (n, c, h, w, co):
        mean = input.new_zeros((n, c) if normalize else 0, dtype=torch_accumulator(input))
        y = input.new_zeros((n, co, h, w))
        if bias is not None:
            y += bias[:, :, None, None]
        return y, mean, mean.clone()
    x = dense_rows(input)
    statistics = instance_statistics(x, eps, correction) if normalize else (None, None)
    origin = (kernel.shape[3] // 2, kernel.shape[4] // 2)
    groups = c // kernel.shape[2]
    y = _correlate(x, kernel.contiguous(), bias, statistics, groups, padding_mode, origin, (h, w), input.dtype)
    mean, rstd = statistics if normalize else (kernel.new_empty(0), kernel.new_empty(0))
    return y, mean, rstd


def backward(
    grad: Tensor,  # [N, Co, H, W]
    input: Tensor,  # [N, C, H, W]
    kernel: Tensor,  # [N, Co, C/G, kh, kw], float32 (float64)
    mean: Tensor,  # [N, C], as forward gave it
    rstd: Tensor,  # [N, C], as forward gave it
    normalize: bool,
    padding_mode: str,
    correction: int,
    need_input: bool,
    need_kernel: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, kernel and bias; size [0] where not needed."""
    needs = (need_input, need_kernel, need_bias)
    if 0 in (*grad.shape, *input.shape):
        grad_x, grad_k = (x.new_zeros(x.shape if need else 0) for x, need in zip((input, kernel), needs, strict=False))
        return grad_x, grad_k, grad.sum((2, 3), dtype=kernel.dtype) if need_bias else kernel.new_zeros(0)
    g, x = dense_rows(grad), dense_rows(input)
    groups = x.shape[1] // kernel.shape[2]
    acc = torch_accumulator(x)
    grad_x = grad_k = grad_b = None
    if need_input:
        grad_x = _source_gradient(g, kernel.contiguous(), groups, padding_mode, acc if normalize else x.dtype)
        if normalize:
            grad_x = instance_norm_backward(grad_x, x, mean, rstd, correction)
    if need_kernel:
        statistics = (mean, rstd) if normalize else (None, None)
        grad_k = kernel_gradient(g, x, statistics, kernel.shape, groups, padding_mode)
    if need_bias:
        grad_b = g.sum((2, 3), dtype=acc)
    missing = (input, kernel, kernel)
    return tuple(y.new_empty(0) if x is None else x for x, y in zip((grad_x, grad_k, grad_b), missing, strict=True))

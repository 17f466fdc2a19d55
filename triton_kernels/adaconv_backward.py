"""adaconv: the gradient of the kernel.

  grad_kernel[o,m,a,b] = sum over i, j of grad[o,i,j] * x[m, pad(i + a - kh // 2), pad(j + b - kw // 2)]

A program sums a part of the plane for several taps of one pair of channels, which share the loads of grad; the parts
are cut by the plane's size alone and are summed in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import (
    accumulator,
    ceil_div,
    inner,
    inside,
    load_x,
    on_device_of,
    plane_of,
    strides,
    tile,
    torch_accumulator,
)

MOST_TAPS = 9  # taps of a program: all of a small kernel, or part of a row; 4 sums a thread each
ROUNDS = 8  # tiles that a program sums, one below the other


@triton.jit
def _adaconv_bwd_kernel(
    grad_ptr, x_ptr, mean_ptr, rstd_ptr, part_ptr, group_in, group_out, in_channels, out_channels, height, width,
    stride_gn, stride_gc, stride_gh,
    stride_xn, stride_xc, stride_xh,
    KH: tl.constexpr, KW: tl.constexpr, TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, PADDING: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """part[n, o, m, tap, part of the plane], for TAPS_H x TAPS_W taps and ROWS x BLOCK_W positions."""
    parts_w = tl.cdiv(width, BLOCK_W)
    parts = tl.cdiv(height, ROWS) * parts_w
    blocks_w: tl.constexpr = (KW + TAPS_W - 1) // TAPS_W
    blocks: tl.constexpr = blocks_w * (KH // TAPS_H)
    pid = tl.program_id(0)
    part = pid % parts
    block = pid // parts % blocks
    first_a = 0 if TAPS_H == KH else block // blocks_w * TAPS_H
    first_b = 0 if TAPS_W == KW else block % blocks_w * TAPS_W
    pair = (pid // (parts * blocks)).to(tl.int64)  # of [N, Co, C/G]
    plane, m = pair // group_in, pair % group_in
    n, o = plane // out_channels, plane % out_channels
    c = o // group_out * group_in + m
    grad = plane_of(grad_ptr, None, None, n, o, plane, stride_gn, stride_gc, stride_gh)
    x = plane_of(x_ptr, mean_ptr, rstd_ptr, n, c, n * in_channels + c, stride_xn, stride_xc, stride_xh)
    cols = part % parts_w * BLOCK_W + tl.arange(0, BLOCK_W)
    first = part // parts_w * ROWS
    totals = (tl.zeros([BLOCK_H, BLOCK_W], ACC),) * (TAPS_H * TAPS_W)
    for row in range(first, tl.minimum(first + ROWS, height), BLOCK_H):
        rows = row + tl.arange(0, BLOCK_H)
        mask = inside(rows, cols, height, width)
        g = load_x(grad, rows, cols, mask, ACC)
        sums = ()
        for t in tl.static_range(TAPS_H * TAPS_W):
            # grad_kernel[o,m,a,b] = sum_ij grad[o,i,j] * x[m, pad(i+a-kh//2), pad(j+b-kw//2)]
            i = inner(rows + (first_a + t // TAPS_W) - KH // 2, height, PADDING)
            if TAPS_W == KW and t % TAPS_W == KW // 2:
                j = cols  # a contiguous range is loaded in vectors
            else:
                j = inner(cols + (first_b + t % TAPS_W) - KW // 2, width, PADDING)
            sums += (totals[t] + g * load_x(x, i, j, mask, ACC),)
        totals = sums
    for t in tl.static_range(TAPS_H * TAPS_W):
        a, b = first_a + t // TAPS_W, first_b + t % TAPS_W
        total = tl.sum(tl.sum(totals[t], 1), 0)
        tl.store(part_ptr + ((pair * KH + a) * KW + b) * parts + part, total, mask=b < KW)


def kernel_gradient(
    grad: Tensor,  # [N, Co, H, W]
    x: Tensor,  # [N, C, H, W]
    statistics: tuple[Tensor | None, Tensor | None],
    shape: torch.Size,  # N, Co, C/G, kh, kw
    groups: int,
    padding_mode: str,
) -> Tensor:
    """[N, Co, C/G, kh, kw] in the accumulator's dtype."""
    (n, co, group_in, kh, kw), (h, w) = shape, x.shape[2:]
    block = tile(x, w, most=4)
    rows, taps_w = ROUNDS * block["BLOCK_H"], min(kw, MOST_TAPS)
    taps_h = kh if kh * kw <= MOST_TAPS else 1
    blocks = kh // taps_h * ceil_div(kw, taps_w)
    parts = ceil_div(h, rows) * ceil_div(w, block["BLOCK_W"])
    part = torch.empty((*shape, parts), dtype=torch_accumulator(x), device=x.device)
    with on_device_of(x):
        _adaconv_bwd_kernel[(n * co * group_in * blocks * parts,)](
            grad, x, *statistics, part, group_in, co // groups, x.shape[1], co, h, w, *strides(grad, 3), *strides(x, 3),
            KH=kh, KW=kw, TAPS_H=taps_h, TAPS_W=taps_w, PADDING=padding_mode, ROWS=rows, ACC=accumulator(x),
            num_warps=4, **block,
        )  # fmt: skip
    return part.squeeze(5) if parts == 1 else part.sum(5)

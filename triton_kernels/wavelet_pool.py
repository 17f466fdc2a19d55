"""wavelet_pool, and the two kernels of Haar pooling and unpooling; wavelet_unpool launches them the other way round.

  with a b / c d the 2 x 2 blocks of the picture
  ll = (a + b + c + d) / 2    lh = (-a + b - c + d) / 2    hl = (-a - b + c + d) / 2    hh = (a - b - c + d) / 2
  and back    a = (ll - lh - hl + hh) / 2    b = (ll + lh - hl - hh) / 2
              c = (ll - lh + hl - hh) / 2    d = (ll + lh + hl + hh) / 2

An odd last row or column follows a rule, with each of which unpooling is the adjoint of pooling:

           pooling                              unpooling
  drop     leaves it out                        writes zeros there
  repeat   takes it twice                       adds the two that it would write
  zero     takes zeros beyond the picture       leaves out what lies beyond the picture

A program loads two rows of blocks as contiguous columns and splits these in registers into even and odd ones: memory
sees each value once, in whole vectors.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import accumulator, ceil_div, dense_rows, inside, offsets, on_device_of, strides, tile, tile_of, tiles

RULES = {"floor": "drop", "pad": "repeat"}


@triton.jit
def _load_row(x_ptr, rows, cols, height, width, stride_xh, ACC: tl.constexpr):
    """Even and odd columns of rows of the picture; zeros beyond it."""
    x = tl.load(x_ptr + offsets(rows, cols, stride_xh), mask=inside(rows, cols, height, width), other=0.0).to(ACC)
    return tl.split(tl.reshape(x, [rows.shape[0], cols.shape[0] // 2, 2]))


@triton.jit
def _wavelet_pool_fwd_kernel(
    x_ptr, ll_ptr, lh_ptr, hl_ptr, hh_ptr, channels, height, width, band_h, band_w,
    stride_xn, stride_xc, stride_xh,
    RULE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A tile of the bands: BLOCK_H x BLOCK_W / 2 values of each, of BLOCK_W columns of the picture."""
    plane, rows, cols = tile_of(band_h, 2 * band_w, BLOCK_H, BLOCK_W)
    plane = plane.to(tl.int64)
    x_ptr += plane // channels * stride_xn + plane % channels * stride_xc
    bottom = 2 * rows + 1
    if RULE == "repeat":
        bottom = tl.minimum(bottom, height - 1)
    a, b = _load_row(x_ptr, 2 * rows, cols, height, width, stride_xh, ACC)
    c, d = _load_row(x_ptr, bottom, cols, height, width, stride_xh, ACC)
    j = tl.program_id(0) % tl.cdiv(2 * band_w, BLOCK_W) * (BLOCK_W // 2) + tl.arange(0, BLOCK_W // 2)
    if RULE == "repeat":  # a second load of the last column would break up the vectors
        exists = (2 * j + 1 < width)[None, :]
        b = tl.where(exists, b, a)
        d = tl.where(exists, d, c)
    low_top, low_bottom, high_top, high_bottom = a + b, c + d, b - a, d - c
    mask = inside(rows, j, band_h, band_w)
    out = plane * band_h * band_w + offsets(rows, j, band_w)
    tl.store(ll_ptr + out, ((low_bottom + low_top) * 0.5).to(ll_ptr.dtype.element_ty), mask=mask)
    tl.store(lh_ptr + out, ((high_bottom + high_top) * 0.5).to(lh_ptr.dtype.element_ty), mask=mask)
    tl.store(hl_ptr + out, ((low_bottom - low_top) * 0.5).to(hl_ptr.dtype.element_ty), mask=mask)
    tl.store(hh_ptr + out, ((high_bottom - high_top) * 0.5).to(hh_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _load_band(band_ptr, n, c, rows, cols, mask, stride_n, stride_c, stride_h, ACC: tl.constexpr):
    band_ptr += n * stride_n + c * stride_c
    return tl.load(band_ptr + offsets(rows, cols, stride_h), mask=mask, other=0.0).to(ACC)


@triton.jit
def _wavelet_pool_bwd_kernel(
    ll_ptr, lh_ptr, hl_ptr, hh_ptr, x_ptr, channels, height, width, band_h, band_w,
    stride_lln, stride_llc, stride_llh,
    stride_lhn, stride_lhc, stride_lhh,
    stride_hln, stride_hlc, stride_hlh,
    stride_hhn, stride_hhc, stride_hhh,
    RULE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A tile of the picture, 2 BLOCK_H x BLOCK_W. Beyond the bands, which a dropped row or column is, all are zero."""
    plane, rows, cols = tile_of(tl.cdiv(height, 2), tl.cdiv(width, 2) * 2, BLOCK_H, BLOCK_W)
    plane = plane.to(tl.int64)
    n, k = plane // channels, plane % channels
    j = tl.program_id(0) % tl.cdiv(tl.cdiv(width, 2) * 2, BLOCK_W) * (BLOCK_W // 2) + tl.arange(0, BLOCK_W // 2)
    mask = inside(rows, j, band_h, band_w)
    ll = _load_band(ll_ptr, n, k, rows, j, mask, stride_lln, stride_llc, stride_llh, ACC)
    lh = _load_band(lh_ptr, n, k, rows, j, mask, stride_lhn, stride_lhc, stride_lhh, ACC)
    hl = _load_band(hl_ptr, n, k, rows, j, mask, stride_hln, stride_hlc, stride_hlh, ACC)
    hh = _load_band(hh_ptr, n, k, rows, j, mask, stride_hhn, stride_hhc, stride_hhh, ACC)
    # grad_a = (ll - lh - hl + hh) / 2, and so on: the transform is orthogonal
    low_top, low_bottom, high_top, high_bottom = ll - hl, ll + hl, lh - hh, lh + hh
    a, b = (low_top - high_top) * 0.5, (low_top + high_top) * 0.5
    c, d = (low_bottom - high_bottom) * 0.5, (low_bottom + high_bottom) * 0.5
    if RULE == "repeat":
        # a value that was taken twice has the sum of both gradients
        row_twice, col_twice = (2 * rows + 1 == height)[:, None], (2 * j + 1 == width)[None, :]
        a += tl.where(row_twice, c, 0.0)
        b += tl.where(row_twice, d, 0.0)
        a += tl.where(col_twice, b, 0.0)
        c += tl.where(col_twice, d, 0.0)
    x_ptr += plane * height * width
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    top, bottom = 2 * rows, 2 * rows + 1
    tl.store(x_ptr + offsets(top, cols, width), tl.interleave(a, b).to(dtype), mask=inside(top, cols, height, width))
    tl.store(
        x_ptr + offsets(bottom, cols, width), tl.interleave(c, d).to(dtype), mask=inside(bottom, cols, height, width)
    )


def pool(x: Tensor, rule: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ll, lh, hl, hh of [N, C, H, W]: sizes halved, rounded down with "drop", else up."""
    n, c, h, w = x.shape
    up = 0 if rule == "drop" else 1
    band_h, band_w = (h + up) // 2, (w + up) // 2
    bands = tuple(torch.empty((n, c, band_h, band_w), dtype=x.dtype, device=x.device) for _ in range(4))
    if bands[0].numel() == 0:
        return bands
    x = dense_rows(x)
    block = tile(x, 2 * band_w)
    with on_device_of(x):
        _wavelet_pool_fwd_kernel[tiles(n * c, band_h, 2 * band_w, block)](
            x, *bands, c, h, w, band_h, band_w, *strides(x, 3), RULE=rule, ACC=accumulator(x), num_warps=4, **block
        )
    return bands


def unpool(bands: tuple[Tensor, Tensor, Tensor, Tensor], height: int, width: int, rule: str) -> Tensor:
    """[N, C, height, width] of ll, lh, hl, hh: the adjoint of :func:`pool` with the same rule."""
    n, c, band_h, band_w = bands[0].shape
    x = torch.empty((n, c, height, width), dtype=bands[0].dtype, device=bands[0].device)
    if bands[0].numel() == 0 or x.numel() == 0:
        return x.zero_()
    bands = tuple(dense_rows(band) for band in bands)
    block = tile(x, width)
    with on_device_of(x):
        _wavelet_pool_bwd_kernel[tiles(n * c, ceil_div(height, 2), ceil_div(width, 2) * 2, block)](
            *bands, x, c, height, width, band_h, band_w, *(s for band in bands for s in strides(band, 3)),
            RULE=rule, ACC=accumulator(x), num_warps=4, **block,
        )  # fmt: skip
    return x


def forward(
    input: Tensor,  # [N, C, H, W]
    odd: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ll, lh, hl, hh, each [N, C, H // 2, W // 2] ("pad": halves rounded up)."""
    return pool(input, RULES[odd])


def backward(
    ll: Tensor,  # [N, C, h, w], the bands' gradients
    lh: Tensor,
    hl: Tensor,
    hh: Tensor,
    height: int,
    width: int,
    odd: str,
) -> Tensor:
    """The gradient of the input [N, C, height, width]."""
    return unpool((ll, lh, hl, hh), height, width, RULES[odd])

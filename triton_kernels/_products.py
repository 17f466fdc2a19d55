"""Matrix products on tensor cores that keep float32's digits, by the library that torch calls.

A float32 factor becomes two of float16, scaled by a power of two for each row or column of the result: `high` keeps the
first 11 bits of a value, `low` the next 11. Of (high + low)(high' + low') the last product is below float32's rounding;
the other three are one product of three times the depth, [high high low] . [high' low' high'], whose sums are float32.
On a GPU that takes a fifth of the time that float32's own product takes. Factors of 16 bits and of float64 are
multiplied as they are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import inside, offsets, on_device_of

LINE = 8  # float16 values in 16 bytes: the libraries' fast kernels ask that rows start there and end there


def factor(x: Tensor, dim: int, second: bool = False) -> tuple[Tensor, Tensor | None]:
    """A factor [N, L, D] of a product that sums over `dim`, 1 or 2, as :func:`product` takes it; and its inverse scale.

    The scale, [N, L] where the sum is over D and [N, D] where it is over L, multiplies the product's rows or columns;
    None: 1. `second` says which of the two factors it is. Lengths are rounded up to 16 bytes, with zeros, which change
    no sum; rounded columns of a result are to be cut off.
    """
    n, height, width = x.shape
    padded = [triton.cdiv(size, LINE) * LINE for size in (height, width)]
    if x.dtype != torch.float32:
        if x.stride(2) == 1 and all(y % LINE == 0 for y in (width, *x.stride()[:2], x.data_ptr() // x.element_size())):
            return x, None
        copy = x.new_zeros((n, height, padded[1]))
        copy[..., :width] = x
        return copy, None
    most = torch.linalg.vector_norm(x, torch.inf, dim)
    inverse = torch.empty_like(most)
    padded[0] = padded[0] if dim == 1 else height  # rows that are summed over are whole lines of the other factor's
    tripled = [3 * size if d == dim else size for d, size in zip((1, 2), padded, strict=True)]
    parts = x.new_empty((n, *tripled), dtype=torch.float16)
    block_w = min(max(triton.next_power_of_2(padded[1]), 16), 128)
    block_h = 2048 // block_w
    grid = (n * triton.cdiv(padded[0], block_h) * triton.cdiv(padded[1], block_w),)
    with on_device_of(x):
        _split_kernel[grid](
            x, most, parts, inverse, height, width, *padded, *x.stride(),
            DIM=dim, SECOND=second, BLOCK_H=block_h, BLOCK_W=block_w, num_warps=4,
        )  # fmt: skip
    return parts, inverse


def peaks(x: Tensor) -> Tensor | None:  # [N, L] of [N, L, D]
    """The largest of each row's finite numbers, as :func:`tied` takes it; None for types that are not scaled."""
    if x.dtype not in (torch.float32, torch.float16):
        return None
    return torch.linalg.vector_norm(x.nan_to_num(0.0, 0.0, 0.0), torch.inf, 2).float()


def tied(x: Tensor, weight: Tensor, peak: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """weight[n, l] x[n, l, :], a second factor, for a first one whose rows, summed over, were divided by `weight`.

    That first factor is [N, L, D'] with three parts behind one another in each row, [high high low], or one of 16 bits,
    and is multiplied seen as [N, 3 L, D']. The weights are powers of two. The inverse scale, [N], is one for a sample,
    by its largest weight * peak: what is far below that is far below the sum. Other types have weights of 1.
    """
    if peak is None:
        return factor(x, 1, second=True)
    n, height, width = x.shape
    count, padded = 3 if x.dtype == torch.float32 else 1, triton.cdiv(width, LINE) * LINE
    most = (weight * peak).amax(1)
    inverse = torch.empty_like(most)
    parts = x.new_empty((n, count * height, padded), dtype=torch.float16)
    block_w = min(max(triton.next_power_of_2(padded), 16), 128)
    block_h = 2048 // block_w
    grid = (n * triton.cdiv(height, block_h) * triton.cdiv(padded, block_w),)
    with on_device_of(x):
        _tie_kernel[grid](
            x, weight, most, parts, inverse, height, width, padded, *x.stride(), *weight.stride(),
            PARTS=count, BLOCK_H=block_h, BLOCK_W=block_w, num_warps=4,
        )  # fmt: skip
    return parts, inverse


def product(x: Tensor, y: Tensor) -> Tensor:
    """x @ y of factors, in float32, of float64 in float64; autocast would round them to its own type."""
    if torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return product(x, y)
    if x.dtype == torch.float64:
        return torch.bmm(x, y)
    if not x.is_cuda:
        return torch.bmm(x.float(), y.float())
    return torch.bmm(x, y, out_dtype=torch.float32)


@triton.jit
def scale_of(most):
    """A power of two that takes `most` to between 2^14 and 2^15, and its inverse; 1 where it is not finite."""
    exponent = (most.to(tl.int32, bitcast=True) >> 23) & 0xFF
    exponent = tl.where(exponent == 0xFF, 127 + 14, exponent)
    scale = tl.minimum(2 * 127 + 14 - exponent, 253)
    return (scale << 23).to(tl.float32, bitcast=True), ((2 * 127 - scale) << 23).to(tl.float32, bitcast=True)


@triton.jit
def halves(x):
    """The first 11 bits of scaled values, and the next."""
    high = x.to(tl.float16)
    low = tl.where(tl.abs(x) < float("inf"), x - high.to(tl.float32), 0.0)
    return high, low.to(tl.float16)


@triton.jit
def _split_kernel(
    x_ptr, most_ptr, parts_ptr, inverse_ptr, height, width, padded_h, padded_w, stride_xn, stride_xl, stride_xd,
    DIM: tl.constexpr, SECOND: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    tiles_h, tiles_w = tl.cdiv(padded_h, BLOCK_H), tl.cdiv(padded_w, BLOCK_W)
    n = (tl.program_id(0) // (tiles_h * tiles_w)).to(tl.int64)
    top, left = tl.program_id(0) // tiles_w % tiles_h * BLOCK_H, tl.program_id(0) % tiles_w * BLOCK_W
    rows, cols = top + tl.arange(0, BLOCK_H), left + tl.arange(0, BLOCK_W)
    at = rows.to(tl.int64)[:, None] * stride_xl + cols.to(tl.int64)[None, :] * stride_xd
    x = tl.load(x_ptr + n * stride_xn + at, mask=inside(rows, cols, height, width), other=0.0)
    if DIM == 2:
        scale, inverse = scale_of(tl.load(most_ptr + n * height + rows, mask=rows < height, other=1.0))
        high, low = halves(x * scale[:, None])
        if left == 0:
            tl.store(inverse_ptr + n * height + rows, inverse, mask=rows < height)
    else:
        scale, inverse = scale_of(tl.load(most_ptr + n * width + cols, mask=cols < width, other=1.0))
        high, low = halves(x * scale[None, :])
        if top == 0:
            tl.store(inverse_ptr + n * width + cols, inverse, mask=cols < width)
    parts_ptr += 3 * n * padded_h * padded_w
    step = padded_w if DIM == 2 else padded_h * padded_w.to(tl.int64)
    at = offsets(rows, cols, 3 * padded_w if DIM == 2 else padded_w)
    there = inside(rows, cols, padded_h, padded_w)
    tl.store(parts_ptr + at, high, mask=there)
    tl.store(parts_ptr + step + at, low if SECOND else high, mask=there)
    tl.store(parts_ptr + 2 * step + at, high if SECOND else low, mask=there)


@triton.jit
def _tie_kernel(
    x_ptr, weight_ptr, most_ptr, parts_ptr, inverse_ptr, height, width, padded, stride_xn, stride_xl, stride_xd,
    stride_wn, stride_wl, PARTS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    tiles_h, tiles_w = tl.cdiv(height, BLOCK_H), tl.cdiv(padded, BLOCK_W)
    n = (tl.program_id(0) // (tiles_h * tiles_w)).to(tl.int64)
    top, left = tl.program_id(0) // tiles_w % tiles_h * BLOCK_H, tl.program_id(0) % tiles_w * BLOCK_W
    rows, cols = top + tl.arange(0, BLOCK_H), left + tl.arange(0, BLOCK_W)
    at = rows.to(tl.int64)[:, None] * stride_xl + cols.to(tl.int64)[None, :] * stride_xd
    x = tl.load(x_ptr + n * stride_xn + at, mask=inside(rows, cols, height, width), other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + n * stride_wn + rows * stride_wl, mask=rows < height, other=0.0)
    scale, inverse = scale_of(tl.load(most_ptr + n))
    if top + left == 0:
        tl.store(inverse_ptr + n, inverse)
    high, low = halves(x * weight[:, None] * scale)
    parts_ptr += PARTS * n * height * padded
    at = offsets(rows, cols, PARTS * padded)
    there = inside(rows, cols, height, padded)
    tl.store(parts_ptr + at, high, mask=there)
    if PARTS == 3:
        tl.store(parts_ptr + padded + at, low, mask=there)
        tl.store(parts_ptr + 2 * padded + at, high, mask=there)

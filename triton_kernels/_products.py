"""Matrix products on tensor cores that keep float32's digits, by the library that torch calls.

A float32 factor becomes two of float16, scaled by a power of two for each row or column of the result: `high` keeps the
first 11 bits of a value, `low` the next 11. Of (high + low)(high' + low') the last product is below float32's rounding;
the other three are one product of three times the depth, [high high low] . [high' low' high'], whose sums are float32.
On a GPU that takes a fifth of the time that float32's own product takes. Factors of 16 bits and of float64 are
multiplied as they are.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import accumulator, ceil_div, inside, offsets, on_device_of, power_of_2, torch_accumulator

LINE = 8  # float16 values in 16 bytes: the libraries' fast kernels ask that rows start there and end there


class RowFactor(NamedTuple):
    """Rows as a factor of a product that sums along them, and what is known of each of them: [N, rows]."""

    factor: Tensor
    scale: Tensor  # what the product's rows, or columns, are multiplied by: alpha / max(|x|, eps), and halves' inverse
    rnorm: Tensor  # 1 / max(|x|, eps)
    weight: Tensor  # alpha / max(|x|, eps)
    mantissa: Tensor  # of rnorm, in [1/2, 1)
    power: Tensor  # of two, the rest of rnorm
    peak: Tensor  # the largest of the finite |x|


def row_factor(
    x: Tensor,  # [N, L, D]
    second: bool = False,
    *,
    rows: int = 0,
    eps: float | None = None,
    alpha: float = 1.0,
) -> RowFactor:
    """x as :func:`product` takes it, with zeros behind D up to 16 bytes, and behind L up to `rows`.

    `second` says which of the two factors it is. Without `eps` norms are left out, and count as 1. One pass finds what
    a row is scaled by, which another that reads it once more then writes: one launch for all of it.
    """
    n, length, depth = x.shape
    rows = rows or length
    width = max(ceil_div(depth, LINE), 1) * LINE
    parts = 3 if x.dtype == torch.float32 else int(rows != length or not is_aligned(x))
    dtype = torch.float16 if parts == 3 else x.dtype
    factor = x.new_empty((n, rows, parts * width), dtype=dtype) if parts else None
    numbers = x.new_empty((len(RowFactor._fields) - 1, n, rows), dtype=torch_accumulator(x))
    block_w = min(power_of_2(width), 1024)
    block_h = 1024 // block_w
    with on_device_of(x):
        _row_factor_kernel[(n * ceil_div(rows, block_h),)](
            x, factor, numbers, float64_bits(alpha), length, depth, rows, width, n * rows, *x.stride(),
            EPS=eps, PARTS=parts, SECOND=second, BLOCK_H=block_h, BLOCK_W=block_w, ACC=accumulator(x), num_warps=4,
        )  # fmt: skip
    return RowFactor(x if factor is None else factor, *numbers)


def column_factor(x: Tensor, rows: int) -> tuple[Tensor, Tensor | None]:
    """x [N, L, D] as the second factor of a product that sums over L, and its inverse scale [N, D]; None: 1.

    With zeros behind D up to 16 bytes, and behind L up to `rows`.
    """
    n, length, depth = x.shape
    width = max(ceil_div(depth, LINE), 1) * LINE
    if x.dtype != torch.float32:
        if rows == length and is_aligned(x):
            return x, None
        copy = x.new_zeros((n, rows, width))
        copy[:, :length, :depth] = x
        return copy, None
    most = torch.linalg.vector_norm(x, torch.inf, 1)
    inverse = torch.empty_like(most)
    parts = x.new_empty((n, 3 * rows, width), dtype=torch.float16)
    block_w = min(max(power_of_2(width), 16), 128)
    block_h = 2048 // block_w
    with on_device_of(x):
        _column_factor_kernel[(n * ceil_div(rows, block_h) * ceil_div(width, block_w),)](
            x, most, parts, inverse, length, depth, rows, width, *x.stride(),
            BLOCK_H=block_h, BLOCK_W=block_w, num_warps=4,
        )  # fmt: skip
    return parts, inverse


def is_aligned(x: Tensor) -> bool:
    """Whether the libraries' fast kernels take x as it is."""
    sizes = (x.shape[2], *x.stride()[:2], x.data_ptr() // x.element_size())
    return x.shape[2] > 0 and x.stride(2) == 1 and all(size % LINE == 0 for size in sizes)


def float64_bits(x: float) -> int:
    """x for a kernel, which :func:`float64_of` makes of it: Triton passes numbers as float32."""
    return int(struct.unpack("<q", struct.pack("<d", x))[0])


def tied(x: Tensor, weight: Tensor, peak: Tensor) -> tuple[Tensor, Tensor | None]:
    """weight[n, l] x[n, l, :], a second factor, for a first one whose rows, summed over, were divided by `weight`.

    That first factor is [N, L, D'] with three parts behind one another in each row, [high high low], or one of 16 bits,
    and is multiplied seen as [N, 3 L, D']. The weights are powers of two. The inverse scale, [N], is one for a sample,
    by its largest weight * peak: what is far below that is far below the sum. Other types have weights of 1.
    """
    if x.dtype not in (torch.float32, torch.float16):
        return column_factor(x, x.shape[1])
    n, height, width = x.shape
    count, padded = 3 if x.dtype == torch.float32 else 1, ceil_div(width, LINE) * LINE
    most = (weight * peak).amax(1)
    inverse = torch.empty_like(most)
    parts = x.new_empty((n, count * height, padded), dtype=torch.float16)
    block_w = min(max(power_of_2(padded), 16), 128)
    block_h = 2048 // block_w
    grid = (n * ceil_div(height, block_h) * ceil_div(padded, block_w),)
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
def float64_of(bits, ACC: tl.constexpr):
    """The number that :func:`float64_bits` was given, as a kernel adds."""
    return tl.full((), bits, tl.int64).to(tl.float64, bitcast=True).to(ACC)


@triton.jit
def _reciprocal_norm(square, EPS: tl.constexpr):
    """1 / max(sqrt(square), eps), correctly rounded; NaN of NaN."""
    if square.dtype == tl.float64:
        norm = tl.sqrt(square)
        return 1.0 / tl.where(norm < EPS, EPS, norm)
    else:
        norm = tl.sqrt_rn(square)
        return tl.div_rn(1.0, tl.where(norm < EPS, EPS, norm))


@triton.jit
def _mantissa_and_power(x):
    """Of x >= 0, no denormal: a number in [1/2, 1), and a power of two; 1 and 0 of zero, NaN twice of NaN."""
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True)
        mantissa = ((bits & 0xFFFFFFFFFFFFF) | (1022 << 52)).to(tl.float64, bitcast=True)
        power = ((bits & (0x7FF << 52)) + (1 << 52)).to(tl.float64, bitcast=True)
    else:
        bits = x.to(tl.int32, bitcast=True)
        mantissa = ((bits & 0x7FFFFF) | (126 << 23)).to(tl.float32, bitcast=True)
        power = ((bits & (0xFF << 23)) + (1 << 23)).to(tl.float32, bitcast=True)
    return tl.where(x > 0, mantissa, x + 1), tl.where(x > 0, power, x)


@triton.jit(do_not_specialize=["alpha_bits"])
def _row_factor_kernel(
    x_ptr, parts_ptr, numbers_ptr, alpha_bits, length, depth, rows, width, step, stride_xn, stride_xl, stride_xd,
    EPS: tl.constexpr, PARTS: tl.constexpr, SECOND: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(rows, BLOCK_H)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    r = tl.program_id(0) % tiles * BLOCK_H + tl.arange(0, BLOCK_H)
    x_ptr += n * stride_xn + r.to(tl.int64)[:, None] * stride_xl
    squares, most = tl.zeros([BLOCK_H, BLOCK_W], ACC), tl.zeros([BLOCK_H, BLOCK_W], ACC)
    strange = tl.zeros([BLOCK_H, BLOCK_W], tl.int32)
    for start in range(0, depth, BLOCK_W):
        d = start + tl.arange(0, BLOCK_W)
        there = inside(r, d, length, depth)
        x = tl.load(x_ptr + d.to(tl.int64)[None, :] * stride_xd, mask=there, other=0.0).to(ACC)
        squares += x * x
        finite = tl.abs(x) < float("inf")
        strange = tl.where(finite, strange, 1)
        most = tl.maximum(most, tl.where(finite, tl.abs(x), 0.0))
    peak = tl.max(most, 1)
    rnorm = tl.full([BLOCK_H], 1.0, ACC) if EPS is None else _reciprocal_norm(tl.sum(squares, 1), EPS)
    weight = rnorm * float64_of(alpha_bits, ACC)
    scale = weight
    if PARTS == 3:
        times, inverse = scale_of(tl.where(tl.max(strange, 1) > 0, float("inf"), peak))
        scale *= inverse
        parts_ptr += 3 * (n * rows + r)[:, None] * width
        for start in range(0, width, BLOCK_W):
            d = start + tl.arange(0, BLOCK_W)
            there = inside(r, d, length, depth)
            x = tl.load(x_ptr + d.to(tl.int64)[None, :] * stride_xd, mask=there, other=0.0)
            high, low = halves(x * times[:, None])
            there = inside(r, d, rows, width)
            tl.store(parts_ptr + d[None, :], high, mask=there)
            tl.store(parts_ptr + width + d[None, :], low if SECOND else high, mask=there)
            tl.store(parts_ptr + 2 * width + d[None, :], high if SECOND else low, mask=there)
    elif PARTS == 1:
        parts_ptr += (n * rows + r)[:, None] * width
        for start in range(0, width, BLOCK_W):
            d = start + tl.arange(0, BLOCK_W)
            there = inside(r, d, length, depth)
            x = tl.load(x_ptr + d.to(tl.int64)[None, :] * stride_xd, mask=there, other=0.0)
            tl.store(parts_ptr + d[None, :], x, mask=inside(r, d, rows, width))
    if EPS is not None:  # 0, of a norm that overflowed, is for numbers
        scale = tl.where(tl.max(strange, 1) > 0, float("nan"), scale)
    mantissa, power = _mantissa_and_power(rnorm)
    numbers_ptr += n * rows + r
    step = tl.full((), step, tl.int64)
    tl.store(numbers_ptr, scale, mask=r < rows)
    tl.store(numbers_ptr + step, rnorm, mask=r < rows)
    tl.store(numbers_ptr + 2 * step, weight, mask=r < rows)
    tl.store(numbers_ptr + 3 * step, mantissa, mask=r < rows)
    tl.store(numbers_ptr + 4 * step, power, mask=r < rows)
    tl.store(numbers_ptr + 5 * step, peak, mask=r < rows)


@triton.jit
def _column_factor_kernel(
    x_ptr, most_ptr, parts_ptr, inverse_ptr, length, depth, rows, width, stride_xn, stride_xl, stride_xd,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    tiles_h, tiles_w = tl.cdiv(rows, BLOCK_H), tl.cdiv(width, BLOCK_W)
    n = (tl.program_id(0) // (tiles_h * tiles_w)).to(tl.int64)
    top, left = tl.program_id(0) // tiles_w % tiles_h * BLOCK_H, tl.program_id(0) % tiles_w * BLOCK_W
    r, d = top + tl.arange(0, BLOCK_H), left + tl.arange(0, BLOCK_W)
    at = r.to(tl.int64)[:, None] * stride_xl + d.to(tl.int64)[None, :] * stride_xd
    x = tl.load(x_ptr + n * stride_xn + at, mask=inside(r, d, length, depth), other=0.0)
    scale, inverse = scale_of(tl.load(most_ptr + n * depth + d, mask=d < depth, other=1.0))
    high, low = halves(x * scale[None, :])
    if top == 0:
        tl.store(inverse_ptr + n * depth + d, inverse, mask=d < depth)
    parts_ptr += 3 * n * rows * width
    step = rows * width.to(tl.int64)
    at, there = offsets(r, d, width), inside(r, d, rows, width)
    tl.store(parts_ptr + at, high, mask=there)
    tl.store(parts_ptr + step + at, low, mask=there)
    tl.store(parts_ptr + 2 * step + at, high, mask=there)


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

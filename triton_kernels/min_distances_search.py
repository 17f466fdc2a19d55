"""min_distances: the search for the nearest, of each row of x among y's and of each of y among x's.

The products x[i] . y[j] are the library's, some rows of x at a time. A kernel reads them once and lowers the minima of
rows and of columns, each a 64-bit integer with the distance above and the index below: the minimum of integers is the
same in whatever order programs come, and of equal distances the lowest index wins. float64 has no room for the index,
so there a second run finds the lowest index at the minimum. Up to DIFFERENCES values a row, (x - y)^2 takes the place
of a product.

Equal rows have equal products, and are ties, where the library sums all products of one call in the same order; calls
have one shape each, for it may choose another order for another shape. On the CPU, under Triton's interpreter,
libraries do not: there products are made in float64, where rounding hides the difference.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import accumulator, at_least, ceil_div, power_of_2, torch_accumulator
from ._products import halves, product

DIFFERENCES = 16  # up to so many values a row, (x - y)^2 costs no more than a product, and is exact
CHUNK = 2**23  # products at a time: few enough to stay in the L2 cache, enough to occupy a GPU
LINE = 16  # lengths are rounded up to a multiple, by which Triton knows that rows start at a multiple of 16 bytes
LARGEST = 2**63 - 1


@triton.jit
def load_rows(x_ptr, rows, count, k, d, stride_xl):
    mask = (rows < count)[:, None] & (k < d)[None, :]
    return tl.load(x_ptr + rows.to(tl.int64)[:, None] * stride_xl + k[None, :], mask=mask, other=0.0)


@triton.jit
def _centred(x, centre_ptr, k, d, ACC: tl.constexpr):
    """x - centre, less than where a product of two overflows."""
    centre = tl.load(centre_ptr + k, mask=k < d, other=0.0).to(ACC)
    x = x.to(ACC) - tl.where(tl.abs(centre) < float("inf"), centre, 0.0)[None, :]
    return tl.where((k < d)[None, :], tl.minimum(tl.maximum(x, -1e17), 1e17), 0.0)


@triton.jit
def _scale_of(square, ACC: tl.constexpr):
    """The power of two that takes a row of this square to [2^14, 2^15), and its inverse.

    float16 holds what it scales, float32 products of that. By exponents: a root and a division in float64 are calls.
    """
    exponent = (((square.to(tl.int64, bitcast=True) >> 52) & 0x7FF) + 1023) >> 1  # the root's
    scale = 2 * 1023 + 14 - exponent
    if ACC.primitive_bitwidth == 32:
        scale = tl.minimum(scale, 1023 + 126)
    return (scale << 52).to(tl.float64, bitcast=True), ((2 * 1023 - scale) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _rows_kernel(
    x_ptr, centre_ptr, square_ptr, bad_ptr, factor_ptr, inverse_ptr, offset_ptr, count, d, height, width,
    stride_xn, stride_xl, stride_cn, EPS: tl.constexpr, METRIC: tl.constexpr, SECOND: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sums of squares of rows; and of each sample the first row with NaN or infinity.

    With factor_ptr, the rows as a factor of the products, [height, width], scaled, and moved by a row of y for the
    euclidean metric; what a product is multiplied by, `inverse`; and the squares of what was moved, `offset`. A float32
    row is three of float16, as _products.py has it: [high high low] of x, [high low high] of y.
    """
    tiles = tl.cdiv(height, ROWS)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    rows = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    x_ptr += n * stride_xn
    centre_ptr += n * stride_cn
    inside = rows < count
    totals, moves = tl.zeros([ROWS, BLOCK_D], tl.float64), tl.zeros([ROWS, BLOCK_D], tl.float64)
    for start in range(0, d, BLOCK_D):
        k = start + tl.arange(0, BLOCK_D)
        x = load_rows(x_ptr, rows, count, k, d, stride_xl)
        if METRIC == "euclidean":
            centred = _centred(x, centre_ptr, k, d, ACC).to(tl.float64)
            moves += centred * centred
        x = x.to(tl.float64)
        totals += x * x
    total, moved = tl.sum(totals, 1), tl.sum(moves, 1)
    tl.store(square_ptr + n * count + rows, total, mask=inside)
    bad = inside & ~(total < float("inf"))
    tl.atomic_min(bad_ptr + n + tl.zeros([ROWS], tl.int64), rows.to(tl.int64), mask=bad)
    if factor_ptr is not None:
        if METRIC == "euclidean":
            scale, inverse = _scale_of(moved, ACC)
            tl.store(offset_ptr + n * count + rows, moved.to(ACC), mask=inside)
        else:
            scale, _ = _scale_of(total, ACC)
            inverse = 1 / (at_least(tl.sqrt(total), EPS) * scale)
        tl.store(inverse_ptr + n * count + rows, inverse.to(ACC), mask=inside)
        halved: tl.constexpr = factor_ptr.dtype.element_ty == tl.float16 and (
            METRIC == "euclidean" or x_ptr.dtype.element_ty == tl.float32
        )
        for start in range(0, width, BLOCK_D):
            k = start + tl.arange(0, BLOCK_D)
            x = load_rows(x_ptr, rows, count, k, d, stride_xl)
            if METRIC == "euclidean":
                x = _centred(x, centre_ptr, k, d, ACC)
            x = x.to(ACC) * scale.to(ACC)[:, None]
            mask = (rows < height)[:, None] & (k < width)[None, :]
            if halved:
                high, low = halves(x)
                at = (n * height + rows)[:, None] * (3 * width) + k[None, :]
                tl.store(factor_ptr + at, high, mask=mask)
                tl.store(factor_ptr + at + width, low if SECOND else high, mask=mask)
                tl.store(factor_ptr + at + 2 * width, high if SECOND else low, mask=mask)
            else:
                at = (n * height + rows)[:, None] * width + k[None, :]
                tl.store(factor_ptr + at, x.to(factor_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _sortable(v):
    """Integers that are ordered as the floats are."""
    if v.dtype == tl.float64:
        bits = v.to(tl.int64, bitcast=True)
        return bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)
    else:
        bits = v.to(tl.int32, bitcast=True)
        return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _lower(key, key_ptr, index_ptr, others, mine, mask, AXIS: tl.constexpr, INDEX: tl.constexpr):
    """Lowers the minima along an axis of a tile; `others` are the indices on that axis, `mine` those of the minima."""
    others = tl.expand_dims(others, 1 - AXIS)
    if INDEX:
        best = tl.load(key_ptr + mine, mask=mask, other=0)
        found = tl.min(tl.where(key == tl.expand_dims(best, AXIS), others, 0x7FFFFFFF), AXIS).to(tl.int64)
        tl.atomic_min(index_ptr + mine, found, mask=mask, sem="relaxed")
    else:
        if key.dtype == tl.int32:
            key = (key.to(tl.int64) << 32) | others.to(tl.int64)
        tl.atomic_min(key_ptr + mine, tl.min(key, AXIS), mask=mask, sem="relaxed")


@triton.jit
def _lower_both(
    v, n, rows, cols, valid, row_key_ptr, col_key_ptr, row_index_ptr, col_index_ptr, count_x, count_y,
    INDEX: tl.constexpr,
):  # fmt: skip
    """Lowers the minima of a tile's rows and columns. Of infinity the lowest index wins too, which is within."""
    key = _sortable(tl.where(valid & (v == v), v, float("inf")))  # what NaN is nearest to is decided with the pairs
    row_mask, col_mask = rows < count_x, cols < count_y
    row_key_ptr += n * count_x
    col_key_ptr += n * count_y
    _lower(key, row_key_ptr, row_index_ptr + n * count_x, cols, rows, row_mask, 1, INDEX)
    _lower(key, col_key_ptr, col_index_ptr + n * count_y, rows, cols, col_mask, 0, INDEX)


@triton.jit
def _minima_kernel(
    p_ptr, x_inverse_ptr, y_inverse_ptr, x_offset_ptr, y_offset_ptr, row_key_ptr, col_key_ptr, row_index_ptr,
    col_index_ptr, sample, first, height, width, count_x, count_y,
    METRIC: tl.constexpr, INDEX: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr,
):  # fmt: skip
    """A tile of a chunk of products, [N, height, width]: of the rows of x from `first` on, and all of y."""
    tiles_x, tiles_y = tl.cdiv(height, BLOCK_X), tl.cdiv(count_y, BLOCK_Y)
    local = (tl.program_id(0) // (tiles_x * tiles_y)).to(tl.int64)
    tile = tl.program_id(0) % (tiles_x * tiles_y)
    n, p_rows = sample + local, tile // tiles_y * BLOCK_X + tl.arange(0, BLOCK_X)
    rows, cols = first + p_rows, tile % tiles_y * BLOCK_Y + tl.arange(0, BLOCK_Y)
    row_mask, col_mask = (p_rows < height) & (rows < count_x), cols < count_y
    valid = row_mask[:, None] & col_mask[None, :]
    v = tl.load(p_ptr + (local * height + p_rows)[:, None] * width + cols[None, :], mask=valid, other=0.0)
    x_inverse = tl.load(x_inverse_ptr + n * count_x + rows, mask=row_mask, other=0.0)
    y_inverse = tl.load(y_inverse_ptr + n * count_y + cols, mask=col_mask, other=0.0)
    v = v * x_inverse[:, None] * y_inverse[None, :]
    if METRIC == "euclidean":
        x_offset = tl.load(x_offset_ptr + n * count_x + rows, mask=row_mask, other=0.0)
        y_offset = tl.load(y_offset_ptr + n * count_y + cols, mask=col_mask, other=0.0)
        v = tl.minimum(at_least((x_offset[:, None] + y_offset[None, :]) - 2 * v, 1e-5), 1e5)
    else:
        v = 0.0 - v  # no zero but +0
    _lower_both(
        v, n, rows, cols, valid, row_key_ptr, col_key_ptr, row_index_ptr, col_index_ptr, count_x, count_y, INDEX
    )


@triton.jit
def _norm_of(square_ptr, rows, count, EPS: tl.constexpr):
    """What rows are divided by; and 1 less the square of what is left, which is 0 but where the norm is below eps."""
    square = tl.load(square_ptr + rows, mask=rows < count, other=1.0)
    norm = at_least(tl.sqrt(square), EPS)
    return norm, tl.where(tl.sqrt(square) < EPS, 1 - square / (norm * norm), 0.0)


@triton.jit
def _differences_kernel(
    x_ptr, y_ptr, x_square_ptr, y_square_ptr, row_key_ptr, col_key_ptr, row_index_ptr, col_index_ptr,
    count_x, count_y, d, stride_xn, stride_xl, stride_yn, stride_yl, EPS: tl.constexpr, METRIC: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A tile of |x / |x| - y / |y||^2, or of the clamped |x - y|^2, of few values a row."""
    tiles_x, tiles_y = tl.cdiv(count_x, BLOCK_X), tl.cdiv(count_y, BLOCK_Y)
    n = (tl.program_id(0) // (tiles_x * tiles_y)).to(tl.int64)
    tile = tl.program_id(0) % (tiles_x * tiles_y)
    rows = tile // tiles_y * BLOCK_X + tl.arange(0, BLOCK_X)
    cols = tile % tiles_y * BLOCK_Y + tl.arange(0, BLOCK_Y)
    row_mask, col_mask = rows < count_x, cols < count_y
    x_ptr += n * stride_xn + rows.to(tl.int64) * stride_xl
    y_ptr += n * stride_yn + cols.to(tl.int64) * stride_yl
    v = tl.zeros([BLOCK_X, BLOCK_Y], ACC)
    if METRIC == "euclidean":
        for k in range(0, d):
            x = tl.load(x_ptr + k, mask=row_mask, other=0.0).to(ACC)
            y = tl.load(y_ptr + k, mask=col_mask, other=0.0).to(ACC)
            difference = x[:, None] - y[None, :]
            v += difference * difference
        v = tl.minimum(at_least(v, 1e-5), 1e5)
    else:
        # Of unit vectors |x - y|^2 = 2 - 2 cos, without the rounding of 1 - cos.
        x_norm, x_rest = _norm_of(x_square_ptr + n * count_x, rows, count_x, EPS)
        y_norm, y_rest = _norm_of(y_square_ptr + n * count_y, cols, count_y, EPS)
        for k in range(0, d):
            x = tl.load(x_ptr + k, mask=row_mask, other=0.0).to(tl.float64)
            y = tl.load(y_ptr + k, mask=col_mask, other=0.0).to(tl.float64)
            difference = (x / x_norm).to(ACC)[:, None] - (y / y_norm).to(ACC)[None, :]
            v += difference * difference
        v += x_rest.to(ACC)[:, None] + y_rest.to(ACC)[None, :]
        v = tl.where((x_rest == 1)[:, None] | (y_rest == 1)[None, :], 2.0, v)
    valid = row_mask[:, None] & col_mask[None, :]
    _lower_both(
        v, n, rows, cols, valid, row_key_ptr, col_key_ptr, row_index_ptr, col_index_ptr, count_x, count_y, INDEX
    )


def rows_of(d: int, most: int) -> dict[str, int]:
    """Rows and values of a row that a program takes at a time: at most `most` values together."""
    block = min(max(power_of_2(d), 16), most)
    return {"ROWS": min(most // block, 16), "BLOCK_D": block}


def chunk_of(n: int, rows: int, cols: int) -> tuple[int, int]:
    """Samples and rows of x that are multiplied at a time; all chunks have as many rows."""
    samples = min(n, max(CHUNK // (cols * min(rows, 128)), 1))
    samples = ceil_div(n, ceil_div(n, samples))
    height = max(CHUNK // (samples * cols), 1)
    return samples, ceil_div(ceil_div(rows, ceil_div(rows, height)), LINE) * LINE


def _measured(
    x: Tensor, centre: Tensor, bad: Tensor, height: int, metric: str, eps: float, second: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Sums of squares of rows; and where height is not 0, `height` rows as a factor, their inverses and offsets."""
    (n, count, d), options = x.shape, rows_of(x.shape[2], 1024)
    square, width = x.new_empty((n, count), dtype=torch.float64), ceil_div(d, LINE) * LINE
    factor = inverse = offset = None
    if height:
        halved = x.dtype == torch.float32 or (x.dtype != torch.float64 and metric == "euclidean")
        factor = x.new_empty((n, height, 3 * width if halved else width), dtype=torch.float16 if halved else x.dtype)
        inverse, offset = (x.new_empty((n, count), dtype=torch_accumulator(x)) for _ in range(2))
    _rows_kernel[(n * ceil_div(height or count, options["ROWS"]),)](
        x, centre, square, bad, factor, inverse, offset, count, d, height or count, width,
        *x.stride()[:2], centre.stride(0), EPS=eps, METRIC=metric, SECOND=second, ACC=accumulator(x),
        num_warps=4, maxnreg=80, **options,  # unsaid, some assemblers spill
    )  # fmt: skip
    return square, factor, inverse, offset


def _middle_row(x: Tensor, y: Tensor) -> Tensor:
    """Of each sample's rows the one of middle length, [N, D]: squares of rows far from it cost digits.

    By a stable sort: of equal lengths it is the same each time.
    """
    count = x.shape[1]
    lengths = torch.cat([torch.linalg.vector_norm(side, dim=2, dtype=torch_accumulator(x)) for side in (x, y)], 1)
    middle = lengths.nan_to_num(torch.inf, torch.inf).sort(dim=1, stable=True).indices[:, (lengths.shape[1] - 1) // 2]
    sample = torch.arange(len(x), device=x.device)
    rows = x[sample, middle.clamp(max=count - 1)], y[sample, (middle - count).clamp(min=0)]
    return torch.where((middle < count)[:, None], *rows)


def search(
    x: Tensor,  # [N, L, D]
    y: Tensor,  # [N, M, D]
    metric: str,
    eps: float,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Of each side: the sums of squares of its rows; the first row with NaN or infinity, of each sample; and which row
    of the other side is nearest, where none has any: the low 32 bits."""
    (n, count_x, d), count_y, wide = x.shape, y.shape[1], x.dtype == torch.float64
    sizes = [n, n] + (2 if wide else 1) * [n * count_x, n * count_y]
    bad_x, bad_y, *keys = x.new_full((sum(sizes),), LARGEST, dtype=torch.int64).split(sizes)
    by_products = d > DIFFERENCES
    width = ceil_div(count_y, LINE) * LINE
    samples, height = chunk_of(n, count_x, width)
    total = ceil_div(count_x, height) * height
    centre = _middle_row(x, y) if by_products and metric == "euclidean" else y[:, 0]
    x_square, x_factor, *x_rest = _measured(x, centre, bad_x, total if by_products else 0, metric, eps, False)
    y_square, y_factor, *y_rest = _measured(y, centre, bad_y, width if by_products else 0, metric, eps, True)
    if by_products and not x.is_cuda and not wide:
        x_factor, y_factor = x_factor.double(), y_factor.double()
    lowered = (*keys[:2], *keys[-2:])  # minima and indices: one and the same but of float64
    for index in (False, True) if wide else (False,):
        if not by_products:
            block_y = 32 if wide or metric == "cosine" else 64  # what the registers hold
            grid = (n * ceil_div(count_x, 64) * ceil_div(count_y, block_y),)
            _differences_kernel[grid](
                x, y, x_square, y_square, *lowered, count_x, count_y, d, *x.stride()[:2], *y.stride()[:2],
                EPS=eps, METRIC=metric, INDEX=index, BLOCK_X=64, BLOCK_Y=block_y, ACC=accumulator(x), num_warps=8,
            )  # fmt: skip
            continue
        for sample in range(0, n, samples):
            some = slice(sample, sample + samples)
            for first in range(0, count_x, height):
                p = product(x_factor[some, first : first + height], y_factor[some].mT).to(torch_accumulator(x))
                grid = (len(p) * ceil_div(height, 64) * ceil_div(count_y, 128),)
                _minima_kernel[grid](
                    p, x_rest[0], y_rest[0], x_rest[1], y_rest[1], *lowered,
                    sample, first, height, width, count_x, count_y,
                    METRIC=metric, INDEX=index, BLOCK_X=64, BLOCK_Y=128, num_warps=8,
                )  # fmt: skip
                del p  # before the next is made, which then takes its place
    return [x_square, y_square], [bad_x, bad_y], keys[-2:]

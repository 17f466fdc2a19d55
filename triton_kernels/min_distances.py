"""min_distances: minima of the matrix of distances in both directions, without the matrix.

  cosine      D[i,j] = 1 - x[i] . y[j] / (max(|x[i]|, eps) max(|y[j]|, eps))
  euclidean   D[i,j] = sqrt(clamp(|x[i] - y[j]|^2, 1e-5, 1e5) / d)

A program makes a tile of distances and lowers the minima of its rows and of its columns, each a 64-bit integer with the
distance above and the index below: the minimum of integers is the same in whatever order programs come, and of equal
distances the lowest index wins. float64 has no room for the index, so there a second run finds the lowest index at the
minimum. A second kernel then measures the pairs that were found once more, in float64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import accumulator, dense_rows, on_device_of
from .min_distances_backward import side_gradient

DIFFERENCES = 16  # up to so many values a row, (x - y)^2 costs no more than a product, and is exact
LARGEST = 2**63 - 1
# Rows, columns and values a row of a program's tile: as large as the registers allow.
TILES = {
    "cosine": (128, 64, 16),
    "cosine of 16 bits": (128, 128, 64),
    "euclidean": (128, 64, 16),
    "differences": (64, 64, 16),
    "cosine by differences": (64, 64, 16),
    "float64": (64, 32, 16),
}


@triton.jit
def _load_rows(x_ptr, rows, count, k, d, stride_xl):
    mask = (rows < count)[:, None] & (k < d)[None, :]
    return tl.load(x_ptr + rows.to(tl.int64)[:, None] * stride_xl + k[None, :], mask=mask, other=0.0)


@triton.jit
def _squares_kernel(
    x_ptr, square_ptr, bad_ptr, count, d, stride_xn, stride_xl,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sums of squares of rows; and of each sample the first row with NaN or infinity."""
    tiles = tl.cdiv(count, ROWS)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    rows = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS], tl.float64)
    for k in range(0, d, BLOCK_D):
        x = _load_rows(x_ptr + n * stride_xn, rows, count, k + tl.arange(0, BLOCK_D), d, stride_xl).to(tl.float64)
        total += tl.sum(x * x, 1)
    inside = rows < count
    tl.store(square_ptr + n * count + rows, total, mask=inside)
    bad = inside & ~(total < float("inf"))
    tl.atomic_min(bad_ptr + n + tl.zeros([ROWS], tl.int64), rows.to(tl.int64), mask=bad)


@triton.jit
def _divided(a, b):
    """a / b, rounded once: of equal values exactly 1."""
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def _inverse_power(norm):
    """The power of two that takes a norm to [1, 2): products of what it scales, exactly, fit into float32."""
    exponent = (norm.to(tl.int64, bitcast=True) >> 52) & 0x7FF
    return ((2046 - exponent) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _centred(x, centre, k, d, ACC: tl.constexpr):
    """x - centre, less than where a product of two overflows."""
    x = x.to(ACC) - centre[None, :]
    return tl.where((k < d)[None, :], tl.minimum(tl.maximum(x, -1e17), 1e17), 0.0)


@triton.jit
def _norm_of(square_ptr, rows, count, EPS: tl.constexpr):
    """What rows are divided by; and 1 less the square of what is left, which is 0 but where the norm is below eps."""
    square = tl.load(square_ptr + rows, mask=rows < count, other=1.0)
    norm = tl.maximum(tl.sqrt(square), EPS)
    return norm, tl.where(tl.sqrt(square) < EPS, 1 - square / (norm * norm), 0.0)


@triton.jit
def _products(x, y, acc, PRECISION: tl.constexpr, ACC: tl.constexpr, INTERPRETED: tl.constexpr):
    """acc + x y^T. NumPy's products of equal rows differ in their last bits, by where in a tile the rows lie, and equal
    distances would no longer be ties: the interpreter makes them in float64, where rounding to ACC hides that."""
    if INTERPRETED:
        return acc + tl.dot(x.to(tl.float64), y.to(tl.float64).T, input_precision="ieee", out_dtype=tl.float64).to(ACC)
    else:
        return tl.dot(x, y.T, acc, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def _orders(
    x_ptr, y_ptr, x_square_ptr, y_square_ptr, rows, cols, count_x, count_y, d, stride_xl, stride_yl, EPS: tl.constexpr,
    METRIC: tl.constexpr, BLOCK_D: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """A tile of what orders distances: -cos or |x / |x| - y / |y||^2, or the clamped |x - y|^2."""
    acc = tl.zeros([rows.shape[0], cols.shape[0]], ACC)
    if METRIC == "differences":
        for k in range(0, d):
            x = tl.load(x_ptr + rows.to(tl.int64) * stride_xl + k, mask=rows < count_x, other=0.0).to(ACC)
            y = tl.load(y_ptr + cols.to(tl.int64) * stride_yl + k, mask=cols < count_y, other=0.0).to(ACC)
            difference = x[:, None] - y[None, :]
            acc += difference * difference
    elif METRIC == "cosine by differences":
        # Of unit vectors |x - y|^2 = 2 - 2 cos, without the rounding of 1 - cos.
        x_norm, x_rest = _norm_of(x_square_ptr, rows, count_x, EPS)
        y_norm, y_rest = _norm_of(y_square_ptr, cols, count_y, EPS)
        for k in range(0, d):
            x = tl.load(x_ptr + rows.to(tl.int64) * stride_xl + k, mask=rows < count_x, other=0.0).to(tl.float64)
            y = tl.load(y_ptr + cols.to(tl.int64) * stride_yl + k, mask=cols < count_y, other=0.0).to(tl.float64)
            difference = (x / x_norm).to(ACC)[:, None] - (y / y_norm).to(ACC)[None, :]
            acc += difference * difference
        acc += x_rest.to(ACC)[:, None] + y_rest.to(ACC)[None, :]
        acc = tl.where((x_rest == 1)[:, None] | (y_rest == 1)[None, :], 2.0, acc)
    elif METRIC == "euclidean":
        x_squares, y_squares = tl.zeros([rows.shape[0]], ACC), tl.zeros([cols.shape[0]], ACC)
        for start in range(0, d, BLOCK_D):
            k = start + tl.arange(0, BLOCK_D)
            centre = tl.load(y_ptr + k, mask=k < d, other=0.0).to(ACC)
            centre = tl.where(tl.abs(centre) < float("inf"), centre, 0.0)
            x = _centred(_load_rows(x_ptr, rows, count_x, k, d, stride_xl), centre, k, d, ACC)
            y = _centred(_load_rows(y_ptr, cols, count_y, k, d, stride_yl), centre, k, d, ACC)
            x_squares += tl.sum(x * x, 1)
            y_squares += tl.sum(y * y, 1)
            acc = _products(x, y, acc, PRECISION, ACC, INTERPRETED)
        acc = (x_squares[:, None] + y_squares[None, :]) - 2 * acc
    else:
        x_norm, _ = _norm_of(x_square_ptr, rows, count_x, EPS)
        y_norm, _ = _norm_of(y_square_ptr, cols, count_y, EPS)
        if METRIC == "cosine":
            x_scale, y_scale = _inverse_power(x_norm), _inverse_power(y_norm)
            x_norm, y_norm = x_norm * x_scale, y_norm * y_scale
            x_scale, y_scale = x_scale.to(ACC), y_scale.to(ACC)
        for start in range(0, d, BLOCK_D):
            k = start + tl.arange(0, BLOCK_D)
            x = _load_rows(x_ptr, rows, count_x, k, d, stride_xl)
            y = _load_rows(y_ptr, cols, count_y, k, d, stride_yl)
            if METRIC == "cosine":
                x, y = x * x_scale[:, None], y * y_scale[:, None]
            acc = _products(x, y, acc, PRECISION, ACC, INTERPRETED)
        acc = 0.0 - _divided(acc, x_norm.to(ACC)[:, None] * y_norm.to(ACC)[None, :])  # no zero but +0
    if METRIC == "differences" or METRIC == "euclidean":
        acc = tl.minimum(tl.maximum(acc, 1e-5), 1e5)
    return acc


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
def _lower(v, valid, key_ptr, index_ptr, others, mine, mask, AXIS: tl.constexpr, INDEX: tl.constexpr):
    """Lowers the minima along an axis of a tile; `others` are the indices on that axis, `mine` those of the minima."""
    if INDEX:
        best = tl.load(key_ptr + mine, mask=mask, other=0)
        hit = (_sortable(v) == tl.expand_dims(best, AXIS)) & valid
        found = tl.min(tl.where(hit, tl.expand_dims(others, 1 - AXIS), 0x7FFFFFFF), AXIS)
        tl.atomic_min(index_ptr + mine, found.to(tl.int64), mask=mask, sem="relaxed")
    else:
        best = tl.min(v, AXIS)
        key = _sortable(best)
        if v.dtype == tl.float64:
            tl.atomic_min(key_ptr + mine, key, mask=mask, sem="relaxed")
        else:
            hit = (v == tl.expand_dims(best, AXIS)) & valid
            found = tl.min(tl.where(hit, tl.expand_dims(others, 1 - AXIS), 0x7FFFFFFF), AXIS)
            tl.atomic_min(key_ptr + mine, (key.to(tl.int64) << 32) | found.to(tl.int64), mask=mask, sem="relaxed")


@triton.jit
def _min_distances_fwd_kernel(
    x_ptr, y_ptr, x_square_ptr, y_square_ptr, row_key_ptr, col_key_ptr, row_index_ptr, col_index_ptr,
    count_x, count_y, d, stride_xn, stride_xl, stride_yn, stride_yl, EPS: tl.constexpr, METRIC: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_D: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    tiles_x, tiles_y = tl.cdiv(count_x, BLOCK_X), tl.cdiv(count_y, BLOCK_Y)
    n = (tl.program_id(0) // (tiles_x * tiles_y)).to(tl.int64)
    tile = tl.program_id(0) % (tiles_x * tiles_y)
    # Eight tiles of rows for each of columns in turn: what they read together stays in the L2 cache.
    first = tile // (8 * tiles_y) * 8
    height = tl.minimum(tiles_x - first, 8)
    within = tile % (8 * tiles_y)
    rows = (first + within % height) * BLOCK_X + tl.arange(0, BLOCK_X)
    cols = within // height * BLOCK_Y + tl.arange(0, BLOCK_Y)
    v = _orders(
        x_ptr + n * stride_xn, y_ptr + n * stride_yn, x_square_ptr + n * count_x, y_square_ptr + n * count_y,
        rows, cols, count_x, count_y, d, stride_xl, stride_yl, EPS, METRIC, BLOCK_D, ACC, PRECISION,
        INTERPRETED,
    )  # fmt: skip
    valid = (rows < count_x)[:, None] & (cols < count_y)[None, :]
    v = tl.where(valid & (v == v), v, float("inf"))  # what NaN is nearest to is decided with the pairs
    rows_key, cols_key = row_key_ptr + n * count_x, col_key_ptr + n * count_y
    _lower(v, valid, rows_key, row_index_ptr + n * count_x, cols, rows, rows < count_x, 1, INDEX)
    _lower(v, valid, cols_key, col_index_ptr + n * count_y, rows, cols, cols < count_y, 0, INDEX)


@triton.jit
def _pairs_kernel(
    x_ptr, y_ptr, x_square_ptr, y_bad_ptr, index_ptr, min_ptr, match_ptr, norm_ptr,
    count_x, count_y, d, stride_xn, stride_xl, stride_yn, stride_yl,
    EPS: tl.constexpr, METRIC: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The distances of pairs; `index` is put right where NaN is the minimum: the first of those."""
    tiles = tl.cdiv(count_x, ROWS)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    rows = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    mask = rows < count_x
    at = n * count_x + rows
    x_square = tl.load(x_square_ptr + at, mask=mask, other=1.0)
    y_bad = tl.load(y_bad_ptr + n)
    x_bad = ~(x_square < float("inf"))
    found = tl.load(index_ptr + at, mask=mask, other=0)
    found = tl.where(x_bad, 0, tl.where(y_bad < count_y, y_bad, found))
    tl.store(index_ptr + at, found, mask=mask)
    x_squares, y_squares = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
    products = tl.zeros([ROWS], tl.float64)
    for start in range(0, d, BLOCK_D):
        k = start + tl.arange(0, BLOCK_D)
        x = _load_rows(x_ptr + n * stride_xn, rows, count_x, k, d, stride_xl).to(tl.float64)
        y = _load_rows(y_ptr + n * stride_yn, found, count_y, k, d, stride_yl).to(tl.float64)
        if METRIC == "cosine":
            x_squares += tl.sum(x * x, 1)
            y_squares += tl.sum(y * y, 1)
            products += tl.sum(x * y, 1)
        else:
            products += tl.sum((x - y) * (x - y), 1)
    if METRIC == "cosine":
        # The root of the product: of two equal rows exactly their product, so that they are 0 apart.
        square = x_squares * y_squares
        x_norm, y_norm = tl.maximum(tl.sqrt(x_squares), EPS), tl.maximum(tl.sqrt(y_squares), EPS)
        plain = (tl.sqrt(x_squares) >= EPS) & (tl.sqrt(y_squares) >= EPS) & (square > 1e-290) & (square < 1e290)
        match = products / tl.where(plain, tl.sqrt(tl.where(plain, square, 1.0)), x_norm * y_norm)
        distance = tl.minimum(tl.maximum(1 - match, 0.0), 2.0)
    else:
        match = products
        distance = tl.minimum(tl.maximum(match, 1e-5), 1e5)
        if min_ptr.dtype.element_ty != tl.float64:
            distance = distance.to(tl.float32)
        distance = tl.sqrt(distance / d)
    nan = x_bad | (y_bad < count_y)
    distance, match = tl.where(nan, float("nan"), distance), tl.where(nan, float("nan"), match)
    if min_ptr.dtype.element_ty != tl.float64:
        distance = distance.to(tl.float32)
    tl.store(min_ptr + at, distance.to(min_ptr.dtype.element_ty), mask=mask)
    tl.store(match_ptr + at, match, mask=mask)
    tl.store(norm_ptr + at, tl.sqrt(x_square), mask=mask)


def rows_of(d: int) -> dict[str, int]:
    """Rows and values of a row that a program takes at a time: at most 512 values together."""
    block = min(max(triton.next_power_of_2(d), 16), 512)
    return {"ROWS": min(512 // block, 16), "BLOCK_D": block}


def _search(x: Tensor, y: Tensor, squares: list[Tensor], metric: str, eps: float) -> list[Tensor]:
    """The argmins of both directions, where no row has NaN."""
    (n, count_x, d), count_y = x.shape, y.shape[1]
    if d <= DIFFERENCES:
        metric = "differences" if metric == "euclidean" else "cosine by differences"
    elif metric == "cosine" and x.element_size() == 2:
        metric = "cosine of 16 bits"  # the tensor cores take the values as they are
    keys = [torch.full((n, count), LARGEST, dtype=torch.int64, device=x.device) for count in (count_x, count_y)]
    wide = x.dtype == torch.float64
    indices = [torch.full_like(key, LARGEST) for key in keys] if wide else keys  # not used, but of float64
    interpreted = not isinstance(_min_distances_fwd_kernel, triton.JITFunction)
    block_x, block_y, block_d = TILES["float64" if wide else metric]
    grid = (n * triton.cdiv(count_x, block_x) * triton.cdiv(count_y, block_y),)
    for index in (False, True) if wide else (False,):
        _min_distances_fwd_kernel[grid](
            x, y, *squares, *keys, *indices, count_x, count_y, d, *x.stride()[:2], *y.stride()[:2],
            EPS=eps, METRIC=metric, INDEX=index, BLOCK_X=block_x, BLOCK_Y=block_y, BLOCK_D=block_d,
            ACC=accumulator(x), PRECISION="ieee" if wide else "tf32x3", INTERPRETED=interpreted,
            num_warps=8,
        )  # fmt: skip
    return indices if wide else [key & 0xFFFFFFFF for key in keys]


def forward(
    x: Tensor,  # [N, L, D]
    y: Tensor,  # [N, M, D]
    metric: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Minimum and argmin of each row [N, L] and column [N, M]; the pairs' cosines or squared distances; the norms."""
    sides = (dense_rows(x), dense_rows(y))
    shapes = [side.shape[:2] for side in sides]
    minima = [x.new_empty(shape) for shape in shapes]
    matches, norms = ([x.new_empty(s, dtype=torch.float64) for s in shapes] for _ in range(2))
    if minima[0].numel() == 0:
        indices = [x.new_empty(shape, dtype=torch.int64) for shape in shapes]
        return minima[0], indices[0], minima[1], indices[1], *matches, *norms
    (n, _, d), options = x.shape, rows_of(x.shape[2])
    squares = [x.new_empty(shape, dtype=torch.float64) for shape in shapes]
    bad = [x.new_full((n,), LARGEST, dtype=torch.int64) for _ in sides]
    grids = [(n * triton.cdiv(side.shape[1], options["ROWS"]),) for side in sides]
    with on_device_of(x):
        for k, side in enumerate(sides):
            _squares_kernel[grids[k]](
                side, squares[k], bad[k], side.shape[1], d, *side.stride()[:2], num_warps=4, **options
            )
        indices = _search(*sides, squares, metric, eps)
        for k, side in enumerate(sides):
            other = sides[1 - k]
            _pairs_kernel[grids[k]](
                side, other, squares[k], bad[1 - k], indices[k], minima[k], matches[k], norms[k],
                side.shape[1], other.shape[1], d, *side.stride()[:2], *other.stride()[:2],
                EPS=eps, METRIC=metric, num_warps=4, maxnreg=64, **options,  # unsaid, some assemblers spill
            )  # fmt: skip
    return minima[0], indices[0], minima[1], indices[1], *matches, *norms


def backward(
    grad_row: Tensor | None,  # [N, L]; None: zeros
    grad_col: Tensor | None,  # [N, M]
    x: Tensor,  # [N, L, D]
    y: Tensor,  # [N, M, D]
    row_argmin: Tensor,  # [N, L], as forward gave it, and so on
    col_argmin: Tensor,  # [N, M]
    row_match: Tensor,
    col_match: Tensor,
    x_norm: Tensor,
    y_norm: Tensor,
    metric: str,
    eps: float,
    need_x: bool,
    need_y: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of x and y; size [0] where not needed."""
    x, y = dense_rows(x), dense_rows(y)
    sides = (
        (x, x_norm, x.new_zeros(x.shape[:2]) if grad_row is None else grad_row.contiguous(), row_argmin, row_match),
        (y, y_norm, y.new_zeros(y.shape[:2]) if grad_col is None else grad_col.contiguous(), col_argmin, col_match),
    )
    return (
        side_gradient(*sides[0], *sides[1], metric, eps) if need_x else x.new_empty(0),
        side_gradient(*sides[1], *sides[0], metric, eps) if need_y else y.new_empty(0),
    )

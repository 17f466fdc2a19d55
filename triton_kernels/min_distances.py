"""min_distances: minima of the matrix of distances in both directions, without the matrix.

  cosine      D[i,j] = 1 - x[i] . y[j] / (max(|x[i]|, eps) max(|y[j]|, eps))
  euclidean   D[i,j] = sqrt(clamp(|x[i] - y[j]|^2, 1e-5, 1e5) / d)

A search in the rows' own precision (min_distances_search.py) finds the pairs; a kernel measures them once more, in
float64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import at_least, ceil_div, dense_rows, on_device_of
from .min_distances_backward import pairs_of, side_gradient
from .min_distances_search import load_rows, rows_of, search


@triton.jit
def _pairs_kernel(
    x_ptr, y_ptr, x_square_ptr, y_bad_ptr, found_ptr, index_ptr, min_ptr, match_ptr, norm_ptr,
    count_x, count_y, d, stride_xn, stride_xl, stride_yn, stride_yl,
    EPS: tl.constexpr, METRIC: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The distances of the pairs that were found; where NaN is the minimum, the first of those is the index."""
    tiles = tl.cdiv(count_x, ROWS)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    rows = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    mask = rows < count_x
    at = n * count_x + rows
    x_square = tl.load(x_square_ptr + at, mask=mask, other=1.0)
    y_bad = tl.load(y_bad_ptr + n)
    x_bad = ~(x_square < float("inf"))
    found = tl.load(found_ptr + at, mask=mask, other=0) & 0xFFFFFFFF
    found = tl.where(x_bad, 0, tl.where(y_bad < count_y, y_bad, found))
    tl.store(index_ptr + at, found, mask=mask)
    x_squares, y_squares = tl.zeros([ROWS, BLOCK_D], tl.float64), tl.zeros([ROWS, BLOCK_D], tl.float64)
    products = tl.zeros([ROWS, BLOCK_D], tl.float64)
    for start in range(0, d, BLOCK_D):
        k = start + tl.arange(0, BLOCK_D)
        x = load_rows(x_ptr + n * stride_xn, rows, count_x, k, d, stride_xl).to(tl.float64)
        y = load_rows(y_ptr + n * stride_yn, found, count_y, k, d, stride_yl).to(tl.float64)
        if METRIC == "cosine":
            x_squares += x * x
            y_squares += y * y
            products += x * y
        else:
            products += (x - y) * (x - y)
    if METRIC == "cosine":
        # The root of the product: of two equal rows exactly their product, so that they are 0 apart.
        x_total, y_total = tl.sum(x_squares, 1), tl.sum(y_squares, 1)
        square = x_total * y_total
        x_norm, y_norm = at_least(tl.sqrt(x_total), EPS), at_least(tl.sqrt(y_total), EPS)
        plain = (tl.sqrt(x_total) >= EPS) & (tl.sqrt(y_total) >= EPS) & (square > 1e-290) & (square < 1e290)
        match = tl.sum(products, 1) / tl.where(plain, tl.sqrt(tl.where(plain, square, 1.0)), x_norm * y_norm)
        distance = tl.minimum(tl.maximum(1 - match, 0.0), 2.0)
    else:
        match = tl.sum(products, 1)
        distance = tl.minimum(at_least(match, 1e-5), 1e5)
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
    indices = [x.new_empty(shape, dtype=torch.int64) for shape in shapes]
    matches, norms = ([x.new_empty(s, dtype=torch.float64) for s in shapes] for _ in range(2))
    if minima[0].numel() == 0:
        return minima[0], indices[0], minima[1], indices[1], *matches, *norms
    (n, _, d), options = x.shape, rows_of(x.shape[2], 512)
    with on_device_of(x):
        squares, bad, found = search(*sides, metric, eps)
        for k, side in enumerate(sides):
            other = sides[1 - k]
            _pairs_kernel[(n * ceil_div(side.shape[1], options["ROWS"]),)](
                side, other, squares[k], bad[1 - k], found[k], indices[k], minima[k], matches[k], norms[k],
                side.shape[1], other.shape[1], d, *side.stride()[:2], *other.stride()[:2],
                EPS=eps, METRIC=metric, num_warps=2, maxnreg=128, **options,  # unsaid, some assemblers spill
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
    sides = []
    for rows, norm, grad, index, match in (
        (x, x_norm, grad_row, row_argmin, row_match),
        (y, y_norm, grad_col, col_argmin, col_match),
    ):
        grad = rows.new_zeros(rows.shape[:2]) if grad is None else grad.contiguous()
        sides.append((dense_rows(rows), norm, grad, index, match))
    needed = [k for k, need in enumerate((need_x, need_y)) if need]
    grads = [x.new_empty(0), y.new_empty(0)]
    if needed:
        counts, indices = [sides[k][0].shape[1] for k in needed], [sides[1 - k][3] for k in needed]
        order, begin = pairs_of(indices, counts)
        first = before = 0
        for k, count, index in zip(needed, counts, indices, strict=True):
            other, norm, grad, _, match = sides[1 - k]
            grads[k] = side_gradient(*sides[k], other, norm, grad, match, order, begin[:, first:], before, metric, eps)
            first, before = first + count, before + index.shape[1]
    return grads[0], grads[1]

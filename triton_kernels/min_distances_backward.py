"""min_distances: the gradient of one side, through the pairs of both directions.

  cosine      grad x[i] = sum of g / |x[i]| * (cos * x[i] / |x[i]| - y[j] / |y[j]|) over the pairs (i, j)
  euclidean   grad x[i] = sum of g / (d * D[i,j]) * (x[i] - y[j])                   over those that no clamp holds

A row has the pair of its own minimum, and those of all rows of the other side whose minimum is with it: a stable sort
of their argmins lists these, so that each row of the gradient is one sum in a fixed order, without atomics. Sums run in
float64: what two rows that are close leave of each other is what their rounding would leave too.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import at_least, ceil_div, on_device_of, power_of_2


@triton.jit
def _pair_terms(grad, match, other_norm, d, EPS: tl.constexpr, METRIC: tl.constexpr):
    """What a pair multiplies the other row by, and its part of what the row itself is multiplied by."""
    grad = grad.to(tl.float64)
    if METRIC == "cosine":
        weight = tl.where(grad != 0, grad / at_least(other_norm, EPS), 0.0)
        own = tl.where(grad != 0, grad * match, 0.0)
    else:
        open_ = (grad != 0) & ~((match < 1e-5) | (match > 1e5))
        weight = tl.where(open_, grad / tl.sqrt(tl.where(open_, match, 1.0) * d), 0.0)
        own = weight
    return weight, own


@triton.jit
def _min_distances_bwd_kernel(
    x_ptr, x_norm_ptr, grad_ptr, index_ptr, match_ptr, y_ptr, y_norm_ptr, y_grad_ptr, y_match_ptr, order_ptr, begin_ptr,
    grad_x_ptr, count_x, count_y, d, parts, listed, bounds, before, stride_xn, stride_xl, stride_yn, stride_yl,
    EPS: tl.constexpr, METRIC: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A part of one row of the gradient."""
    row = (tl.program_id(0) // parts).to(tl.int64)  # of all samples
    n, i = row // count_x, row % count_x
    k = tl.program_id(0) % parts * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = k < d
    x = tl.load(x_ptr + n * stride_xn + i * stride_xl + k, mask=inside, other=0.0).to(tl.float64)
    y_ptr += n * stride_yn
    # its own minimum
    j = tl.load(index_ptr + row)
    y = tl.load(y_ptr + j * stride_yl + k, mask=inside, other=0.0).to(tl.float64)
    y_norm = tl.load(y_norm_ptr + n * count_y + j)
    weight, own = _pair_terms(tl.load(grad_ptr + row), tl.load(match_ptr + row), y_norm, d, EPS, METRIC)
    if METRIC == "euclidean":
        y -= x
    total = tl.where(weight != 0, weight * y, 0.0)
    # the minima of others
    begin = tl.load(begin_ptr + n * bounds + i)
    end = tl.load(begin_ptr + n * bounds + i + 1)
    for first in range(begin, end, ROWS):
        at = first + tl.arange(0, ROWS)
        mask = at < end
        rows = tl.load(order_ptr + n * listed + at, mask=mask, other=before) - before
        grads = tl.load(y_grad_ptr + n * count_y + rows, mask=mask, other=0.0)
        matches = tl.load(y_match_ptr + n * count_y + rows, mask=mask, other=0.0)
        norms = tl.load(y_norm_ptr + n * count_y + rows, mask=mask, other=1.0)
        weights, owns = _pair_terms(grads, matches, norms, d, EPS, METRIC)
        used = (weights != 0)[:, None]
        ys_ptr = y_ptr + rows[:, None] * stride_yl + k[None, :]
        ys = tl.load(ys_ptr, mask=used & inside[None, :], other=0.0).to(tl.float64)
        if METRIC == "euclidean":
            ys -= x[None, :]
        total += tl.sum(tl.where(used, weights[:, None] * ys, 0.0), 0)
        own += tl.sum(owns, 0)
    if METRIC == "cosine":
        # (own * x / |x| - sum of weight * y) / |x|; a norm below eps is a constant
        norm = tl.load(x_norm_ptr + row)
        inverse = 1.0 / at_least(norm, EPS)  # one division: each is a call
        total = (tl.where(norm < EPS, 0.0, own * (x * inverse)) - total) * inverse
    else:
        total = -total
    if grad_x_ptr.dtype.element_ty == tl.float16:  # a gradient of size 1 / eps is more than it holds
        total = tl.where(total > 65504.0, 65504.0, tl.where(total < -65504.0, -65504.0, total))
    if grad_x_ptr.dtype.element_ty != tl.float64:
        total = total.to(tl.float32)
    tl.store(grad_x_ptr + row * d + k, total.to(grad_x_ptr.dtype.element_ty), mask=inside)


def pairs_of(indices: list[Tensor], counts: list[int]) -> tuple[Tensor, Tensor]:
    """For each row, of `counts` rows of one side and then of the other, those of `indices` that are of it.

    They are order[begin[row] : begin[row + 1]], in ascending order, counted through all indices. One sort for both.
    """
    total = sum(counts)
    dtype = torch.int16 if total < 2**15 else torch.int64 if total >= 2**31 else torch.int32  # few digits: few passes
    rows = torch.cat([indices[0], *(index + counts[0] for index in indices[1:])], 1).to(dtype)
    by_row, order = rows.sort(dim=1, stable=True)
    bounds = torch.arange(total + 1, dtype=dtype, device=rows.device).expand(len(rows), -1).contiguous()
    return order, torch.searchsorted(by_row, bounds)


def side_gradient(
    x: Tensor,  # [N, L, D]
    x_norm: Tensor,  # [N, L]
    grad: Tensor,  # [N, L]: of the minima of x's rows
    index: Tensor,  # [N, L]: into y
    match: Tensor,  # [N, L]
    y: Tensor,  # [N, M, D], and the same of the other side
    y_norm: Tensor,
    y_grad: Tensor,
    y_match: Tensor,
    order: Tensor,
    begin: Tensor,  # [N, L + 1], the part of x
    before: int,  # listed before those of y
    metric: str,
    eps: float,
) -> Tensor:
    """The gradient of x."""
    n, count, d = x.shape
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if grad_x.numel() == 0:
        return grad_x
    block = min(max(power_of_2(d), 16), 512)
    parts = ceil_div(d, block)
    with on_device_of(x):
        _min_distances_bwd_kernel[(n * count * parts,)](
            x, x_norm, grad, index, match, y, y_norm, y_grad, y_match, order, begin, grad_x,
            count, y.shape[1], d, parts, order.stride(0), begin.stride(0), before, *x.stride()[:2], *y.stride()[:2],
            EPS=eps, METRIC=metric, ROWS=min(2048 // block, 16), BLOCK_D=block, num_warps=2, maxnreg=168,
        )  # fmt: skip
    return grad_x

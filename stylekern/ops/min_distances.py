"""The nearest of two sets of features, in both directions, without the matrix of their distances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stylekern import reference
from stylekern.ops._checks import check_numbers, check_option, check_tensors, shape
from stylekern.ops._operator import Operator

METRICS = ("cosine", "euclidean")


class MinDistances(NamedTuple):
    """The distance to the nearest feature of the other set, and its index."""

    row_min: Tensor
    row_argmin: Tensor
    col_min: Tensor
    col_argmin: Tensor


def min_distances(x: Tensor, y: Tensor, *, metric: str = "cosine", eps: float = 1e-12) -> MinDistances:
    r"""Minima of the matrix of distances over its columns and over its rows (STROTSS, Kolkin et al. 2019, eq. 4 to 6).

    With D[i,j] the distance of x[i] and y[j]::

        cosine:     D[i,j] = 1 - x[i] . y[j] / (max(|x[i]|, eps) max(|y[j]|, eps))
        euclidean:  D[i,j] = sqrt(clamp(|x[i] - y[j]|^2, 1e-5, 1e5) / D)
        row_min[i] = min_j D[i,j]        col_min[j] = min_i D[i,j]

    Args:
        x: [N, L, D], float32, float64, float16 or bfloat16.
        y: [N, M, D].
        metric: "cosine", or "euclidean", the palette term of STROTSS.
        eps: The least norm that a row is divided by, above zero; cosine only.

    Returns:
        row_min [N, L] of x's dtype, row_argmin [N, L] int64 (an index into y), col_min [N, M], col_argmin [N, M] (into
        x). The minimum is taken over distances that are computed in float32 (float64 for float64); the distance of the
        pair that it finds is then computed again in float64, so that equal rows are 0 apart (cosine) whatever their
        norm. Equal rows are ties, and of several nearest the lowest index counts; other distances that agree within
        rounding may go either way. (Euclidean, of more than 16 values: squares agree within a rounding of the squared
        distance to the row of middle length, so that of two far clusters only one is searched to the last digit.) A row
        with NaN or infinity (or, of float64, with a norm above 1e154, whose square is one) is NaN away from all, as
        `torch.min` has it: argmin is then the first such row.

    Raises:
        ValueError: Shapes that do not fit; a minimum over no rows; an unknown metric; an eps that is not positive.
        TypeError: Not a tensor, or dtypes that differ or are not floating point.
        RuntimeError: Devices that differ; a backend asked for by name that cannot run; a forward-mode derivative.

    Deterministic, forward and backward. Gradients once, for x and y, through the argmins only; none for the argmins. A
    zero row is 1 from all, and its gradient, of size 1 / eps, saturates where float16 cannot hold it. Where the clamp
    holds there is no gradient; at a bound itself there is. Memory beyond inputs and outputs: O(N (L + M)) and a tile;
    on a GPU a copy of both sides too, half as large again for float32. Nothing of size L x M. Under autocast both take
    the autocast dtype.
    """
    x, y = check_features("min_distances", x, y, metric, eps)
    return MinDistances(*OPERATOR(x, y, metric, eps))


def check_features(operator: str, x: Tensor, y: Tensor, metric: str, eps: float) -> tuple[Tensor, Tensor]:
    """Checks the arguments that min_distances and what is built on it share; casts for autocast."""
    cast = check_tensors(operator, (("x", x, 3, "[N, L, D]"), ("y", y, 3, "[N, M, D]")))
    check_option(operator, "metric", metric, METRICS)
    if y.shape[0] != x.shape[0] or y.shape[2] != x.shape[2]:
        raise ValueError(
            f"{operator}: y must be [{x.shape[0]}, M, {x.shape[2]}] for x {shape(x)}, got {shape(y)}; expand one "
            "that is for all"
        )
    for name, other, rows, others in (("x", "y", x, y), ("y", "x", y, x)):
        if others.shape[0] and others.shape[1] and rows.shape[1] == 0:
            raise ValueError(
                f"{operator}: {name} must have at least one row for {other} {shape(others)}, got {shape(rows)}"
            )
    check_numbers(operator, eps)
    if not eps > 0:
        raise ValueError(f"{operator}: eps must be positive, got {eps}")
    return (x, y) if cast is None else (x.to(cast), y.to(cast))


def _fake(x: Tensor, y: Tensor, metric: str, eps: float) -> tuple[Tensor, ...]:
    (n, rows, _), cols = x.shape, y.shape[1]
    minima = []
    for count in (rows, cols):
        minima += [x.new_empty((n, count)), x.new_empty((n, count), dtype=torch.int64)]
    return *minima, *(x.new_empty((n, count), dtype=torch.float64) for count in (rows, cols, rows, cols))


def _backward_fake(
    grad_row: Tensor | None,
    grad_col: Tensor | None,
    x: Tensor,
    y: Tensor,
    row_argmin: Tensor,
    col_argmin: Tensor,
    row_match: Tensor,
    col_match: Tensor,
    x_norm: Tensor,
    y_norm: Tensor,
    metric: str,
    eps: float,
    need_x: bool,
    need_y: bool,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if need_x else (0,)), y.new_empty(y.shape if need_y else (0,))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, ctx.metric, ctx.eps = inputs
    _, row_argmin, _, col_argmin, *found = output
    ctx.save_for_backward(x, y, row_argmin, col_argmin, *found)
    ctx.mark_non_differentiable(row_argmin, col_argmin, *found)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any,
    run: Callable[..., Any],
    grad_row: Tensor | None,
    _row_argmin: None,
    grad_col: Tensor | None,
    *_others: Tensor | None,
) -> tuple[Tensor | None, ...]:
    if grad_row is None and grad_col is None:
        return None, None, None, None
    needed = ctx.needs_input_grad[:2]
    computed = run(grad_row, grad_col, *ctx.saved_tensors, ctx.metric, ctx.eps, *needed)
    return *(x if need else None for x, need in zip(computed, needed, strict=True)), None, None


OPERATOR = Operator(
    name="min_distances",
    # After the four results, in float64 for the gradient: the nearest pairs' cosines or squared distances, the norms.
    schema="(Tensor x, Tensor y, str metric, float eps) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    backward_schema="(Tensor? grad_row, Tensor? grad_col, Tensor x, Tensor y, Tensor row_argmin, Tensor col_argmin, "
    "Tensor row_match, Tensor col_match, Tensor x_norm, Tensor y_norm, str metric, float eps, bool need_x, "
    "bool need_y) -> (Tensor, Tensor)",
    fake=_fake,
    backward_fake=_backward_fake,
    setup_context=_setup_context,
    backward=_backward,
    reference=reference.min_distances,
    outputs=4,
    cuda=False,
)

"""Relaxed earth mover's distance, without the matrix of distances."""

from __future__ import annotations

import torch
from torch import Tensor

from stylekern.ops._checks import check_option, shape, sums_dtype
from stylekern.ops.min_distances import OPERATOR, check_features

REDUCTIONS = ("mean", "none")


def remd(x: Tensor, y: Tensor, *, metric: str = "cosine", reduction: str = "mean", eps: float = 1e-12) -> Tensor:
    r"""Relaxed earth mover's distance (STROTSS, Kolkin et al. 2019, eq. 5).

    Per sample, with the minima of `min_distances`::

        remd = max(mean_i row_min[i], mean_j col_min[j])

    Args:
        x: [N, L, D], float32, float64, float16 or bfloat16.
        y: [N, M, D]. One for many: `y.expand(n, -1, -1)`.
        metric: "cosine" or "euclidean", as in `min_distances`.
        reduction: "mean" over the samples, or "none".
        eps: The least norm that a row is divided by, above zero; cosine only.

    Returns:
        [] ("none": [N]), of x's dtype. Means run in float32, or float64 for float64.

    Raises:
        ValueError: Shapes that do not fit; no rows; an unknown metric or reduction; an eps that is not positive.
        TypeError: Not a tensor, or dtypes that differ or are not floating point.
        RuntimeError: Devices that differ; a backend asked for by name that cannot run; a forward-mode derivative.

    Deterministic, forward and backward. Gradients once, for x and y, through the argmins of the larger mean; where both
    are equal, half through each. Memory and autocast as in `min_distances`.
    """
    x, y = check_features("remd", x, y, metric, eps)
    check_option("remd", "reduction", reduction, REDUCTIONS)
    if x.shape[0] and not x.shape[1]:
        raise ValueError(f"remd: x and y must have at least one row, got {shape(x)} and {shape(y)}")
    row_min, _, col_min, _ = OPERATOR(x, y, metric, eps)
    sums = sums_dtype(x)
    distance = torch.maximum(row_min.mean(1, dtype=sums), col_min.mean(1, dtype=sums))  # [N]
    return (distance.mean() if reduction == "mean" else distance).to(x.dtype)

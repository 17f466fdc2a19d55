"""Relaxed earth mover's distance: the definition (STROTSS, Kolkin et al. 2019, eq. 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from stylekern.reference.min_distances import min_distances


def remd(
    x: Tensor,  # [N, L, D]
    y: Tensor,  # [N, M, D]
    *,
    metric: str = "cosine",
    reduction: str = "mean",
    eps: float = 1e-12,
) -> Tensor:  # [] or [N]
    """Plain torch, dense, differentiable, in the dtype it is given. See :func:`stylekern.ops.remd`."""
    row_min, _, col_min, _ = min_distances(x, y, metric=metric, eps=eps)
    distance = torch.maximum(row_min.mean(1), col_min.mean(1))
    return distance.mean() if reduction == "mean" else distance

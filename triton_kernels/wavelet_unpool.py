"""wavelet_unpool: Haar unpooling is the adjoint of pooling, with zeros beyond the picture; see wavelet_pool.py."""

from __future__ import annotations

from torch import Tensor

from .wavelet_pool import pool, unpool


def forward(
    ll: Tensor,  # [N, C, h, w]
    lh: Tensor,
    hl: Tensor,
    hh: Tensor,
    height: int,
    width: int,
) -> Tensor:
    """The picture [N, C, height, width]: height is 2h or 2h - 1, and width 2w or 2w - 1."""
    return unpool((ll, lh, hl, hh), height, width, "zero")


def backward(
    grad: Tensor,  # [N, C, height, width]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of ll, lh, hl, hh: sizes halved, rounded up."""
    return pool(grad, "zero")

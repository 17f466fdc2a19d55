"""Haar unpooling, the inverse of Haar pooling: the definition (WCT2, sec. 3.1; SAFIN's base network)."""

from __future__ import annotations

import torch
from torch import Tensor


def wavelet_unpool(
    ll: Tensor,  # [N, C, h, w]
    lh: Tensor,  # [N, C, h, w]
    hl: Tensor,  # [N, C, h, w]
    hh: Tensor,  # [N, C, h, w]
    *,
    size: tuple[int, int] | None = None,
) -> Tensor:  # [N, C, 2h, 2w], cropped to size
    """Plain torch, differentiable, in the dtype it is given. See :func:`stylekern.ops.wavelet_unpool`."""
    a, b = (ll - lh - hl + hh) / 2, (ll + lh - hl - hh) / 2
    c, d = (ll - lh + hl - hh) / 2, (ll + lh + hl + hh) / 2
    top, bottom = torch.stack([a, b], -1).flatten(-2), torch.stack([c, d], -1).flatten(-2)  # [N, C, h, 2w]
    x = torch.stack([top, bottom], -2).flatten(-3, -2)
    return x if size is None else x[:, :, : size[0], : size[1]]

"""Haar pooling: the definition (WCT2, sec. 3.1; SAFIN's base network)."""

from __future__ import annotations

import torch
from torch import Tensor


def wavelet_pool(input: Tensor, *, odd: str = "floor") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Plain torch, differentiable, in the dtype it is given. See :func:`stylekern.ops.wavelet_pool`."""
    x = input  # [N, C, H, W]
    h, w = x.shape[2:]
    if odd == "pad":
        x = torch.cat([x, x[:, :, h - h % 2 :]], 2)  # an odd last row again, and column; else nothing
        x = torch.cat([x, x[..., w - w % 2 :]], 3)
    else:
        x = x[:, :, : h - h % 2, : w - w % 2]
    a, b, c, d = x[:, :, ::2, ::2], x[:, :, ::2, 1::2], x[:, :, 1::2, ::2], x[:, :, 1::2, 1::2]
    return (a + b + c + d) / 2, (-a + b - c + d) / 2, (-a - b + c + d) / 2, (a - b - c + d) / 2

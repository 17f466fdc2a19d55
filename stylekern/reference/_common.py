"""What several definitions share: the border rule and instance normalisation."""

from __future__ import annotations

import torch
from torch import Tensor


def pad(x: Tensor, r: int, after: int | None = None, *, dim: int, mode: str) -> Tensor:
    """Extends `dim` by r before and `after` (r unless given) behind; `mode` is reflect, replicate, zeros or none.

    Slices and a concatenation rather than `F.pad`, whose backward is not deterministic on CUDA.
    """
    after = r if after is None else after
    if mode == "none" or r == after == 0:
        return x
    size = x.shape[dim]
    if mode == "zeros" or x.numel() == 0:
        first, last = (x.new_zeros([*x.shape[:dim], side, *x.shape[dim:][1:]]) for side in (r, after))
    elif mode == "replicate":
        first = x.narrow(dim, 0, 1).repeat_interleave(r, dim)
        last = x.narrow(dim, size - 1, 1).repeat_interleave(after, dim)
    else:
        first, last = x.narrow(dim, 1, r).flip(dim), x.narrow(dim, size - 1 - after, after).flip(dim)
    return torch.cat([first, x, last], dim)


def instance_norm(x: Tensor, eps: float, correction: int) -> Tensor:
    """(x - mean) / sqrt(var + eps) per sample and channel of [N, C, H, W]."""
    var, mean = torch.var_mean(x, dim=(-2, -1), correction=correction, keepdim=True)
    return (x - mean) * torch.rsqrt(var + eps)

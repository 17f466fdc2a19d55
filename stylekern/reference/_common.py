"""What several definitions share: the border rule and instance normalisation."""

from __future__ import annotations

import torch
from torch import Tensor


def pad(x: Tensor, r: int, *, dim: int, mode: str) -> Tensor:
    """Extends `dim` by r on both sides; `mode` is reflect, replicate, zeros or none.

    Slices and a concatenation rather than `F.pad`, whose backward is not deterministic on CUDA.
    """
    if r == 0 or mode == "none":
        return x
    size, shape = x.shape[dim], list(x.shape)
    shape[dim] = r
    if mode == "zeros" or x.numel() == 0:
        before = after = x.new_zeros(shape)
    elif mode == "replicate":
        before, after = x.narrow(dim, 0, 1).expand(shape), x.narrow(dim, size - 1, 1).expand(shape)
    else:
        before, after = x.narrow(dim, 1, r).flip(dim), x.narrow(dim, size - 1 - r, r).flip(dim)
    return torch.cat([before, x, after], dim)


def instance_norm(x: Tensor, eps: float, correction: int) -> Tensor:
    """(x - mean) / sqrt(var + eps) per sample and channel of [N, C, H, W]."""
    var, mean = torch.var_mean(x, dim=(-2, -1), correction=correction, keepdim=True)
    return (x - mean) * torch.rsqrt(var + eps)

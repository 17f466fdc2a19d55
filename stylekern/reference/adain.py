"""Adaptive instance normalisation: the definition (Huang & Belongie 2017, eq. 8)."""

from __future__ import annotations

import torch
from torch import Tensor

from stylekern.reference._common import instance_norm


def adain(content: Tensor, style: Tensor, *, eps: float = 1e-5, correction: int = 1) -> Tensor:
    """Plain torch, differentiable, in the dtype it is given. See :func:`stylekern.ops.adain`."""
    var, mean = torch.var_mean(style, dim=(-2, -1), correction=correction, keepdim=True)  # [N, C, 1, 1]
    return instance_norm(content, eps, correction) * torch.sqrt(var + eps) + mean

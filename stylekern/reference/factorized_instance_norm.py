"""Factorized instance normalisation: the definition (SAFIN, eq. 1)."""

from __future__ import annotations

from torch import Tensor

from stylekern.reference._common import instance_norm


def factorized_instance_norm(
    content: Tensor,  # [N, C, H, W]
    gamma_ind: Tensor,  # [C]
    beta_ind: Tensor,  # [C]
    gamma_style: Tensor,  # [N, C, H, W]
    beta_style: Tensor,  # [N, C, H, W]
    *,
    eps: float = 1e-5,
    correction: int = 1,
) -> Tensor:  # [N, C, H, W]
    """Plain torch, differentiable, in the dtype it is given. See :func:`stylekern.ops.factorized_instance_norm`."""
    x = instance_norm(content, eps, correction)
    return gamma_style * (gamma_ind[:, None, None] * x + beta_ind[:, None, None]) + beta_style

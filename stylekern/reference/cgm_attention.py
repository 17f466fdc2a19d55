"""Content-based gating modulation: the definition ("Learning dynamic style kernels", eq. 1 to 5)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def cgm_attention(
    query: Tensor,  # [N, Lq, D]
    key: Tensor,  # [N, Lk, D]
    value: Tensor,  # [N, Lk, Dv]
    gate_scale: Tensor | None = None,  # [N, Lq]
    gate_bias: Tensor | None = None,  # [N, Lq]
    *,
    alpha: float,
    cosine: bool = True,
    gate_grad: str = "none",
    temperature: float = 1.0,
    renormalize: bool = False,
    eps: float = 1e-12,
) -> Tensor:  # [N, Lq, Dv]
    """Plain torch, differentiable, in the dtype it is given. See :func:`stylekern.ops.cgm_attention`."""
    keys = max(key.shape[1], 1)
    q, k = (F.normalize(x, dim=-1, eps=eps) if cosine else x for x in (query, key))
    a = torch.softmax(alpha * q @ k.mT, -1)  # [N, Lq, Lk]
    terms = [x for x in (None if gate_scale is None else gate_scale / keys, gate_bias) if x is not None]
    if terms:
        t = torch.stack(terms).sum(0).nan_to_num(math.inf, math.inf, -math.inf).unsqueeze(-1)  # [N, Lq, 1]
        # 1 where a > t, else 0, with a derivative of zero; a that underflowed to zero is kept where t is zero
        gate = torch.where(t <= 0, 1, (a - t).sign().clamp_min(0))
        if gate_grad == "straight_through":
            soft = torch.sigmoid((a - t) * (keys / temperature))
            gate = gate + (soft - soft.detach())
        a = gate * a
    output = a @ value
    if renormalize:
        mass = a.sum(-1, keepdim=True)
        output = output / torch.where(mass > 0, mass, 1)
    return output

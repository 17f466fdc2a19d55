"""Per-pixel separable dynamic convolution: the definition (eq. 6 of "Learning dynamic style kernels")."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from stylekern.reference._common import instance_norm, pad


def style_kernel_conv(
    input: Tensor,  # [N, C, H, W]
    vertical: Tensor,  # [N, G, kv, H, W]
    horizontal: Tensor,  # [N, G, kh, H, W]
    bias: Tensor | None = None,  # [N, C, H, W] or [N, G, H, W]
    *,
    padding_mode: str = "reflect",
    composition: str = "sequential",
    normalize: bool = False,
    eps: float = 1e-5,
    correction: int = 0,
) -> Tensor:  # [N, C, H, W]
    """Plain torch, differentiable, in the dtype it is given. See :func:`stylekern.ops.style_kernel_conv`."""
    (n, c), (_, g, kv, h, w), kh = input.shape[:2], vertical.shape, horizontal.shape[2]
    x = instance_norm(input, eps, correction) if normalize else input
    x = x.reshape(n, g, c // g if g else 0, *x.shape[2:])  # [N, G, C/G, H, W]
    v, u = vertical.unsqueeze(2).unbind(3), horizontal.unsqueeze(2).unbind(3)  # k times [N, G, 1, H, W]

    rows = pad(x, kv // 2, dim=-2, mode=padding_mode)
    if composition == "sequential":
        t = reduce(torch.add, (v[a] * rows[..., a : a + h, :] for a in range(kv)))
        t = pad(t, kh // 2, dim=-1, mode=padding_mode)
        y = reduce(torch.add, (u[b] * t[..., b : b + w] for b in range(kh)))
    else:
        window = pad(rows, kh // 2, dim=-1, mode=padding_mode)
        taps = ((a, b) for a in range(kv) for b in range(kh))
        y = reduce(torch.add, (v[a] * u[b] * window[..., a : a + h, b : b + w] for a, b in taps))
    if bias is not None:
        y = y + bias.reshape(n, g, bias.shape[1] // g if g else 0, h, w)
    return y.reshape(n, c, h, w)

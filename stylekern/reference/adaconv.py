"""Adaptive convolution: the definition (AdaConv, Chandran et al. 2021; the multi-scale attentive network's decoder)."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from stylekern.reference._common import instance_norm, pad


def adaconv(
    input: Tensor,  # [N, C, H, W]
    spatial: Tensor,  # [N, C, C/G, kh, kw]
    pointwise: Tensor | None,  # [N, Co, C/G] or [N, Co, C/G, 1, 1]; None: t is the result
    bias: Tensor | None = None,  # [N, Co]
    *,
    normalize: bool = True,
    padding_mode: str = "reflect",
    eps: float = 1e-5,
    correction: int = 0,
) -> Tensor:  # [N, Co, H, W]
    """Plain torch, differentiable, in the dtype it is given. See :func:`stylekern.ops.adaconv`."""
    (n, c, h, w), (size, kh, kw) = input.shape, spatial.shape[2:]
    if c == 0:  # one group of no channels
        spatial, size = spatial[:, :, :0], 0
        pointwise = None if pointwise is None else pointwise[:, :, :0]
    g = c // size if size else 1
    x = instance_norm(input, eps, correction) if normalize else input
    for dim, taps in ((-2, kh), (-1, kw)):
        x = pad(x, taps // 2, (taps - 1) // 2, dim=dim, mode=padding_mode)
    x, k = x.reshape(n, g, size, *x.shape[2:]), spatial.reshape(n, g, size, size, kh, kw)
    window = ((k[..., a, b], x[..., a : a + h, b : b + w]) for a in range(kh) for b in range(kw))
    t = reduce(torch.add, (torch.einsum("ngmi,ngihw->ngmhw", tap, sample) for tap, sample in window))
    if pointwise is None:
        return t.reshape(n, c, h, w)
    co = pointwise.shape[1]
    y = torch.einsum("ngoi,ngihw->ngohw", pointwise.reshape(n, g, co // g, size), t).reshape(n, co, h, w)
    return y if bias is None else y + bias[:, :, None, None]

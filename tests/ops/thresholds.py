"""Cases of cgm_attention whose thresholds rounding cannot cross.

Rounding decides about a key whose A is T to the last digits. Thresholds are therefore drawn into the widest gap between
the sorted A of their row, and `rows_at_threshold` counts the rows that have a key at theirs all the same.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .cases import Case

# A * Lk / temperature is how much the surrogate magnifies the rounding of A: at most about 4 with the alpha of `make`.
STRAIGHT = {"gate_grad": "straight_through", "temperature": 1.5}


def attention(query: Tensor, key: Tensor, alpha: float, cosine: bool = True, eps: float = 1e-12, **_: Any) -> Tensor:
    """A, in float64."""
    q, k = (F.normalize(x.double(), dim=-1, eps=eps) if cosine else x.double() for x in (query, key))
    return torch.softmax(alpha * q @ k.mT, -1)


def threshold(gate_scale: Tensor | None, gate_bias: Tensor | None, keys: int) -> Tensor | None:
    """T [N, Lq, 1], in float64."""
    terms = [x.double() / by for x, by in ((gate_scale, keys), (gate_bias, 1)) if x is not None]
    return torch.stack(terms).sum(0).unsqueeze(-1) if terms else None


def between(a: Tensor) -> Tensor:  # [N, Lq] of [N, Lq, Lk]
    """A threshold a row, in the widest gap of the middle half of its sorted values; below all where there is none."""
    a = a.sort(-1).values
    lk = a.shape[-1]
    if lk < 2:
        return a.sum(-1) / 2
    inner = a[..., lk // 4 : lk - lk // 4]
    low, high = inner[..., :-1], inner[..., 1:]
    gap, at = (high / low).max(-1, keepdim=True)
    middle = (low * high).sqrt().gather(-1, at)
    return torch.where(gap > 1.001, middle, a[..., :1] / 2).squeeze(-1)


def rows_at_threshold(tensors: dict[str, Tensor | None], options: dict[str, Any]) -> int:
    """How many rows have a key whose A is within the rounding of float32 of T."""
    query, key, _, scale, bias = (None if x is None else x.detach().cpu() for x in tensors.values())
    assert query is not None and key is not None
    t = threshold(scale, bias, max(key.shape[1], 1))
    if t is None:
        return 0
    return int(((attention(query, key, **options) - t).abs() <= 1e-5 * t).any(-1).sum())


def make(
    n: int = 2,
    lq: int = 5,
    lk: int = 13,
    d: int = 7,
    dv: int = 6,
    gate: str = "half",
    alpha: float = 2.5,
    **options: Any,
) -> Case:
    query, key, value = (torch.randn(n, *size, dtype=torch.float64) for size in ((lq, d), (lk, d), (lk, dv)))
    options = {"alpha": alpha, **options}
    tensors: dict[str, Tensor | None] = {"query": query, "key": key, "value": value}
    a = attention(query, key, **options)
    share = torch.rand(n, lq, dtype=torch.float64) * 0.4 + 0.3
    t = between(a)
    if gate == "above-all":
        t = 1.1 * a.amax(-1)
    elif gate == "below-all":
        t = -share / lk
    elif gate == "scale":
        share = torch.ones_like(share)
    elif gate == "bias":
        share = torch.zeros_like(share)
    scale, bias = share * t * max(lk, 1), t - share * t
    tensors["gate_scale"] = None if gate in ("bias", "none") else scale
    tensors["gate_bias"] = None if gate in ("scale", "none") else bias
    return Case(tensors, options)


def short_rows() -> Case:
    """Rows of zeros, and rows no longer than eps, which are divided by eps."""
    case = make(eps=0.05, **STRAIGHT)
    query, key = case.tensors["query"], case.tensors["key"]
    assert query is not None and key is not None
    query[0, 1], query[1, 2], key[0, 3] = 0, 0.01 / 7, 0.02 / 7
    scale = between(attention(query, key, **case.options)) * key.shape[1]
    return Case({**case.tensors, "gate_scale": scale / 2, "gate_bias": scale / 2 / key.shape[1]}, case.options)

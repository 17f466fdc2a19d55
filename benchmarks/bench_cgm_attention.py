"""cgm_attention at relu4_1 of pictures of 512 pixels, at sizes that are no power of two, and a batch of small ones."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stylekern import reference
from stylekern.ops import cgm_attention

from .kit import DEVICE, compare

ALPHA = 20.0


def thresholds(query: Tensor, key: Tensor) -> Tensor:  # [N, Lq]
    """A threshold a row, about half way, in a gap that rounding does not cross: results are compared before timing."""
    q, k = (F.normalize(x.double(), dim=-1) for x in (query, key))
    a = torch.softmax(ALPHA * q @ k.mT, -1).sort(-1).values
    a = a[..., a.shape[-1] // 4 : 3 * a.shape[-1] // 4]
    gap = (a[..., 1:] / a[..., :-1]).argmax(-1, keepdim=True)
    return (a.gather(-1, gap) * a.gather(-1, gap + 1)).sqrt().squeeze(-1).to(query.dtype)


def unmasked(q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, scale=ALPHA)


def two_products(q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> Tensor:
    """The fewest multiply-adds there are, at the speed of the library's matrix product."""
    return (q @ k.mT) @ v


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize(("n", "lq", "lk", "d"), [(1, 4096, 4096, 512), (1, 3000, 2500, 512), (8, 64, 64, 512)])
def test_cgm_attention(benchmark: Any, table: list[dict[str, str]], n: int, lq: int, lk: int, d: int, backward: bool):
    torch.manual_seed(0)
    query, key, value = (torch.randn(n, length, d, device=DEVICE) for length in (lq, lk, lk))
    half = thresholds(query, key) / 2
    options = {"alpha": ALPHA, "gate_grad": "straight_through" if backward else "none"}
    compare(
        benchmark,
        table,
        operator="cgm_attention",
        ours=partial(cgm_attention, **options),
        eager=partial(reference.cgm_attention, **options),
        others={"unmasked SDPA": unmasked, "two products": two_products},
        tensors=[query, key, value, half * lk, half],
        backward=backward,
        # read query, key, value, write y; then read g, these and y, write three gradients
        values=n * (2 * lq + 2 * lk + (5 * lq + 4 * lk if backward else 0)) * d,
        shape=(f"{n}x" if n > 1 else "") + f"{lq}x{lk}x{d}",
    )

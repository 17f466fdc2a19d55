"""Nearest neighbours in both directions: the definition (STROTSS, Kolkin et al. 2019, eq. 4 to 6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def min_distances(
    x: Tensor,  # [N, L, D]
    y: Tensor,  # [N, M, D]
    *,
    metric: str = "cosine",
    eps: float = 1e-12,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # [N, L], [N, L], [N, M], [N, M]
    """Plain torch, dense, differentiable, in the dtype it is given. See :func:`stylekern.ops.min_distances`."""
    if metric == "cosine":
        d = 1 - _unit(x, eps) @ _unit(y, eps).mT  # [N, L, M]
    else:
        # In float64, because sums cancel. Less does where both sides are moved, which changes no distance.
        centre = y[:, :1].detach().nan_to_num(0, 0, 0) if y.shape[1] else 0
        u, v = (side.double() - centre for side in (x, y))
        squared = u.square().sum(-1)[:, :, None] + v.square().sum(-1)[:, None] - 2 * u @ v.mT
        d = torch.sqrt(_clamped(squared, 1e-5, 1e5) / x.shape[2]).to(x.dtype)
    row = _first_equal(y).gather(1, _lowest(d.detach(), 2))
    col = _first_equal(x).gather(1, _lowest(d.detach(), 1))
    return d.gather(2, row[:, :, None])[:, :, 0], row, d.gather(1, col[:, None])[:, 0], col


def _unit(x: Tensor, eps: float) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64)  # float32: 1e20 squared overflows
    unit: Tensor = x / _clamped(norm, eps, float("inf")).to(x.dtype)
    return unit


def _clamped(x: Tensor, low: float, high: float) -> Tensor:
    """torch.clamp, with a gradient that passes at a bound itself: not all versions of torch agree on that."""
    return torch.where((x < low) | (x > high), x.detach().clamp(low, high), x)


def _lowest(d: Tensor, dim: int) -> Tensor:
    """The lowest index of the minimum, or of the first NaN: `torch.min` does not promise which of several it gives."""
    if d.numel() == 0:
        return d.new_zeros([s for k, s in enumerate(d.shape) if k != dim], dtype=torch.int64)
    index = torch.arange(d.shape[dim], device=d.device)
    hit = (d == d.amin(dim, keepdim=True)) | d.isnan()
    return torch.where(hit, index if dim == 2 else index[:, None], d.shape[dim]).amin(dim)


def _first_equal(x: Tensor) -> Tensor:
    """For each row of [N, L, D] the first equal one: a matrix product may round the same row differently elsewhere."""
    x = x.detach()
    hashed, order = _hash(x).sort(dim=1, stable=True)
    index = torch.arange(x.shape[1], device=x.device)
    starts = F.pad(hashed[:, 1:] != hashed[:, :-1], (1, 0), value=True) if x.shape[1] else hashed == hashed
    start = torch.where(starts, index, 0).cummax(1).values if x.numel() else index.expand(x.shape[:2])
    first = torch.empty_like(order).scatter_(1, order, order.gather(1, start))
    equal = (x.gather(1, first[:, :, None].expand_as(x)) == x).all(-1)
    return torch.where(equal, first, index)  # rows of one hash need not be equal


def _hash(x: Tensor) -> Tensor:
    """A hash of each row, [N, L]: the sum of its values, mixed with its place by splitmix64 (Steele et al. 2014).

    Of integers, so that any order of summation is exact; not of bits: torch 2.10 does not reinterpret them under vmap.
    """
    mantissa, exponent = torch.frexp(x.double().nan_to_num())
    mixed = (mantissa * 2**53).long() + exponent.long() * 0x2545F4914F6CDD1D
    mixed = mixed + torch.arange(1, x.shape[-1] + 1, device=x.device) * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        mixed = (mixed ^ (mixed >> shift)) * factor
    return (mixed ^ (mixed >> 31)).sum(-1)  # integers: any order of summation is exact

"""Sums of planes are taken together, or while the plane before is written: results are those of a plane alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stylekern import use_backend
from stylekern.ops import adaconv, adain, factorized_instance_norm, style_kernel_conv

from .cases import LAYOUTS, far_at_quarters

N, C = 2, 9  # as many planes as make a thread go from one to the next


def planes(h: int, w: int, dtype: torch.dtype) -> Tensor:
    """Planes of means and deviations far apart, two of which lie far from some of their values, and one not finite."""
    scale, shift = torch.logspace(-2, 2, C).view(C, 1, 1), torch.linspace(-30, 30, N * C).view(N, C, 1, 1)
    x = torch.randn(N, C, h, w) * scale + shift
    x.view(N, C, -1)[0, 3, 64:] += 1000
    x[1, 2] = far_at_quarters(x[1, 2], 1000)
    x[1, 4, -1, -1] = torch.inf
    return x.to(dtype)


def adain_case(h: int, w: int, hs: int, ws: int, dtype: torch.dtype) -> tuple[Callable[..., Tensor], list[Tensor]]:
    return adain, [planes(h, w, dtype), planes(hs, ws, dtype)]


def norm_case(h: int, w: int, _hs: int, _ws: int, dtype: torch.dtype) -> tuple[Callable[..., Tensor], list[Tensor]]:
    gamma, beta = torch.randn(C).to(dtype), torch.randn(C).to(dtype)
    return factorized_instance_norm, [planes(h, w, dtype), gamma, beta, planes(h, w, dtype), planes(h, w, dtype)]


def conv_case(h: int, w: int, _hs: int, _ws: int, dtype: torch.dtype) -> tuple[Callable[..., Tensor], list[Tensor]]:
    filters = [torch.randn(N, C, 3, h, w).to(dtype) for _ in range(2)]
    return lambda *tensors: style_kernel_conv(*tensors, normalize=True), [planes(h, w, dtype), *filters]


def adaconv_case(h: int, w: int, _hs: int, _ws: int, dtype: torch.dtype) -> tuple[Callable[..., Tensor], list[Tensor]]:
    spatial, pointwise = torch.randn(N, C, 1, 3, 3).to(dtype), torch.randn(N, C, 1).to(dtype)
    return adaconv, [planes(h, w, dtype), spatial, pointwise]


def of_plane(x: Tensor, n: int, c: int) -> Tensor:
    return x[c : c + 1] if x.dim() == 1 else x[n : n + 1, c : c + 1]


def results(op: Callable[..., Tensor], tensors: list[Tensor], upstream: Tensor) -> list[Tensor]:
    """The output, and the gradients of the tensors that planes do not share."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    output = op(*leaves)
    return [output, *torch.autograd.grad(output, [x for x in leaves if x.dim() > 1], upstream)]


@pytest.mark.parametrize("layout", ["contiguous", "sliced", "misaligned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "sizes",
    [(16, 16, 16, 16), (33, 31, 33, 31), (32, 32, 7, 9), (20, 30, 61, 57), (3, 4, 5, 2), (3, 1100, 5, 1500)],
    ids=str,
)
@pytest.mark.parametrize("case", [adain_case, norm_case, conv_case, adaconv_case])
def test_results_of_a_plane_do_not_depend_on_the_others(
    case: Callable[..., tuple[Callable[..., Tensor], list[Tensor]]],
    sizes: tuple[int, int, int, int],
    dtype: torch.dtype,
    layout: str,
) -> None:
    torch.manual_seed(0)
    op, tensors = case(*sizes, dtype)
    tensors = [LAYOUTS[layout](x) for x in tensors]
    upstream = torch.randn(N, C, *sizes[:2]).to(dtype)
    with use_backend("compiled"):
        together = results(op, tensors, upstream)
        for n in range(N):
            for c in range(C):
                alone = results(op, [of_plane(x, n, c) for x in tensors], of_plane(upstream, n, c))
                for given, expected in zip(together, alone, strict=True):
                    assert torch.equal(of_plane(given, n, c).nan_to_num(7.0), expected.nan_to_num(7.0)), (n, c)


@pytest.mark.parametrize(("c", "h", "w"), [(700, 65, 63), (31, 257, 363)], ids=["fetched", "along"])
@pytest.mark.parametrize("op", [adain, factorized_instance_norm])
def test_nor_do_they_where_caches_do_not_hold_the_call(op: Callable[..., Tensor], c: int, h: int, w: int) -> None:
    """Above 32 MiB planes are fetched, or, large ones, summed, while the one before goes past the caches."""

    def plane_tensor() -> Tensor:
        return torch.randn(1, c, h, w) + torch.linspace(-30, 30, c).view(c, 1, 1)

    x = plane_tensor()
    x[0, 1] = far_at_quarters(x[0, 1], 1e4)
    x[0, 3, -1, -1] = torch.inf
    tensors = [x, plane_tensor()]
    if op is factorized_instance_norm:
        tensors[1:1] = [torch.randn(c), torch.randn(c)]
        tensors.append(plane_tensor())
    upstream = torch.randn(1, c, h, w)
    with use_backend("compiled"):
        together = results(op, tensors, upstream)
        for k in {*range(6), *range(6, c, 41), c - 1}:
            alone = results(op, [of_plane(t, 0, k) for t in tensors], of_plane(upstream, 0, k))
            for given, expected in zip(together, alone, strict=True):
                assert torch.equal(of_plane(given, 0, k).nan_to_num(7.0), expected.nan_to_num(7.0)), k

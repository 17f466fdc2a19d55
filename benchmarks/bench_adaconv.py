"""adaconv at the decoder's four scales at 256 pixels, C/G 1, 2, 4 and 8, and at sizes that are no power of two."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stylekern import reference
from stylekern.ops import adaconv

from .kit import DEVICE, compare


def padded(x: Tensor) -> Tensor:
    return F.pad(F.instance_norm(x), (1, 1, 1, 1), mode="reflect")


def loop(x: Tensor, spatial: Tensor, pointwise: Tensor, bias: Tensor) -> Tensor:
    """A convolution a sample, as the public implementations have it."""
    x, groups, results = padded(x), x.shape[1] // spatial.shape[2], []
    for i in range(len(x)):
        t = F.conv2d(x[i : i + 1], spatial[i], groups=groups)
        results.append(F.conv2d(t, pointwise[i, :, :, None, None], bias[i], groups=groups))
    return torch.cat(results)


def grouped(x: Tensor, spatial: Tensor, pointwise: Tensor, bias: Tensor) -> Tensor:
    """The batch folded into the groups."""
    n, c, h, w = x.shape
    groups = n * c // spatial.shape[2]
    t = F.conv2d(padded(x).reshape(1, n * c, h + 2, w + 2), spatial.flatten(0, 1), groups=groups)
    return F.conv2d(t, pointwise.flatten(0, 1)[:, :, None, None], bias.flatten(), groups=groups).view(n, -1, h, w)


@torch.compile(dynamic=False)
def shift_and_sum(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    h, w = x.shape[2] - 2, x.shape[3] - 2
    taps = (kernel[:, :, a, b, None, None] * x[:, :, a : a + h, b : b + w] for a in range(3) for b in range(3))
    return functools.reduce(torch.add, taps, bias[:, :, None, None])


def normalize_shift_and_sum(x: Tensor, spatial: Tensor, pointwise: Tensor, bias: Tensor) -> Tensor:
    """Depthwise as nine scaled shifts, which a compiler makes one loop of."""
    return shift_and_sum(padded(x), pointwise[..., None] * spatial[:, :, 0], bias)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize(
    ("n", "c", "size", "h", "w"),
    [
        (4, 512, 1, 32, 32),
        (4, 512, 1, 45, 67),
        (4, 256, 2, 64, 64),
        (4, 256, 2, 75, 50),
        (2, 128, 4, 128, 128),
        (2, 128, 4, 150, 100),
        (1, 64, 8, 256, 256),
        (1, 64, 8, 300, 200),
    ],
)
def test_adaconv(
    benchmark: Any, table: list[dict[str, str]], n: int, c: int, size: int, h: int, w: int, backward: bool
):
    torch.manual_seed(0)
    x = torch.randn(n, c, h, w, device=DEVICE)
    spatial = torch.randn(n, c, size, 3, 3, device=DEVICE)
    pointwise, bias = torch.randn(n, c, size, device=DEVICE), torch.randn(n, c, device=DEVICE)
    compare(
        benchmark,
        table,
        operator="adaconv",
        ours=adaconv,
        eager=reference.adaconv,
        others={"loop": loop, "compiled loop": torch.compile(loop, dynamic=False), "grouped": grouped}
        | ({"shift-and-sum": normalize_shift_and_sum} if size == 1 else {}),
        tensors=[x, spatial, pointwise, bias],
        backward=backward,
        values=(2 + 3 if backward else 2) * x.numel(),  # read x, write y; then read g and x, write the gradient of x
        shape=f"{n}x{c}x{h}x{w}, C/G {size}",
    )

"""The feed-forward networks at small width, with the objectives of their papers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from stylekern.encoders import VGG
from stylekern.models import (
    SAFIN,
    AdaConv,
    AdaConvObjective,
    AdaIN,
    AdaINObjective,
    SAFINObjective,
    SANet,
    SANetObjective,
    StyleKernel,
    StyleKernelObjective,
    StyleTransfer,
)
from stylekern.models._objective import Objective

CHANNELS = (8, 16, 16, 32, 32)


def small(deepest: str = "relu5_1", layout: str = "torchvision") -> VGG:
    return VGG(19, channels=CHANNELS, deepest=deepest, layout=layout)


NETWORKS: dict[str, Callable[[], StyleTransfer]] = {
    "adain": lambda: AdaIN(small()),
    "sanet": lambda: SANet(small()),
    "sanet-cgm": lambda: SANet(small(), attention="cgm"),
    "sanet-safin": lambda: SANet(small(), attention="safin"),
    "safin": lambda: SAFIN(small()),
    "style-kernel": lambda: StyleKernel(small()),
    "style-kernel-5": lambda: StyleKernel(small(), size=5, gate=False),
    "adaconv": lambda: AdaConv(small()),
    "adaconv-each": lambda: AdaConv(small(), masks="each", rates=(1, 3)),
    "adaconv-baseline": lambda: AdaConv(small(), attentive=False),
}
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "adain": AdaINObjective,
    "sanet": SANetObjective,
    "sanet-cgm": SANetObjective,
    "sanet-safin": SANetObjective,
    "safin": SAFINObjective,
    "style-kernel": StyleKernelObjective,
    "style-kernel-5": lambda: StyleKernelObjective(remd_of="aligned"),
    "adaconv": AdaConvObjective,
    "adaconv-each": lambda: AdaConvObjective(taps=("relu3_1", "relu4_1")),
    "adaconv-baseline": lambda: AdaConvObjective("moments"),
}


def pictures(n: int, h: int, w: int, blobs: int = 7) -> Tensor:
    """Smooth random pictures: of noise, a random encoder's deep features are all alike."""
    return F.interpolate(torch.rand(n, 3, blobs, blobs), (h, w), mode="bicubic").clamp(0, 1)


def trained(network: StyleTransfer) -> list[torch.nn.Parameter]:
    return [p for p in network.parameters() if p.requires_grad]

"""The way back from VGG features to a picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylekern.nn._features import check_map
from stylekern.ops._checks import check_counts, is_integer


class Decoder(nn.Module):
    """VGG-19 up to relu4_1 in reverse (Huang and Belongie 2017), from [N, C4, h, w] to pictures [N, 3, 8h, 8w].

    Four stages of 1, 4, 2 and 2 convolutions of 3 x 3 with reflected borders, each followed by a ReLU but for the very
    last. Between stages the size doubles, by repeating pixels: transposed convolutions leave a grid in the picture. A
    network that does something else between stages walks over `stages` itself.

    Args:
        channels: Of VGG's first four blocks.

    Raises:
        TypeError, ValueError: Channels that are not four positive integers.
    """

    def __init__(self, channels: Sequence[int] = (64, 128, 256, 512)) -> None:
        super().__init__()
        check_counts("Decoder", "channels", channels, 4)
        c1, c2, c3, c4 = channels
        widths = ((c4, c3), (c3, c3, c3, c3, c2), (c2, c2, c1), (c1, c1, 3))
        self.channels = tuple(stage[0] for stage in widths)
        self.stages = nn.ModuleList(stage_of(stage, last=stage is widths[-1]) for stage in widths)

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, C4, h, w] to pictures [N, 3, 8h, 8w].

        Raises:
            TypeError, ValueError: Not such features.
        """
        check_map("Decoder", "x", self.channels[0], x)
        for i, stage in enumerate(self.stages):
            x = stage(double(x) if i else x)
        return x


def stage_of(widths: Sequence[int], last: bool = False) -> nn.Sequential:
    """Convolutions from width to width, each with a ReLU; the last of a network has none."""
    layers: list[nn.Module] = []
    for given, made in pairwise(widths):
        layers += [nn.Conv2d(given, made, 3, padding=1, padding_mode="reflect"), nn.ReLU()]
    return nn.Sequential(*(layers[:-1] if last else layers))


def double(x: Tensor) -> Tensor:
    """Twice the size, each pixel repeated."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """[N, C, H, W] with the channels of `groups` groups dealt out in turn (ShuffleNet, Zhang et al. 2018).

    Raises:
        TypeError: x is no tensor, groups no integer.
        ValueError: x has other dimensions, or groups does not divide its channels.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"channel_shuffle: x must be a tensor, got {type(x).__name__}")
    if not is_integer(groups):
        raise TypeError(f"channel_shuffle: groups must be an integer, got {type(groups).__name__}")
    if x.dim() != 4 or groups < 1 or x.shape[1] % groups:
        raise ValueError(f"channel_shuffle: x must be [N, C, H, W] and {groups} groups divide C, got {list(x.shape)}")
    return torch.unflatten(x, 1, (groups, -1)).transpose(1, 2).flatten(1, 2)

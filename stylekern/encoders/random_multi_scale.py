"""Random filters on an image pyramid: an encoder that needs no weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from stylekern.encoders._encoder import Encoder
from stylekern.ops._checks import check_count


class RandomMultiScale(Encoder):
    """One layer of random filters with a ReLU, at each level of an image pyramid.

    After Ustyuzhaninov et al. 2017, "What does it take to generate natural textures?", who found that random filters of
    several sizes describe textures about as well as VGG does. Here one size meets pictures of several, each half of the
    one before. It works without a download; a random VGG gave weaker stylisations.

    Taps are `scale1` (the picture's own size) to `scale5`. Filters are drawn from a normal distribution, with zero mean
    in each colour, so that a plain surface gives nothing, and scaled so that white noise keeps its variance. Levels are
    smoothed by (1, 3, 3, 1) / 8 in both directions before every second pixel is taken: an average of 2 x 2 would leave
    its blocks in a picture that is optimised through it. Borders are replicated.

    Args:
        filters: Their number.
        size: Of a filter, odd.
        levels: Of the pyramid.
        seed: One seed gives one encoder, everywhere.

    Raises:
        TypeError: What is no integer.
        ValueError: An even size, or one of 1; less than one of something.
    """

    weight: Tensor
    smoothing: Tensor

    def __init__(self, *, filters: int = 96, size: int = 11, levels: int = 5, seed: int = 0) -> None:
        super().__init__()
        for name, value in (("filters", filters), ("size", size), ("levels", levels)):
            check_count("RandomMultiScale", name, value)
        if size % 2 == 0 or size == 1:
            raise ValueError(f"RandomMultiScale: size must be odd and above 1, got {size}")
        self.filters, self.size, self.levels, self.seed = filters, size, levels, seed
        self.channels = {f"scale{level + 1}": filters for level in range(levels)}
        weight = torch.randn(filters, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        weight -= weight.mean((2, 3), keepdim=True)
        weight /= weight.square().sum((1, 2, 3), keepdim=True).sqrt()
        self.register_buffer("weight", weight.float())
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float32) / 8
        self.register_buffer("smoothing", torch.outer(taps, taps), persistent=False)
        self.fix()

    @property
    def config(self) -> dict[str, object]:
        return {"filters": self.filters, "size": self.size, "levels": self.levels, "seed": self.seed}

    def layers(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        r = self.size // 2
        for level, tap in enumerate(self.channels):
            if level:
                images = self._half(images)
            yield tap, torch.relu(F.conv2d(F.pad(images, (r, r, r, r), mode="replicate"), self.weight))

    def _half(self, images: Tensor) -> Tensor:
        """Half the size, rounded up."""
        h, w = images.shape[2:]
        padded = F.pad(images, (1, 1 + w % 2, 1, 1 + h % 2), mode="replicate")
        return F.conv2d(padded, self.smoothing.expand(3, 1, 4, 4), stride=2, groups=3)

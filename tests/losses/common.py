"""What the tests of the losses share: a small encoder, which counts what it is given, and what is equal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tests.ops.cases import relative_error

TAPS = ("relu1_1", "relu2_1", "relu3_1")


class TinyEncoder(nn.Module):
    """Three convolutions with ReLU, halved twice: 4, 6 and 8 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 4), (4, 6), (6, 8)))
        self.requires_grad_(False)
        self.calls: list[tuple[int, tuple[str, ...]]] = []

    def forward(self, images: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
        if not torch.compiler.is_compiling():
            self.calls.append((images.shape[0], tuple(taps)))
        features = {}
        for k, conv in enumerate(self.convs):
            images = torch.relu(conv(images if k == 0 else nn.functional.avg_pool2d(images, 2)))
            features[TAPS[k]] = images
        return {tap: features[tap] for tap in taps if tap in features}


def assert_equal(given: Tensor, truth: Tensor) -> None:
    """Up to rounding, and relative to the truth: losses may be small."""
    assert given.shape == truth.shape
    assert relative_error(given, truth) < (1e-10 if given.dtype == truth.dtype == torch.float64 else 1e-5)

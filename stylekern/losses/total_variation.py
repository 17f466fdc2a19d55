"""Total variation: how much neighbouring pixels differ."""

from __future__ import annotations

import math

from torch import Tensor

from stylekern.losses._base import at_least_float32, check_features


def total_variation(images: Tensor, power: float = 2) -> Tensor:
    r"""Anisotropic total variation, a regulariser against noise (Johnson et al. 2016; Mahendran & Vedaldi 2015).

    ::

        tv = mean of |x[i + 1, j] - x[i, j]|^power + mean of |x[i, j + 1] - x[i, j]|^power

    Each mean is over samples, channels and the differences there are, so that the value does not grow with the picture;
    others take sums. A direction of one pixel has no differences and adds 0.

    Args:
        images: [N, C, H, W], float32, float64, float16 or bfloat16.
        power: 2 is smooth and spreads edges out. 1 leaves them. At least 1: below, the gradient of equal pixels is
            infinite.

    Returns:
        [], float32, or float64 for float64.

    Raises:
        ValueError: Not [N, C, H, W], or empty; a power below 1, or infinite.
        TypeError: Not a tensor, or not of floating point.
    """
    check_features("total_variation", images, "images")
    if not 1 <= power < math.inf:
        raise ValueError(f"total_variation: power must be at least 1 and finite, got {power}")
    images = at_least_float32(images)
    return _mean(images.diff(dim=2), power) + _mean(images.diff(dim=3), power)


def _mean(difference: Tensor, power: float) -> Tensor:
    if difference.numel() == 0:
        return difference.sum()
    return (difference.square() if power == 2 else difference.abs().pow(power)).mean()

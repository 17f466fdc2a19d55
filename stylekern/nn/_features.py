"""Feature maps as rows of positions, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stylekern.ops._checks import check_tensor


def as_rows(x: Tensor) -> Tensor:
    """[N, C, H, W] to [N, H * W, C], a view."""
    rows: Tensor = x.flatten(2).transpose(1, 2)
    return rows


def as_features(rows: Tensor, like: Tensor) -> Tensor:
    """[N, H * W, C] to [N, C, H, W] of the size of `like`."""
    features: Tensor = rows.transpose(1, 2).unflatten(2, like.shape[2:])
    return features


def normalized(x: Tensor) -> Tensor:
    """Each channel of a picture less its mean, over its unbiased deviation."""
    var, mean = torch.var_mean(x, dim=(2, 3), keepdim=True)
    return (x - mean) * (var + 1e-5).rsqrt()


def check_map(module: str, name: str, channels: int, x: Any) -> None:
    """Raises TypeError or ValueError unless x is a feature map of so many channels."""
    check_tensor(module, name, x)
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"{module}: {name} must be [N, {channels}, H, W], got {list(x.shape)}")


def check_features(module: str, channels: int, content: Tensor, style: Tensor, several: bool = False) -> None:
    """Content and style must be feature maps of `channels`, of one batch size, where asked for of several positions."""
    check_map(module, "content", channels, content)
    check_map(module, "style", channels, style)
    if content.shape[0] != style.shape[0]:
        raise ValueError(
            f"{module}: content and style must be as many, got {content.shape[0]} and {style.shape[0]}; "
            "expand one style for many contents"
        )
    for name, x in (("content", content), ("style", style)):
        if several and x.shape[2] * x.shape[3] < 2:
            raise ValueError(f"{module}: {name} must have more than one position, got {list(x.shape)}")

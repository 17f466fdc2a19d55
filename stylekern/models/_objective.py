"""What the training objectives share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from stylekern.encoders import Encoder
from stylekern.losses import FeatureLoss
from stylekern.ops._checks import check_finite


class Objective(nn.Module):
    """A paper's training loss of its network: `objective(network, content, style)` gives its terms and their `total`.

    Terms are [], unweighted; `total` is their sum by `weights`. Gradients reach the network's parameters.

    Args:
        weights: Of the terms.

    Raises:
        TypeError: A weight that is no number.
        ValueError: A weight that is not finite.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        for name, weight in weights.items():
            check_finite(type(self).__name__, f"the weight of {name}", weight)
        self.weights = dict(weights)

    def total(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms and, under "total", their weighted sum."""
        return terms | {"total": torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()}


def need_taps(owner: str, encoder: Encoder, taps: Sequence[str]) -> None:
    """
    Raises:
        TypeError: What is no encoder.
        ValueError: One that ends before a tap.
    """
    if not isinstance(encoder, Encoder):
        raise TypeError(f"{owner}: encoder must be one of stylekern.encoders, got {type(encoder).__name__}")
    missing = [tap for tap in taps if tap not in encoder.channels]
    if missing:
        raise ValueError(
            f"{owner}: the encoder must reach {missing[-1]}, but ends at {encoder.taps[-1]}; build the network with "
            f"one that does, such as vgg19(deepest={missing[-1]!r})"
        )


def over_taps(
    loss: FeatureLoss, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], taps: Sequence[str]
) -> Tensor:
    """The sum of one loss over taps."""
    return torch.stack([loss.between(ours[tap], theirs[tap]) for tap in taps]).sum()

"""What the training objectives share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from stylekern.encoders import Encoder
from stylekern.losses import FeatureLoss


class Objective(nn.Module):
    """A paper's training loss of its network: `objective(network, content, style)` gives its terms and their `total`.

    Terms are [], unweighted; `total` is their sum by `weights`. Gradients reach the network's parameters.

    Attributes:
        weights: Of the terms.
    """

    weights: Mapping[str, float]

    def total(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms and, under "total", their weighted sum."""
        return terms | {"total": torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()}


def need_taps(owner: str, encoder: Encoder, taps: Sequence[str]) -> None:
    """Raises ValueError where the encoder ends before a tap."""
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

"""What the losses ask of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from stylekern.ops._checks import check_pixels, shape


class Encoder(Protocol):
    """A network that gives the features of several of its layers in one pass.

    Images are RGB [N, 3, H, W] in [0, 1]; what the weights want beyond that, the encoder does. `taps` names layers, and
    the result holds [N, C, h, w] for each.
    """

    def __call__(self, images: Tensor, taps: Sequence[str]) -> dict[str, Tensor]: ...


def check_images(owner: str, name: str, images: Any) -> None:
    """Raises TypeError or ValueError unless images are [N, 3, H, W], of floating point, not empty."""
    check_pixels(owner, name, images)
    if images.dim() != 4 or images.shape[1] != 3 or images.numel() == 0:
        raise ValueError(f"{owner}: {name} must be RGB [N, 3, H, W] in [0, 1], got {shape(images)}")


def check_encoder(owner: str, encoder: Any) -> None:
    """Raises TypeError unless encoder can be called."""
    if not callable(encoder):
        raise TypeError(
            f"{owner}: encoder must be a network such as stylekern.encoders.vgg19(), encoder(images, taps) -> features "
            f"by tap, got {type(encoder).__name__}"
        )


def encode(owner: str, encoder: Encoder, images: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
    """The features of all taps, in one pass.

    Raises:
        ValueError: The encoder gave no features for a tap.
    """
    features = encoder(images, taps)
    missing = [tap for tap in taps if tap not in features]
    if missing:
        raise ValueError(f"{owner}: the encoder must give features for {', '.join(taps)}, got none for {missing}")
    return features

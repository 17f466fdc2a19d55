"""What the networks share: an encoder, and pictures of any size in and out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylekern.encoders import VGG
from stylekern.models._saved import Saved
from stylekern.ops._checks import check_count, check_pixels

M = TypeVar("M", bound="StyleTransfer")


class StyleTransfer(nn.Module, Saved):
    """A network that gives a content picture the style of another.

    `network(content, style)` takes RGB pictures [N, 3, H, W] and [N or 1, 3, H', W'] in [0, 1], of any sizes, also odd
    ones, and returns [N, 3, H, W]. Values may leave [0, 1] a little, so that a loss can pull them back; :meth:`stylize`
    cuts them off. The content is continued at its right and lower border to a multiple of what the encoder's pools
    divide by, by its last pixels, and the result cut to its size.

    `torch.export` with dynamic sizes binds a program to sizes that are continued or to those that are not, as the
    examples are: give it pictures of a multiple of `multiple`, and continue them outside.

    The encoder is fixed; without one, it is a VGG-19 of random weights, which trains but sees less than one of
    ImageNet's: `encoder=vgg19("vgg19-dcbb9e9d.pth")`.
    """

    multiple = 8  # of the content's size: the encoder's pools

    def __init__(self, encoder: VGG | None, deepest: str, options: dict[str, Any]) -> None:
        super().__init__()
        name = type(self).__name__
        encoder = VGG(deepest=deepest) if encoder is None else encoder
        if not isinstance(encoder, VGG):
            raise TypeError(
                f"{name}: encoder must be a VGG, whose features the decoder mirrors, got {type(encoder).__name__}"
            )
        if deepest not in encoder.channels:
            raise ValueError(f"{name}: encoder must reach {deepest}, but ends at {encoder.deepest}")
        self.encoder, self.options = encoder, options

    @property
    def config(self) -> dict[str, Any]:
        return {"encoder": self.encoder.config, **self.options}

    @classmethod
    def build(cls: type[M], config: dict[str, Any]) -> M:
        options = dict(config)
        return cls(VGG(**options.pop("encoder")), **options)

    def encode(
        self, content: Tensor, style: Tensor, taps: Sequence[str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Features of content and style; one style serves many contents."""
        self.check_pictures(content, style)
        ours = self.encoder(continued(content, self.multiple), taps)
        theirs = self.encoder(self.enlarged(style), taps)
        return ours, {tap: as_many(x, content) for tap, x in theirs.items()}

    def enlarged(self, style: Tensor) -> Tensor:
        """A style of less than two positions at the deepest tap is continued too; others stay as they are."""
        return continued(style, 1, 2 * self.multiple)

    def check_pictures(self, content: Tensor, style: Tensor) -> None:
        """
        Raises:
            TypeError: What is no floating-point tensor.
            ValueError: What is not [N, 3, H, W]; styles that are neither one nor as many as the contents.
        """
        name = type(self).__name__
        check_picture(name, "content", content)
        check_picture(name, "style", style)
        self.encoder.check_images(content)
        self.encoder.check_images(style)
        if style.shape[0] not in (1, content.shape[0]):
            raise ValueError(
                f"{name}: style must be one picture or as many as content, {content.shape[0]}, got {style.shape[0]}"
            )

    @torch.no_grad()
    def stylize(self, content: Tensor, style: Tensor, **options: Any) -> Tensor:
        """The network's result without gradients, in [0, 1]."""
        result: Tensor = self(content, style, **options).clamp(0, 1)
        return result


def multiple_for(owner: str, size: int) -> int:
    """The `multiple` of a network whose kernels, of `size` x `size`, reflect borders at relu4_1.

    Pictures have at least twice as many pixels: two positions, and four for borders of 2 or 3.

    Raises:
        TypeError: A size that is no integer.
        ValueError: One that is not 1, 3, 5 or 7.
    """
    check_count(owner, "size", size)
    if size not in (1, 3, 5, 7):
        raise ValueError(f"{owner}: size must be 1, 3, 5 or 7, got {size}")
    return 8 if size < 5 else 16


def check_picture(owner: str, what: str, x: Tensor) -> None:
    """
    Raises:
        TypeError: What is no floating-point tensor.
        ValueError: What is not [N, 3, H, W].
    """
    check_pixels(owner, what, x)
    if x.dim() != 4 or x.shape[1] != 3 or 0 in x.shape[2:]:
        raise ValueError(f"{owner}: {what} must be RGB, [N, 3, H, W], got {list(x.shape)}")


def continued(images: Tensor, multiple: int, least: int | None = None) -> Tensor:
    """Pictures continued at the right and below, by their last pixels, to a multiple, and to two of them at least."""
    least = 2 * multiple if least is None else least
    missing_h, missing_w = (max(-size % multiple, least - size) for size in images.shape[2:])
    if not missing_h and not missing_w:
        return images
    return F.pad(images, (0, missing_w, 0, missing_h), mode="replicate")


def cut(images: Tensor, like: Tensor) -> Tensor:
    """Pictures cut to the size that they were continued from."""
    return images[..., : like.shape[2], : like.shape[3]]


def as_many(style: Tensor, content: Tensor) -> Tensor:
    """Features of one style for many contents."""
    return style.expand(content.shape[0], -1, -1, -1)


def mixed(content: Tensor, stylized: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) content + alpha stylized."""
    return stylized if alpha == 1 else torch.lerp(content, stylized, alpha)

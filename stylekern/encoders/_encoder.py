"""What every encoder is: a fixed network that hands out the features of named layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from stylekern.ops._checks import check_pixels


class Encoder(nn.Module, ABC):
    """A network whose features describe a picture.

    `encoder(images, taps)` takes RGB pictures [N, 3, H, W] in [0, 1], of any size, and returns the features of the
    named layers, the taps, as a dict in the order asked for. One pass serves all of them and ends at the deepest. What
    the weights expect of their input (mean, deviation, order of the colours) is done inside.

    Encoders are fixed: parameters do not ask for gradients, and `train()` leaves normalisation as it is in `eval()`.
    Gradients flow to the pictures. `requires_grad_()` makes parameters trainable, where there are any.

    Attributes:
        channels: Of every tap, from shallow to deep.
    """

    channels: Mapping[str, int]
    mean: Tensor
    deviation: Tensor

    @property
    def taps(self) -> tuple[str, ...]:
        """All taps, from shallow to deep."""
        return tuple(self.channels)

    @property
    @abstractmethod
    def config(self) -> dict[str, object]:
        """The arguments that build an encoder of the same structure, of plain types; weights are not among them."""

    @abstractmethod
    def layers(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """All taps and their features, one after the other, as far as they are asked for."""

    def check_taps(self, taps: Sequence[str]) -> None:
        """
        Raises:
            TypeError: One name instead of a sequence of names.
            ValueError: No names, or names of no tap.
        """
        name = type(self).__name__
        if isinstance(taps, str):
            raise TypeError(f"{name}: taps must be a sequence of names, got the one string {taps!r}")
        unknown = [tap for tap in taps if tap not in self.channels]
        if unknown or not taps:
            raise ValueError(
                f"{name}: taps must be among {', '.join(self.channels)}; got {', '.join(unknown) or 'none'}"
            )

    def check_images(self, images: Tensor) -> None:
        """
        Raises:
            TypeError: Images that are no floating-point tensor or, without autocast, of another dtype than the weights.
            ValueError: Images that are not [N, 3, H, W].
        """
        name = type(self).__name__
        check_pixels(name, "images", images)
        if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            raise ValueError(f"{name}: images must be RGB, [N, 3, H, W], got {list(images.shape)}")
        own = next(x.dtype for x in chain(self.parameters(), self.buffers()))
        if images.dtype != own and not torch.is_autocast_enabled(images.device.type):
            raise TypeError(f"{name}: images are {images.dtype}, its weights {own}: images.to({own}) makes them alike")

    def forward(self, images: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
        """Features of the taps, [N, channels[tap], h, w] each.

        Raises:
            TypeError, ValueError: See :meth:`check_taps` and :meth:`check_images`; pictures too small for a tap.
        """
        taps = taps if isinstance(taps, str) else tuple(taps)
        self.check_taps(taps)
        self.check_images(images)
        return collect(self.layers(images), taps)

    def train(self, mode: bool = True) -> Encoder:
        """Leaves the encoder in `eval()`, also as a part of a network that trains."""
        return super().train(False)

    def register_colours(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        """What :meth:`standardize` takes from each colour and divides it by; no part of the state dict."""
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(3, 1, 1), persistent=False)

    def standardize(self, images: Tensor) -> Tensor:
        """Pictures in [0, 1] as the weights were trained to see them."""
        return (images - self.mean) / self.deviation

    def fix(self) -> None:
        """To be called at the end of a constructor: nothing here is trained."""
        self.requires_grad_(False)
        self.eval()


def collect(layers: Iterator[tuple[str, Tensor]], taps: Sequence[str]) -> dict[str, Tensor]:
    """The features of the taps, from a walk that ends at the deepest of them."""
    wanted = set(taps)
    found: dict[str, Tensor] = {}
    for tap, features in layers:
        if tap in wanted:
            found[tap] = features
            if len(found) == len(wanted):
                break
    return {tap: found[tap] for tap in taps}


def he_normal_(modules: Iterator[nn.Module], seed: int) -> None:
    """Random weights after He et al. 2015, biases zero: the same for one seed, whatever the global generator does."""
    generator = torch.Generator().manual_seed(seed)
    for module in modules:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

"""Adaptive convolutions, with the baseline's style encoder and with a multi-scale attentive one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylekern.encoders import VGG
from stylekern.losses import ContentLoss, HybridLoss, MomentMatchingLoss
from stylekern.models._model import StyleTransfer, continued, cut, multiple_for
from stylekern.models._objective import Objective
from stylekern.nn import Decoder
from stylekern.nn.decoder import double
from stylekern.ops import adaconv
from stylekern.ops._checks import check_counts


class StyleEncoder(nn.Module):
    """From style features to a style descriptor, [N, C, H, W] to [N, C, size, size] (AdaConv, Chandran et al. 2021).

    Three times a 3 x 3 convolution, a leaky ReLU and an average pool; then a dense layer. A dense layer takes one size:
    features are averaged to 4 x 4 before it, which a style of 256 x 256 has there anyway.

    Args:
        channels: Of the features and of the descriptor.
        size: Of the descriptor.
    """

    REDUCED = 4

    def __init__(self, channels: int, size: int = 3) -> None:
        super().__init__()
        self.channels, self.size = channels, size
        self.reduce = nn.Sequential(*(_reduction(channels) for _ in range(3)))
        self.dense = nn.Linear(channels * self.REDUCED**2, channels * size**2)

    def reduced(self, style: Tensor) -> Tensor:
        """Features at an eighth of their size."""
        features: Tensor = self.reduce(style)
        return features

    def forward(self, style: Tensor) -> Tensor:
        """Features [N, channels, h, w] to descriptors [N, channels, size, size]."""
        features = F.adaptive_avg_pool2d(self.reduced(style), self.REDUCED).flatten(1)
        descriptor: Tensor = self.dense(features).unflatten(1, (self.channels, self.size, self.size))
        return descriptor


def _reduction(channels: int) -> nn.Sequential:
    # ceil: a style of less than eight positions still has one left
    pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, padding_mode="replicate"), nn.LeakyReLU(0.2), pool)


class AttentiveStyleEncoder(StyleEncoder):
    """The refined style encoder ("Multi-scaled attentive style transfer based on dilated convolution", figure 1).

    A second branch beside the reduction: dilated 3 x 3 convolutions of several rates see the style at several scales.
    Each gives one value a position, averaged to the reduced size and passed through a sigmoid: a mask, with which the
    reduced features are multiplied before the dense layer.

    Args:
        channels, size: As of :class:`StyleEncoder`.
        rates: Of the dilated convolutions; the paper names none.
        masks: "mean" multiplies all channels by the masks' average; "each" splits the channels into as many parts as
            there are rates and multiplies each by its own. The text leaves it open.
    """

    def __init__(
        self, channels: int, size: int = 3, *, rates: Sequence[int] = (1, 2, 4, 8), masks: str = "mean"
    ) -> None:
        super().__init__(channels, size)
        if masks not in ("mean", "each"):
            raise ValueError(f"AttentiveStyleEncoder: masks must be mean or each, got {masks!r}")
        check_counts("AttentiveStyleEncoder", "rates", rates)
        if masks == "each" and channels % len(rates):
            raise ValueError(
                f"AttentiveStyleEncoder: for masks='each', the number of rates must divide the {channels} channels, "
                f"got {list(rates)}"
            )
        self.masks = masks
        self.dilated = nn.ModuleList(
            nn.Conv2d(channels, 1, 3, padding=rate, dilation=rate, padding_mode="replicate") for rate in rates
        )

    def mask(self, style: Tensor, like: Tensor) -> Tensor:
        """[N, rates, h, w] at the reduced size."""
        maps = torch.cat([conv(style) for conv in self.dilated], 1)
        return torch.sigmoid(F.adaptive_avg_pool2d(maps, (like.shape[2], like.shape[3])))

    def reduced(self, style: Tensor) -> Tensor:
        features = super().reduced(style)
        mask = self.mask(style, features)
        if self.masks == "mean":
            return features * mask.mean(1, keepdim=True)
        parts: Tensor = features.unflatten(1, (mask.shape[1], -1)) * mask.unsqueeze(2)
        return parts.flatten(1, 2)


class KernelPredictor(nn.Module):
    """A block's kernels from the style descriptor: depthwise-separable, with a bias (AdaConv, Chandran et al. 2021).

    Spatial kernels by a 3 x 3 convolution of the descriptor; pointwise ones and biases by 1 x 1 convolutions of its
    average.

    Args:
        style_channels: Of the descriptor.
        channels: That the kernels work on.
        group: Channels of a group, C / G.
    """

    def __init__(self, style_channels: int, channels: int, group: int) -> None:
        super().__init__()
        self.channels, self.group = channels, group
        self.spatial = nn.Conv2d(style_channels, channels * group, 3, padding=1, padding_mode="replicate")
        self.pointwise = nn.Conv2d(style_channels, channels * group, 1)
        self.bias = nn.Conv2d(style_channels, channels, 1)

    def forward(self, descriptor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, Cs, k, k] to spatial [N, C, C/G, k, k], pointwise [N, C, C/G] and bias [N, C]."""
        average = descriptor.mean((2, 3), keepdim=True)
        spatial = self.spatial(descriptor).unflatten(1, (self.channels, self.group))
        pointwise = self.pointwise(average).flatten(1).unflatten(1, (self.channels, self.group))
        return spatial, pointwise, self.bias(average).flatten(1)


class AdaConv(StyleTransfer):
    r"""AdaConv (Chandran et al. 2021), and its refinement by "Multi-scaled attentive style transfer ...".

    relu4_1 of the content is decoded; before each of the decoder's stages, an adaptive convolution with kernels that
    are predicted from a global style descriptor: :func:`stylekern.ops.adaconv`. The content is normalised nowhere else.

    Args:
        encoder: A VGG that reaches relu4_1; None: VGG-19 with random weights.
        attentive: The refined style encoder; False: the baseline's.
        rates, masks: Of the refined one; see :class:`AttentiveStyleEncoder`.
        groups: Channels of a group at each stage: C, C/2, C/4 and C/8 groups.
        size: Of the style descriptor, and of the spatial kernels.
    """

    def __init__(
        self,
        encoder: VGG | None = None,
        *,
        attentive: bool = True,
        rates: Sequence[int] = (1, 2, 4, 8),
        masks: str = "mean",
        groups: Sequence[int] = (1, 2, 4, 8),
        size: int = 3,
    ) -> None:
        check_counts("AdaConv", "rates", rates)
        check_counts("AdaConv", "groups", groups, 4)
        options = {"attentive": attentive, "rates": list(rates), "masks": masks, "groups": list(groups), "size": size}
        super().__init__(encoder, "relu4_1", options)
        self.multiple = multiple_for("AdaConv", size)
        self.decoder = Decoder(self.encoder.widths[:4])
        if any(c % g for c, g in zip(self.decoder.channels, groups, strict=True)):
            raise ValueError(f"AdaConv: groups must be four divisors of {self.decoder.channels}, got {list(groups)}")
        channels = self.encoder.channels["relu4_1"]
        if attentive:
            self.describe: StyleEncoder = AttentiveStyleEncoder(channels, size, rates=rates, masks=masks)
        else:
            self.describe = StyleEncoder(channels, size)
        self.predict = nn.ModuleList(
            KernelPredictor(channels, c, g) for c, g in zip(self.decoder.channels, groups, strict=True)
        )

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        """Content [N, 3, H, W] and style [N or 1, 3, H', W'] to [N, 3, H, W]."""
        ours, theirs = self.encode(content, style, ("relu4_1",))
        x, descriptor = ours["relu4_1"], self.describe(theirs["relu4_1"])
        for i, (predict, stage) in enumerate(zip(self.predict, self.decoder.stages, strict=True)):
            x = stage(adaconv(double(x) if i else x, *predict(descriptor)))
        return cut(x, content)


class AdaConvObjective(Objective):
    r"""Style and content of AdaConv's training ("Multi-scaled attentive style transfer ...", section 4).

    ::

        style   = "hybrid":   (alpha l_m + l_c + l_s / alpha) / (1 + alpha + 1 / alpha)     the refined objective
                  "moments":  l_m                                                           the baseline's
        content = mean of (F - F_c)^2                                                       at relu4_1

    Args:
        kind: "hybrid" or "moments".
        alpha: Of the hybrid; the paper gives none.
        taps: Where the style is compared, summed. The text names no layers. By default "hybrid" has relu4_1, where its
            pairs of positions are few enough, and "moments" relu1_1 to relu4_1, as AdaConv has it.
        content, style: Weights; the paper gives none.
    """

    def __init__(
        self,
        kind: str = "hybrid",
        *,
        alpha: float = 1.0,
        taps: Sequence[str] | None = None,
        content: float = 1.0,
        style: float = 1.0,
    ) -> None:
        super().__init__({"content": content, "style": style})
        if kind not in ("hybrid", "moments"):
            raise ValueError(f"AdaConvObjective: kind must be hybrid or moments, got {kind!r}")
        if taps is not None and (isinstance(taps, str) or not taps):
            raise ValueError(f"AdaConvObjective: taps must be a sequence of names, got {taps!r}")
        every = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")
        self.taps = tuple(taps) if taps is not None else every if kind == "moments" else every[-1:]
        self.content = ContentLoss("mse")
        self.style: HybridLoss | MomentMatchingLoss = HybridLoss(alpha) if kind == "hybrid" else MomentMatchingLoss()

    def forward(self, network: AdaConv, content: Tensor, style: Tensor) -> dict[str, Tensor]:
        """The terms and their `total`, [] each, of pictures [N, 3, H, W] and [N or 1, 3, H', W'] in [0, 1]."""
        taps = (*self.taps, "relu4_1")
        ours, theirs = network.encode(content, style, taps)
        again = network.encoder(continued(network(content, style), network.multiple), taps)
        if isinstance(self.style, HybridLoss):
            styles = [self.style.between(again[tap], theirs[tap], ours[tap]) for tap in self.taps]
        else:
            styles = [self.style.between(again[tap], theirs[tap]) for tap in self.taps]
        terms = {"content": self.content.between(again["relu4_1"], ours["relu4_1"]), "style": torch.stack(styles).sum()}
        return self.total(terms)

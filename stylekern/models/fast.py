"""Fast neural style transfer: one network, one style, one pass."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from stylekern.encoders import VGG
from stylekern.losses import ContentLoss, GramLoss, PerceptualLoss
from stylekern.models._model import check_picture, continued, cut
from stylekern.models._objective import need_taps
from stylekern.models._saved import Saved
from stylekern.nn.decoder import double
from stylekern.ops._checks import check_counts, is_integer


class FastTransfer(nn.Module, Saved):
    r"""The image transformation network of Johnson et al. 2016 ("... activation smoothing", section 3.1).

    Convolutions of 9 x 9, and of 3 x 3 with stride 2 twice; five residual blocks; back up twice; 9 x 9 to colours. Each
    convolution is followed by instance normalisation and a ReLU, the last by a sigmoid: the picture is in [0, 1]. As
    later work by the same author has it, borders are reflected and pixels repeated before a convolution, where the
    first paper padded with 40 zeros and used fractional strides, which leave frames and grids; and normalisation is by
    instance (Ulyanov et al. 2016), where it was by batch.

    It knows one style, the one that :class:`FastObjective` trained it for, so `forward` takes contents alone, of any
    size.

    Args:
        channels: Of the three resolutions.
        blocks: Residual blocks.
    """

    multiple = 4

    def __init__(self, channels: Sequence[int] = (32, 64, 128), blocks: int = 5) -> None:
        super().__init__()
        check_counts("FastTransfer", "channels", channels, 3)
        if not is_integer(blocks) or blocks < 0:
            raise ValueError(f"FastTransfer: blocks must be an integer, at least 0, got {blocks!r}")
        self.options: dict[str, Any] = {"channels": list(channels), "blocks": blocks}
        c1, c2, c3 = channels
        self.down = nn.Sequential(_layer(3, c1, 9), _layer(c1, c2, 3, 2), _layer(c2, c3, 3, 2))
        self.residual = nn.Sequential(*(_Residual(c3) for _ in range(blocks)))
        self.up1, self.up2 = _layer(c3, c2, 3), _layer(c2, c1, 3)
        self.colours = nn.Conv2d(c1, 3, 9, padding=4, padding_mode="reflect")

    @property
    def config(self) -> dict[str, Any]:
        return self.options

    def forward(self, content: Tensor) -> Tensor:
        """Content [N, 3, H, W] in [0, 1] to the same size in [0, 1].

        Raises:
            TypeError: No floating-point tensor or, without autocast, of another dtype than the weights.
            ValueError: Not [N, 3, H, W].
        """
        check_picture("FastTransfer", "content", content)
        own = self.colours.weight.dtype
        if content.dtype != own and not torch.is_autocast_enabled(content.device.type):
            raise TypeError(
                f"FastTransfer: content is {content.dtype}, the weights {own}: content.to({own}) makes them alike"
            )
        if content.shape[0] == 0:  # which torch's instance normalisation does not take
            return content.clone()
        x = self.residual(self.down(continued(content, self.multiple)))
        x = self.up2(double(self.up1(double(x))))
        return cut(torch.sigmoid(self.colours(x)), content)

    @torch.no_grad()
    def stylize(self, content: Tensor) -> Tensor:
        """The network's result without gradients, in [0, 1]."""
        result: Tensor = self(content)
        return result


def _layer(given: int, made: int, size: int, stride: int = 1) -> nn.Sequential:
    # no bias: the normalisation takes it off again
    conv = nn.Conv2d(given, made, size, stride, padding=size // 2, padding_mode="reflect", bias=False)
    return nn.Sequential(conv, nn.InstanceNorm2d(made, affine=True), nn.ReLU())


class _Residual(nn.Module):
    """Two convolutions of 3 x 3, and the input added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _layer(channels, channels, 3)
        self.second = _layer(channels, channels, 3)[:2]  # without the ReLU

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.second(self.first(x))
        return y


class FastObjective(nn.Module):
    r"""Johnson's perceptual losses ("... activation smoothing", eq. 5 to 7) of one style.

    ::

        content = |F - F_c|^2 / (C H W)                                                     at relu2_2
        style   = |Gram / (C H W) - Gram_s / (C H W)|^2         summed over relu1_2, relu2_2, relu3_3, relu4_3
        total   = content_weight content + style_weight style + variation_weight variation

    Layers are Johnson's, for VGG-16; the paper names none. Pictures have 8 pixels a side or more: of smaller ones
    nothing is left at relu4_3.

    Args:
        encoder: That sees contents and styles; the paper's is VGG-16.
        style: The picture whose style is learned, [1, 3, H, W].
        content_weight, style_weight, variation_weight: The paper gives none. Gram matrices are divided by C H W, so
            that their differences are small: 1e5 makes the two terms of one order with weights of ImageNet.
    """

    def __init__(
        self,
        encoder: VGG,
        style: Tensor,
        *,
        content_weight: float = 1.0,
        style_weight: float = 1e5,
        variation_weight: float = 0.0,
    ) -> None:
        super().__init__()
        check_picture("FastObjective", "style", style)
        if style.shape[0] != 1:
            raise ValueError(f"FastObjective: style must be one picture, [1, 3, H, W], got {list(style.shape)}")
        layers = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
        need_taps("FastObjective", encoder, layers)
        self.loss = PerceptualLoss(
            encoder,
            {"relu2_2": 1.0},
            dict.fromkeys(layers, 1.0),
            ContentLoss("chw"),
            GramLoss("chw"),
            content_weight=content_weight,
            style_weight=style_weight,
            total_variation_weight=variation_weight,
        )
        self.loss.set_style(style)

    def forward(self, network: FastTransfer, content: Tensor) -> dict[str, Tensor]:
        """The terms, unweighted, and their `total`."""
        loss = copy(self.loss)  # several threads may call: each has its own content
        loss.set_content(content)
        return dict(loss(network(content))._asdict())

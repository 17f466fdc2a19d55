"""Arbitrary style transfer by adaptive instance normalisation."""

from __future__ import annotations

from torch import Tensor

from stylekern.encoders import VGG
from stylekern.losses import ContentLoss, MeanStdLoss
from stylekern.models._model import StyleTransfer, cut, mixed
from stylekern.models._objective import Objective, over_taps
from stylekern.nn import Decoder
from stylekern.ops import adain
from stylekern.ops._checks import check_finite

TAPS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")


class AdaIN(StyleTransfer):
    r"""Huang and Belongie 2017, as "Artistic neural style transfer algorithms with activation smoothing" has it, 4.

    With f the encoder up to relu4_1 and g the decoder, its mirror image::

        t = AdaIN(f(c), f(s))                                   eq. 8 and 9
        T(c, s, alpha) = g((1 - alpha) f(c) + alpha t)          eq. 15

    Args:
        encoder: A VGG that reaches relu4_1; None: VGG-19 with random weights.
    """

    def __init__(self, encoder: VGG | None = None) -> None:
        super().__init__(encoder, "relu4_1", {})
        self.decoder = Decoder(self.encoder.widths[:4])

    def transfer(self, content: Tensor, style: Tensor, alpha: float = 1.0) -> Tensor:
        """relu4_1 of both to what is decoded."""
        return mixed(content, adain(content, style), alpha)

    def forward(self, content: Tensor, style: Tensor, *, alpha: float = 1.0) -> Tensor:
        """Content [N, 3, H, W] and style [N or 1, 3, H', W'] to [N, 3, H, W]; alpha 0 is the content again."""
        check_finite("AdaIN", "alpha", alpha)
        ours, theirs = self.encode(content, style, TAPS[-1:])
        return cut(self.decoder(self.transfer(ours[TAPS[-1]], theirs[TAPS[-1]], alpha)), content)


class AdaINObjective(Objective):
    r"""Content and style of AdaIN's training ("... activation smoothing", eq. 10 to 12).

    ::

        content = |f(g(t)) - t|_2                                                           at relu4_1
        style   = sum over relu1_1 to relu4_1 of |mu - mu_s|_2 + |sigma - sigma_s|_2
        total   = content + style_weight style

    Args:
        style_weight: lambda; 10 is Huang and Belongie's, the paper gives none.
    """

    def __init__(self, style_weight: float = 10.0) -> None:
        super().__init__({"content": 1.0, "style": style_weight})
        self.content, self.style = ContentLoss("euclidean"), MeanStdLoss("euclidean")

    def forward(self, network: AdaIN, content: Tensor, style: Tensor) -> dict[str, Tensor]:
        """The terms and their `total`, [] each, of pictures [N, 3, H, W] and [N or 1, 3, H', W'] in [0, 1]."""
        ours, theirs = network.encode(content, style, TAPS)
        target = network.transfer(ours[TAPS[-1]], theirs[TAPS[-1]])
        again = network.encoder(network.decoder(target), TAPS)
        terms = {"content": self.content.between(again[TAPS[-1]], target)}
        return self.total(terms | {"style": over_taps(self.style, again, theirs, TAPS)})

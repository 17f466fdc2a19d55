"""Style-attentional networks, with and without content-based gating."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylekern.encoders import VGG
from stylekern.losses import ContentLoss, MeanStdLoss
from stylekern.models._model import StyleTransfer, cut
from stylekern.models._objective import Objective, over_taps
from stylekern.nn import Decoder, GatedAttention, SAFINModule
from stylekern.nn._features import normalized

TAPS = ("relu4_1", "relu5_1")


class SANet(StyleTransfer):
    r"""SANet (Park and Lee 2019), into which two of the papers put their own modules.

    Attention from content to style at relu4_1 and relu5_1, merged and decoded::

        m = merge(attend4(c4, s4) + up(attend5(c5, s5)))        merge: 3 x 3, reflected borders

    Args:
        encoder: A VGG that reaches relu5_1; None: VGG-19 with random weights.
        attention: "sanet", the original; "cgm", with the gate of "Learning dynamic style kernels" (figure 3); "safin",
            with SAFIN's module in its place (SAFIN, section 4.1).
        gate_grad: How "cgm" learns its hard gate; see :class:`stylekern.nn.GatedAttention`.
    """

    multiple = 16

    def __init__(
        self, encoder: VGG | None = None, *, attention: str = "sanet", gate_grad: str = "straight_through"
    ) -> None:
        super().__init__(encoder, "relu5_1", {"attention": attention, "gate_grad": gate_grad})
        if attention not in ("sanet", "cgm", "safin"):
            raise ValueError(f"SANet: attention must be one of sanet, cgm, safin, got {attention!r}")
        c4, c5 = (self.encoder.channels[tap] for tap in TAPS)
        if c4 != c5:
            raise ValueError(f"SANet: the fourth and fifth block must have as many channels, got {c4} and {c5}")

        def attend() -> nn.Module:
            if attention == "safin":
                return SAFINModule(c4)
            return GatedAttention(c4, gate=attention == "cgm", gate_grad=gate_grad)

        self.attend4, self.attend5 = attend(), attend()
        self.merge = nn.Conv2d(c4, c4, 3, padding=1, padding_mode="reflect")
        self.decoder = Decoder(self.encoder.widths[:4])

    def transfer(self, content: dict[str, Tensor], style: dict[str, Tensor]) -> Tensor:
        """relu4_1 and relu5_1 of both to what is decoded."""
        (c4, c5), (s4, s5) = ([features[tap] for tap in TAPS] for features in (content, style))
        deep = F.interpolate(self.attend5(c5, s5), size=c4.shape[2:], mode="nearest")
        merged: Tensor = self.merge(self.attend4(c4, s4) + deep)
        return merged

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        """Content [N, 3, H, W] and style [N or 1, 3, H', W'] to [N, 3, H, W]."""
        return cut(self.decoder(self.transfer(*self.encode(content, style, TAPS))), content)


class SANetObjective(Objective):
    r"""Content, style and identity losses (Park and Lee 2019, section 3.3), with its public implementation's weights.

    ::

        content  = over relu4_1 and relu5_1, mean of (norm(F) - norm(F_c))^2
        style    = over relu1_1 to relu5_1, means over the channels of (mu - mu_s)^2 and (sigma - sigma_s)^2
        pictures = mean of (I_cc - I_c)^2 + mean of (I_ss - I_s)^2
        features = the same of relu1_1 to relu5_1

    I_cc is the network's result of a content as its own style, I_ss of a style as its own content.
    """

    LAYERS = ("relu1_1", "relu2_1", "relu3_1", *TAPS)

    def __init__(self, content: float = 1.0, style: float = 3.0, pictures: float = 50.0, features: float = 1.0) -> None:
        super().__init__({"content": content, "style": style, "pictures": pictures, "features": features})
        self.content, self.style = ContentLoss("mse"), MeanStdLoss("mse")

    def forward(self, network: SANet, content: Tensor, style: Tensor) -> dict[str, Tensor]:
        """The terms and their `total`, [] each, of pictures [N, 3, H, W] and [N or 1, 3, H', W'] in [0, 1]."""
        ours, theirs = network.encode(content, style, self.LAYERS)
        again = network.encoder(network.decoder(network.transfer(ours, theirs)), self.LAYERS)
        normal, target = ({tap: normalized(x[tap]) for tap in TAPS} for x in (again, ours))
        terms = {
            "content": over_taps(self.content, normal, target, TAPS),
            "style": over_taps(self.style, again, theirs, self.LAYERS),
        }
        pairs = [(network(x, x), x) for x in (content, style)]
        terms["pictures"] = torch.stack([self.content.between(y, x) for y, x in pairs]).sum()
        encoded = [[network.encoder(network.enlarged(z), self.LAYERS) for z in pair] for pair in pairs]
        terms["features"] = torch.stack([over_taps(self.content, y, x, self.LAYERS) for y, x in encoded]).sum()
        return self.total(terms)

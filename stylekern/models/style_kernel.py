"""Learning dynamic style kernels."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from stylekern.encoders import VGG
from stylekern.losses import AdversarialLoss, ContentLoss, GramLoss, ReconstructionLoss, REMDLoss
from stylekern.models._model import StyleTransfer, continued, cut, multiple_for
from stylekern.models._objective import Objective, need_taps, over_taps
from stylekern.nn import Decoder, StyleAlignment, channel_shuffle
from stylekern.nn._features import normalized
from stylekern.ops import style_kernel_conv
from stylekern.ops._checks import check_count


class StyleKernelGenerator(nn.Module):
    """SKG (section 3.2): two convolutions predict, for each position and channel, two 1-d filters and a bias.

    The paper gives their number only. The first is 3 x 3, so that a filter knows its surroundings; the second 1 x 1,
    because it makes 2 k + 1 values of every channel.

    Args:
        channels: Of the aligned features, and of those that are convolved.
        size: k of the filters, odd.
    """

    def __init__(self, channels: int, size: int = 3) -> None:
        super().__init__()
        self.size = size
        self.features = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect")
        self.filters = nn.Conv2d(channels, channels * (2 * size + 1), 1)

    def forward(self, aligned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Aligned features [N, C, H, W] to F1 and F2, [N, C, k, H, W], and B, [N, C, H, W]: views of one tensor."""
        packed = self.filters(torch.relu(self.features(aligned))).unflatten(1, (-1, 2 * self.size + 1))
        vertical, horizontal, bias = packed.split((self.size, self.size, 1), 2)
        return vertical, horizontal, bias.squeeze(2)


class StyleKernel(StyleTransfer):
    r"""The network of "Learning dynamic style kernels for artistic style transfer" (figure 2).

    With Z_c and Z_s the encoder's features of content and style::

        Z_cs  = sum over v of the gated A(u, v) Z_s(v)           SAE and CGM, eq. 1 to 5: stylekern.nn.StyleAlignment
        F1, F2, B = SKG(Z_cs)
        Z~_cs = (GS(Z_c) - mu) / sigma * F1 * F2 + B             eq. 6: stylekern.ops.style_kernel_conv

    and Z~_cs is decoded. GS deals the content's channels out of `groups` groups, which breaks their neighbourhood.

    Args:
        encoder: A VGG that reaches relu4_1. The paper trains with VGG-16; None: VGG-19 with random weights, as the
            networks it compares itself with have it.
        size: k of the kernels: 3; table 3 tries 1 and 5 as well.
        groups: Of the shuffle, a divisor of relu4_1's channels; the paper gives no number. 1: no shuffle.
        alpha: The sharpness of the attention (eq. 1); see :class:`stylekern.nn.StyleAlignment`.
        gate: False leaves CGM out (figure 6).
        gate_grad: How CGM learns its hard gate.
        renormalize: Divides what CGM keeps by its mass; the paper does not.
    """

    def __init__(
        self,
        encoder: VGG | None = None,
        *,
        size: int = 3,
        groups: int = 8,
        alpha: float = 20.0,
        gate: bool = True,
        gate_grad: str = "straight_through",
        renormalize: bool = False,
    ) -> None:
        options: dict[str, object] = {"size": size, "groups": groups, "alpha": alpha, "gate": gate}
        options |= {"gate_grad": gate_grad, "renormalize": renormalize}
        super().__init__(encoder, "relu4_1", options)
        channels = self.encoder.channels["relu4_1"]
        self.multiple = multiple_for("StyleKernel", size)
        check_count("StyleKernel", "groups", groups)
        if channels % groups:
            raise ValueError(f"StyleKernel: groups must divide the {channels} channels of relu4_1, got {groups}")
        self.groups = groups
        self.align = StyleAlignment(channels, alpha=alpha, gate=gate, gate_grad=gate_grad, renormalize=renormalize)
        self.generate = StyleKernelGenerator(channels, size)
        self.decoder = Decoder(self.encoder.widths[:4])

    def transfer(self, content: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        """relu4_1 of both to Z~_cs, which is decoded, and Z_cs."""
        aligned = self.align(content, style)
        shuffled = channel_shuffle(content, self.groups)
        return style_kernel_conv(shuffled, *self.generate(aligned), normalize=True), aligned

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        """Content [N, 3, H, W] and style [N or 1, 3, H', W'] to [N, 3, H, W]."""
        ours, theirs = self.encode(content, style, ("relu4_1",))
        return cut(self.decoder(self.transfer(ours["relu4_1"], theirs["relu4_1"])[0]), content)


class StyleKernelObjective(Objective):
    r"""The losses of "Learning dynamic style kernels ..." (section 3.3, eq. 7 to 9), with its weights.

    ::

        total   = adversarial + reconstruction + content + style + 3 remd
        content = over relu4_1 and relu5_1, mean of (norm(F) - norm(F_c))^2                 SANet's, which it cites
        style   = over relu1_2, relu2_2, relu3_3, relu4_3, |Gram - Gram_s|^2                Johnson's, which it cites
        reconstruction = stylekern.losses.ReconstructionLoss                                eq. 8
        remd    = relaxed earth mover's distance of Z~_cs and Z_s                           eq. 9

    Eq. 9 prints Z_cs, but the text loses the marks above letters elsewhere too ("we use A instead of A"), and Z_cs
    depends on nothing that is trained but the gate. It is read as Z~_cs, which is decoded; `remd_of="aligned"` takes
    Z_cs.

    The adversarial term needs a discriminator, :class:`stylekern.losses.MultiScaleDiscriminator`, and is left out
    without one. The paper updates it once after two updates of the network, by :meth:`discriminator`.

    Args:
        encoder: Of the losses; None takes the network's, which must reach relu5_1.
        remd_of: "convolved" or "aligned".
        adversarial: "least_squares" or "hinge".
        weights: Of some of the terms, in place of the paper's.
    """

    CONTENT = ("relu4_1", "relu5_1")
    STYLE = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
    WEIGHTS = MappingProxyType({"adversarial": 1.0, "reconstruction": 1.0, "content": 1.0, "style": 1.0, "remd": 3.0})

    def __init__(
        self,
        encoder: VGG | None = None,
        *,
        remd_of: str = "convolved",
        adversarial: str = "least_squares",
        weights: Mapping[str, float] | None = None,
    ) -> None:
        if weights is not None and not isinstance(weights, Mapping):
            raise TypeError(
                f'StyleKernelObjective: weights must map terms to numbers, such as {{"remd": 1.0}}, got '
                f"{type(weights).__name__}"
            )
        if unknown := set(weights or {}) - set(self.WEIGHTS):
            raise ValueError(
                f"StyleKernelObjective: weights are of {', '.join(self.WEIGHTS)}; got {', '.join(map(str, unknown))}"
            )
        super().__init__(self.WEIGHTS | dict(weights or {}))
        if remd_of not in ("convolved", "aligned"):
            raise ValueError(f"StyleKernelObjective: remd_of must be convolved or aligned, got {remd_of!r}")
        self.encoder, self.remd_of = encoder, remd_of
        self.content, self.style, self.remd = ContentLoss("mse"), GramLoss("chw"), REMDLoss()
        self.adversarial = AdversarialLoss(adversarial)

    def forward(
        self, network: StyleKernel, content: Tensor, style: Tensor, discriminator: nn.Module | None = None
    ) -> dict[str, Tensor]:
        """The terms and their `total`, [] each, of pictures [N, 3, H, W] and [N or 1, 3, H', W'] in [0, 1]."""
        encoder = network.encoder if self.encoder is None else self.encoder
        need_taps("StyleKernelObjective", encoder, (*self.STYLE, *self.CONTENT))
        ours, theirs = network.encode(content, style, ("relu4_1",))
        convolved, aligned = network.transfer(ours["relu4_1"], theirs["relu4_1"])
        picture = cut(network.decoder(convolved), content)
        taps = (*self.STYLE, *self.CONTENT)
        again, of_content, of_style = (
            encoder(continued(x, network.multiple, 32), taps) for x in (picture, content, style)
        )
        normal, target = ({tap: normalized(x[tap]) for tap in self.CONTENT} for x in (again, of_content))
        rebuilt = ReconstructionLoss(encoder)
        enlarged = [continued(x, network.multiple, 32) for x in (content, style)]
        pairs = [y for x in enlarged for y in (network(x, x), x)]
        terms = {
            "content": over_taps(self.content, normal, target, self.CONTENT),
            "style": over_taps(self.style, again, of_style, self.STYLE),
            "reconstruction": rebuilt(*pairs),
            "remd": self.remd.between(convolved if self.remd_of == "convolved" else aligned, theirs["relu4_1"]),
        }
        if discriminator is not None:
            terms["adversarial"] = self.adversarial.generator(discriminator(picture))
        return self.total(terms)

    def discriminator(self, discriminator: nn.Module, network: StyleKernel, content: Tensor, style: Tensor) -> Tensor:
        """What the discriminator minimises, []: it tells styles from the network's pictures."""
        with torch.no_grad():
            fake = network(content, style)
        return self.adversarial.discriminator(discriminator(style), discriminator(fake))

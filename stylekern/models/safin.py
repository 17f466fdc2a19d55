"""SAFIN: spatially adaptive factorised instance normalisation on a wavelet network."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from stylekern.encoders import VGG
from stylekern.losses import ContentLoss, MeanStdLoss
from stylekern.models._model import StyleTransfer, as_many, continued, cut, mixed
from stylekern.models._objective import Objective, over_taps
from stylekern.nn import Decoder, SAFINModule
from stylekern.ops import adain, wavelet_pool, wavelet_unpool
from stylekern.ops._checks import check_finite

Bands = tuple[Tensor, Tensor, Tensor, Tensor]  # ll, lh, hl, hh
TAPS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")


class SAFIN(StyleTransfer):
    r"""SAFIN's base network and modules (sections 3.3 and 3.4, figure 4).

    VGG-19 up to relu4_1 whose pools are Haar's: ll goes on, lh, hl and hh wait for the decoder, which mirrors the
    encoder and unpools by summing all four, exactly. The content takes the style on its way:

    - ll of the three pools, and the high bands of the first two: AdaIN, each with the style's own;
    - the high bands of the third pool (256 channels): one SAFIN module, shared by the three;
    - relu4_1 (512 channels): a SAFIN module, between whose result and the content `alpha` interpolates.

    Pools stand behind the last ReLU of a block, where VGG has its own.

    Args:
        encoder: A VGG that reaches relu4_1; None: VGG-19 with random weights.
    """

    def __init__(self, encoder: VGG | None = None) -> None:
        super().__init__(encoder, "relu4_1", {})
        widths = self.encoder.widths
        self.high, self.bottleneck = SAFINModule(widths[2]), SAFINModule(widths[3])
        self.decoder = Decoder(widths[:4])

    def low_path(self, images: Tensor) -> tuple[dict[str, Tensor], list[Bands]]:
        """Features of pictures at relu1_1 to relu4_1, of ll components all the way (section 3.4), and all bands."""
        features: dict[str, Tensor] = {}
        bands: list[Bands] = []
        x, after = self.encoder.preprocess(images), None
        for tap, last in zip(TAPS[:3], self._lasts(), strict=True):
            found = self.encoder.advance(x, (tap, last), after)
            features[tap] = found[tap]
            bands.append(wavelet_pool(found[last], odd="pad"))
            x, after = bands[-1][0], f"pool{len(bands)}"
        return features | self.encoder.advance(x, TAPS[3:], after), bands

    def _lasts(self) -> Iterator[str]:
        """The last ReLU before each of the three pools."""
        for pool in ("pool1", "pool2", "pool3"):
            yield self.encoder.taps[self.encoder.taps.index(pool) - 1]

    def forward(self, content: Tensor, style: Tensor, *, alpha: float = 1.0) -> Tensor:
        """Content [N, 3, H, W] and style [N or 1, 3, H', W'] to [N, 3, H, W]; alpha mixes at the bottleneck only."""
        check_finite("SAFIN", "alpha", alpha)
        self.check_pictures(content, style)
        features, style_bands = self.low_path(self.enlarged(style))
        x, after = self.encoder.preprocess(continued(content, self.multiple)), None
        waiting: list[list[Tensor]] = []
        for last, theirs in zip(self._lasts(), style_bands, strict=True):
            low, *high = wavelet_pool(self.encoder.advance(x, (last,), after)[last])
            style_low, *style_high = (as_many(band, low) for band in theirs)
            match = self.high if len(waiting) == 2 else adain
            waiting.append([match(ours, other) for ours, other in zip(high, style_high, strict=True)])
            x, after = adain(low, style_low), f"pool{len(waiting)}"
        x = self.encoder.advance(x, TAPS[3:], after)[TAPS[3]]
        x = mixed(x, self.bottleneck(x, as_many(features[TAPS[3]], x)), alpha)
        for i, stage in enumerate(self.decoder.stages):
            x = stage(wavelet_unpool(x, *waiting[3 - i]) if i else x)
        return cut(x, content)


class SAFINObjective(Objective):
    r"""Content and style of SAFIN's training (section 3.4), of ll components all the way through the encoder.

    ::

        content = |E(I_cs) - E(I_c)|_2                                                      at relu4_1
        style   = sum over relu1_1 to relu4_1 of |mu - mu_s|_2 + |sigma - sigma_s|_2

    Args:
        content, style: Weights; 1 and 10 are the authors'.
    """

    def __init__(self, content: float = 1.0, style: float = 10.0) -> None:
        super().__init__({"content": content, "style": style})
        self.content, self.style = ContentLoss("euclidean"), MeanStdLoss("euclidean")

    def forward(self, network: SAFIN, content: Tensor, style: Tensor) -> dict[str, Tensor]:
        """The terms and their `total`, [] each, of pictures [N, 3, H, W] and [N or 1, 3, H', W'] in [0, 1]."""
        pictures = (network(content, style), content, style)
        again, ours, theirs = (network.low_path(network.enlarged(x))[0] for x in pictures)
        terms = {"content": self.content.between(again[TAPS[-1]], ours[TAPS[-1]])}
        return self.total(terms | {"style": over_taps(self.style, again, theirs, TAPS)})

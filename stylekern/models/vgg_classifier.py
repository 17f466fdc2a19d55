"""A VGG-19 of one's own, to be trained as a classifier and then to serve as an encoder."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import nn

from stylekern.encoders import VGG
from stylekern.encoders.layouts import BLOCKS, CHANNELS, layout_of
from stylekern.models._saved import Saved
from stylekern.ops._checks import check_count, check_counts


class VGGClassifier(nn.Sequential, Saved):
    r"""The classifier of "INFO8010: Style Transfer", section III.B, a subclass of `nn.Sequential`.

    16 convolutions with ReLUs in five blocks, a max pool between two blocks (four of them), an adaptive average pool to
    a fixed size, and three fully connected layers with ReLUs and dropout between them. Weights start as He et al. 2015
    have it (Kaiming). `forward` takes pictures [N, 3, H, W], standardised as ImageNet's are, to logits [N, classes];
    16 x 16 is the smallest size.

    The report trains it on CIFAR-100 with cross-entropy, mixed precision, AdamW and ReduceLROnPlateau. :meth:`encoder`
    then makes an encoder of its convolutions; parameters are named as torchvision names its VGG's, so that
    :func:`stylekern.encoders.vgg19` reads a file of its state dict too, at the default channels.

    Args:
        classes: 100 are CIFAR-100's.
        channels: Of the five blocks.
        hidden: Of the fully connected layers, 4096 as in VGG.
        pooled: Height and width after the adaptive pool, 7 as in VGG.
        dropout: Its probability; the report gives none, 0.5 is VGG's.
    """

    def __init__(
        self,
        classes: int = 100,
        *,
        channels: Sequence[int] = CHANNELS,
        hidden: int = 4096,
        pooled: int = 7,
        dropout: float = 0.5,
    ) -> None:
        check_counts("VGGClassifier", "channels", channels, 5)
        for name, value in (("classes", classes), ("hidden", hidden), ("pooled", pooled)):
            check_count("VGGClassifier", name, value)
        self._config: dict[str, Any] = {"classes": classes, "channels": list(channels), "hidden": hidden}
        self._config |= {"pooled": pooled, "dropout": dropout}
        features: list[nn.Module] = []
        width = 3
        for block, (count, made) in enumerate(zip(BLOCKS[19], channels, strict=True)):
            if block:
                features.append(nn.MaxPool2d(2))
            for _ in range(count):
                features += [nn.Conv2d(width, made, 3, padding=1), nn.ReLU()]
                width = made
        widths = (width * pooled**2, hidden, hidden)
        classifier: list[nn.Module] = []
        for given, made in ((widths[0], hidden), (hidden, hidden)):
            classifier += [nn.Linear(given, made), nn.ReLU(), nn.Dropout(dropout)]
        classifier.append(nn.Linear(hidden, classes))
        parts = OrderedDict[str, nn.Module](
            features=nn.Sequential(*features),
            pool=nn.AdaptiveAvgPool2d(pooled),
            flatten=nn.Flatten(),
            classifier=nn.Sequential(*classifier),
        )
        super().__init__(parts)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    @property
    def config(self) -> dict[str, Any]:
        return self._config

    def encoder(self) -> VGG:
        """An encoder with a copy of the convolutions, for pictures in [0, 1]."""
        told = layout_of(self.state_dict(), 19)
        assert told is not None
        encoder = VGG(19, channels=self._config["channels"])
        encoder.load_state_dict(told[1])
        like = next(self.parameters())
        return encoder.to(like.device, like.dtype)

    def __getitem__(self, index: Any) -> Any:
        """A part, or of a slice the parts in sequence: nn.Sequential would build another classifier of them."""
        return nn.Sequential(*list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)

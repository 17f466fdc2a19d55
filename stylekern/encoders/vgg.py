"""VGG-16 and VGG-19, in the three layouts that their public weights have."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylekern.encoders._encoder import Encoder, collect, he_normal_
from stylekern.encoders.layouts import BLOCKS, CHANNELS, LAYOUTS, layout_of, names_in_files, tap_names
from stylekern.encoders.weights import Weights, check_weight, read_weights
from stylekern.ops._checks import check_counts


class VGG(Encoder):
    """VGG (Simonyan and Zisserman 2014) without its classifier.

    Taps are `conv1_1`, `relu1_1`, ..., `pool5`.

    The layout belongs to the weights:

    - `torchvision`: RGB less (0.485, 0.456, 0.406), over (0.229, 0.224, 0.225); borders of zeros; pools round down.
    - `caffe`: BGR times 255 less (103.939, 116.779, 123.68); else the same. Converted from the authors' own files.
    - `normalised`: what AdaIN and SANet were trained with. A 1 x 1 convolution of the colours comes first, borders are
      reflected, pools round up, and nothing is subtracted outside.

    Args:
        depth: 16 or 19.
        layout: One of the three.
        channels: Of the five blocks; fewer make a small network for tests.
        deepest: The last tap. Nothing behind it is kept.
        pooling: "max", as trained, or "average", which Gatys et al. 2016 found smoother for synthesis.
        seed: Of the random weights (He et al. 2015) that the network starts with.

    Raises:
        TypeError, ValueError: Channels that are not five positive integers.
        ValueError: An unknown depth, layout, pooling or tap.
    """

    def __init__(
        self,
        depth: int = 19,
        *,
        layout: str = "torchvision",
        channels: Sequence[int] = CHANNELS,
        deepest: str = "pool5",
        pooling: str = "max",
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, given, known in (("depth", depth, BLOCKS), ("layout", layout, LAYOUTS)):
            if given not in known:
                raise ValueError(f"VGG: {name} must be one of {', '.join(map(str, known))}, got {given!r}")
        if pooling not in ("max", "average"):
            raise ValueError(f"VGG: pooling must be max or average, got {pooling!r}")
        check_counts("VGG", "channels", channels, len(CHANNELS))
        self.depth, self.layout, self.pooling, self.deepest = depth, layout, pooling, deepest
        self.widths = tuple(channels)
        self._layout = LAYOUTS[layout]
        every = {tap: channels[block] for tap, block in tap_names(depth)}
        if deepest not in every:
            raise ValueError(f"VGG: deepest must be one of {', '.join(every)}, got {deepest!r}")
        last = list(every).index(deepest)
        self.channels = {tap: every[tap] for tap in list(every)[: last + 1]}
        self.convs = nn.ModuleDict()
        width = 3
        if self._layout.colours:
            self.convs["conv0"] = nn.Conv2d(3, 3, 1)
        for tap, count in self.channels.items():
            if tap.startswith("conv"):
                self.convs[tap] = nn.Conv2d(width, count, 3)
                width = count
        self.register_colours(self._layout.mean, self._layout.deviation)
        he_normal_(self.modules(), seed)
        if self._layout.colours:
            self._colours_as_they_are()
        self.fix()

    def _colours_as_they_are(self) -> None:
        conv = self.convs["conv0"]
        assert isinstance(conv, nn.Conv2d)
        with torch.no_grad():
            conv.weight.copy_(torch.eye(3).view(3, 3, 1, 1))

    @property
    def config(self) -> dict[str, object]:
        return {
            "depth": self.depth,
            "layout": self.layout,
            "channels": list(self.widths),
            "deepest": self.deepest,
            "pooling": self.pooling,
        }

    def preprocess(self, images: Tensor) -> Tensor:
        """Pictures as the first convolution reads them."""
        x = self.standardize(images.flip(1) if self._layout.bgr else images)
        return self.convs["conv0"](x) if self._layout.colours else x

    def layers(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        return self._walk(self.preprocess(images), None)

    def advance(self, x: Tensor, taps: Sequence[str], after: str | None = None) -> dict[str, Tensor]:
        """Goes on from features x of the tap `after` (None: from preprocessed pictures) to deeper taps.

        For networks that change features on their way: other pools, normalisation between layers.
        """
        self.check_taps([*taps, after] if after else taps)
        behind = self.taps[self.taps.index(after) + 1 :] if after else self.taps
        if not set(taps) <= set(behind):
            raise ValueError(f"VGG: taps behind {after} are {', '.join(behind) or 'none'}; got {', '.join(taps)}")
        return collect(self._walk(x, after), taps)

    def _walk(self, x: Tensor, after: str | None) -> Iterator[tuple[str, Tensor]]:
        start = self.taps.index(after) + 1 if after else 0
        for tap in self.taps[start:]:
            if tap.startswith("conv"):
                if self._layout.padding == "reflect" and min(x.shape[2:]) < 2:
                    raise ValueError(f"VGG: pictures are too small for {tap}: {list(x.shape)} cannot be reflected")
                x = self.convs[tap](F.pad(x, (1, 1, 1, 1), mode=self._layout.padding))
            elif tap.startswith("relu"):
                x = torch.relu(x)
            else:
                if min(x.shape[2:]) < 2 and not self._layout.ceil:
                    raise ValueError(f"VGG: pictures are too small for {tap}: nothing is left of {list(x.shape)}")
                pool = F.max_pool2d if self.pooling == "max" else F.avg_pool2d
                x = pool(x, 2, ceil_mode=self._layout.ceil)
            yield tap, x


def _load(
    depth: int,
    weights: Weights,
    layout: str | None,
    deepest: str | None,
    pooling: str,
    sha256: str | None,
    seed: int,
) -> VGG:
    if weights is None:
        return VGG(depth, layout=layout or "torchvision", deepest=deepest or "pool5", pooling=pooling, seed=seed)
    state, origin = read_weights(weights, sha256)
    found = layout_of(state, depth)
    if found is None:
        expected = [list(names_in_files(depth, normalised).values())[:3] for normalised in (False, True)]
        torchvision, normalised = (", ".join(f"{name}.weight" for name in names) for names in expected)
        raise ValueError(
            f"vgg{depth}: {origin} fits no layout of VGG-{depth}: expected are {torchvision}, ... (torchvision, caffe) "
            f"or {normalised}, ... (normalised), to the end or to some convolution; it has {', '.join(list(state)[:6])}"
        )
    told, tensors = found
    if layout is not None and (layout == "normalised") != (told == "normalised"):
        raise ValueError(f"vgg{depth}: {origin} has the layout {told}, not {layout}")
    taps = [tap for tap, _ in tap_names(depth)]
    end = max(taps.index(key.split(".")[1]) for key in tensors if "conv0" not in key) + 1  # and its ReLU
    reached = taps if end + 2 == len(taps) else taps[: end + 1]
    if deepest is not None and deepest not in reached:
        raise ValueError(f"vgg{depth}: {origin} reaches {reached[-1]}, deepest={deepest!r} is behind it or unknown")
    encoder = VGG(depth, layout=layout or told, deepest=deepest or reached[-1], pooling=pooling)
    for key, own in encoder.state_dict().items():
        check_weight(f"vgg{depth}", origin, key, own, tensors[key])
        own.copy_(tensors[key])
    return encoder


def vgg16(
    weights: str | os.PathLike[str] | None = None,
    *,
    layout: str | None = None,
    deepest: str | None = None,
    pooling: str = "max",
    sha256: str | None = None,
    seed: int = 0,
) -> VGG:
    """VGG-16 with weights from a file or an address, or random ones; see :func:`vgg19`."""
    return _load(16, weights, layout, deepest, pooling, sha256, seed)


def vgg19(
    weights: str | os.PathLike[str] | None = None,
    *,
    layout: str | None = None,
    deepest: str | None = None,
    pooling: str = "max",
    sha256: str | None = None,
    seed: int = 0,
) -> VGG:
    """VGG-19 with weights from a file or an address, or random ones.

    Args:
        weights: A path, or an https or file address, of a .safetensors or PyTorch file in one of the layouts of
            :class:`VGG`; see :func:`stylekern.encoders.read_weights`. None: random, from `seed`.
        layout: None tells it from the keys. To be named for Caffe's features without their classifier, whose keys are
            torchvision's.
        deepest: The last tap that is kept; None: the last that the file has.
        pooling: "max" or "average".
        sha256: Of the file, or its first digits, at least eight.
        seed: Of random weights.

    Raises:
        FileNotFoundError: No file at the path.
        ValueError: Another hash; a file that fits no layout, or not the one that is named, or whose weights are none; a
            tap behind its end.
    """
    return _load(19, weights, layout, deepest, pooling, sha256, seed)

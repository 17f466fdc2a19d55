"""ResNet-50."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from stylekern.encoders._encoder import Encoder, he_normal_
from stylekern.encoders.weights import check_weight, read_weights
from stylekern.ops._checks import check_count

BLOCKS = (3, 4, 6, 3)
EXPANSION = 4


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1, and the input added; the parameters' names are torchvision's."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = EXPANSION * width
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] to [N, C', h, w], or half as large."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(Encoder):
    """ResNet-50 (He et al. 2015; strides on the 3 x 3 convolutions, as torchvision has it) without its classifier.

    Taps are `conv1`, `relu`, `maxpool` and the blocks `layer1.0` to `layer4.2`. The stages that papers call conv2 to
    conv5 are layer1 to layer4: conv4_3 is `layer3.2`. Pictures are RGB in [0, 1]; mean and deviation of ImageNet are
    taken off inside.

    Args:
        width: Channels of the first convolution: 64; fewer make a small network for tests.
        deepest: The last tap. Nothing behind it is kept.
        seed: Of the random weights (He et al. 2015) that the network starts with.

    Raises:
        TypeError: A width that is no integer.
        ValueError: An unknown tap; a width below 1.
    """

    def __init__(self, *, width: int = 64, deepest: str = "layer4.2", seed: int = 0) -> None:
        super().__init__()
        check_count("ResNet", "width", width)
        every = {"conv1": width, "relu": width, "maxpool": width}
        for stage, count in enumerate(BLOCKS):
            every |= {f"layer{stage + 1}.{i}": EXPANSION * width << stage for i in range(count)}
        if deepest not in every:
            raise ValueError(f"ResNet: deepest must be one of {', '.join(every)}, got {deepest!r}")
        self.width, self.deepest = width, deepest
        self.channels = {tap: every[tap] for tap in list(every)[: list(every).index(deepest) + 1]}
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = width
        for stage in range(len(BLOCKS)):
            blocks = nn.Sequential()
            for i in range(sum(tap.startswith(f"layer{stage + 1}.") for tap in self.channels)):
                blocks.append(Bottleneck(channels, width << stage, 2 if stage and i == 0 else 1))
                channels = EXPANSION * width << stage
            if len(blocks):
                self.add_module(f"layer{stage + 1}", blocks)
        self.register_colours((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        he_normal_(self.modules(), seed)
        self.fix()

    @property
    def config(self) -> dict[str, object]:
        return {"width": self.width, "deepest": self.deepest}

    def layers(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        x = self.conv1(self.standardize(images))
        yield "conv1", x
        x = torch.relu(self.bn1(x))
        yield "relu", x
        x = self.maxpool(x)
        yield "maxpool", x
        for tap in self.taps[3:]:
            stage, block = tap.split(".")
            x = getattr(self, stage)[int(block)](x)
            yield tap, x


def resnet50(
    weights: str | os.PathLike[str] | None = None,
    *,
    deepest: str = "layer4.2",
    sha256: str | None = None,
    seed: int = 0,
) -> ResNet:
    """ResNet-50 with weights from a file or an address, or random ones.

    Args:
        weights: A path, or an https or file address, of a .safetensors or PyTorch file with torchvision's keys; see
            :func:`stylekern.encoders.read_weights`. None: random, from `seed`.
        deepest: The last tap that is kept.
        sha256: Of the file, or its first digits, at least eight.
        seed: Of random weights.

    Raises:
        FileNotFoundError: No file at the path.
        ValueError: Another hash; a file without torchvision's keys, or whose weights are none; an unknown tap.
    """
    encoder = ResNet(deepest=deepest, seed=seed)
    if weights is None:
        return encoder
    state, origin = read_weights(weights, sha256)
    kept: Sequence[str] = [key for key in encoder.state_dict() if not key.endswith("num_batches_tracked")]
    missing = [key for key in kept if key not in state]
    if missing:
        raise ValueError(
            f"resnet50: {origin} is not ResNet-50 with torchvision's keys: it has {', '.join(list(state)[:6])}, ..., "
            f"but not {', '.join(missing[:4])}"
        )
    own = encoder.state_dict()
    for key in kept:
        check_weight("resnet50", origin, key, own[key], state[key])
    encoder.load_state_dict({key: state[key].float() for key in kept}, strict=False)
    return encoder

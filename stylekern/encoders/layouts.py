"""How VGG is laid out, in us and in the files that hold its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

BLOCKS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # convolutions between the pools
CHANNELS = (64, 128, 256, 512, 512)


@dataclass(frozen=True)
class Layout:
    """How weights expect pictures and borders; see :class:`VGG`."""

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    deviation: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bgr: bool = False
    padding: str = "constant"
    ceil: bool = False
    colours: bool = False  # whether a 1 x 1 convolution of the colours comes first


LAYOUTS = {
    "torchvision": Layout((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "caffe": Layout((103.939 / 255, 116.779 / 255, 123.68 / 255), (1 / 255, 1 / 255, 1 / 255), bgr=True),
    "normalised": Layout(padding="reflect", ceil=True, colours=True),
}


def tap_names(depth: int) -> Iterator[tuple[str, int]]:
    """All taps of a depth, from shallow to deep, and the block that each is in."""
    for block, count in enumerate(BLOCKS[depth]):
        for i in range(count):
            yield f"conv{block + 1}_{i + 1}", block
            yield f"relu{block + 1}_{i + 1}", block
        yield f"pool{block + 1}", block


def names_in_files(depth: int, normalised: bool) -> dict[str, str]:
    """The convolutions' names in torchvision's files, or in the normalised one: places in a sequence of layers."""
    names = {"conv0": "0"} if normalised else {}
    place = 1 if normalised else 0
    for tap, _ in tap_names(depth):
        if tap.startswith("conv"):
            place += normalised  # a layer that pads
            names[tap] = str(place) if normalised else f"features.{place}"
        place += 1
    return names


def layout_of(state: Mapping[str, Tensor], depth: int) -> tuple[str, dict[str, Tensor]] | None:
    """The layout that a file's keys show, and its weights and biases by our names; None where they fit none.

    A file may end after any convolution, but may have no other than those of this depth. Caffe's files have
    torchvision's features; their classifier is numbered as Caffe numbers it.
    """
    for normalised in (False, True):
        found: dict[str, Tensor] = {}
        for conv, name in names_in_files(depth, normalised).items():
            if f"{name}.weight" not in state or f"{name}.bias" not in state:
                break
            found |= {f"convs.{conv}.{part}": state[f"{name}.{part}"] for part in ("weight", "bias")}
        ours = [key for key in state if (key[:1].isdigit() if normalised else key.startswith("features."))]
        if "convs.conv1_1.weight" in found and len(ours) == len(found):
            return "normalised" if normalised else "caffe" if "classifier.1.weight" in state else "torchvision", found
    return None

"""The networks' forward pass from pictures to a picture, with the operators and with plain torch in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import stylekern
from stylekern.models import SAFIN, AdaConv, AdaIN, SANet, StyleKernel, StyleTransfer

from .kit import DEVICE, interleaved, synchronize, three_digits

NETWORKS: dict[str, Callable[[], StyleTransfer]] = {
    "AdaIN": AdaIN,
    "AdaConv": AdaConv,
    "SANet": SANet,
    "SANet + CGM": lambda: SANet(attention="cgm"),
    "SANet + SAFIN": lambda: SANet(attention="safin"),
    "SAFIN": SAFIN,
    "StyleKernel": StyleKernel,
}


@pytest.mark.parametrize("size", [256, 512])
@pytest.mark.parametrize("name", NETWORKS)
def test_network(benchmark: Any, table: list[dict[str, str]], name: str, size: int):
    torch.manual_seed(0)
    network = NETWORKS[name]().to(DEVICE).eval()
    # smooth pictures: of noise, all deep features of random weights are alike
    content, style = (F.interpolate(torch.rand(1, 3, 9, 9, device=DEVICE), (size, size), mode="bicubic") for _ in "cs")

    def plain() -> Tensor:
        with stylekern.use_backend("reference"):
            return network(content, style)

    with torch.no_grad():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.backends.cudnn, "allow_tf32", False)  # which rounds what is alike apart
            difference = (network(content, style) - plain()).abs().max().item()
        assert difference < 1e-4
        runs: dict[str, Callable[[], Any]] = {"ours": lambda: network(content, style), "plain": plain}
        runs["encoder and decoder"] = lambda: convolutions(network, content, style)
        if benchmark.disabled:
            return
        seconds = interleaved(runs, rounds=3)
        benchmark.pedantic(lambda: (runs["ours"](), synchronize()), rounds=2)
    row = {
        "network": name,
        "shape": f"{size}x{size}",
        "ms": three_digits(1e3 * seconds["ours"]),
        "x plain torch": f"{seconds['plain'] / seconds['ours']:.2f}",
        "encoder and decoder alone": f"{seconds['encoder and decoder'] / seconds['ours']:.0%}",
        "largest difference": f"{difference:.0e}",
    }
    benchmark.extra_info["median_seconds"], benchmark.extra_info["row"] = seconds, row
    table.append(row)


def convolutions(network: StyleTransfer, content: Tensor, style: Tensor) -> Tensor:
    """What no operator here is part of: the encoder's convolutions on both pictures, and the decoder's."""
    features = [network.encoder(x, ("relu4_1",))["relu4_1"] for x in (content, style)]
    picture: Tensor = network.decoder(features[0])
    return picture

"""The feed-forward network of one style."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from stylekern.encoders import VGG
from stylekern.models import FastObjective, FastTransfer

from .networks import CHANNELS, pictures


def small() -> FastTransfer:
    return FastTransfer((4, 8, 8), blocks=2)


@pytest.mark.parametrize("size", [(1, 1), (7, 30), (33, 46), (64, 64)], ids=str)
def test_sizes(size: tuple[int, int]) -> None:
    content = torch.rand(2, 3, *size)
    network = small()
    picture, stylized = network(content), network.stylize(content)
    assert picture.shape == content.shape and picture.min() >= 0 and picture.max() <= 1
    assert torch.equal(stylized, picture) and picture.requires_grad and not stylized.requires_grad


def test_the_layers_of_the_paper() -> None:
    network = FastTransfer()
    convs = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size[0], c.stride[0]) for c in convs] == [
        (32, 9, 1), (64, 3, 2), (128, 3, 2), *[(128, 3, 1)] * 10, (64, 3, 1), (32, 3, 1), (3, 9, 1)
    ]  # fmt: skip
    assert sum(p.numel() for p in network.parameters()) == 1_677_635


def test_two_hundred_steps_halve_the_loss_and_gradients_reach_everything() -> None:
    network, content = small(), pictures(2, 48, 48)
    objective = FastObjective(VGG(16, channels=CHANNELS), pictures(1, 40, 60, 12), style_weight=10.0)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    losses = []
    for step in range(200):
        optimizer.zero_grad()
        loss = objective(network, content)["total"]
        loss.backward()
        if step == 0:
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_threads_may_share_an_objective() -> None:
    network, contents = small(), [pictures(1, 32, 32) for _ in range(8)]
    objective = FastObjective(VGG(16, channels=CHANNELS), pictures(1, 40, 60, 12))
    alone = [objective(network, content)["content"].item() for content in contents]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert list(pool.map(lambda content: objective(network, content)["content"].item(), contents)) == alone


def test_the_objective_is_equations_5_to_7() -> None:
    encoder = VGG(16, channels=CHANNELS).double()
    network, content, style = small().double(), pictures(1, 32, 48).double(), pictures(1, 48, 32).double()
    terms = FastObjective(encoder, style, content_weight=2.0, style_weight=3.0)(network, content)
    layers = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
    y, c, s = (encoder(x, layers) for x in (network(content), content, style))
    feature = (y["relu2_2"] - c["relu2_2"]).square().sum() / c["relu2_2"].numel()
    grams = 0
    for tap in layers:
        a, b = ((x[tap].flatten(2)[0] @ x[tap].flatten(2)[0].T) / x[tap].numel() for x in (y, s))
        grams = grams + (a - b).square().sum()
    assert torch.allclose(terms["content"], feature) and torch.allclose(terms["style"], torch.as_tensor(grams))
    assert torch.allclose(terms["total"], 2 * feature + 3 * grams)


def test_save_load_compile_export_autocast(tmp_path: Path) -> None:
    network, content = small(), pictures(1, 37, 40)
    truth = network(content)
    network.save(tmp_path / "fast.safetensors")
    assert torch.equal(FastTransfer.load(tmp_path / "fast.safetensors")(content), truth)
    assert torch.allclose(torch.compile(network, backend="aot_eager", fullgraph=True)(content), truth, atol=1e-5)
    assert torch.allclose(torch.export.export(network, (content,)).module()(content), truth, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.cosine_similarity(network(content).float().flatten(), truth.flatten(), dim=0) > 0.99


def test_bad_input() -> None:
    assert small()(torch.rand(0, 3, 8, 8)).shape == (0, 3, 8, 8)
    with pytest.raises(TypeError, match=r"content must be a floating-point tensor .* got torch.uint8"):
        small()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"content must be RGB, \[N, 3, H, W\], got \[3, 8, 8\]"):
        small()(torch.rand(3, 8, 8))
    with pytest.raises(TypeError, match=r"content is torch.float64, the weights torch.float32: content.to\("):
        small()(torch.rand(1, 3, 8, 8, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"style must be one picture, \[1, 3, H, W\], got \[2, 3, 32, 32\]"):
        FastObjective(VGG(16, channels=CHANNELS), pictures(2, 32, 32))
    with pytest.raises(TypeError, match=r"FastObjective: style must be a floating-point tensor .* got str"):
        FastObjective(VGG(16, channels=CHANNELS), "style.png")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"FastObjective: encoder must be one of stylekern.encoders, got str"):
        FastObjective("vgg16", pictures(1, 32, 32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"FastObjective: the encoder must reach relu4_3"):
        FastObjective(VGG(16, channels=CHANNELS, deepest="relu4_1"), pictures(1, 32, 32))

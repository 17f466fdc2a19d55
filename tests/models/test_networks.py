"""Every feed-forward network takes pictures of any size, learns, and keeps what torch offers a module."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

import stylekern
from stylekern.encoders import VGG, RandomMultiScale, vgg16
from stylekern.models import SAFIN, AdaConv, AdaIN, FastTransfer, SANet, StyleKernel, StyleTransfer, VGGClassifier
from tests.ops.cases import relative_error

from .networks import CHANNELS, NETWORKS, OBJECTIVES, pictures, small, trained


@pytest.fixture(params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def network(name: str) -> StyleTransfer:
    return NETWORKS[name]()


SIZES = {
    "odd": ((61, 47), (50, 83)),
    "one-pixel": ((1, 1), (3, 2)),
    "flat": ((9, 70), (64, 17)),
    "even": ((64, 32),) * 2,
}


@pytest.mark.parametrize("size", SIZES)
def test_the_result_has_the_contents_size_whatever_the_styles(network: StyleTransfer, size: str) -> None:
    content, style = (torch.rand(2, 3, *hw) for hw in SIZES[size])
    picture = network(content, style)
    assert picture.shape == content.shape and picture.isfinite().all()
    assert network.stylize(content, style).aminmax()[0] >= 0 and network.stylize(content, style).max() <= 1


def test_one_style_serves_many_contents_as_each_alone(network: StyleTransfer) -> None:
    content, style = pictures(3, 40, 33), pictures(1, 36, 50)
    together = network(content, style)
    assert torch.allclose(together, torch.cat([network(c[None], style) for c in content]), atol=1e-4)
    assert torch.allclose(together, network(content, style.expand(3, -1, -1, -1)), atol=1e-5)
    assert relative_error(network(content, pictures(1, 36, 50)), together) > 1e-5  # the style counts


def test_gradients_reach_every_parameter_and_none_the_encoders(name: str, network: StyleTransfer) -> None:
    terms = OBJECTIVES[name]()(network, pictures(2, 48, 40), pictures(2, 48, 56))
    assert terms["total"].shape == ()
    names = {key for key, p in network.named_parameters() if p.requires_grad}
    assert not any(key.startswith("encoder.") for key in names) and len(names) > 10
    torch.autograd.backward(terms["total"])
    for key, p in network.named_parameters():
        assert (p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0) == (key in names), key


def test_two_hundred_steps_halve_the_papers_loss(name: str, network: StyleTransfer) -> None:
    """And it stays there: for ten steps on end, after which no more are made."""
    objective, content, style = OBJECTIVES[name](), pictures(1, 48, 48), pictures(1, 48, 48, 12)
    optimizer = torch.optim.Adam(trained(network), 2e-3)
    losses: list[float] = []
    while len(losses) < 200 and (len(losses) < 11 or max(losses[-10:]) >= losses[0] / 2):
        optimizer.zero_grad()
        loss = objective(network, content, style)["total"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert max(losses[-10:]) < losses[0] / 2


def test_operators_and_plain_torch_give_the_same_picture(network: StyleTransfer) -> None:
    content, style = pictures(1, 61, 70), pictures(1, 50, 43)
    with torch.no_grad():
        ours = network(content, style)
        with stylekern.use_backend("reference"):
            plain = network(content, style)
    assert (ours - plain).abs().max() < 1e-4


def test_total_is_the_weighted_sum_of_the_terms(name: str, network: StyleTransfer) -> None:
    objective = OBJECTIVES[name]()
    terms = objective(network, pictures(1, 48, 48), pictures(1, 48, 48))
    total = terms.pop("total")
    assert torch.allclose(total, sum((objective.weights[key] * x for key, x in terms.items()), torch.zeros(())))


def test_save_and_load_with_configuration(network: StyleTransfer, tmp_path: Path) -> None:
    network.save(tmp_path / "network.safetensors")
    content, style = pictures(1, 33, 40), pictures(1, 40, 40)
    for base in (type(network), StyleTransfer):
        again = base.load(tmp_path / "network.safetensors")
        assert type(again) is type(network) and again.config == network.config and not again.training
        assert torch.equal(again(content, style), network(content, style))
    assert [path.name for path in tmp_path.iterdir()] == ["network.safetensors"]
    other = NETWORKS["sanet-safin"]() if type(network) is not SANet else NETWORKS["adain"]()
    with pytest.raises(ValueError, match=f"holds a network {type(network).__name__}, not {type(other).__name__}"):
        type(other).load(tmp_path / "network.safetensors")


def test_state_dict_round_trip(name: str, network: StyleTransfer) -> None:
    other = NETWORKS[name]()
    other.load_state_dict(network.state_dict())
    content, style = pictures(1, 33, 40), pictures(1, 40, 40)
    assert torch.equal(other(content, style), network(content, style))


def test_under_compile(network: StyleTransfer) -> None:
    content, style = pictures(1, 37, 40), pictures(1, 40, 41)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)(content, style)
    assert torch.allclose(compiled, network(content, style), atol=1e-4)
    grads = torch.autograd.grad(compiled.square().sum(), trained(network))
    plain = torch.autograd.grad(network(content, style).square().sum(), trained(network))
    assert all(relative_error(a, b) < 1e-3 for a, b in zip(grads, plain, strict=True))


def test_under_export(network: StyleTransfer) -> None:
    content, style = pictures(1, 37, 40), pictures(1, 40, 41)
    exported = torch.export.export(network, (content, style)).module()
    assert torch.allclose(exported(content, style), network(content, style), atol=1e-4)


def test_under_autocast(network: StyleTransfer) -> None:
    content, style = pictures(1, 48, 40), pictures(1, 40, 48)
    truth = network(content, style)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        picture = network(content, style)
    assert F.cosine_similarity(picture.float().flatten(), truth.flatten(), dim=0) > 0.9


@pytest.mark.parametrize(
    ("content", "style", "error", "words"),
    [
        (torch.rand(3, 32, 32), None, ValueError, r"content must be RGB, \[N, 3, H, W\], got \[3, 32, 32\]"),
        (None, torch.rand(1, 4, 32, 32), ValueError, r"style must be RGB, .* got \[1, 4, 32, 32\]"),
        (None, torch.rand(3, 3, 32, 32), ValueError, "style must be one picture or as many as content, 2, got 3"),
        (torch.rand(1, 3, 0, 32), None, ValueError, r"got \[1, 3, 0, 32\]"),
        (torch.ones(1, 3, 32, 32, dtype=torch.uint8), None, TypeError, "content must be a floating-point tensor"),
        (torch.rand(2, 3, 32, 32).double(), None, TypeError, "images are torch.float64, its weights torch.float32"),
        (None, "style.png", TypeError, "style must be a floating-point tensor with values in .*, got str"),
    ],
)
def test_bad_input(network: StyleTransfer, content: Tensor, style: Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        network(
            torch.rand(2, 3, 32, 32) if content is None else content,
            torch.rand(1, 3, 32, 32) if style is None else style,
        )


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: AdaIN(RandomMultiScale()), TypeError, "encoder must be a VGG, .* got RandomMultiScale"),
        (lambda: SANet(small("relu4_1")), ValueError, "encoder must reach relu5_1, but ends at relu4_1"),
        (lambda: SANet(small(), attention="dot"), ValueError, "attention must be one of sanet, cgm, safin, got 'dot'"),
        (lambda: StyleKernel(small(), size=4), ValueError, "size must be 1, 3, 5 or 7, got 4"),
        (lambda: StyleKernel(small(), groups=5), ValueError, "groups must divide the 32 channels of relu4_1, got 5"),
        (
            lambda: AdaConv(small(), groups=(1, 2, 4, 3)),
            ValueError,
            r"groups must be four divisors of \(32, 16, 16, 8\)",
        ),
        (lambda: AdaConv(small(), groups=3), TypeError, "AdaConv: groups must be 4 positive integers, got 3"),
        (
            lambda: AdaConv(small(), groups=(1, 2, 4)),
            ValueError,
            r"groups must be 4 positive integers, got \[1, 2, 4\]",
        ),
        (
            lambda: AdaConv(small(), rates=(1, 0)),
            ValueError,
            r"rates must be a sequence of positive integers, got \[1, 0",
        ),
        (lambda: AdaConv(small(), rates=2), TypeError, "rates must be a sequence of positive integers, got 2"),
        (lambda: AdaConv(small(), masks="max"), ValueError, "masks must be mean or each, got 'max'"),
        (lambda: AdaConv(small(), masks="each", rates=(1, 2, 3)), ValueError, "of rates must divide the 32 channels"),
        (lambda: AdaConv(small(), size=4), ValueError, "size must be 1, 3, 5 or 7, got 4"),
        (lambda: StyleKernel(small(), gate_grad="soft"), ValueError, "gate_grad must be one of none, straight_through"),
        (lambda: SANet(small(), gate_grad="soft"), ValueError, "gate_grad must be one of none, straight_through"),
        (lambda: StyleKernel(small(), groups=4.0), TypeError, "StyleKernel: groups must be an integer, got 4.0"),
        (lambda: StyleKernel(small(), size=3.0), TypeError, "StyleKernel: size must be an integer, got 3.0"),
        (lambda: FastTransfer((8, 8)), ValueError, r"FastTransfer: channels must be 3 positive integers, got \[8, 8\]"),
        (lambda: FastTransfer(8), TypeError, "FastTransfer: channels must be 3 positive integers, got 8"),
        (lambda: FastTransfer(blocks=-1), ValueError, "FastTransfer: blocks must be an integer, at least 0, got -1"),
        (lambda: VGGClassifier(channels=(8, 8)), ValueError, r"channels must be 5 positive integers, got \[8, 8\]"),
        (lambda: VGGClassifier("a"), TypeError, "VGGClassifier: classes must be an integer, got 'a'"),
    ],
)
def test_networks_that_are_none(build: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        build()  # type: ignore[operator]


def test_files_are_read_by_others_and_hold_tied_parameters(tmp_path: Path) -> None:
    network = SANet(small())
    network.attend5 = network.attend4
    network.save(tmp_path / "network")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "network").stat().st_mode == (tmp_path / "plain").stat().st_mode
    content, style = pictures(1, 40, 40), pictures(1, 40, 40)
    assert torch.equal(SANet.load(tmp_path / "network")(content, style), network(content, style))


def test_a_network_of_ones_own_does_not_take_the_place_of_ours(tmp_path: Path) -> None:
    theirs = type("AdaIN", (AdaIN,), {})
    theirs(small()).save(tmp_path / "network")
    assert type(AdaIN.load(tmp_path / "network")) is AdaIN and type(theirs.load(tmp_path / "network")) is theirs


def test_files_that_hold_no_network(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        AdaIN.load(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("no")
    with pytest.raises(ValueError, match="is no safetensors file"):
        AdaIN.load(tmp_path / "text")
    save_file({"x": torch.rand(2)}, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match=r"has no configuration beside its weights: AdaIN.save\(\) did not write it"):
        AdaIN.load(tmp_path / "bare.safetensors")
    for about in ("{}", "[]", "no", '{"network": "AdaIN"}'):
        save_file({"x": torch.rand(2)}, tmp_path / "foreign.safetensors", metadata={"stylekern": about})
        with pytest.raises(ValueError, match=r"foreign.safetensors has a configuration that .*save\(\) did not write"):
            AdaIN.load(tmp_path / "foreign.safetensors")


def test_numbers_of_numpy_are_saved_as_numbers(tmp_path: Path) -> None:
    network = StyleKernel(VGG(19, channels=np.array(CHANNELS)), groups=np.int64(4), alpha=np.float32(4))
    network.save(tmp_path / "network.safetensors")
    again = StyleKernel.load(tmp_path / "network.safetensors")
    content, style = pictures(1, 33, 40), pictures(1, 40, 40)
    assert torch.equal(again(content, style), network(content, style))


def test_where_a_network_cannot_be_saved_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = NETWORKS["adain"]()
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*none to save a network in"):
        network.save(tmp_path / "none" / "network.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder; name a file in it"):
        network.save(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    network.save("~/network.safetensors")
    assert (tmp_path / "network.safetensors").is_file() and AdaIN.load("~/network.safetensors").config == network.config


def test_files_that_save_did_not_write_are_refused(tmp_path: Path) -> None:
    path, config = tmp_path / "other.safetensors", NETWORKS["adain"]().config
    for about, message in (
        ({"network": "AdaIN", **config}, "other.safetensors has other weights than its configuration"),
        ({"network": ["AdaIN"]}, r"other.safetensors holds a network \['AdaIN'\], not AdaIN"),
        (
            {"network": "AdaIN", **config, "encoder": {"channels": [-1] * 5}},
            "other.safetensors has a configuration that",
        ),
    ):
        save_file({"a": torch.ones(1)}, path, metadata={"stylekern": json.dumps(about)})
        with pytest.raises(ValueError, match=message):
            AdaIN.load(path)


def test_a_save_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "network.safetensors"
    network = NETWORKS["adain"]()
    network.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(type(network), "config", property(lambda self: {"x": object()}))
    with pytest.raises(TypeError):
        network.save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_alpha_goes_from_the_content_to_the_style() -> None:
    content, style = pictures(1, 40, 40), pictures(1, 40, 40)
    for network in (AdaIN(small()), SAFIN(small())):
        none, half, full = (network(content, style, alpha=a) for a in (0.0, 0.5, 1.0))
        assert torch.equal(full, network(content, style)) and relative_error(none, full) > 1e-5
        assert relative_error(half, none) > 1e-5 and relative_error(half, full) > 1e-5
        with pytest.raises(ValueError, match=f"{type(network).__name__}: alpha must be finite, got nan"):
            network(content, style, alpha=float("nan"))
        with pytest.raises(TypeError, match="alpha must be a number, got Tensor"):
            network(content, style, alpha=torch.rand(1))
    adain = AdaIN(small())
    features = adain.encoder(content, ("relu4_1",))["relu4_1"]
    assert torch.allclose(adain(content, style, alpha=0.0), adain.decoder(features), atol=1e-6)


@pytest.mark.slow
def test_parameters_at_full_width() -> None:
    """Of the trained parts: decoder 3,505,219, and what each network adds to it."""
    decoder = 3_505_219
    assert _count(AdaIN()) == decoder
    assert _count(SANet()) == decoder + 2 * 4 * (512 * 512 + 512) + 512 * 512 * 9 + 512
    gate = 512 * 128 * 9 + 128 + 128 * 2 * 9 + 2
    assert _count(SANet(attention="cgm")) == _count(SANet()) + 2 * gate
    assert _count(SANet(attention="safin")) == _count(SANet()) + 2 * (512 * 512 + 512 + 2 * 512)
    assert _count(SAFIN()) == decoder + sum(5 * (c * c + c) + 2 * c for c in (256, 512))
    assert _count(StyleKernel()) == decoder + gate + 512 * 512 * 9 + 512 + 512 * 3584 + 3584
    describe = 3 * (512 * 512 * 9 + 512) + 8192 * 4608 + 4608
    predict = sum(512 * c * g * 10 + 2 * c * g + 512 * c + c for c, g in ((512, 1), (256, 2), (128, 4), (64, 8)))
    assert _count(AdaConv(attentive=False)) == decoder + describe + predict
    assert _count(AdaConv()) == decoder + describe + predict + 4 * (512 * 9 + 1)


def _count(network: StyleTransfer) -> int:
    return sum(p.numel() for p in trained(network))


@pytest.mark.slow
def test_a_network_on_vgg_16_at_full_width() -> None:
    content, style = pictures(1, 70, 65), pictures(1, 64, 80)
    assert StyleKernel(vgg16(deepest="relu4_1")).stylize(content, style).shape == content.shape

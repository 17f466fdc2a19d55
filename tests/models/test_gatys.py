"""The optimised picture: any encoder, both optimisers, all smoothings, the papers' settings."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from stylekern.encoders import VGG, Encoder, RandomMultiScale, ResNet
from stylekern.losses import ContentLoss, GramLoss, LossTerms, Smoothed
from stylekern.models import Gatys

from .networks import CHANNELS, pictures

ENCODERS = {
    "vgg": lambda: VGG(19, channels=CHANNELS),
    "resnet": lambda: ResNet(width=8),
    "random": lambda: RandomMultiScale(filters=16, size=5, levels=3),
}


def losses(gatys: Gatys, content: Tensor, style: Tensor) -> tuple[list[float], Tensor]:
    seen: list[float] = []
    picture = gatys(content, style, watch=lambda step, terms, _: seen.append(terms.total.item()))
    return seen, picture


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_twenty_steps_lower_the_loss(encoder: str, optimizer: str) -> None:
    content, style = pictures(1, 48, 56), pictures(1, 64, 40, 12)
    gatys = Gatys(ENCODERS[encoder](), optimizer=optimizer, steps=20)
    seen, picture = losses(gatys, content, style)
    assert len(seen) == 20 and seen[-1] < 0.8 * seen[0]
    assert picture.shape == content.shape and not picture.requires_grad
    assert picture.min() >= 0 and picture.max() <= 1
    assert all(p.grad is None for p in gatys.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
@pytest.mark.parametrize("encoder", [VGG, ResNet])
def test_twenty_steps_at_full_width(encoder: type[Encoder], optimizer: str) -> None:
    content, style = pictures(1, 64, 64), pictures(1, 64, 64, 12)
    seen, _ = losses(Gatys(encoder(), optimizer=optimizer, steps=20), content, style)
    assert seen[-1] < 0.8 * seen[0]


@pytest.mark.parametrize("smoothing", ["softmax", "tanh", "softsign", "scale"])
def test_swag_with_every_smoothing(smoothing: str) -> None:
    content, style = pictures(1, 64, 64), pictures(1, 64, 64, 12)
    gatys = Gatys.preset("swag", ENCODERS["resnet"](), smoothing=smoothing, optimizer="adam", steps=20)
    seen, _ = losses(gatys, content, style)
    assert seen[-1] < 0.8 * seen[0]
    assert isinstance(gatys.loss.style_loss, Smoothed) and isinstance(gatys.loss.content_loss, Smoothed)
    assert gatys.loss.style_weight == 1e12 and gatys.loss.content_weight == 1
    assert set(gatys.loss.style) == {f"layer{s}.{b}" for s, n in ((2, 4), (3, 6)) for b in range(n)}


def test_the_papers_settings() -> None:
    vgg = ENCODERS["vgg"]()
    artistic, daytime, report = (Gatys.preset(name, vgg) for name in ("artistic", "daytime", "report"))
    assert (artistic.optimizer, artistic.lr, artistic.steps, artistic.init) == ("lbfgs", 1.0, 400, "content")
    assert (artistic.loss.content_weight, artistic.loss.style_weight) == (1.0, 1000.0)
    assert artistic.loss.content == {"conv4_1": 1.0}
    assert artistic.loss.style == {f"conv{i}_1": 1.0 for i in range(1, 6)}
    assert daytime.loss.style == artistic.loss.style | {"conv1_1": 5.0} and daytime.loss.style_weight == 1.0
    assert (report.optimizer, report.lr, report.steps) == ("adam", 0.02, 5000)
    assert (report.loss.content_weight, report.loss.style_weight) == (0.01, 5.0)
    assert Gatys.preset("report", vgg, steps=7, init="noise").steps == 7
    with pytest.raises(ValueError, match="preset must be one of artistic, daytime, swag, report, got 'night'"):
        Gatys.preset("night", vgg)


def test_the_loss_is_equations_1_to_4() -> None:
    vgg = ENCODERS["vgg"]().double()
    content, style, picture = (pictures(1, 32, 48).double() for _ in range(3))
    gatys = Gatys.preset("artistic", vgg)
    gatys.loss.set_content(content)
    gatys.loss.set_style(style)
    taps = [f"conv{i}_1" for i in range(1, 6)]
    i, c, s = (vgg(x, taps) for x in (picture, content, style))
    total = (i["conv4_1"] - c["conv4_1"]).square().sum()
    for tap in taps:
        grams = [x[tap].flatten(2)[0] @ x[tap].flatten(2)[0].T for x in (i, s)]
        total = total + 1000 * (grams[0] - grams[1]).square().sum()
    assert torch.allclose(gatys.loss(picture).total, total)


def test_noise_is_of_the_seed_and_a_batch_has_one_style() -> None:
    content, style = pictures(2, 40, 40), pictures(1, 40, 40)
    gatys = [Gatys(ENCODERS["random"](), init="noise", seed=seed, steps=3) for seed in (0, 0, 1)]
    first, again, other = (g(content, style) for g in gatys)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(gatys[0].start(content), gatys[1].start(content))


def test_watch_sees_every_evaluation_and_what_it_raises_ends_it() -> None:
    content, style = pictures(1, 40, 40), pictures(1, 40, 40)
    gatys, steps = Gatys(ENCODERS["random"](), steps=9), []
    gatys.loss.set_content(content)
    gatys.loss.set_style(style)

    class Enough(Exception):
        pass

    def watch(step: int, terms: LossTerms, picture: Tensor) -> None:
        steps.append(step)
        assert not terms.total.requires_grad and not picture.requires_grad and picture.shape == content.shape
        with torch.no_grad():
            assert torch.allclose(gatys.loss(picture).total, terms.total)
        if step == 4:
            raise Enough

    with pytest.raises(Enough):
        gatys(content, style, watch=watch)
    assert steps == [0, 1, 2, 3, 4]


def test_taps_and_losses_of_ones_own() -> None:
    content, style = pictures(1, 40, 40), pictures(1, 40, 40)
    gatys = Gatys(
        ENCODERS["vgg"](),
        content={"relu2_1": 2.0},
        style={"relu1_1": 1.0, "relu3_1": 0.5},
        content_loss=ContentLoss("chw"),
        style_loss=GramLoss("gatys"),
        variation_weight=1e-2,
        steps=5,
    )
    seen, _ = losses(gatys, content, style)
    assert seen[-1] < seen[0]
    with pytest.raises(ValueError, match=r"taps must be among .*; got relu7_1"):
        Gatys(ENCODERS["vgg"](), style={"relu7_1": 1.0})(content, style)


def test_the_picture_of_the_lowest_loss_is_kept() -> None:
    content, style = pictures(1, 48, 48), torch.rand(1, 3, 48, 48)
    gatys = Gatys(ENCODERS["random"](), lr=30.0, optimizer="adam", steps=15)  # a rate that overshoots
    seen, picture = losses(gatys, content, style)
    assert seen[-1] > min(seen)
    gatys.loss.set_content(content)
    gatys.loss.set_style(style)
    with torch.no_grad():
        found = gatys.loss(picture).total.item()  # cut to [0, 1], so about
    assert found <= 1.5 * min(seen)


def test_pictures_in_any_layout_and_in_inference_mode() -> None:
    content, style = pictures(1, 40, 44), pictures(1, 40, 40)
    gatys = Gatys(ENCODERS["random"](), steps=4)
    truth = gatys(content, style)
    last = content.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(gatys(last, style), truth, atol=1e-4)
    with torch.inference_mode():
        assert torch.allclose(gatys(content * 1, style * 1), truth, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(gatys(content, style), truth)


def test_encoders_without_usual_taps_ask_for_them() -> None:
    short = ResNet(width=8, deepest="layer1.0")
    with pytest.raises(ValueError, match=r"no usual taps for this ResNet.*name them with content= and style="):
        Gatys(short)
    Gatys(short, content={"relu": 1.0}, style={"layer1.0": 1.0}, steps=2)(pictures(1, 40, 40), pictures(1, 40, 40))
    with pytest.raises(ValueError, match=r"the preset swag is for .*ResNet.*, got VGG"):
        Gatys.preset("swag", ENCODERS["vgg"]())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"optimizer": "sgd"}, "optimizer must be one of lbfgs, adam, got 'sgd'"),
        ({"init": "style"}, "init must be one of content, noise, got 'style'"),
        ({"steps": 0}, "steps must be at least 1 and lr positive, got steps=0"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"smoothing": "relu"}, "softmax, tanh, softsign, scale"),
    ],
)
def test_bad_settings(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Gatys(**arguments)  # type: ignore[arg-type]


def small(**settings: Any) -> Gatys:
    return Gatys(RandomMultiScale(filters=8, size=5, levels=3), **settings)


def test_a_texture_has_no_content() -> None:
    flat, style = torch.full((1, 3, 32, 40), 0.5), pictures(1, 40, 32, 12)
    seen, picture = losses(small(content={}, init="noise", steps=20), flat, style)
    assert picture.shape == flat.shape and seen[-1] < 0.5 * seen[0]
    content = pictures(1, 32, 40)
    assert losses(small(style={}, init="noise", steps=5), content, style)[1].shape == content.shape


def test_where_nothing_is_better_than_the_start_a_warning_says_so() -> None:
    flat = torch.full((1, 3, 32, 32), 0.5)
    with pytest.warns(RuntimeWarning, match="of 3 evaluations none was better than the first"):
        assert torch.equal(small(steps=3)(flat, pictures(1, 32, 32)), flat)


def test_a_picture_in_its_own_style_needs_no_step() -> None:
    content = pictures(1, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(small(steps=3)(content, content), content)


def test_a_start_without_a_finite_loss_is_refused() -> None:
    content, style = pictures(1, 32, 32), pictures(1, 32, 32, 12)
    with pytest.raises(ValueError, match="must be finite where it starts, got total nan, content 0, style"):
        small()(content, style * torch.nan)


def test_what_would_fail_later_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="style must be one picture or as many as content, 2, got 3"):
        small()(torch.rand(2, 3, 16, 16), torch.rand(3, 3, 16, 16))
    with pytest.raises(TypeError, match=r"steps must be an integer, got 2\.5"):
        small(steps=2.5)
    with pytest.raises(TypeError, match=r"content\.float\(\) / 255"):
        small()(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_threads_may_share_one(optimizer: str) -> None:
    gatys = Gatys(ENCODERS["random"](), optimizer=optimizer, steps=6)
    jobs = [(pictures(1, 24, 24), pictures(1, 32, 24)) for _ in range(4)]
    alone = [gatys(*job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: gatys(*job), jobs))
    assert all(map(torch.equal, alone, together))


def test_it_is_built_in_inference_mode_too() -> None:
    content, style = pictures(1, 24, 24), pictures(1, 24, 24)
    with torch.inference_mode():
        picture = Gatys(steps=2)(content, style)
    assert torch.equal(picture, Gatys(steps=2)(content, style))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": "1"}, TypeError, "Gatys: lr must be a number, got str"),
        ({"lr": float("inf")}, ValueError, "Gatys: lr must be finite, got inf"),
        ({"seed": 1.5}, TypeError, "Gatys: seed must be an integer, got 1.5"),
        ({"style_weight": "10"}, TypeError, "PerceptualLoss: style_weight must be a number, got str"),
        ({"content_weight": float("nan")}, ValueError, "PerceptualLoss: content_weight must be finite, got nan"),
        ({"content": {"conv4_1": "1"}}, TypeError, r"PerceptualLoss: content\['conv4_1'\] must be a number, got str"),
    ],
)
def test_numbers_that_are_none_are_refused_when_it_is_built(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Gatys(ENCODERS["vgg"](), **options)

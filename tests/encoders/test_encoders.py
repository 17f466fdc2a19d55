"""Every encoder hands out named features of one pass, of pictures of any size, and is fixed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylekern.encoders import VGG, Encoder, RandomMultiScale, ResNet, resnet50, vgg16, vgg19

SMALL = (4, 6, 8, 10, 12)
ENCODERS: dict[str, Callable[[], Encoder]] = {
    "vgg16": lambda: VGG(16, channels=SMALL),
    "vgg19": lambda: VGG(19, channels=SMALL),
    "vgg19-normalised": lambda: VGG(19, channels=SMALL, layout="normalised"),
    "vgg19-caffe-average": lambda: VGG(19, channels=SMALL, layout="caffe", pooling="average"),
    "resnet": lambda: ResNet(width=4),
    "random": lambda: RandomMultiScale(filters=5, size=3),
}


@pytest.fixture(params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return ENCODERS[request.param]()


def pictures(n: int = 2, h: int = 37, w: int = 50) -> Tensor:
    return torch.rand(n, 3, h, w)


def test_every_tap_has_its_channels_and_a_pass_for_all_equals_one_for_each(encoder: Encoder) -> None:
    images = pictures()
    features = encoder(images, encoder.taps)
    assert tuple(features) == encoder.taps
    for tap, x in features.items():
        assert x.shape[:2] == (2, encoder.channels[tap])
        assert torch.equal(encoder(images, [tap])[tap], x)
    assert len({x.data_ptr() for x in features.values()}) == len(features)  # none is overwritten by the next


def test_order_is_the_order_asked_for(encoder: Encoder) -> None:
    asked = (encoder.taps[3], encoder.taps[0])
    assert tuple(encoder(pictures(), asked)) == asked


def test_a_pass_ends_at_the_deepest_tap(encoder: Encoder) -> None:
    taps = []
    layers = type(encoder).layers

    def watched(self: Encoder, images: Tensor) -> object:
        for tap, x in layers(self, images):
            taps.append(tap)
            yield tap, x

    type(encoder).layers = watched  # type: ignore[method-assign, assignment]
    try:
        encoder(pictures(), [encoder.taps[1], encoder.taps[2]])
    finally:
        type(encoder).layers = layers  # type: ignore[method-assign]
    assert taps == list(encoder.taps[:3])


def test_it_is_fixed_but_hands_gradients_to_the_pictures(encoder: Encoder) -> None:
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not nn.Sequential(encoder).train()[0].training
    images = pictures().requires_grad_()
    (grad,) = torch.autograd.grad(encoder(images, encoder.taps[-1:])[encoder.taps[-1]].square().sum(), images)
    assert grad.abs().sum() > 0


def test_config_builds_the_same_structure(encoder: Encoder) -> None:
    other = type(encoder)(**encoder.config)
    other.load_state_dict(encoder.state_dict())
    images, tap = pictures(), encoder.taps[-1]
    assert torch.equal(other(images, [tap])[tap], encoder(images, [tap])[tap])


def test_weights_are_of_the_seed_alone(encoder: Encoder) -> None:
    first, again = (type(encoder)(**encoder.config | {"seed": 3}).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], x) for key, x in encoder.state_dict().items())


def test_under_compile_export_and_autocast(encoder: Encoder) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, images: Tensor) -> Tensor:
            features: Tensor = self.encoder(images, encoder.taps[-2:])[encoder.taps[-1]]
            return features

    images, model = pictures(), Last()
    truth = model(images)
    assert torch.allclose(torch.compile(model, backend="eager", fullgraph=True)(images), truth)
    assert torch.allclose(torch.export.export(model, (images,)).module()(images), truth)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.cosine_similarity(model(images).float().flatten(), truth.flatten(), dim=0) > 0.99


@pytest.mark.parametrize(
    ("images", "taps", "error", "words"),
    [
        (torch.rand(1, 3, 64, 64), "relu1_1", TypeError, "sequence of names, got the one string 'relu1_1'"),
        (torch.rand(1, 3, 64, 64), ["relu9_9"], ValueError, "must be among .*; got relu9_9"),
        (torch.rand(1, 3, 64, 64), [], ValueError, "got none"),
        (torch.rand(3, 64, 64), None, ValueError, r"must be RGB, \[N, 3, H, W\], got \[3, 64, 64\]"),
        (torch.rand(1, 1, 64, 64), None, ValueError, r"got \[1, 1, 64, 64\]"),
        (torch.rand(1, 3, 0, 64), None, ValueError, r"got \[1, 3, 0, 64\]"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), None, TypeError, r"values in \[0, 1\], got torch.uint8"),
        (None, None, TypeError, "got NoneType"),
    ],
)
def test_bad_input(encoder: Encoder, images: Tensor, taps: list[str], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        encoder(images, encoder.taps[:1] if taps is None else taps)


def test_pictures_too_small_for_a_tap_are_named() -> None:
    with pytest.raises(ValueError, match=r"too small for pool3: nothing is left of \[1, 8, 1, 4\]"):
        VGG(channels=SMALL)(torch.rand(1, 3, 4, 16), ["pool5"])
    with pytest.raises(ValueError, match=r"too small for conv4_1: .* cannot be reflected"):
        VGG(channels=SMALL, layout="normalised")(torch.rand(1, 3, 8, 16), ["pool5"])
    assert RandomMultiScale(filters=2, size=3)(torch.rand(1, 3, 1, 1), ["scale5"])["scale5"].shape == (1, 2, 1, 1)


def test_sizes_of_the_original_networks() -> None:
    """Parameters of the convolutions alone, as torchvision's models without their classifiers have them."""
    counts = {vgg16: 14_714_688, vgg19: 20_024_384, resnet50: 23_508_032}
    for build, count in counts.items():
        assert sum(p.numel() for p in build().parameters()) == count
    assert vgg19(deepest="relu4_1").channels["relu4_1"] == 512 and resnet50().channels["layer3.2"] == 1024


def test_advance_goes_on_from_a_tap() -> None:
    encoder, images = VGG(channels=SMALL), pictures()
    truth = encoder(images, ["pool2", "relu4_1"])
    first = encoder.advance(encoder.preprocess(images), ["pool2"])
    assert torch.equal(first["pool2"], truth["pool2"])
    assert torch.equal(encoder.advance(first["pool2"], ["relu4_1"], after="pool2")["relu4_1"], truth["relu4_1"])
    with pytest.raises(ValueError, match=r"taps behind pool2 are conv3_1.*; got relu1_1"):
        encoder.advance(first["pool2"], ["relu1_1"], after="pool2")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"depth": 11}, "depth must be one of 16, 19, got 11"),
        ({"layout": "keras"}, "layout must be one of torchvision, caffe, normalised, got 'keras'"),
        ({"pooling": "min"}, "pooling must be max or average"),
        ({"channels": (3, 4)}, r"channels must be 5 positive integers, got \[3, 4\]"),
        ({"channels": (8, 8, 0, 8, 8)}, "channels must be 5 positive integers"),
        ({"deepest": "relu6_1"}, "deepest must be one of conv1_1"),
    ],
)
def test_vgg_that_is_none(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VGG(**arguments)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="VGG: channels must be 5 positive integers, got 8"):
        VGG(channels=8)  # type: ignore[arg-type]


def test_resnet_and_random_that_are_none() -> None:
    with pytest.raises(ValueError, match="ResNet: width must be positive, got 0"):
        ResNet(width=0)
    with pytest.raises(ValueError, match="ResNet: deepest must be one of conv1"):
        ResNet(deepest="layer9.1")
    with pytest.raises(TypeError, match=r"ResNet: width must be an integer, got 8\.5"):
        ResNet(width=8.5)  # type: ignore[arg-type]
    for size in (4, 1):
        with pytest.raises(ValueError, match=f"RandomMultiScale: size must be odd and above 1, got {size}"):
            RandomMultiScale(size=size)
    for name in ("filters", "size", "levels"):
        with pytest.raises(ValueError, match=f"RandomMultiScale: {name} must be positive, got 0"):
            RandomMultiScale(**{name: 0})
        with pytest.raises(TypeError, match=f"RandomMultiScale: {name} must be an integer, got 3.0"):
            RandomMultiScale(**{name: 3.0})  # type: ignore[arg-type]


def test_random_filters_see_no_plain_surface_and_keep_the_variance_of_noise() -> None:
    encoder = RandomMultiScale()
    plain = encoder(torch.rand(1, 3, 1, 1).expand(1, 3, 64, 64), encoder.taps)
    assert all(x.abs().max() < 1e-5 for x in plain.values())
    noise = torch.randn(1, 3, 128, 128)
    assert 0.45 < encoder(noise, ["scale1"])["scale1"].square().mean() < 0.55  # a ReLU keeps half


def test_random_filters_are_of_float32_whatever_the_default(request: pytest.FixtureRequest) -> None:
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    torch.set_default_dtype(torch.float64)
    encoder, picture = RandomMultiScale(filters=4, size=3, levels=2), torch.rand(1, 3, 16, 16, dtype=torch.float32)
    assert encoder(picture, ["scale2"])["scale2"].dtype == torch.float32

"""The discriminator is pix2pixHD's, at any size that is large enough; its losses are their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylekern.losses import AdversarialLoss, MultiScaleDiscriminator
from tests.losses.common import assert_equal
from tests.ops.cases import relative_error


def by_hand(discriminator: nn.Module, x: Tensor) -> Tensor:
    """One scale's network with three layers of stride 2, written out."""
    convs = [part for part in discriminator.modules() if isinstance(part, nn.Conv2d)]
    assert len(convs) == 5
    x = F.leaky_relu(F.conv2d(x, convs[0].weight, convs[0].bias, stride=2, padding=2), 0.2)
    for conv, stride in ((convs[1], 2), (convs[2], 2), (convs[3], 1)):
        x = F.conv2d(x, conv.weight, conv.bias, stride=stride, padding=2)
        x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
        x = F.leaky_relu(x, 0.2)
    return F.conv2d(x, convs[4].weight, convs[4].bias, padding=2)


def halved(x: Tensor) -> Tensor:
    """Averages over the 3 x 3 pixels around every other one, of those that there are."""
    n, c, h, w = x.shape
    rows = [slice(max(i - 1, 0), i + 2) for i in range(0, h, 2)]
    columns = [slice(max(j - 1, 0), j + 2) for j in range(0, w, 2)]
    return torch.stack([x[:, :, i, j].mean((2, 3)) for i in rows for j in columns], 2).view(n, c, len(rows), -1)


def test_each_scale_has_its_own_network_on_a_smaller_picture() -> None:
    model = MultiScaleDiscriminator(channels=4).double()
    x = torch.rand(2, 3, 40, 33, dtype=torch.float64)
    scores = model(x)
    assert len(scores) == 3
    for given, discriminator in zip(scores, model.discriminators, strict=True):
        assert given.shape[:2] == (2, 1)
        assert relative_error(given, by_hand(discriminator, x)) < 1e-10
        x = halved(x)


def test_channels_double_up_to_512_and_weights_start_small() -> None:
    convs = [m for m in MultiScaleDiscriminator(scales=1).modules() if isinstance(m, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [64, 128, 256, 512, 1]
    assert abs(convs[2].weight.std().item() - 0.02) < 1e-3
    wide = [m for m in MultiScaleDiscriminator(1, 256, 2).modules() if isinstance(m, nn.Conv2d)]
    assert [conv.out_channels for conv in wide] == [256, 512, 512, 1]
    assert [conv.stride[0] for conv in wide] == [2, 2, 1, 1]


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_the_least_size_works_and_less_is_refused(scales: int) -> None:
    model = MultiScaleDiscriminator(scales, channels=2)
    least = 2 ** (scales - 1) + 1
    assert all(score.isfinite().all() for score in model(torch.rand(1, 3, least, least)))
    with pytest.raises(ValueError, match=rf"at least {least} x {least} for {scales} scales, got .* use fewer scales"):
        model(torch.rand(1, 3, 64, least - 1))


def test_gradients_reach_every_parameter() -> None:
    model = MultiScaleDiscriminator(channels=4)
    loss = AdversarialLoss("hinge").discriminator(model(torch.rand(2, 3, 32, 32)), model(torch.rand(2, 3, 32, 32)))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if name.endswith("weight"):  # of the biases, instance normalisation takes all but the first and the last
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", ["least_squares", "hinge"])
def test_the_losses_are_their_formulas(kind: str) -> None:
    real = [torch.randn(2, 1, 3, 4, dtype=torch.float64), torch.randn(2, 1, 2, 2, dtype=torch.float64)]
    fake = [torch.randn_like(scores) for scores in real]
    generator = discriminator = 0.0
    for r, f in zip(real, fake, strict=True):
        rs, fs = r.flatten().tolist(), f.flatten().tolist()
        if kind == "hinge":
            generator -= sum(fs) / len(fs)
            discriminator += sum(max(0, 1 - v) for v in rs) / len(rs) + sum(max(0, 1 + v) for v in fs) / len(fs)
        else:
            generator += sum((v - 1) ** 2 for v in fs) / len(fs)
            discriminator += (sum((v - 1) ** 2 for v in rs) / len(rs) + sum(v * v for v in fs) / len(fs)) / 2
    loss = AdversarialLoss(kind)
    assert abs(loss.generator(fake).item() - generator) < 1e-12
    assert abs(loss.discriminator(real, fake).item() - discriminator) < 1e-12
    assert_equal(loss.generator(fake[0]), loss.generator(fake[:1]))
    assert loss.generator([scores.half() for scores in fake]).dtype == torch.float32


@pytest.mark.parametrize("kind", ["least_squares", "hinge"])
def test_a_discriminator_learns_and_a_generator_follows(kind: str) -> None:
    model, loss = MultiScaleDiscriminator(scales=2, channels=4, layers=2), AdversarialLoss(kind)
    real, fake = torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16).round()
    optimizer, before = torch.optim.Adam(model.parameters(), lr=2e-3), loss.discriminator(model(real), model(fake))
    for _ in range(30):
        optimizer.zero_grad()
        loss.discriminator(model(real), model(fake)).backward()
        optimizer.step()
    assert loss.discriminator(model(real), model(fake)) < 0.7 * before
    assert loss.generator(model(real)) < loss.generator(model(fake))


def test_bad_input_is_refused() -> None:
    scores = [torch.rand(1, 1, 2, 2)]
    with pytest.raises(ValueError, match="kind must be one of least_squares, hinge, got 'wgan'"):
        AdversarialLoss("wgan")
    with pytest.raises(ValueError, match="must be of as many scales, got 1 and 2"):
        AdversarialLoss().discriminator(scores, scores * 2)
    with pytest.raises(ValueError, match="fake_scores must hold at least one map of scores, got none"):
        AdversarialLoss().generator([])
    with pytest.raises(ValueError, match="scales must be positive, got 0"):
        MultiScaleDiscriminator(0)
    with pytest.raises(TypeError, match="layers must be an integer, got '3'"):
        MultiScaleDiscriminator(layers="3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"images must be RGB \[N, 3, H, W\] in \[0, 1\], got \[1, 1, 32, 32\]"):
        MultiScaleDiscriminator(channels=2)(torch.rand(1, 1, 32, 32))

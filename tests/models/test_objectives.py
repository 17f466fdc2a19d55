"""The training losses are their papers' sums, written out in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stylekern.losses import GramLoss, MultiScaleDiscriminator, REMDLoss
from stylekern.models import (
    SAFIN,
    AdaConv,
    AdaConvObjective,
    AdaIN,
    AdaINObjective,
    SAFINObjective,
    SANet,
    SANetObjective,
    StyleKernel,
    StyleKernelObjective,
)

from .networks import pictures, small
from .test_equations import mean_and_deviation, norm

TAPS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")


def pair() -> tuple[Tensor, Tensor]:
    return pictures(1, 48, 48).double(), pictures(1, 48, 64).double()


def statistics(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of means and of deviations."""
    (m, d), (n, e) = mean_and_deviation(x), mean_and_deviation(y)
    return (m - n).flatten(), (d - e).flatten()


def test_adain_equations_10_to_12() -> None:
    network = AdaIN(small()).double()
    content, style = pair()
    terms = AdaINObjective(style_weight=7.0)(network, content, style)
    c, s = (network.encoder(x, TAPS) for x in (content, style))
    target = network.transfer(c["relu4_1"], s["relu4_1"])
    again = network.encoder(network(content, style), TAPS)
    distance = (again["relu4_1"] - target).square().sum().sqrt()
    styles = sum(x.square().sum().sqrt() for tap in TAPS for x in statistics(again[tap], s[tap]))
    assert torch.allclose(terms["content"], distance) and torch.allclose(terms["style"], styles)
    assert torch.allclose(terms["total"], distance + 7 * styles)


def test_safin_section_3_4() -> None:
    network = SAFIN(small()).double()
    content, style = pair()
    terms = SAFINObjective()(network, content, style)
    again, c, s = (network.low_path(x)[0] for x in (network(content, style), content, style))
    distance = (again["relu4_1"] - c["relu4_1"]).square().sum().sqrt()
    styles = sum(x.square().sum().sqrt() for tap in TAPS for x in statistics(again[tap], s[tap]))
    assert torch.allclose(terms["total"], distance + 10 * styles)


def test_sanet_section_3_3() -> None:
    network = SANet(small()).double()
    content, style = pair()
    terms = SANetObjective()(network, content, style)
    taps = (*TAPS, "relu5_1")
    again, c, s = (network.encoder(x, taps) for x in (network(content, style), content, style))
    contents = sum((norm(again[tap]) - norm(c[tap])).square().mean() for tap in taps[3:])
    styles = sum(x.square().mean() for tap in taps for x in statistics(again[tap], s[tap]))
    identities = [(network(x, x), x) for x in (content, style)]
    colours = sum((y - x).square().mean() for y, x in identities)
    features = sum(
        (network.encoder(y, taps)[tap] - network.encoder(x, taps)[tap]).square().mean()
        for y, x in identities
        for tap in taps
    )
    assert torch.allclose(terms["total"], contents + 3 * styles + 50 * colours + features)


@pytest.mark.parametrize("kind", ["hybrid", "moments"])
def test_adaconv_section_4(kind: str) -> None:
    network = AdaConv(small()).double()
    content, style = pair()
    terms = AdaConvObjective(kind, alpha=2.0, content=3.0, style=0.5)(network, content, style)
    again, c, s = (network.encoder(x, TAPS) for x in (network(content, style), content, style))

    def moments(tap: str) -> Tensor:
        x, y = again[tap].flatten(2)[0], s[tap].flatten(2)[0]
        a, b = (z - z.mean(1, keepdim=True) for z in (x, y))
        covariances = [z @ z.T / z.shape[1] for z in (a, b)]
        return (x.mean(1) - y.mean(1)).abs().mean() + (covariances[0] - covariances[1]).abs().mean()

    if kind == "moments":
        truth = sum(moments(tap) for tap in TAPS)
    else:
        x, y = again["relu4_1"], c["relu4_1"]
        remd = REMDLoss().between(x, s["relu4_1"])
        maps = []
        for z in (x, y):
            rows = torch.nn.functional.normalize(z.flatten(2)[0].T, dim=1)
            distance = 1 - rows @ rows.T
            maps.append(distance / distance.sum(0, keepdim=True))
        similarity = (maps[0] - maps[1]).abs().sum() / maps[0].shape[0]  # per column, STROTSS's own scale
        truth = (2 * moments("relu4_1") + similarity + remd / 2) / 3.5
    assert torch.allclose(terms["style"], truth)
    mse = (again["relu4_1"] - c["relu4_1"]).square().mean()
    assert torch.allclose(terms["content"], mse) and torch.allclose(terms["total"], 3 * mse + 0.5 * truth)


def test_style_kernel_equations_7_to_9() -> None:
    network = StyleKernel(small()).double()
    content, style = pair()
    discriminator = MultiScaleDiscriminator(2, 8, 2).double()
    terms = StyleKernelObjective()(network, content, style, discriminator)
    taps = ("relu1_2", "relu2_1", "relu2_2", "relu3_1", "relu3_3", "relu4_1", "relu4_3", "relu5_1")
    again, c, s = (network.encoder(x, taps) for x in (network(content, style), content, style))
    contents = sum((norm(again[tap]) - norm(c[tap])).square().mean() for tap in ("relu4_1", "relu5_1"))
    layers = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
    styles = sum(GramLoss("chw").between(again[tap], s[tap]) for tap in layers)
    rebuilt = torch.zeros(())
    for x in (content, style):
        y = network(x, x)
        a, b = (network.encoder(z, taps) for z in (y, x))
        rebuilt = rebuilt + 20 * (y - x).square().sum().sqrt()
        for tap in ("relu2_1", "relu3_1", "relu4_1", "relu5_1"):
            rebuilt = rebuilt + 0.5 * (a[tap] - b[tap]).square().sum().sqrt()
    convolved, aligned = network.transfer(c["relu4_1"], s["relu4_1"])
    remd = REMDLoss().between(convolved, s["relu4_1"])
    adversarial = sum((scores - 1).square().mean() for scores in discriminator(network(content, style)))
    truth = adversarial + rebuilt + contents + styles + 3 * remd
    assert torch.allclose(terms["total"], truth) and set(terms) == {
        "total", "adversarial", "reconstruction", "content", "style", "remd"
    }  # fmt: skip
    of_aligned = StyleKernelObjective(remd_of="aligned", weights={"remd": 0.0})(network, content, style)
    assert torch.allclose(of_aligned["remd"], REMDLoss().between(aligned, s["relu4_1"]))
    assert torch.allclose(of_aligned["total"], rebuilt + contents + styles)


def test_the_discriminator_learns_from_pictures_without_a_gradient_for_the_network() -> None:
    network, discriminator = StyleKernel(small()), MultiScaleDiscriminator(2, 8, 2)
    content, style = (x.float() for x in pair())
    loss = StyleKernelObjective().discriminator(discriminator, network, content, style)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in discriminator.parameters() if p.dim() > 1)
    assert all(p.grad is None for p in network.parameters())
    real, fake = discriminator(style), discriminator(network(content, style))
    truth = sum(((r - 1).square().mean() + f.square().mean()) / 2 for r, f in zip(real, fake, strict=True))
    assert torch.allclose(loss, truth)


def test_objectives_that_are_none() -> None:
    with pytest.raises(ValueError, match="kind must be hybrid or moments, got 'gram'"):
        AdaConvObjective("gram")
    with pytest.raises(ValueError, match="remd_of must be convolved or aligned"):
        StyleKernelObjective(remd_of="content")
    with pytest.raises(ValueError, match=r"weights are of adversarial, .*; got gram"):
        StyleKernelObjective(weights={"gram": 1.0})
    with pytest.raises(TypeError, match=r'weights must map terms to numbers, such as \{"remd": 1.0\}, got float'):
        StyleKernelObjective(weights=3.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="StyleKernelObjective: the weight of remd must be a number, got str"):
        StyleKernelObjective(weights={"remd": "3"})  # type: ignore[dict-item]
    for objective in (AdaINObjective, SAFINObjective, SANetObjective, AdaConvObjective):
        term = "style_weight" if objective is AdaINObjective else "style"
        with pytest.raises(ValueError, match=f"{objective.__name__}: the weight of style must be finite, got nan"):
            objective(**{term: float("nan")})
    network = StyleKernel(small("relu4_1"))
    with pytest.raises(ValueError, match=r"the encoder must reach relu5_1, but ends at relu4_1; .* vgg19\(deepest="):
        StyleKernelObjective()(network, pictures(1, 48, 48), pictures(1, 48, 48))
    assert "total" in StyleKernelObjective(small())(network, pictures(1, 48, 48), pictures(1, 48, 48))

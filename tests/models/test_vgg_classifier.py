"""The classifier that becomes an encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylekern.encoders import vgg19
from stylekern.models import Gatys, VGGClassifier

from .networks import CHANNELS, pictures


def small(classes: int = 5) -> VGGClassifier:
    return VGGClassifier(classes, channels=CHANNELS, hidden=32, pooled=2)


def test_it_is_the_sequence_of_the_report() -> None:
    model = VGGClassifier(channels=CHANNELS)
    kinds = [type(m).__name__ for m in model.modules()]
    counts = {"Conv2d": 16, "MaxPool2d": 4, "AdaptiveAvgPool2d": 1, "Linear": 3, "Dropout": 2, "ReLU": 18}
    assert isinstance(model, nn.Sequential) and {kind: kinds.count(kind) for kind in counts} == counts
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 100)
    assert [type(part) for part in model[1:3]] == [nn.AdaptiveAvgPool2d, nn.Flatten] and model[0] is model.features


def test_kaiming_weights_keep_the_signal() -> None:
    torch.manual_seed(0)
    features = VGGClassifier(channels=(64, 64, 64, 64, 64), hidden=8).features(torch.randn(1, 3, 64, 64))
    assert 0.1 < features.square().mean() < 10
    assert all((m.bias == 0).all() for m in small().modules() if isinstance(m, nn.Conv2d | nn.Linear))


def test_it_learns_with_the_reports_recipe() -> None:
    """Cross-entropy, AdamW, ReduceLROnPlateau, autocast: two kinds of pictures are told apart."""
    model = VGGClassifier(2, channels=CHANNELS, hidden=256, pooled=2).train()  # of 32, dropout leaves too few to learn
    images = torch.cat([torch.rand(8, 3, 32, 32), pictures(8, 32, 32, 3)])
    labels = torch.tensor([0] * 8 + [1] * 8)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-4)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    losses, reached, names = [], set(), {name for name, _ in model.named_parameters()}
    for _ in range(60):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        got = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        # bfloat16's sum for the last bias may be zero in a step: there are as many pictures of each kind.
        assert names - got <= {"classifier.6.bias"}
        reached |= got
        losses.append(loss.item())
        optimizer.step()
        plateau.step(loss)
    assert reached == names
    assert losses[-1] < losses[0] / 2
    assert (model.eval()(images).argmax(1) == labels).all()


def test_parameters_at_full_width() -> None:
    """VGG-19's, with 1000 classes as many as torchvision counts."""
    for classes, count in ((1000, 143_667_240), (100, 139_979_940)):
        with torch.device("meta"):
            assert sum(p.numel() for p in VGGClassifier(classes).parameters()) == count


def test_its_convolutions_are_an_encoder(tmp_path: Path) -> None:
    model, images = small(), torch.rand(1, 3, 40, 48)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    encoder = model.encoder()
    assert torch.allclose(
        encoder(images, ["relu5_4"])["relu5_4"], model.features((images - mean) / deviation), atol=1e-5
    )
    seen: list[Tensor] = []
    Gatys(encoder, steps=10)(images, pictures(1, 48, 48), watch=lambda _, terms, __: seen.append(terms.total))
    assert seen[-1] < seen[0]
    assert next(model.double().encoder().parameters()).dtype == torch.float64
    with torch.no_grad():
        model.features[0].weight.zero_()
    assert encoder.convs["conv1_1"].weight.abs().sum() > 0  # a copy


@pytest.mark.slow
def test_a_file_of_it_is_one_of_vgg_19(tmp_path: Path) -> None:
    model = VGGClassifier(10, hidden=8)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    images = torch.rand(1, 3, 32, 40)
    encoder = vgg19(tmp_path / "own.pth")
    assert encoder.layout == "torchvision"
    assert torch.allclose(encoder(images, ["relu5_1"])["relu5_1"], model.encoder()(images, ["relu5_1"])["relu5_1"])


def test_save_and_load(tmp_path: Path) -> None:
    model, images = small().eval(), torch.rand(1, 3, 32, 32)
    model.save(tmp_path / "classifier.safetensors")
    assert torch.equal(VGGClassifier.load(tmp_path / "classifier.safetensors")(images), model(images))

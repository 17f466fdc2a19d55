"""Weights are told by their keys, checked by their hash, and mean what their own layout means."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from stylekern.encoders import ResNet, read_weights, resnet50, vgg16, vgg19

WIDTHS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, 256, "pool", 512)  # to conv4_1, of the real widths


def torchvision_vgg19() -> nn.Sequential:
    """The first layers of torchvision's VGG-19 under torchvision's keys."""
    layers: list[nn.Module] = []
    channels = 3
    for width in WIDTHS:
        if isinstance(width, int):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def normalised_vgg19() -> nn.Sequential:
    """The first layers of vgg_normalised, as its file numbers them."""
    layers: list[nn.Module] = [nn.Conv2d(3, 3, 1)]
    channels = 3
    for width in WIDTHS:
        if isinstance(width, int):
            layers += [nn.ReflectionPad2d(1), nn.Conv2d(channels, width, 3), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
    return nn.Sequential(*layers)


def features_of(model: nn.Sequential) -> dict[str, Tensor]:
    return {f"features.{key}": x for key, x in model.state_dict().items()}


def with_classifier(state: dict[str, Tensor], first: int) -> dict[str, Tensor]:
    return state | {f"classifier.{i}.weight": torch.randn(2, 2) for i in (first, first + 3, 6)}


def images() -> Tensor:
    return torch.rand(2, 3, 21, 30)


MEAN, DEVIATION = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def test_torchvision(tmp_path: Path) -> None:
    model, x = torchvision_vgg19(), images()
    torch.save(with_classifier(features_of(model), 0), tmp_path / "vgg.pth")
    encoder = vgg19(tmp_path / "vgg.pth")
    assert encoder.layout == "torchvision" and encoder.taps[-1] == "relu4_1"
    with torch.no_grad():
        assert torch.allclose(encoder(x, ["relu4_1"])["relu4_1"], model((x - MEAN) / DEVIATION), atol=1e-5)


def test_caffe(tmp_path: Path) -> None:
    model, x = torchvision_vgg19(), images()
    torch.save(with_classifier(features_of(model), 1), tmp_path / "caffe.pth")
    encoder = vgg19(tmp_path / "caffe.pth")
    assert encoder.layout == "caffe"
    given = x[:, [2, 1, 0]] * 255 - torch.tensor([103.939, 116.779, 123.68]).view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(encoder(x, ["relu4_1"])["relu4_1"], model(given), rtol=1e-4, atol=1e-3)
    torch.save(features_of(model), tmp_path / "features.pth")
    assert vgg19(tmp_path / "features.pth").layout == "torchvision"
    assert vgg19(tmp_path / "features.pth", layout="caffe").layout == "caffe"


def test_vgg_normalised(tmp_path: Path) -> None:
    model, x = normalised_vgg19(), images()
    save_file(model.state_dict(), tmp_path / "vgg_normalised.safetensors")
    encoder = vgg19(tmp_path / "vgg_normalised.safetensors")
    assert encoder.layout == "normalised" and encoder.taps[-1] == "relu4_1"
    with torch.no_grad():
        y = encoder(x, ["relu4_1"])["relu4_1"]
        assert y.shape[2:] == (3, 4)  # pools round up
        assert torch.allclose(y, model(x), atol=1e-5)
    with pytest.raises(ValueError, match="has the layout normalised, not torchvision"):
        vgg19(tmp_path / "vgg_normalised.safetensors", layout="torchvision")


def test_places_in_the_files_of_the_papers() -> None:
    """relu4_1 ends at 31 and relu5_1 at 44 in vgg_normalised; torchvision's VGG-19 has its last convolution at 34."""
    from stylekern.encoders.layouts import names_in_files

    names = names_in_files(19, True)
    assert [int(name) for name in names.values()][:10] == [0, 2, 5, 9, 12, 16, 19, 22, 25, 29]
    assert (int(names["conv4_1"]) + 2, int(names["conv5_1"]) + 2) == (31, 44)
    assert names_in_files(19, False)["conv5_4"] == "features.34"
    assert names_in_files(16, False)["conv5_3"] == "features.28"


def test_resnet_50(tmp_path: Path) -> None:
    source = resnet50(seed=4)
    state = source.state_dict()
    state["bn1.running_mean"] += torch.randn(64)
    torch.save(state | {"fc.weight": torch.randn(10, 2048)}, tmp_path / "resnet50.pth")
    x, tap = torch.rand(1, 3, 40, 33), "layer2.1"
    loaded = resnet50(tmp_path / "resnet50.pth", deepest=tap)
    assert torch.equal(loaded(x, [tap])[tap], source(x, [tap])[tap])  # state was changed in place
    assert not torch.equal(loaded(x, [tap])[tap], resnet50(seed=4)(x, [tap])[tap])
    del state["layer1.0.bn1.weight"]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth \(SHA-256 .*\) is not ResNet-50 .* not layer1.0.bn1.weight"):
        resnet50(tmp_path / "other.pth")


def test_deepest_cuts_a_file(tmp_path: Path) -> None:
    torch.save(features_of(torchvision_vgg19()), tmp_path / "vgg.pth")
    assert vgg19(tmp_path / "vgg.pth", deepest="pool2").taps[-1] == "pool2"
    with pytest.raises(ValueError, match="reaches relu4_1, deepest='relu5_1' is behind it"):
        vgg19(tmp_path / "vgg.pth", deepest="relu5_1")


def test_a_file_that_fits_no_layout_is_named_with_its_keys_and_its_hash(tmp_path: Path) -> None:
    state = features_of(torchvision_vgg19())
    path = tmp_path / "vgg.pth"
    torch.save(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    with pytest.raises(ValueError, match=rf"vgg16: .*vgg.pth \(SHA-256 {digest}\) fits no layout .* features.0.weight"):
        vgg16(path)  # three convolutions in the third block
    torch.save({"conv.weight": torch.randn(3)}, path)
    with pytest.raises(ValueError, match=r"or 0.weight, 2.weight, .*; it has conv.weight"):
        vgg19(path)
    torch.save({key: x[:, :1] for key, x in state.items() if x.dim() == 4} | {"features.0.bias": torch.randn(64)}, path)
    with pytest.raises(ValueError, match="fits no layout"):
        vgg19(path)
    state["features.2.weight"] = torch.randn(64, 64, 5, 5)
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"convs.conv1_2.weight must be \[64, 64, 3, 3\], got \[64, 64, 5, 5\]"):
        vgg19(path)


def test_sha256_from_the_name_or_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"x": torch.randn(3)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    named = path.rename(tmp_path / f"weights-{digest[:8]}.pth")
    assert set(read_weights(named)[0]) == {"x"} and read_weights(named, digest.upper())[1].endswith(f"{digest[:16]})")
    assert read_weights(named.rename(tmp_path / f"weights-{digest[:8].upper()}.pth"))
    named = (tmp_path / f"weights-{digest[:8].upper()}.pth").rename(named)
    wrong = tmp_path / "weights-0123abcd.pth"
    wrong.write_bytes(named.read_bytes())
    with pytest.raises(
        ValueError, match=f"has the SHA-256 {digest}, expected 0123abcd .by its name.: .* Delete it and fetch it anew"
    ):
        read_weights(wrong)
    assert read_weights(wrong, digest)  # what is named goes before the name
    with pytest.raises(ValueError, match="expected ffffffff"):
        read_weights(named, "ffffffff")
    with pytest.raises(ValueError, match="8 to 64 hexadecimal digits, got 'sha'"):
        read_weights(named, "sha")


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder, and the address that it is served under; torch.hub keeps its files elsewhere."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_address_is_fetched_once_and_its_copy_is_checked(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    torch.save({"x": torch.randn(3)}, folder / "weights.pth")
    digest = hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()
    assert "x" in read_weights(f"{address}/weights.pth", digest)[0]
    (folder / "weights.pth").unlink()
    assert "x" in read_weights(f"{address}/weights.pth", digest)[0]
    (copy,) = (tmp_path / "home").rglob("*weights.pth")
    copy.write_bytes(copy.read_bytes() + b" ")
    with pytest.raises(ValueError, match="expected " + digest):
        read_weights(f"{address}/weights.pth", digest)


def test_files_of_one_name_at_two_addresses_are_two(served: tuple[Path, str]) -> None:
    folder, address = served
    for name in "ab":
        (folder / name).mkdir()
        torch.save({name: torch.randn(3)}, folder / name / "weights.pth")
    assert [set(read_weights(f"{address}/{name}/weights.pth")[0]) for name in "ab"] == [{"a"}, {"b"}]


def test_what_cannot_be_read_or_has_another_hash_is_not_kept(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    (folder / "weights.pth").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="is neither a safetensors file nor tensors"):
        read_weights(f"{address}/weights.pth")
    torch.save({"x": torch.randn(3)}, folder / "weights.pth")
    with pytest.raises(ValueError, match="expected 01234567"):
        read_weights(f"{address}/weights.pth", "01234567")
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert "x" in read_weights(f"{address}/weights.pth")[0]
    with pytest.raises(ValueError, match="is the address of no file"):
        read_weights(address)


def test_a_file_address_is_a_path(tmp_path: Path) -> None:
    torch.save({"x": torch.randn(3)}, tmp_path / "a b.pth")
    assert "x" in read_weights((tmp_path / "a b.pth").as_uri())[0]
    with pytest.raises(FileNotFoundError):
        read_weights((tmp_path / "c.pth").as_uri())


def test_weights_are_finite_numbers_of_floating_point(tmp_path: Path) -> None:
    """Those of a quantised file would be read as weights in the hundreds."""
    state, resnet = features_of(torchvision_vgg19()), ResNet(width=64).state_dict()
    for change, message in (
        (lambda x: (x * 100).int(), "must be of floating point, got torch.int32"),
        (lambda x: x * float("nan"), "must be finite; the file may be broken"),
    ):
        torch.save(state | {"features.5.weight": change(state["features.5.weight"])}, tmp_path / "vgg.pth")
        with pytest.raises(ValueError, match=f"vgg19: .*vgg.pth .* {message}"):
            vgg19(tmp_path / "vgg.pth")
        torch.save(resnet | {"conv1.weight": change(resnet["conv1.weight"])}, tmp_path / "resnet.pth")
        with pytest.raises(ValueError, match=f"resnet50: .*resnet.pth .*: conv1.weight {message}"):
            resnet50(tmp_path / "resnet.pth")


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none.pth; weights are a path, an https address"):
        read_weights(tmp_path / "none.pth")
    for name, content in {"a.pth": b"no", "b.safetensors": b"no", "c.pth": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} .* is n"):
            read_weights(tmp_path / name)
    torch.save({"x": torch.randn(999)}, tmp_path / "cut.pth")
    whole = (tmp_path / "cut.pth").read_bytes()
    for content in (b"hello world", whole[:300], whole[: len(whole) // 2]):
        (tmp_path / "cut.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"cut.pth \(SHA-256 .*\) is neither a safetensors file nor tensors"):
            read_weights(tmp_path / "cut.pth")
    for other in ([1, 2], {1: torch.randn(2)}, {}):
        torch.save(other, tmp_path / "other.pth")
        with pytest.raises(ValueError, match="holds no state dict"):
            read_weights(tmp_path / "other.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")  # would run its code
    with pytest.raises(ValueError, match="is neither a safetensors file nor tensors"):
        read_weights(tmp_path / "module.pth")
    with pytest.raises(ValueError) as refused:
        read_weights(tmp_path / "module.pth")
    assert "weights_only=False" not in str(refused.value) and "to False" not in str(refused.value)
    save_file({"x": torch.randn(2)}, tmp_path / "named.st")
    assert set(read_weights(tmp_path / "named.st")[0]) == {"x"}
    torch.save({"state_dict": {"x": torch.randn(2)}}, tmp_path / "checkpoint.pth")
    assert set(read_weights(tmp_path / "checkpoint.pth")[0]) == {"x"}


def test_gradients_of_pictures_of_a_loaded_encoder_are_those_of_the_model(tmp_path: Path) -> None:
    model = torchvision_vgg19()
    torch.save(features_of(model), tmp_path / "vgg.pth")
    x = images().requires_grad_()
    g = torch.randn(2, 512, 2, 3)
    (ours,) = torch.autograd.grad(vgg19(tmp_path / "vgg.pth")(x, ["relu4_1"])["relu4_1"], x, g)
    (theirs,) = torch.autograd.grad(model((x - MEAN) / DEVIATION), x, g)
    assert F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.9999

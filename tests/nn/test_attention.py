"""The attention blocks are their papers' formulas, dense and in float64, and learn their gates."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylekern.nn import ContentGate, Decoder, GatedAttention, SAFINModule, StyleAlignment, channel_shuffle
from tests.ops.cases import relative_error


def features(h: int, w: int, n: int = 2, c: int = 6) -> Tensor:
    return torch.randn(n, c, h, w).relu() + 0.1 * torch.rand(n, c, h, w)


def dense(scores: Tensor, value: Tensor, gate: ContentGate | None, content: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax, threshold and sum as they are printed; the distance of the closest entry to its threshold as well."""
    a = torch.softmax(scores, -1)  # [N, Lq, Lk]
    if gate is None:
        return a @ value, a.new_tensor(1.0)
    scale, bias = gate(content, value.shape[1])
    t = (scale * a.mean(-1) + bias).unsqueeze(-1)
    return torch.where(a > t, a, 0) @ value, ((a - t).abs() / a).min()


def rows(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("gate", [True, False], ids=["gate", "no-gate"])
@pytest.mark.parametrize("size", [(4, 5), (1, 1), (7, 3)], ids=str)
def test_style_alignment_is_equations_1_to_5(size: tuple[int, int], gate: bool) -> None:
    block = StyleAlignment(6, alpha=8.0, gate=gate)
    content, style = features(*size), features(5, 7)
    exact = block.double()
    q, v = rows(content.double()), rows(style.double())
    scores = 8 * F.cosine_similarity(q[:, :, None], v[:, None], dim=-1)
    truth, distance = dense(scores, v, exact.gate, content.double())
    assert distance > 1e-5  # else rounding would decide
    given = block.float()(content, style)
    assert given.shape == content.shape
    assert relative_error(given, truth.transpose(1, 2).reshape(content.shape)) < 2e-6


@pytest.mark.parametrize("gate", [True, False], ids=["gate", "no-gate"])
def test_gated_attention_is_sanet_with_a_gate(gate: bool) -> None:
    block = GatedAttention(6, gate=gate).double()
    content, style = features(5, 4), features(3, 9)

    def normalized(x: Tensor) -> Tensor:
        return (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True) + 1e-5).sqrt()

    c, s = content.double(), style.double()
    q, k, v = rows(block.f(normalized(c))), rows(block.g(normalized(s))), rows(block.h(s))
    attended, distance = dense(q @ k.transpose(1, 2), v, block.gate, c)
    assert distance > 1e-5
    truth = c + block.out_conv(attended.transpose(1, 2).reshape(c.shape))
    assert relative_error(block.float()(content, style), truth) < 2e-6


def test_without_a_gate_the_parameters_are_those_of_sanet() -> None:
    names = {f"{conv}.{what}" for conv in ("f", "g", "h", "out_conv") for what in ("weight", "bias")}
    assert GatedAttention(4, gate=False).state_dict().keys() == names
    missing, unexpected = GatedAttention(4).load_state_dict(GatedAttention(4, gate=False).state_dict(), strict=False)
    assert not unexpected and all(name.startswith("gate.") for name in missing)


@pytest.mark.parametrize("module", [StyleAlignment, GatedAttention])
def test_gradients_reach_every_parameter_and_the_gate_learns(module: type[nn.Module]) -> None:
    block = module(6)
    content, style, target = features(6, 5), features(4, 8), features(6, 5)
    gate = [p for name, p in block.named_parameters() if name.startswith("gate.")]
    optimizer, losses = torch.optim.Adam(gate, lr=1e-3), []
    for _ in range(40):
        loss = F.mse_loss(block(content, style), target)
        losses.append(loss.item())
        block.zero_grad()
        loss.backward()
        for name, p in block.named_parameters():
            assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0, name
        optimizer.step()
    assert min(losses[-5:]) < losses[0]


def test_at_the_start_the_gate_keeps_what_is_above_average() -> None:
    content, keys = 30 * features(64, 64, n=1, c=64), 5000  # features of VGG are that large
    scale, bias = ContentGate(64)(content, keys)
    assert scale.shape == bias.shape == (1, 4096)
    t = scale / keys + bias
    assert (t > 0.5 / keys).all() and (t < 1.5 / keys).all()


@pytest.mark.parametrize("module", [StyleAlignment, GatedAttention])
def test_compiles_in_one_graph_and_runs_under_autocast(module: type[nn.Module]) -> None:
    block = module(6)
    content, style = features(6, 5), features(4, 8)
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True)
    assert relative_error(compiled(content, style), block(content, style)) < 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert block(content, style).isfinite().all()


@pytest.mark.parametrize("module", [StyleAlignment, GatedAttention])
@pytest.mark.parametrize(
    ("content", "style", "message"),
    [
        (torch.rand(6, 4, 4), torch.rand(1, 6, 4, 4), r"content must be \[N, 6, H, W\], got \[6, 4, 4\]"),
        (torch.rand(1, 6, 4, 4), torch.rand(1, 5, 4, 4), r"style must be \[N, 6, H, W\], got \[1, 5, 4, 4\]"),
        (torch.rand(2, 6, 4, 4), torch.rand(1, 6, 4, 4), "as many, got 2 and 1; expand one style"),
    ],
)
def test_features_that_do_not_fit_are_refused(
    module: type[nn.Module], content: Tensor, style: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        module(6)(content, style)


@pytest.mark.parametrize("module", [StyleAlignment, GatedAttention, SAFINModule])
def test_what_are_no_features_is_named(module: type[nn.Module]) -> None:
    maps = torch.rand(1, 6, 4, 4)
    with pytest.raises(TypeError, match=f"{module.__name__}: content must be a tensor, got ndarray"):
        module(6)(maps.numpy(), maps)
    with pytest.raises(TypeError, match=f"{module.__name__}: style must be of floating point, got torch.uint8"):
        module(6)(maps, maps.byte())
    with pytest.raises(TypeError, match="ContentGate: content must be a tensor, got ndarray"):
        ContentGate(6)(maps.numpy(), 16)
    with pytest.raises(ValueError, match=r"Decoder: x must be \[N, 512, H, W\], got \[1, 6, 4, 4\]"):
        Decoder()(maps)


def test_one_position_has_no_deviation() -> None:
    with pytest.raises(ValueError, match=r"style must have more than one position, got \[1, 6, 1, 1\]"):
        GatedAttention(6)(features(2, 2, n=1), features(1, 1, n=1))
    with pytest.raises(ValueError, match=r"style must have more than one position, got \[1, 6, 0, 4\]"):
        GatedAttention(6)(features(2, 2, n=1), features(0, 4, n=1))


def test_numbers_out_of_range_are_refused_when_it_is_built() -> None:
    with pytest.raises(ValueError, match="StyleAlignment: alpha must be finite, got nan"):
        StyleAlignment(6, alpha=float("nan"))
    for module in (StyleAlignment, GatedAttention):
        for temperature in (0, float("inf"), float("nan")):
            words = f"{module.__name__}: temperature must be positive and finite, got {temperature}"
            with pytest.raises(ValueError, match=words):
                module(6, temperature=temperature)
    with pytest.raises(TypeError, match="alpha must be a number, got str"):
        StyleAlignment(6, alpha="20")  # type: ignore[arg-type]


@pytest.mark.parametrize("module", [StyleAlignment, GatedAttention, SAFINModule, ContentGate])
def test_channels_are_a_positive_number(module: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match=f"{module.__name__}: channels must be positive, got 0"):
        module(0)
    with pytest.raises(TypeError, match=f"{module.__name__}: channels must be an integer, got 6.0"):
        module(6.0)
    if module is ContentGate:
        with pytest.raises(ValueError, match="ContentGate: hidden must be positive, got -1"):
            module(6, -1)


def test_a_decoder_has_four_numbers_of_channels() -> None:
    for channels in (16, "abcd", (2, 4, 6, 8.0)):
        with pytest.raises(TypeError, match="Decoder: channels must be 4 positive integers, got "):
            Decoder(channels)  # type: ignore[arg-type]
    for channels in ((), (8, 16), (2, 4, 6, 0)):
        with pytest.raises(ValueError, match=r"Decoder: channels must be 4 positive integers, got \["):
            Decoder(channels)


def test_groups_to_shuffle_divide_the_channels() -> None:
    x = features(2, 2, n=1)
    with pytest.raises(ValueError, match=r"4 groups divide C, got \[1, 6, 2, 2\]"):
        channel_shuffle(x, 4)
    with pytest.raises(ValueError, match=r"0 groups divide C, got \[1, 6, 2, 2\]"):
        channel_shuffle(x, 0)
    with pytest.raises(TypeError, match="channel_shuffle: groups must be an integer, got float"):
        channel_shuffle(x, 2.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="channel_shuffle: x must be a tensor, got list"):
        channel_shuffle([1.0], 1)  # type: ignore[arg-type]

"""The networks are their papers' equations, written out in plain torch and float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stylekern.models import SAFIN, AdaConv, AdaIN, AttentiveStyleEncoder, SANet, StyleKernel, StyleTransfer
from stylekern.nn import Decoder, SAFINModule, channel_shuffle
from tests.ops.cases import relative_error

from .networks import pictures, small

ALIGNED = ((48, 32), (32, 64))  # multiples of 16: nothing is continued


def given(network: StyleTransfer, *taps: str) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """A pair of pictures in float64, and the encoder's features of both."""
    network.double()
    content, style = (pictures(1, *size).double() for size in ALIGNED)
    features = [list(network.encoder(x, taps).values()) for x in (content, style)]
    return content, style, features[0], features[1]


def mean_and_deviation(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.sum((2, 3), keepdim=True) / x[0, 0].numel()
    variance = (x - mean).square().sum((2, 3), keepdim=True) / (x[0, 0].numel() - 1)
    return mean, (variance + 1e-5).sqrt()


def norm(x: Tensor) -> Tensor:
    mean, deviation = mean_and_deviation(x)
    return (x - mean) / deviation


def adain(content: Tensor, style: Tensor) -> Tensor:
    mean, deviation = mean_and_deviation(style)
    return norm(content) * deviation + mean


def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax of plain products of [1, C, h, w]: the map [Lq, Lk], and the attended values as [1, C, h, w]."""
    a = torch.softmax(q.flatten(2)[0].T @ k.flatten(2)[0], -1)
    return a, (v.flatten(2)[0] @ a.T).view(1, -1, *q.shape[2:])


def test_the_decoder_mirrors_vgg() -> None:
    decoder = Decoder((2, 4, 6, 8)).double()
    x = torch.randn(1, 8, 3, 4).double()
    y = x
    for i, conv in enumerate(m for m in decoder.modules() if isinstance(m, torch.nn.Conv2d)):
        if i in (1, 5, 7):  # behind 1, 4 and 2 convolutions
            y = y.repeat_interleave(2, 2).repeat_interleave(2, 3)
        y = F.conv2d(F.pad(y, (1, 1, 1, 1), mode="reflect"), conv.weight, conv.bias)
        y = y if i == 8 else y.clamp_min(0)
    assert torch.allclose(decoder(x), y) and y.shape == (1, 3, 24, 32)


def test_channel_shuffle_deals_out_groups_in_turn() -> None:
    x = torch.arange(6).view(1, 6, 1, 1)
    assert channel_shuffle(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert torch.equal(channel_shuffle(x, 1), x)


def test_adain_is_equations_8_9_and_15() -> None:
    network = AdaIN(small())
    content, style, (c,), (s,) = given(network, "relu4_1")
    truth = network.decoder(0.7 * c + 0.3 * adain(c, s))
    assert relative_error(network(content, style, alpha=0.3), truth) < 1e-10


def test_safin_module_is_equations_1_to_3() -> None:
    module = SAFINModule(6).double()
    torch.nn.init.normal_(module.gamma_ind), torch.nn.init.normal_(module.beta_ind)
    content, style = torch.randn(1, 6, 5, 4).double(), 3 + torch.randn(1, 6, 3, 7).double()
    _, sa = attend(module.f(norm(content)), module.g(norm(style)), module.h(style))
    gamma, beta = module.gamma(sa).clamp_min(0), module.beta(sa).clamp_min(0)
    truth = gamma * (module.gamma_ind.view(6, 1, 1) * norm(content) + module.beta_ind.view(6, 1, 1)) + beta
    assert relative_error(module(content, style), truth) < 1e-10


def haar(x: Tensor) -> list[Tensor]:
    a, b, c, d = (x[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
    return [(a + b + c + d) / 2, (-a + b - c + d) / 2, (-a - b + c + d) / 2, (a - b - c + d) / 2]


def haar_back(ll: Tensor, lh: Tensor, hl: Tensor, hh: Tensor) -> Tensor:
    y = ll.new_empty(*ll.shape[:2], 2 * ll.shape[2], 2 * ll.shape[3])
    y[..., ::2, ::2], y[..., ::2, 1::2] = (ll - lh - hl + hh) / 2, (ll + lh - hl - hh) / 2
    y[..., 1::2, ::2], y[..., 1::2, 1::2] = (ll - lh + hl - hh) / 2, (ll + lh + hl + hh) / 2
    return y


def test_safin_is_its_wavelet_network() -> None:
    network = SAFIN(small())
    content, style, _, _ = given(network, "relu4_1")
    x, s = network.encoder.preprocess(content), network.encoder.preprocess(style)
    waiting = []
    for block, count in ((1, 2), (2, 2), (3, 4)):
        for i in range(1, count + 1):
            conv = network.encoder.convs[f"conv{block}_{i}"]
            x, s = (F.conv2d(z, conv.weight, conv.bias, padding=1).clamp_min(0) for z in (x, s))
        (x, *high), (s, *theirs) = haar(x), haar(s)
        match = network.high if block == 3 else adain
        waiting.append([match(a, b) for a, b in zip(high, theirs, strict=True)])
        x = adain(x, s)
    conv = network.encoder.convs["conv4_1"]
    x, s = (F.conv2d(z, conv.weight, conv.bias, padding=1).clamp_min(0) for z in (x, s))
    x = 0.4 * x + 0.6 * network.bottleneck(x, s)
    stages = network.decoder.stages
    truth = stages[0](x)
    for stage, high in zip(stages[1:], reversed(waiting), strict=True):
        truth = stage(haar_back(truth, *high))
    assert relative_error(network(content, style, alpha=0.6), truth) < 1e-9


def test_sanet_merges_two_layers() -> None:
    network = SANet(small())
    content, style, (c4, c5), (s4, s5) = given(network, "relu4_1", "relu5_1")

    def module(block: torch.nn.Module, c: Tensor, s: Tensor) -> Tensor:
        return c + block.out_conv(attend(block.f(norm(c)), block.g(norm(s)), block.h(s))[1])

    deep = module(network.attend5, c5, s5).repeat_interleave(2, 2).repeat_interleave(2, 3)
    truth = network.decoder(network.merge(module(network.attend4, c4, s4) + deep))
    assert relative_error(network(content, style), truth) < 1e-9


def test_style_kernel_is_equations_1_to_6() -> None:
    network = StyleKernel(small(), alpha=6.0, groups=4)
    content, style, (c,), (s,) = given(network, "relu4_1")
    channels, (h, w), keys = c.shape[1], c.shape[2:], s[0, 0].numel()
    q, v = F.normalize(c.flatten(2)[0].T, dim=1), s.flatten(2)[0].T
    a = torch.softmax(6 * q @ F.normalize(v, dim=1).T, -1)  # eq. 1
    scale, bias = (x[0, :, None] for x in network.align.gate(c, keys))
    threshold = scale * a.mean(1, keepdim=True) + bias  # eq. 3 and 4
    assert ((a - threshold).abs() > 1e-12).all() and 0 < (a > threshold).double().mean() < 1
    aligned = ((a * (a > threshold)) @ v).T.view(1, channels, h, w)  # eq. 5 and 2
    packed = network.generate.filters(network.generate.features(aligned).clamp_min(0)).view(1, channels, 7, h, w)
    vertical, horizontal, b = packed[:, :, :3], packed[:, :, 3:6], packed[:, :, 6]
    x = c[:, [g * channels // 4 + i for i in range(channels // 4) for g in range(4)]]  # GS
    mean = x.mean((2, 3), keepdim=True)
    x = (x - mean) / ((x - mean).square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
    rows, columns = F.pad(x, (0, 0, 1, 1), mode="reflect"), None
    x = sum(vertical[:, :, i] * rows[:, :, i : i + h] for i in range(3))
    columns = F.pad(x, (1, 1, 0, 0), mode="reflect")
    truth = sum(horizontal[:, :, i] * columns[..., i : i + w] for i in range(3)) + b  # eq. 6
    assert relative_error(network(content, style), network.decoder(truth)) < 1e-9


def test_adaconv_predicts_a_grouped_convolution_for_each_stage() -> None:
    network = AdaConv(small(), attentive=False)
    content, style, (x,), (s,) = given(network, "relu4_1")
    descriptor = network.describe(s)
    assert descriptor.shape == (1, 32, 3, 3)
    for i, (predict, stage, group) in enumerate(
        zip(network.predict, network.decoder.stages, (1, 2, 4, 8), strict=True)
    ):
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3) if i else x
        channels = x.shape[1]
        padded = F.pad(descriptor, (1, 1, 1, 1), mode="replicate")
        spatial = F.conv2d(padded, predict.spatial.weight, predict.spatial.bias).view(channels, group, 3, 3)
        average = descriptor.mean((2, 3))[0]
        pointwise = (predict.pointwise.weight.flatten(1) @ average + predict.pointwise.bias).view(channels, group, 1, 1)
        bias = predict.bias.weight.flatten(1) @ average + predict.bias.bias
        mean = x.mean((2, 3), keepdim=True)
        x = (x - mean) / ((x - mean).square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
        x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), spatial, groups=channels // group)
        x = stage(F.conv2d(x, pointwise, bias, groups=channels // group))
    assert relative_error(network(content, style), x) < 1e-9


def test_the_refined_style_encoder_masks_what_the_baselines_reduces() -> None:
    """Figure 1 and section 4: reduction and dilated convolutions in parallel, sigmoid, product, dense layer."""
    x = torch.randn(2, 8, 32, 24).double()
    for masks in ("mean", "each"):
        encoder = AttentiveStyleEncoder(8, rates=(1, 2, 4, 8), masks=masks).double()
        reduced = x
        for layer in encoder.reduce:
            y = F.conv2d(F.pad(reduced, (1, 1, 1, 1), mode="replicate"), layer[0].weight, layer[0].bias)
            reduced = F.avg_pool2d(torch.where(y > 0, y, 0.2 * y), 2)
        maps = [
            F.conv2d(F.pad(x, (r, r, r, r), mode="replicate"), conv.weight, conv.bias, dilation=r)
            for r, conv in zip((1, 2, 4, 8), encoder.dilated, strict=True)
        ]
        mask = torch.sigmoid(F.avg_pool2d(torch.cat(maps, 1), 8))  # [2, 4, 4, 3]
        weights = mask.mean(1, keepdim=True) if masks == "mean" else mask.repeat_interleave(2, 1)
        truth = encoder.dense(F.adaptive_avg_pool2d(reduced * weights, 4).flatten(1)).view(2, 8, 3, 3)
        assert torch.allclose(encoder(x), truth)
        assert (mask > 0).all() and (mask < 1).all()

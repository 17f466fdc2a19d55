"""Perceptual losses: what is added up, what is encoded when, regions and blends of styles, training, messages."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from stylekern.losses import (
    ContentLoss,
    GramLoss,
    HybridLoss,
    MeanStdLoss,
    PerceptualLoss,
    REMDLoss,
    Smoothed,
    total_variation,
)
from tests.losses.common import TAPS, TinyEncoder, assert_equal

CONTENT, STYLE = {"relu2_1": 2.0}, {"relu1_1": 0.5, "relu2_1": 0.1, "relu3_1": 3.0}


def image(h: int = 12, w: int = 16, n: int = 1) -> Tensor:
    return torch.rand(n, 3, h, w)


def perceptual(**options: Any) -> Any:
    return PerceptualLoss(TinyEncoder(), CONTENT, STYLE, ContentLoss("sum"), GramLoss(), **options)


def with_targets(**options: Any) -> Any:
    loss = perceptual(**options)
    loss.set_content(image())
    loss.set_style(image(20, 8))
    return loss


def style_of(loss: Any, x: Tensor, style: Tensor) -> Tensor:
    """The style term of two pictures, without targets that are kept."""
    a, b = loss.encoder(x, TAPS), loss.encoder(style, TAPS)
    return sum((weight * loss.style_loss.between(a[tap], b[tap]) for tap, weight in STYLE.items()), torch.zeros(()))


def test_the_terms_are_weighted_sums_over_the_taps() -> None:
    loss = perceptual(content_weight=0.7, style_weight=11.0, total_variation_weight=0.3)
    x, content, style = image(n=2), image(), image(20, 8)
    loss.set_content(content)
    loss.set_style(style)
    terms = loss(x)
    own, theirs = loss.encoder(x, TAPS)["relu2_1"], loss.encoder(content, TAPS)["relu2_1"]
    assert_equal(terms.content, 2.0 * (own - theirs).square().sum() / 2)
    assert_equal(terms.style, style_of(loss, x, style))
    assert_equal(terms.variation, total_variation(x))
    assert_equal(terms.total, 0.7 * terms.content + 11 * terms.style + 0.3 * terms.variation)
    assert all(term.shape == () for term in terms)


def test_each_picture_is_encoded_once() -> None:
    loss = with_targets()
    assert [taps for _, taps in loss.encoder.calls] == [tuple(CONTENT), tuple(STYLE)]
    loss(image())
    assert len(loss.encoder.calls) == 3
    count, taps = loss.encoder.calls[-1]
    assert count == 1 and sorted(taps) == sorted({*CONTENT, *STYLE}) and len(taps) == len(set(taps))


def test_targets_carry_no_gradient_and_are_not_in_the_state_dict() -> None:
    loss = perceptual()
    content, style = image().requires_grad_(), image().requires_grad_()
    loss.set_content(content)
    loss.set_style(style)
    x = image().requires_grad_()
    loss(x).total.backward()
    assert content.grad is None and style.grad is None
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert loss.state_dict().keys() == {f"encoder.{name}" for name in loss.encoder.state_dict()}


def test_targets_move_with_the_module_and_are_copied_with_it() -> None:
    loss, x = perceptual(), image()
    half = torch.zeros(1, 2, 12, 16)
    half[:, 0, :, :8], half[:, 1, :, 8:] = 1, 1
    loss.set_content(image())
    loss.set_style(image(), guide=half, style_guides=half)
    before = loss(x).total
    moved = copy.deepcopy(loss).double()
    assert moved(x.double()).total.dtype == torch.float64
    assert_equal(moved(x.double()).total.float(), before)
    elsewhere = moved.to("meta")
    kept = [x for target in elsewhere._style_targets for tensors in target.kept.values() for x in tensors]
    kept += [x for tensors in elsewhere._content_target.values() for x in tensors]
    assert len(kept) == 2 * len(STYLE) + len(CONTENT)
    assert elsewhere._guide is not None and elsewhere._guide.is_meta and all(x.is_meta for x in kept)
    assert_equal(loss(x).total, before)


def test_a_new_target_replaces_the_last() -> None:
    loss, x, style = with_targets(), image(), image()
    full = torch.ones(1, 1, 12, 16)
    loss.set_style([image(), image()], guide=full, style_guides=[full, full])
    loss.set_style(style)
    assert_equal(loss(x).style, style_of(loss, x, style))


def test_styles_are_blended_by_their_weights() -> None:
    loss, x, styles = perceptual(content_weight=1), image(), [image(20, 8), image(8, 8)]
    loss.set_content(image())
    each = [style_of(loss, x, style) for style in styles]
    loss.set_style(styles)
    assert_equal(loss(x).style, (each[0] + each[1]) / 2)
    loss.set_style(styles, weights=[3, 1])
    assert_equal(loss(x).style, (3 * each[0] + each[1]) / 4)


def regions(h: int, w: int) -> Tensor:
    """Left and right halves."""
    guide = torch.zeros(1, 2, h, w)
    guide[:, 0, :, : w // 2], guide[:, 1, :, w // 2 :] = 1, 1
    return guide


def test_regions_are_compared_each_with_its_own_and_added() -> None:
    loss, x, style = perceptual(), image(), image(8, 24)
    loss.set_content(image())
    loss.set_style(style, guide=regions(12, 16), style_guides=regions(8, 24))
    own, theirs = loss.encoder(x, TAPS), loss.encoder(style, TAPS)
    truth = torch.zeros(())
    for tap, weight in STYLE.items():
        for a, b in zip(own[tap].chunk(2, 3), theirs[tap].chunk(2, 3), strict=True):  # halves of positions
            truth += weight * GramLoss().between(a, b)
    assert_equal(loss(x).style, truth)


def test_a_guide_of_ones_is_no_guide_at_any_size() -> None:
    loss, x, style = with_targets(), image(n=2), image(20, 8)
    loss.set_style(style, guide=torch.ones(1, 1, 7, 5), style_guides=torch.ones(1, 1, 50, 50))
    assert_equal(loss(x).style, style_of(loss, x, style))


def test_a_guide_is_resized_by_areas() -> None:
    loss = PerceptualLoss(TinyEncoder(), {}, {"relu3_1": 1.0}, ContentLoss(), GramLoss())
    x, style, fine = image(8, 8), image(8, 8), torch.rand(1, 1, 8, 8)
    loss.set_style(style, guide=fine, style_guides=fine)
    coarse = fine.unflatten(2, (2, 4)).unflatten(4, (2, 4)).mean((3, 5))
    own, theirs = (loss.encoder(picture, TAPS)["relu3_1"] for picture in (x, style))
    assert_equal(loss(x).style, GramLoss().between(own, theirs, coarse, coarse))


def test_each_region_takes_the_styles_that_have_it() -> None:
    loss, x, styles = perceptual(), image(), [image(), image()]
    loss.set_content(image())
    left, right = regions(12, 16).clone(), regions(12, 16).clone()
    left[:, 1], right[:, 0] = 0, 0  # the first style has the left region alone, the second the right one
    loss.set_style(styles, weights=[5, 2], guide=regions(12, 16), style_guides=[left, right])
    own, first, second = (loss.encoder(picture, TAPS) for picture in (x, *styles))
    truth = torch.zeros(())
    for tap, weight in STYLE.items():
        (a, b), c, d = own[tap].chunk(2, 3), first[tap].chunk(2, 3)[0], second[tap].chunk(2, 3)[1]
        truth += weight * (GramLoss().between(a, c) + GramLoss().between(b, d))
    assert_equal(loss(x).style, truth)


@pytest.mark.parametrize("side", ["content", "style"])
def test_one_side_alone_needs_no_other_target(side: str) -> None:
    content, style = (CONTENT, {}) if side == "content" else ({}, STYLE)
    loss = PerceptualLoss(TinyEncoder(), content, style, ContentLoss(), GramLoss())
    other = "style" if side == "content" else "content"
    getattr(loss, f"set_{side}")(image())
    terms = loss(image())
    assert getattr(terms, side) > 0 and getattr(terms, other) == 0 and terms.total == getattr(terms, side)
    with pytest.raises(ValueError, match=f"there are no {other} taps, so that there is no {other} to set"):
        getattr(loss, f"set_{other}")(image())


def test_the_loss_falls_under_gradient_descent() -> None:
    loss = with_targets(style_weight=100.0, total_variation_weight=0.1)
    x = image().requires_grad_()
    optimizer, totals = torch.optim.Adam([x], lr=0.02), []
    for _ in range(40):
        optimizer.zero_grad()
        terms = loss(x)
        terms.total.backward()
        optimizer.step()
        totals.append(terms.total.item())
    assert totals[-1] < 0.5 * totals[0]


def test_autocast_lowers_the_encoder_alone() -> None:
    loss = PerceptualLoss(TinyEncoder(), CONTENT, STYLE, ContentLoss(), MeanStdLoss())
    content, style, x = image(), image(), image().requires_grad_()
    loss.set_content(content)
    loss.set_style(style)
    exact = loss(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss.set_content(content)
        loss.set_style(style)
        terms = loss(x)
    assert all(term.dtype == torch.float32 for term in terms)
    torch.testing.assert_close(terms.total, exact.total, rtol=0.05, atol=0)
    (gradient,) = torch.autograd.grad(terms.total, x)
    assert gradient.isfinite().all()


def test_forward_compiles_in_one_graph_and_new_targets_need_no_other() -> None:
    loss, x = with_targets(total_variation_weight=0.1), image().requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        with torch._dynamo.config.patch(error_on_recompile=True):
            given = compiled(x)
        eager = loss(x)
        assert_equal(torch.stack(given), torch.stack(eager))
        assert_equal(*(torch.autograd.grad(terms.total, x)[0] for terms in (given, eager)))
        loss.set_content(image())
        loss.set_style(image(20, 8))


def test_regions_compile_too() -> None:
    loss, x = with_targets(), image()
    loss.set_style(image(8, 24), guide=regions(12, 16), style_guides=regions(8, 24))
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_equal(compiled(x).style, loss(x).style)


def test_an_encoder_may_be_a_function() -> None:
    encoder = TinyEncoder()
    loss = PerceptualLoss(lambda images, taps: encoder(images, taps), CONTENT, STYLE, ContentLoss(), GramLoss())
    loss.set_content(image())
    loss.set_style(image())
    assert loss(image()).total > 0
    assert not loss.state_dict()


def test_targets_must_be_set() -> None:
    loss = perceptual()
    with pytest.raises(ValueError, match=r"no content target yet; call set_content\(\) first"):
        loss(image())
    loss.set_content(image())
    with pytest.raises(ValueError, match=r"no style target yet; call set_style\(\) first"):
        loss(image())


def test_arguments_that_do_not_fit_are_refused() -> None:
    encoder, content, style = TinyEncoder(), ContentLoss(), GramLoss()
    with pytest.raises(TypeError, match=r"encoder must be a network such as stylekern.encoders.vgg19\(\), .* got str"):
        PerceptualLoss("vgg19", CONTENT, STYLE, content, style)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r'style must map taps to weights, such as \{"relu4_1": 1.0\}, got list'):
        PerceptualLoss(encoder, CONTENT, ["relu1_1"], content, style)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"style_loss must be a FeatureLoss such as GramLoss\(\), got HybridLoss"):
        PerceptualLoss(encoder, CONTENT, STYLE, content, HybridLoss())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="content and style have no taps"):
        PerceptualLoss(encoder, {}, {}, content, style)
    unknown = PerceptualLoss(encoder, {"relu9_1": 1.0}, STYLE, content, style)
    with pytest.raises(ValueError, match=r"encoder must give features for relu9_1, got none for \['relu9_1'\]"):
        unknown.set_content(image())


def test_images_and_weights_that_do_not_fit_are_refused() -> None:
    loss = with_targets()
    with pytest.raises(ValueError, match=r"image must be RGB \[N, 3, H, W\] in \[0, 1\], got \[3, 12, 16\]"):
        loss(image()[0])
    with pytest.raises(TypeError, match=r"style must be a floating-point .* got torch\.uint8; style.float\(\) / 255"):
        loss.set_style(image().to(torch.uint8))
    with pytest.raises(ValueError, match=r"of the target's size .* resize one of the pictures"):
        loss(image(24, 16))
    with pytest.raises(ValueError, match="at least one picture, got none"):
        loss.set_style([])
    for weights in ([1.0], [1.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="weights must be 2 finite numbers above 0, one for each style, got"):
            loss.set_style([image(), image()], weights=weights)


ONES = torch.ones(1, 2, 12, 16)


@pytest.mark.parametrize(
    ("guide", "style_guides", "message"),
    [
        (ONES, None, "one for the generated picture and one for each style, got guide alone"),
        (None, ONES, "got style_guides alone"),
        (ONES, [ONES, ONES], "style_guides must be 1, one for each style, got 2"),
        (ONES[0], ONES, r"guide must be \[1, R, H, W\], got \[2, 12, 16\]"),
        (ONES, ONES[:, :1], r"style_guides must be \[1, 2, H, W\], got \[1, 1, 12, 16\]"),
        (ONES.expand(2, -1, -1, -1), ONES, r"guide must be \[1, R, H, W\], got \[2, 2, 12, 16\]"),
        (ONES, -ONES, "style_guides must have finite weights of at least 0"),
        (ONES / 0, ONES, "guide must have finite weights of at least 0"),
        (regions(12, 16) * torch.tensor([1.0, 0]).view(1, 2, 1, 1), ONES, "region 1 of guide is empty; leave it out"),
        (ONES, ONES * torch.tensor([0, 1.0]).view(1, 2, 1, 1), "region 0 is empty in all style_guides; one must have"),
    ],
)
def test_guides_that_do_not_fit_are_refused(guide: Any, style_guides: Any, message: str) -> None:
    loss = perceptual()
    with pytest.raises(ValueError, match=message):
        loss.set_style(image(), guide=guide, style_guides=style_guides)
    assert not loss.encoder.calls


def test_a_style_loss_without_guides_says_so() -> None:
    loss = PerceptualLoss(TinyEncoder(), CONTENT, STYLE, ContentLoss(), Smoothed(REMDLoss()))
    with pytest.raises(ValueError, match="REMDLoss takes no guide"):
        loss.set_style(image(), guide=ONES, style_guides=ONES)

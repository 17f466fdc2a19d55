"""Perceptual losses: content and style of a picture, seen by an encoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylekern.losses._base import FeatureLoss, at_least_float32
from stylekern.losses._encoder import Encoder, check_encoder, check_images, encode
from stylekern.losses.total_variation import total_variation
from stylekern.ops._checks import check_finite, check_tensor, shape


class LossTerms(NamedTuple):
    """The loss and its parts, [] each. The parts are before their three weights, after those of the taps."""

    total: Tensor
    content: Tensor
    style: Tensor
    variation: Tensor


class _StyleTarget(NamedTuple):
    region: int | None  # of the guides; None for the whole picture
    weight: float
    kept: dict[str, tuple[Tensor, ...]]


class PerceptualLoss(nn.Module):
    r"""Content and style at several layers of an encoder (Li et al., eq. 1 and 5 to 7; INFO8010, section III.A).

    ::

        total   = content_weight content + style_weight style + total_variation_weight variation
        content = sum over taps l of content[l] content_loss(F_l, content's F_l)
        style   = sum over taps l of style[l] style_loss(F_l, style's F_l)

    Li et al. is "Artistic neural style transfer algorithms with activation smoothing", INFO8010 the report "INFO8010:
    Style transfer". Targets are encoded once, and what stays of them is what the losses keep::

        loss = PerceptualLoss(encoder, {"relu4_1": 1.0}, {"relu1_1": 1.0, "relu2_1": 1.0}, ContentLoss(), GramLoss())
        loss.set_content(content)
        loss.set_style(style)
        loss(image).total.backward()

    Args:
        encoder: `encoder(images, taps) -> {tap: features}` for RGB images in [0, 1], as those of `stylekern.encoders`.
            If it is a module, it becomes a submodule, and its parameters stay as they are: freeze them.
        content: Taps and their weights. Empty where there is no content, as for a texture.
        style: Taps and their weights. Empty where there is no style, as for a reconstruction.
        content_loss: Compares contents.
        style_loss: Compares styles.
        content_weight: alpha of Li et al., eq. 1.
        style_weight: beta.
        total_variation_weight: Of :func:`total_variation`; 0, as in the papers, by default.

    Targets move with the module, `.to(device)`, and are not in its state dict: they belong to pictures, not to the
    loss. Works under autocast, and compiles in one graph if the encoder does.

    Raises:
        ValueError: No taps at all; a weight that is not finite.
        TypeError: An encoder that cannot be called; taps that are no mapping to weights; a weight that is no number;
            losses that are none of features.
    """

    def __init__(
        self,
        encoder: Encoder,
        content: Mapping[str, float],
        style: Mapping[str, float],
        content_loss: FeatureLoss,
        style_loss: FeatureLoss,
        *,
        content_weight: float = 1.0,
        style_weight: float = 1.0,
        total_variation_weight: float = 0.0,
    ) -> None:
        super().__init__()
        check_encoder("PerceptualLoss", encoder)
        for name, taps, loss in (("content", content, content_loss), ("style", style, style_loss)):
            if not isinstance(taps, Mapping):
                raise TypeError(
                    f'PerceptualLoss: {name} must map taps to weights, such as {{"relu4_1": 1.0}}, got '
                    f"{type(taps).__name__}"
                )
            if not isinstance(loss, FeatureLoss):
                raise TypeError(
                    f"PerceptualLoss: {name}_loss must be a FeatureLoss such as GramLoss(), got {type(loss).__name__}"
                )
            for tap, weight in taps.items():
                check_finite("PerceptualLoss", f"{name}[{tap!r}]", weight)
        for name, weight in (
            ("content_weight", content_weight),
            ("style_weight", style_weight),
            ("total_variation_weight", total_variation_weight),
        ):
            check_finite("PerceptualLoss", name, weight)
        if not content and not style:
            raise ValueError("PerceptualLoss: content and style have no taps; give at least one of them one")
        self.encoder = encoder
        self.content, self.style = dict(content), dict(style)
        self.content_loss, self.style_loss = content_loss, style_loss
        self.content_weight, self.style_weight = content_weight, style_weight
        self.total_variation_weight = total_variation_weight
        self._content_target: dict[str, tuple[Tensor, ...]] = {}
        self._style_targets: list[_StyleTarget] = []
        self._guide: Tensor | None = None

    def extra_repr(self) -> str:
        return (
            f"content={self.content}, style={self.style}, content_weight={self.content_weight}, "
            f"style_weight={self.style_weight}, total_variation_weight={self.total_variation_weight}"
        )

    def set_content(self, image: Tensor) -> None:
        """Encodes the content, RGB [1 or N, 3, H, W], without gradient.

        Raises:
            ValueError: Not [N, 3, H, W]; a loss without taps for content; a tap that the encoder does not give.
            TypeError: Not a tensor, or not of floating point.
        """
        if not self.content:
            raise ValueError("PerceptualLoss: there are no content taps, so that there is no content to set")
        check_images("PerceptualLoss", "content", image)
        with torch.no_grad():
            features = encode("PerceptualLoss", self.encoder, image, tuple(self.content))
            self._content_target = {tap: self.content_loss.target(features[tap]) for tap in self.content}

    def set_style(
        self,
        style: Tensor | Sequence[Tensor],
        *,
        weights: Sequence[float] | None = None,
        guide: Tensor | None = None,
        style_guides: Tensor | Sequence[Tensor] | None = None,
    ) -> None:
        """Encodes the style or styles, without gradient.

        Several styles are blended: the loss is the mean over them, weighted. Guides give regions styles of their own
        (Gatys et al. 2017, section 4): the loss is the sum over the regions, each compared with the same region of the
        styles, and with the blend of those that have it. A style has not a region where its guide is all zero. So a
        region takes one style's, if the others' guides are zero there.

        Args:
            style: RGB [1 or N, 3, H, W], or several, of different sizes if need be.
            weights: One for each style, above zero; equal by default. Of each blend they are divided by their sum.
            guide: [1, R, H, W], weights >= 0 of R regions in the generated picture. It may be of another size than the
                picture, because each tap has it resized by areas.
            style_guides: [1, R, H', W'], as `style` is: one, or one for each.

        Raises:
            ValueError: Images that are not [N, 3, H, W]; a loss without taps for style; guides or weights of a wrong
                shape or number; guides with negative or non-finite weights; a region that is empty in the generated
                picture, or in all styles; a tap that the encoder does not give; a style loss that takes no guide.
            TypeError: Not a tensor, or not of floating point.
        """
        if not self.style:
            raise ValueError("PerceptualLoss: there are no style taps, so that there is no style to set")
        styles = _as_list(style)
        if not styles:
            raise ValueError("PerceptualLoss: style must hold at least one picture, got none")
        for image in styles:
            check_images("PerceptualLoss", "style", image)
        blend = _check_weights(weights, len(styles))
        regions = _check_guides(guide, None if style_guides is None else _as_list(style_guides), len(styles))
        targets: list[_StyleTarget] = []
        with torch.no_grad():
            encoded = [encode("PerceptualLoss", self.encoder, image, tuple(self.style)) for image in styles]
            for region, guides in regions:
                present = [k for k in range(len(styles)) if guides is None or guides[k] is not None]
                total = sum(blend[k] for k in present)
                targets += [
                    _StyleTarget(region, blend[k] / total, self._keep(encoded[k], guides[k] if guides else None))
                    for k in present
                ]
        self._style_targets, self._guide = targets, None if guide is None else guide.detach()

    def forward(self, image: Tensor) -> LossTerms:
        """The loss and its parts for RGB images [N, 3, H, W], which are encoded once.

        Raises:
            ValueError: Not [N, 3, H, W]; a target that is not set; a target of another batch or, where the content loss
                compares positions, another size; a tap that the encoder does not give.
            TypeError: Not a tensor, or not of floating point.
        """
        check_images("PerceptualLoss", "image", image)
        for name, taps, target in (
            ("content", self.content, self._content_target),
            ("style", self.style, self._style_targets),
        ):
            if taps and not target:
                raise ValueError(f"PerceptualLoss: there is no {name} target yet; call set_{name}() first")
        features = encode("PerceptualLoss", self.encoder, image, tuple({**self.content, **self.style}))
        content = _sum(image, [self._content_of(features[tap], tap) for tap in self.content])
        style = _sum(
            image, [self._style_of(features[tap], tap, target) for target in self._style_targets for tap in self.style]
        )
        variation = total_variation(image)
        total = self.content_weight * content + self.style_weight * style
        if self.total_variation_weight:
            total = total + self.total_variation_weight * variation
        return LossTerms(total, content, style, variation)

    def _keep(self, features: dict[str, Tensor], guide: Tensor | None) -> dict[str, tuple[Tensor, ...]]:
        return {
            tap: self.style_loss.target(features[tap], None if guide is None else _resized(guide, features[tap]))
            for tap in self.style
        }

    def _content_of(self, features: Tensor, tap: str) -> Tensor:
        value: Tensor = self.content_loss(features, self._content_target[tap])
        return self.content[tap] * value

    def _style_of(self, features: Tensor, tap: str, target: _StyleTarget) -> Tensor:
        guide = None
        if target.region is not None:
            assert self._guide is not None
            guide = _resized(self._guide[:, target.region, None], features)
        value: Tensor = self.style_loss(features, target.kept[tap], guide)
        return self.style[tap] * target.weight * value

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PerceptualLoss:
        # nn.Module moves parameters and buffers only, and a buffer has a name of its own for each tensor.
        nn.Module._apply(self, fn, recurse)
        self._content_target = _moved(self._content_target, fn)
        self._style_targets = [target._replace(kept=_moved(target.kept, fn)) for target in self._style_targets]
        if self._guide is not None:
            self._guide = fn(self._guide)
        return self


def _moved(kept: dict[str, tuple[Tensor, ...]], fn: Callable[[Tensor], Tensor]) -> dict[str, tuple[Tensor, ...]]:
    return {tap: tuple(fn(x) for x in tensors) for tap, tensors in kept.items()}


def _sum(like: Tensor, terms: list[Tensor]) -> Tensor:
    if not terms:
        return at_least_float32(like.new_zeros(()))
    return torch.stack(terms).sum()


def _resized(guide: Tensor, features: Tensor) -> Tensor:
    """By areas: a position weighs as much of a region as it covers."""
    return F.interpolate(guide, size=features.shape[2:], mode="area")


def _as_list(x: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [x] if isinstance(x, Tensor) else list(x)


def _check_weights(weights: Sequence[float] | None, styles: int) -> list[float]:
    if weights is None:
        return [1.0] * styles
    if len(weights) != styles or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(
            f"PerceptualLoss: weights must be {styles} finite numbers above 0, one for each style, got {list(weights)}"
        )
    return list(weights)


def _check_guides(
    guide: Tensor | None, style_guides: list[Tensor] | None, styles: int
) -> list[tuple[int | None, list[Tensor | None] | None]]:
    """The regions, each with every style's guide [1, 1, H', W'], None where a style has not the region."""
    if guide is None and style_guides is None:
        return [(None, None)]
    if guide is None or style_guides is None:
        raise ValueError(
            "PerceptualLoss: guide and style_guides come together, one for the generated picture and one for each "
            f"style, got {'style_guides' if guide is None else 'guide'} alone"
        )
    if len(style_guides) != styles:
        raise ValueError(f"PerceptualLoss: style_guides must be {styles}, one for each style, got {len(style_guides)}")
    _check_guide("guide", guide, None)
    for one in style_guides:
        _check_guide("style_guides", one, guide.shape[1])
    regions: list[tuple[int | None, list[Tensor | None] | None]] = []
    for region in range(guide.shape[1]):
        if not guide[:, region].any():
            raise ValueError(f"PerceptualLoss: region {region} of guide is empty; leave it out of all guides")
        parts = [one[:, region, None] if one[:, region].any() else None for one in style_guides]
        if all(part is None for part in parts):
            raise ValueError(f"PerceptualLoss: region {region} is empty in all style_guides; one must have it")
        regions.append((region, parts))
    return regions


def _check_guide(name: str, guide: Any, regions: int | None) -> None:
    check_tensor("PerceptualLoss", name, guide)
    if guide.dim() != 4 or guide.shape[0] != 1 or guide.numel() == 0 or guide.shape[1] != (regions or guide.shape[1]):
        raise ValueError(f"PerceptualLoss: {name} must be [1, {regions or 'R'}, H, W], got {shape(guide)}")
    if not guide.isfinite().all() or (guide < 0).any():
        raise ValueError(f"PerceptualLoss: {name} must have finite weights of at least 0, got others")

"""What every loss of features shares: targets that are computed once, guides, batches, precision."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stylekern.ops._checks import check_tensor, shape, without_autocast


class FeatureLoss(nn.Module):
    r"""Compares the features of a picture with what was kept of a target's features.

    What is constant is computed once::

        kept = loss.target(style_features)         # Gram matrices, moments, ...: what this loss compares
        value = loss(features, kept)               # every step of an optimisation
        value = loss.between(features, other)      # both at once, where the target changes with every step

    Nothing is detached. Compute a target under `torch.no_grad()` where no gradient shall reach it.

    Batches: a loss is the mean over the batch of features. A target of batch 1 serves all of them, one style for many
    contents. Otherwise both batches are of one size.

    Guides: [N or 1, 1, h, w], weights >= 0 of the positions, at the features' size. They turn statistics into weighted
    ones, so that a picture's region is compared alone ("Controlling perceptual factors in neural style transfer", Gatys
    et al. 2017, section 4). A weight multiplies the position's term in each sum. It is the square of their guidance
    channel, which multiplies the features; for regions of 0 and 1 both are the same. A guide of ones is no guide, and a
    guide that is 1 in a rectangle is a crop. Weights are not read, because that would wait for a GPU: all zero they
    give NaN.

    Precision: float16 and bfloat16 features are taken to float32, and autocast is off in here; float64 stays. The
    result is of that dtype.

    Subclasses implement `_keep`, and `_distance` with one value for each sample.
    """

    #: The dimensions of each tensor that `_keep` returns; None: not checked.
    _kept: ClassVar[tuple[int, ...] | None] = None
    #: Why there is no guide, and what to do; None where a guide has a meaning.
    _no_guide: ClassVar[str | None] = None

    def target(self, features: Tensor, guide: Tensor | None = None) -> tuple[Tensor, ...]:
        """What this loss keeps of a target.

        Args:
            features: [N, C, h, w], float32, float64, float16 or bfloat16.
            guide: [N or 1, 1, h, w]; see the class.

        Raises:
            ValueError: Features that are not [N, C, h, w], or are empty; a guide of another size, or for a loss that
                takes none.
            TypeError: Not a tensor, or not of floating point.
        """
        features, guide = self._prepare(features, guide)
        with full_precision(features):
            return self._keep(features, guide)

    def forward(self, features: Tensor, target: tuple[Tensor, ...], guide: Tensor | None = None) -> Tensor:
        """The loss [], the mean over the batch, of features [N, C, h, w] and what `target` returned.

        Raises:
            ValueError: As `target`; a target of other channels, or of another batch, or what else the loss names.
            TypeError: As `target`; a target that is not what `target` returns.
        """
        features, guide = self._prepare(features, guide)
        if not isinstance(target, tuple) or not all(isinstance(kept, Tensor) for kept in target):
            raise TypeError(
                f"{self._name}: target must be what target() returned, a tuple of tensors, got "
                f"{type(target).__name__}; between() takes the features of both pictures"
            )
        dims = tuple(kept.dim() for kept in target)
        if not dims or (self._kept is not None and dims != self._kept):
            raise TypeError(
                f"{self._name}: target must be what target() of this loss returned, got tensors of {dims} dimensions"
            )
        target = tuple(at_least_float32(kept) for kept in target)
        if target[0].shape[0] not in (1, features.shape[0]):
            raise ValueError(
                f"{self._name}: a target must be of batch 1 or of the features' batch {features.shape[0]}, got batch "
                f"{target[0].shape[0]}"
            )
        self._check_target(features, target)
        with full_precision(features):
            return self._distance(features, target, guide).mean()

    def between(
        self, features: Tensor, other: Tensor, guide: Tensor | None = None, other_guide: Tensor | None = None
    ) -> Tensor:
        """The loss of features and a target's features: `forward(features, target(other, other_guide), guide)`."""
        return self.forward(features, self.target(other, other_guide), guide)

    def _keep(self, features: Tensor, guide: Tensor | None) -> tuple[Tensor, ...]:
        """What is kept of a target; the first is [N, C, ...]."""
        raise NotImplementedError(f"{self._name} must implement _keep")

    def _distance(self, features: Tensor, target: tuple[Tensor, ...], guide: Tensor | None) -> Tensor:
        """The loss of each sample, [N]."""
        raise NotImplementedError(f"{self._name} must implement _distance")

    def _check_target(self, features: Tensor, target: tuple[Tensor, ...]) -> None:
        """Raises ValueError for a target that does not fit the features."""
        if target[0].shape[1] != features.shape[1]:
            raise ValueError(
                f"{self._name}: features must have the target's {target[0].shape[1]} channels, got "
                f"{shape(features)}; both must come from one layer of one encoder"
            )

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _prepare(self, features: Tensor, guide: Tensor | None) -> tuple[Tensor, Tensor | None]:
        check_features(self._name, features)
        if guide is None:
            return at_least_float32(features), None
        if self._no_guide is not None:
            raise ValueError(f"{self._name} takes no guide: {self._no_guide}")
        check_tensor(self._name, "guide", guide)
        n, _, h, w = features.shape
        if guide.dim() != 4 or guide.shape[0] not in (1, n) or guide.shape[1:] != (1, h, w):
            batch = "1" if n == 1 else f"1 or {n}"
            raise ValueError(
                f"{self._name}: guide must be [{batch}, 1, {h}, {w}] for features {shape(features)}, got "
                f'{shape(guide)}; torch.nn.functional.interpolate(guide, ({h}, {w}), mode="area") resizes one'
            )
        features = at_least_float32(features)
        return features, guide.to(features.dtype)


def check_features(owner: str, x: Any, name: str = "features") -> None:
    """Raises TypeError or ValueError unless x is [N, C, h, w], of floating point, not empty."""
    check_tensor(owner, name, x)
    if x.dim() != 4 or x.numel() == 0:
        raise ValueError(f"{owner}: {name} must be [N, C, h, w], none of them 0, got {shape(x)}")


def at_least_float32(x: Tensor) -> Tensor:
    """float16 and bfloat16 to float32; others as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def full_precision(x: Tensor) -> AbstractContextManager[None]:
    """A context without autocast for x's device: sums over thousands of positions are no work for 16 bits."""
    return without_autocast(x.device.type)


def safe_sqrt(squares: Tensor) -> Tensor:
    """The root, with gradient 0 at 0, where the root's own is infinite and turns what it meets to NaN."""
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1).sqrt(), 0)


def over(squares: Tensor, target: Tensor) -> Tensor:
    """Sums of squares [N], divided by the sum of the target's [N or 1, ...]; 0, not NaN, where both are."""
    return squares / target.square().flatten(1).sum(1).clamp_min(torch.finfo(target.dtype).tiny)

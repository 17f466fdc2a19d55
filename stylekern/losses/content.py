"""Content: features compared position by position."""

from __future__ import annotations

from torch import Tensor

from stylekern.losses._base import FeatureLoss, over, safe_sqrt
from stylekern.ops._checks import check_option, shape

KINDS = ("mse", "chw", "sum", "half", "euclidean", "relative")


class ContentLoss(FeatureLoss):
    r"""The distance of two feature maps of one size, in the papers' five ways and one more.

    With d = F - P, of C channels and M = H W positions, per sample::

        mse:        mean of d^2                          Xu et al., section 4: the mean squared error
        chw:        sum of d^2 / (C H W)                 Li et al., eq. 5: the same value, as it is written there
        sum:        sum of d^2                           Li et al., eq. 2; INFO8010, section III.A
        half:       sum of d^2 / 2                       Li et al., eq. 13
        euclidean:  sqrt(sum of d^2)                     Li et al., eq. 10; SAFIN, section 3.4
        relative:   sum of d^2 / sum of P^2              of no paper: of one size for all layers and encoders

    Xu et al. is "Multi-scaled attentive style transfer based on dilated convolution", Li et al. "Artistic neural style
    transfer algorithms with activation smoothing", INFO8010 the report "INFO8010: Style transfer".

    Args:
        kind: "mse", which does not grow with the picture, by default.

    The Euclidean norm's gradient at equal features is 0, where the formula has none: an optimisation may start there.

    "relative" has nothing to be relative to where the target has no features, as a flat picture's for filters of mean
    0: the loss is then 0 for features that are all zero too, and huge for others.

    Positions are compared in pairs, so that there is one guide, `forward`'s: it weighs the squares, and M is the sum of
    its weights. `target` refuses one.

    Raises:
        ValueError: An unknown kind. In `forward`, feature maps of two sizes. In `target`, a guide.
    """

    _kept = (4,)

    def __init__(self, kind: str = "mse") -> None:
        super().__init__()
        check_option("ContentLoss", "kind", kind, KINDS)
        self.kind = kind

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}"

    def _keep(self, features: Tensor, guide: Tensor | None) -> tuple[Tensor, ...]:
        if guide is not None:
            raise ValueError("ContentLoss: a target takes no guide; give forward() one, for pairs of positions")
        return (features,)

    def _check_target(self, features: Tensor, target: tuple[Tensor, ...]) -> None:
        super()._check_target(features, target)
        if target[0].shape[2:] != features.shape[2:]:
            raise ValueError(
                f"ContentLoss: features must be of the target's size {shape(target[0])}, got {shape(features)}; "
                "resize one of the pictures"
            )

    def _distance(self, features: Tensor, target: tuple[Tensor, ...], guide: Tensor | None) -> Tensor:
        squares = (features - target[0]).square()
        if self.kind in ("mse", "chw") and guide is None:
            return squares.mean((1, 2, 3))
        total = (squares if guide is None else squares * guide).sum((1, 2, 3))
        if self.kind == "euclidean":
            return safe_sqrt(total)
        if guide is not None and self.kind in ("mse", "chw"):
            return total / (features.shape[1] * guide.sum((1, 2, 3)))
        if self.kind == "relative":
            return over(total, target[0] if guide is None else target[0] * guide.sqrt())
        return total / 2 if self.kind == "half" else total

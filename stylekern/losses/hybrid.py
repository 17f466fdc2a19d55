"""The hybrid objective of moment matching, self-similarity and relaxed earth mover's distance."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from stylekern.losses.remd import REMDLoss
from stylekern.losses.self_similarity import SelfSimilarityLoss
from stylekern.losses.statistics import MomentMatchingLoss
from stylekern.ops._checks import check_positive


class HybridTerms(NamedTuple):
    """The terms l_m, l_s and l_c, [] each, before their weights."""

    moments: Tensor
    remd: Tensor
    self_similarity: Tensor


class HybridLoss(nn.Module):
    r"""The style objective of "Multi-scaled attentive style transfer based on dilated convolution", section 4.

    ::

        l = (alpha l_m + l_c + l_s / alpha) / (1 + alpha + 1 / alpha)

    l_m matches moments (:class:`MomentMatchingLoss`) and l_s is the relaxed earth mover's distance
    (:class:`REMDLoss`), both of the stylised picture and the style. l_c compares self-similarity
    (:class:`SelfSimilarityLoss`) of the stylised picture and the content. The text says "between stylized and style" of
    l_c. It is read as the content, as in STROTSS, whose objective it takes: a style's positions are not the picture's.

    There are two targets, so that this is no :class:`FeatureLoss`. Batches, dtypes and autocast are as there.

    Args:
        alpha: Above zero. The paper gives no value; 1 weighs the three alike.
        reduction: Of the self-similarity. "columns" keeps the term about as large as the other two. As STROTSS prints
            it, "mean", it falls with the number of positions and vanishes beside them.
        max_positions: Of the self-similarity.

    Raises:
        TypeError: An alpha that is no number.
        ValueError: An alpha that is not positive and finite; an unknown reduction; max_positions below 1.
    """

    def __init__(self, alpha: float = 1.0, *, reduction: str = "columns", max_positions: int | None = 1024) -> None:
        super().__init__()
        check_positive("HybridLoss", "alpha", alpha)
        self.alpha = alpha
        self.moments = MomentMatchingLoss()
        self.remd = REMDLoss()
        self.self_similarity = SelfSimilarityLoss(reduction=reduction, max_positions=max_positions)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"

    def style_target(self, features: Tensor) -> tuple[Tensor, ...]:
        """What is kept of the style's features [N, C, h, w]: mean, covariance, and the features."""
        return *self.moments.target(features), *self.remd.target(features)

    def content_target(self, features: Tensor) -> tuple[Tensor, ...]:
        """What is kept of the content's features [N, C, h, w]: their self-similarity."""
        return self.self_similarity.target(features)

    def terms(self, features: Tensor, style: tuple[Tensor, ...], content: tuple[Tensor, ...]) -> HybridTerms:
        """The three terms of features [N, C, h, w] and both targets.

        Raises:
            ValueError, TypeError: As of :class:`FeatureLoss`; targets that came from elsewhere or in another order.
        """
        if not isinstance(style, tuple) or not isinstance(content, tuple) or (len(style), len(content)) != (3, 1):
            raise TypeError(
                "HybridLoss: style must be what style_target() returned and content what content_target() returned; "
                "between() takes features"
            )
        return HybridTerms(
            self.moments(features, style[:2]), self.remd(features, style[2:]), self.self_similarity(features, content)
        )

    def forward(self, features: Tensor, style: tuple[Tensor, ...], content: tuple[Tensor, ...]) -> Tensor:
        """The objective [] of features [N, C, h, w] and what `style_target` and `content_target` returned."""
        moments, remd, self_similarity = self.terms(features, style, content)
        weighted = self.alpha * moments + self_similarity + remd / self.alpha
        return weighted / (1 + self.alpha + 1 / self.alpha)

    def between(self, features: Tensor, style: Tensor, content: Tensor) -> Tensor:
        """The objective [] of three pictures' features."""
        return self.forward(features, self.style_target(style), self.content_target(content))

"""Content as a picture's resemblance to itself."""

from __future__ import annotations

import torch
from torch import Tensor

from stylekern.losses._base import FeatureLoss
from stylekern.losses._positions import check_max_positions, regular_grid
from stylekern.ops._checks import check_option


class SelfSimilarityLoss(FeatureLoss):
    r"""The distances among a picture's positions, against those of the content (STROTSS, Kolkin et al. 2019).

    L_content there, l_c of "Multi-scaled attentive style transfer based on dilated convolution", section 4. With
    D[i, j] the cosine distance of positions i and j of one map, and n of them::

        mean:     1/n^2 sum over i, j of | D[i, j] / sum over i of D[i, j]  -  the same of the content |
        columns:  1/n   sum of the same

    Channels need not agree: the two maps may come from two encoders.

    Args:
        reduction: "mean" is as STROTSS prints it. A column's entries are 1/n on average, so that it falls as 1/n.
            "columns" is as its code has it, the mean over the columns of a distance of two distributions: between 0 and
            2 for maps of all sizes.
        max_positions: At most so many, on a regular grid that is the same in both. 1024 is what STROTSS samples. None
            takes all, and memory is the square of the positions, several times: 4 GiB for each matrix of 32,768.

    Where a position differs from the others by less than 1e-6 on average, as in a blank picture, its column is divided
    by n 1e-6 instead: rounding is not structure.

    No guide: a pair of positions has no weight of its own.

    Raises:
        ValueError: An unknown reduction; max_positions below 1. In `forward`, maps whose grids are of two sizes.
    """

    _no_guide = "its positions are compared in pairs; crop the features, both in the same way"

    _kept = (4,)

    def __init__(self, *, reduction: str = "mean", max_positions: int | None = 1024) -> None:
        super().__init__()
        check_option("SelfSimilarityLoss", "reduction", reduction, ("mean", "columns"))
        check_max_positions("SelfSimilarityLoss", max_positions)
        self.reduction, self.max_positions = reduction, max_positions

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, max_positions={self.max_positions}"

    def _keep(self, features: Tensor, guide: Tensor | None) -> tuple[Tensor, ...]:
        grid = regular_grid(features, self.max_positions)
        rows = grid.flatten(2)  # [N, C, n]
        norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        unit = rows / torch.where(norm > 1e-12, norm, 1)  # a zero position is 1 from all, with a gradient that is small
        distance = 1 - unit.mT @ unit
        column = distance.mean(1, keepdim=True).clamp_min(1e-6) * rows.shape[2]
        return ((distance / column).unflatten(2, grid.shape[2:]),)  # [N, n, h, w]: the grid's size goes along

    def _check_target(self, features: Tensor, target: tuple[Tensor, ...]) -> None:
        own, other = regular_grid(features, self.max_positions).shape[2:], target[0].shape[2:]
        if own != other:
            raise ValueError(
                f"SelfSimilarityLoss: both maps must have the same positions, got grids of {own[0]} x {own[1]} and "
                f"{other[0]} x {other[1]}; resize one of the pictures"
            )

    def _distance(self, features: Tensor, target: tuple[Tensor, ...], guide: Tensor | None) -> Tensor:
        (own,) = self._keep(features, guide)
        loss = (own - target[0]).abs().mean((1, 2, 3))
        return loss * own.shape[1] if self.reduction == "columns" else loss

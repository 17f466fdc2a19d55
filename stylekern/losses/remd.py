"""Relaxed earth mover's distance between the positions of two feature maps."""

from __future__ import annotations

from torch import Tensor

from stylekern.losses._base import FeatureLoss
from stylekern.losses._positions import check_max_positions, regular_grid
from stylekern.ops import remd
from stylekern.ops._checks import check_option
from stylekern.ops.min_distances import METRICS


class REMDLoss(FeatureLoss):
    r"""Relaxed earth mover's distance of the features' positions (STROTSS, Kolkin et al. 2019, eq. 5).

    L_REMD of "Learning dynamic style kernels ...", eq. 9, and l_s of "Multi-scaled attentive style transfer based on
    dilated convolution", section 4::

        remd = max(mean over i of min over j of D[i, j], mean over j of min over i of D[i, j])

    with D[i, j] the distance of position i of the picture to position j of the style, by :func:`stylekern.ops.remd`,
    which holds no matrix D. Pictures may be of different sizes.

    Args:
        metric: "cosine", as all three papers have it, or "euclidean", the palette term of STROTSS.
        max_positions: All by default. A number takes at most so many of either, on a regular grid of the map: time
            grows with their product, and STROTSS takes 1024.

    No guide: a minimum over positions that are half in a region has no agreed meaning. Crop the features.

    Raises:
        ValueError: An unknown metric; max_positions below 1.
    """

    _no_guide = "a nearest position is in a region or not; crop the features, or use MomentMatchingLoss or GramLoss"

    _kept = (4,)

    def __init__(self, metric: str = "cosine", *, max_positions: int | None = None) -> None:
        super().__init__()
        check_option("REMDLoss", "metric", metric, METRICS)
        check_max_positions("REMDLoss", max_positions)
        self.metric, self.max_positions = metric, max_positions

    def extra_repr(self) -> str:
        return f"metric={self.metric!r}, max_positions={self.max_positions}"

    def _keep(self, features: Tensor, guide: Tensor | None) -> tuple[Tensor, ...]:
        return (regular_grid(features, self.max_positions).contiguous(),)  # a view would keep all positions alive

    def _distance(self, features: Tensor, target: tuple[Tensor, ...], guide: Tensor | None) -> Tensor:
        own = _rows(regular_grid(features, self.max_positions))
        other = _rows(target[0]).to(own.dtype).expand(own.shape[0], -1, -1)
        return remd(own, other, metric=self.metric, reduction="none")


def _rows(x: Tensor) -> Tensor:
    rows: Tensor = x.flatten(2).transpose(1, 2)
    return rows

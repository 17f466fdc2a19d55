"""Moments of the channels over the positions: means, deviations, covariances."""

from __future__ import annotations

import torch
from torch import Tensor

from stylekern.losses._base import FeatureLoss, safe_sqrt
from stylekern.ops._checks import check_option, check_positive, shape


class MeanStdLoss(FeatureLoss):
    r"""Means and deviations of the channels, the style that adaptive instance normalisation transfers.

    ::

        euclidean:  |mean(F) - mean(S)|_2 + |std(F) - std(S)|_2         Li et al., eq. 11; SAFIN, section 3.4
        mse:        the means over the channels of both squares, added  the code of Huang & Belongie 2017

    with std(.) = sqrt(var(.) + eps), as in :func:`stylekern.ops.adain`. Li et al. is "Artistic neural style transfer
    algorithms with activation smoothing". SAFIN says variance and prints the deviation's letter: it is read as the
    deviation.

    Args:
        kind: "euclidean", as both papers print, by default.
        eps: Inside the root, above zero; 1e-5 is adain's. It keeps the gradient finite where a channel is constant.

    Variances are unbiased, as adain's: they divide by the positions less 1. With a guide g they divide by
    sum(g) - sum(g^2) / sum(g), which is that for weights of 0 and 1 and does not depend on the guide's scale. A region
    of one position has variance 0.

    Raises:
        TypeError: An eps that is no number.
        ValueError: An unknown kind; an eps that is not positive and finite. In `target` and `forward`, features of one
            position, which have no variance.
    """

    _kept = (2, 2)

    def __init__(self, kind: str = "euclidean", *, eps: float = 1e-5) -> None:
        super().__init__()
        check_option("MeanStdLoss", "kind", kind, ("euclidean", "mse"))
        check_positive("MeanStdLoss", "eps", eps)
        self.kind, self.eps = kind, eps

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, eps={self.eps}"

    def _keep(self, features: Tensor, guide: Tensor | None) -> tuple[Tensor, ...]:
        if features.shape[2] * features.shape[3] == 1:
            raise ValueError(
                f"MeanStdLoss: the variance of one position is not defined, got features {shape(features)}; use a "
                "larger picture, or an earlier layer"
            )
        if guide is None:
            var, mean = torch.var_mean(features, dim=(2, 3))
            return mean, (var + self.eps).sqrt()
        total = guide.sum((2, 3))  # [N or 1, 1]
        mean = (features * guide).sum((2, 3)) / total
        squares = ((features - mean[:, :, None, None]).square() * guide).sum((2, 3))
        freedom = total - guide.square().sum((2, 3)) / total
        # One position leaves rounding over rounding; what it is divided by here makes that small.
        var = squares / torch.maximum(freedom, 1e-6 * total)
        return mean, (var + self.eps).sqrt()

    def _distance(self, features: Tensor, target: tuple[Tensor, ...], guide: Tensor | None) -> Tensor:
        squares = [(own - other).square() for own, other in zip(self._keep(features, guide), target, strict=True)]
        if self.kind == "mse":
            return squares[0].mean(1) + squares[1].mean(1)
        return safe_sqrt(squares[0].sum(1)) + safe_sqrt(squares[1].sum(1))


class MomentMatchingLoss(FeatureLoss):
    r"""Mean and covariance of the channels: l_m of STROTSS (Kolkin et al. 2019).

    ::

        l_m = 1/C sum over c of |mean(F)[c] - mean(S)[c]| + 1/C^2 sum over c, d of |cov(F)[c, d] - cov(S)[c, d]|

    It is also l_m of "Multi-scaled attentive style transfer based on dilated convolution", section 4. The covariance
    divides by the number of positions; the papers do not say. With a guide both are weighted means.
    """

    _kept = (2, 3)

    def _keep(self, features: Tensor, guide: Tensor | None) -> tuple[Tensor, ...]:
        rows = features.flatten(2)  # [N, C, M]
        if guide is None:
            mean = rows.mean(2, keepdim=True)
            centred = rows - mean
            return mean.squeeze(2), centred @ centred.mT / rows.shape[2]
        weights = guide.flatten(2)
        weights = weights / weights.sum(2, keepdim=True)
        mean = (rows * weights).sum(2, keepdim=True)
        centred = rows - mean
        return mean.squeeze(2), (centred * weights) @ centred.mT

    def _distance(self, features: Tensor, target: tuple[Tensor, ...], guide: Tensor | None) -> Tensor:
        mean, covariance = self._keep(features, guide)
        return (mean - target[0]).abs().mean(1) + (covariance - target[1]).abs().mean((1, 2))

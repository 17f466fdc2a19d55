"""Gram matrices, the style of Gatys et al., in the scalings of the papers."""

from __future__ import annotations

from torch import Tensor

from stylekern.losses._base import FeatureLoss, at_least_float32, check_features, full_precision, over
from stylekern.ops._checks import check_option

#: The options of :class:`GramLoss`: what divides the Gram matrix, and what multiplies the sum of squares.
NORMALIZATIONS = {"none": ("none", 1.0), "chw": ("chw", 1.0), "gatys": ("chw", 0.25), "relative": ("chw", 1.0)}


def gram_matrix(x: Tensor, normalize: str = "chw") -> Tensor:
    r"""Gram matrices of the channels: sums over the positions of products of two channels.

    ::

        none:  G[c, d] = sum over p of x[c, p] x[d, p]                  Li et al., eq. 3; Gatys et al. 2016
        chw:   G[c, d] = the same / (C H W)                             Li et al., eq. 6; Johnson et al. 2016

    Li et al. is "Artistic neural style transfer algorithms with activation smoothing".

    Args:
        x: [N, C, H, W], float32, float64, float16 or bfloat16.
        normalize: "chw", which does not grow with the picture, by default; or "none".

    Returns:
        [N, C, C], float32, or float64 for float64. Autocast does not lower it: sums of 65,536 squares leave float16's
        range.

    Raises:
        ValueError: Not [N, C, H, W], or empty; an unknown normalisation.
        TypeError: Not a tensor, or not of floating point.
    """
    check_option("gram_matrix", "normalize", normalize, ("none", "chw"))
    check_features("gram_matrix", x, "x")
    with full_precision(x):
        return _gram(at_least_float32(x), normalize, None)


class GramLoss(FeatureLoss):
    r"""The squared Frobenius distance of two Gram matrices, one of them in each picture.

    ::

        none:   |F F^T - A A^T|^2                                       Li et al., eq. 3 and 4
        chw:    |F F^T / (C M) - A A^T / (C M')|^2                      Li et al., eq. 6 and 7; Johnson et al. 2016
        gatys:  |F F^T / M - A A^T / M'|^2 / (4 C^2)                    Li et al., eq. 14; INFO8010; Gatys et al.

        relative: chw / |A A^T / (C M')|^2                              of no paper

    with F [C, M] the features of the picture and A [C, M'] those of the style, in rows of positions. Li et al. is
    "Artistic neural style transfer algorithms with activation smoothing". INFO8010 is the report "INFO8010: Style
    transfer", section III.A; its error, "normalized for the layer sizes", is read as that of Gatys et al., whom it
    implements. Eq. 14 is a quarter of eq. 7.

    Eq. 14 prints 1 / (4 C^2 M^2) with one M, so it has pictures of one size in mind. Here each matrix is divided by the
    positions of its own picture: for one size it is the printed value, and for others a style remains what it is when
    its picture is tiled. "none" is as printed: sums that grow with the picture, for pictures of one size. "relative" is
    1 for a picture without features, whatever the encoder's scale: layers, encoders and weights can be exchanged. Of a
    target without features, as a black picture's may be, nothing is a multiple: it is then 0 or huge.

    Args:
        normalize: "chw", "gatys", "relative" or "none".

    A guide weighs each position's products, and M is the sum of its weights.

    Raises:
        ValueError: An unknown normalisation.
    """

    _kept = (3,)

    def __init__(self, normalize: str = "chw") -> None:
        super().__init__()
        check_option("GramLoss", "normalize", normalize, tuple(NORMALIZATIONS))
        self.normalize = normalize

    def extra_repr(self) -> str:
        return f"normalize={self.normalize!r}"

    def _keep(self, features: Tensor, guide: Tensor | None) -> tuple[Tensor, ...]:
        return (_gram(features, NORMALIZATIONS[self.normalize][0], guide),)

    def _distance(self, features: Tensor, target: tuple[Tensor, ...], guide: Tensor | None) -> Tensor:
        divisor, factor = NORMALIZATIONS[self.normalize]
        difference = (_gram(features, divisor, guide) - target[0]).square().sum((1, 2))
        return over(difference, target[0]) if self.normalize == "relative" else factor * difference


def _gram(x: Tensor, normalize: str, guide: Tensor | None) -> Tensor:
    rows = x.flatten(2)  # [N, C, M]
    if guide is None:
        gram, positions = rows @ rows.mT, float(rows.shape[2])
        return gram / (rows.shape[1] * positions) if normalize == "chw" else gram
    weights = guide.flatten(2)  # [N or 1, 1, M]
    gram = (rows * weights) @ rows.mT
    return gram / (rows.shape[1] * weights.sum(2, keepdim=True)) if normalize == "chw" else gram

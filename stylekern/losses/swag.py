"""Stylisation with activation smoothing: losses of features that have lost their peaks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stylekern.losses._base import FeatureLoss, at_least_float32, check_features
from stylekern.ops._checks import check_option

KINDS = ("softmax", "tanh", "softsign", "scale")


def smooth(x: Tensor, kind: str = "softmax", *, over: str = "channels", scale: float = 1e-3) -> Tensor:
    r"""Smooths activations (Li et al., section 5; Wang et al. 2021, "Rethinking and improving the robustness ...").

    ::

        softmax:   exp(x) / sum of exp(x)
        tanh:      tanh(x)
        softsign:  x / (1 + |x|)
        scale:     x * scale

    Li et al. is "Artistic neural style transfer algorithms with activation smoothing". Residual networks' features are
    peaked: few values carry nearly all of a Gram matrix. These put them close to each other again.

    Args:
        x: [N, C, H, W], float32, float64, float16 or bfloat16.
        kind: "softmax", "tanh", "softsign" or "scale".
        over: The sum of the softmax: over the "channels" of a position, by default, or over "all" values of a sample.
            The paper does not say. Over the channels no position is favoured, and pictures of different sizes remain
            comparable. Softmax only.
        scale: The constant; 1e-3 is the paper's. Scale only.

    Returns:
        [N, C, H, W], float32, or float64 for float64.

    Raises:
        ValueError: Not [N, C, H, W], or empty; an unknown kind or over.
        TypeError: Not a tensor, or not of floating point.
    """
    check_option("smooth", "kind", kind, KINDS)
    check_option("smooth", "over", over, ("channels", "all"))
    check_features("smooth", x, "x")
    x = at_least_float32(x)
    if kind == "softmax":
        return x.softmax(1) if over == "channels" else x.flatten(1).softmax(1).view(x.shape)
    if kind == "tanh":
        return torch.tanh(x)
    return F.softsign(x) if kind == "softsign" else x * scale


class Smoothed(FeatureLoss):
    r"""A loss of smoothed features, of the picture and of the target alike (Li et al., eq. 13 and 14).

    `Smoothed(ContentLoss("half"))` is eq. 13 and `Smoothed(GramLoss("gatys"))` eq. 14. Their weights are the paper's 1
    and 1e12, on a ResNet's stages conv3 and conv4.

    Args:
        loss: Any loss of features.
        kind, over, scale: As of :func:`smooth`.

    Guides are the loss's own.

    Raises:
        ValueError: An unknown kind or over.
        TypeError: A loss that is none of features.
    """

    def __init__(
        self, loss: FeatureLoss, kind: str = "softmax", *, over: str = "channels", scale: float = 1e-3
    ) -> None:
        super().__init__()
        if not isinstance(loss, FeatureLoss):
            raise TypeError(f"Smoothed: loss must be a FeatureLoss such as GramLoss(), got {type(loss).__name__}")
        check_option("Smoothed", "kind", kind, KINDS)
        check_option("Smoothed", "over", over, ("channels", "all"))
        self.loss, self.kind, self.over, self.scale = loss, kind, over, scale

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, over={self.over!r}, scale={self.scale}"

    def target(self, features: Tensor, guide: Tensor | None = None) -> tuple[Tensor, ...]:
        """What the loss keeps of the smoothed features."""
        return self.loss.target(self._smooth(features), guide)

    def forward(self, features: Tensor, target: tuple[Tensor, ...], guide: Tensor | None = None) -> Tensor:
        """The loss [] of the smoothed features."""
        value: Tensor = self.loss(self._smooth(features), target, guide)
        return value

    def _smooth(self, features: Tensor) -> Tensor:
        return smooth(features, self.kind, over=self.over, scale=self.scale)

"""Style features aligned with the content, by attention that is gated by the content."""

from __future__ import annotations

from torch import Tensor, nn

from stylekern.nn._features import as_features, as_rows, check_features
from stylekern.nn.content_gate import ContentGate
from stylekern.ops import cgm_attention
from stylekern.ops._checks import check_count, check_finite, check_option, check_positive


class StyleAlignment(nn.Module):
    r"""Style alignment encoding with content-based gating modulation ("Learning dynamic style kernels", eq. 1 to 5).

    Every content position gathers the style features that it resembles::

        A(u, v) = softmax over v of alpha * cos(content(u), style(v))
        y(u)    = sum over v with A(u, v) > lambda(u) / Lk + beta(u) of A(u, v) * style(v)

    with lambda and beta predicted from the content (:class:`ContentGate`). As printed, eq. 4 would keep or drop whole
    rows of A; it is read as T = lambda A_r + beta. The map A exists nowhere: see :func:`stylekern.ops.cgm_attention`.

    Args:
        channels: Of both features.
        alpha: The sharpness of the softmax. The paper gives no value. Cosines of VGG features differ by some tenths, so
            that 20 favours the best keys by a factor of hundreds.
        gate: False leaves the gate out: the paper's model without CGM.
        hidden: Of :class:`ContentGate`.
        gate_grad: How the hard gate is learned: "straight_through" (a gate with "none" gets no gradient and stays as it
            is).
        temperature: Of the surrogate, in units of the average A.
        renormalize: Divides by the mass that the gate keeps; the paper does not.

    Raises:
        TypeError: An alpha, a temperature or channels that are no numbers.
        ValueError: One that is not finite, a temperature or channels that are not positive, an unknown gate_grad.
    """

    def __init__(
        self,
        channels: int,
        *,
        alpha: float = 20.0,
        gate: bool = True,
        hidden: int | None = None,
        gate_grad: str = "straight_through",
        temperature: float = 1.0,
        renormalize: bool = False,
    ) -> None:
        super().__init__()
        check_count("StyleAlignment", "channels", channels)
        check_finite("StyleAlignment", "alpha", alpha)
        check_positive("StyleAlignment", "temperature", temperature)
        check_option("StyleAlignment", "gate_grad", gate_grad, ("none", "straight_through"))
        self.channels, self.alpha, self.gate_grad = channels, alpha, gate_grad
        self.temperature, self.renormalize = temperature, renormalize
        self.gate = ContentGate(channels, hidden) if gate else None

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        """Content [N, C, H, W] and style [N, C, H', W'] to aligned style features [N, C, H, W].

        Raises:
            TypeError: Not a tensor of floating point.
            ValueError: Features that are not [N, C, H, W], of other channels, or of batches that differ.
        """
        check_features("StyleAlignment", self.channels, content, style)
        scale, bias = (None, None) if self.gate is None else self.gate(content, style.shape[2] * style.shape[3])
        keys = as_rows(style)
        aligned = cgm_attention(
            as_rows(content),
            keys,
            keys,
            scale,
            bias,
            alpha=self.alpha,
            gate_grad=self.gate_grad,
            temperature=self.temperature,
            renormalize=self.renormalize,
        )
        return as_features(aligned, content)

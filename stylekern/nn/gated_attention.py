"""Content-based gating where another network has plain content/style attention."""

from __future__ import annotations

from torch import Tensor, nn

from stylekern.nn._features import (
    as_features,
    as_rows,
    check_features,
    normalized,
)
from stylekern.nn.content_gate import ContentGate
from stylekern.ops import cgm_attention
from stylekern.ops._checks import check_count, check_option, check_positive


class GatedAttention(nn.Module):
    r"""Attention from content to style with content-based gating modulation, in the place of SANet's module.

    "Learning dynamic style kernels ...", section 4, puts its gate into the attention of SANet (Park and Lee 2019)::

        q, k, v = f(norm(content)), g(norm(style)), h(style)                    1 x 1 convolutions
        A(u, v) = softmax over v of q(u) . k(v)
        y       = content + out_conv(sum over v with A > lambda / Lk + beta of A * v)

    norm takes mean and unbiased deviation from each channel. The names `f`, `g`, `h`, `out_conv` are those of SANet's
    public implementation: its state dict loads, with `strict=False` for the gate's own parameters, or as it is with
    `gate=False`, which is SANet's module itself.

    Args:
        channels: Of both features, `in_planes` there.
        gate: False leaves the gate out.
        hidden, gate_grad, temperature, renormalize: As of :class:`StyleAlignment`.

    Raises:
        TypeError: A temperature or channels that are no numbers.
        ValueError: One that is not finite or not positive, an unknown gate_grad.
    """

    def __init__(
        self,
        channels: int,
        *,
        gate: bool = True,
        hidden: int | None = None,
        gate_grad: str = "straight_through",
        temperature: float = 1.0,
        renormalize: bool = False,
    ) -> None:
        super().__init__()
        check_count("GatedAttention", "channels", channels)
        check_positive("GatedAttention", "temperature", temperature)
        check_option("GatedAttention", "gate_grad", gate_grad, ("none", "straight_through"))
        self.channels, self.gate_grad = channels, gate_grad
        self.temperature, self.renormalize = temperature, renormalize
        self.f, self.g, self.h, self.out_conv = (nn.Conv2d(channels, channels, 1) for _ in range(4))
        self.gate = ContentGate(channels, hidden) if gate else None

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        """Content [N, C, H, W] and style [N, C, H', W'] to [N, C, H, W].

        Raises:
            TypeError: Not a tensor of floating point.
            ValueError: Features that are not [N, C, H, W], of other channels, of batches that differ, or of one
                position, which has no deviation.
        """
        check_features("GatedAttention", self.channels, content, style, several=True)
        scale, bias = (None, None) if self.gate is None else self.gate(content, style.shape[2] * style.shape[3])
        attended = cgm_attention(
            as_rows(self.f(normalized(content))),
            as_rows(self.g(normalized(style))),
            as_rows(self.h(style)),
            scale,
            bias,
            alpha=1.0,
            cosine=False,
            gate_grad=self.gate_grad,
            temperature=self.temperature,
            renormalize=self.renormalize,
        )
        result: Tensor = content + self.out_conv(as_features(attended, content))
        return result

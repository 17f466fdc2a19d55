"""Normalisation that is adapted, position by position, to what attention finds in the style."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stylekern.nn._features import as_features, as_rows, check_features, normalized
from stylekern.ops import cgm_attention, factorized_instance_norm
from stylekern.ops._checks import check_count


class SAFINModule(nn.Module):
    r"""Normalisation whose scale and shift come from attention to the style (SAFIN, eq. 1 to 3).

    ::

        y      = gamma_s * (gamma_ind * norm(content) + beta_ind) + beta_s
        gamma_s = relu(W_gamma SA),    beta_s = relu(W_beta SA)                   1 x 1 convolutions
        SA(u)  = sum over v of softmax over v of (f norm(content)(u) . g norm(style)(v)) * h style(v)

    Eq. 2 and 3 give SA normalised content and style; queries and keys are made of those, and values of the style as it
    is, as SANet has it, else nothing would know the style's own scale. norm takes mean and unbiased deviation from each
    channel. It fits wherever SANet's module does: features of any sizes, [N, C, H, W] out.

    Args:
        channels: Of both features.

    Raises:
        TypeError, ValueError: A number of channels that is none.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        check_count("SAFINModule", "channels", channels)
        self.channels = channels
        self.f, self.g, self.h, self.gamma, self.beta = (nn.Conv2d(channels, channels, 1) for _ in range(5))
        self.gamma_ind, self.beta_ind = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        """Content [N, C, H, W] and style [N, C, H', W'] to [N, C, H, W].

        Raises:
            TypeError: Not a tensor of floating point.
            ValueError: Features that are not [N, C, H, W], of other channels, of batches that differ, or of one
                position, which has no deviation.
        """
        check_features("SAFINModule", self.channels, content, style, several=True)
        query, key = as_rows(self.f(normalized(content))), as_rows(self.g(normalized(style)))
        attended = cgm_attention(query, key, as_rows(self.h(style)), alpha=1.0, cosine=False)
        attention = as_features(attended, content)
        gamma, beta = torch.relu(self.gamma(attention)), torch.relu(self.beta(attention))
        return factorized_instance_norm(content, self.gamma_ind, self.beta_ind, gamma, beta)

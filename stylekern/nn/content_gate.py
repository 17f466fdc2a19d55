"""The network that predicts, from content features, which keys each of their positions listens to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stylekern.nn._features import check_map
from stylekern.ops._checks import check_count


class ContentGate(nn.Module):
    r"""E_f of content-based gating modulation ("Learning dynamic style kernels ...", section 3.1).

    Predicts the scale lambda and the bias beta of the threshold T = lambda A_r + beta, one of each for every position.
    The paper calls E_f a convolution network and says no more. Here it is two convolutions of 3 x 3, which see what a
    position belongs to, with a ReLU between them.

    A softmax row of Lk keys has entries of 1/Lk on average. beta is predicted in units of 1/Lk, as lambda is by its
    definition, so that a network's outputs are of one size for pictures of all sizes. It starts with lambda near 1 and
    beta near 0, which keeps what is above average.

    Args:
        channels: Of the content features.
        hidden: Channels between the convolutions; a quarter of `channels` by default.

    Raises:
        TypeError, ValueError: Numbers of channels that are none.
    """

    def __init__(self, channels: int, hidden: int | None = None) -> None:
        super().__init__()
        check_count("ContentGate", "channels", channels)
        hidden = max(channels // 4, 1) if hidden is None else hidden
        check_count("ContentGate", "hidden", hidden)
        self.features = nn.Conv2d(channels, hidden, 3, padding=1, padding_mode="replicate")
        self.gates = nn.Conv2d(hidden, 2, 3, padding=1, padding_mode="replicate")
        with torch.no_grad():
            self.gates.weight *= 1e-2  # features may be large
            assert self.gates.bias is not None
            self.gates.bias[0], self.gates.bias[1] = 1, 0

    def forward(self, content: Tensor, keys: int) -> tuple[Tensor, Tensor]:
        """Content features [N, C, H, W], to be matched with so many keys, to lambda and beta, [N, H * W] each.

        Raises:
            TypeError, ValueError: Not such features.
        """
        check_map("ContentGate", "content", self.features.in_channels, content)
        scale, bias = self.gates(torch.relu(self.features(content))).flatten(2).unbind(1)
        return scale, bias / max(keys, 1)

"""What a picture of 1024 x 1024 takes, with the operators and with plain torch in their place."""

from __future__ import annotations

import sys

import pytest

from tests.memory import measured

CODE = """
import torch
from stylekern import use_backend
from stylekern.models import {network}

torch.set_num_threads(2)
network = {network}().eval()
content, style = (torch.rand(1, 3, {size}, {size}) for _ in range(2))
with torch.no_grad(), use_backend("{backend}"):
    network(content[..., :64, :64], style[..., :64, :64])  # what a first call loads
    before = peak()
    network(content, style)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("network", ["StyleKernel", "SAFIN"])
def test_attention_at_1024_takes_no_map(network: str) -> None:
    """relu4_1 has 16,384 positions there: plain torch's map of each against each takes a gigabyte."""
    ours, plain = (
        measured(CODE.format(network=network, size=1024, backend=backend)) for backend in ("compiled", "reference")
    )
    print(f"{network}: {ours / 1e6:.0f} MB with the operators, {plain / 1e6:.0f} MB with plain torch")
    assert ours < plain - 10**9

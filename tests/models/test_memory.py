"""What a large picture takes, with the operators and with plain torch in their place.

`python -m tests.models.test_memory` measures the networks at their full width at 1024 x 1024, as docs/models.md has
them.
"""

from __future__ import annotations

import sys

import pytest

from tests.memory import measured

CODE = """
import torch
from stylekern import use_backend
from {module} import {name}

torch.set_num_threads(2)
network = {make}().eval()
content, style = (torch.rand(1, 3, {size}, {size}) for _ in range(2))
with torch.no_grad(), use_backend("{backend}"):
    network(content[..., :64, :64], style[..., :64, :64])  # what a first call loads
    before = peak()
    network(content, style)
print(peak() - before)
"""


def peaks(module: str, name: str, make: str, size: int) -> list[int]:
    """Bytes beyond the network and its pictures, with the operators and with plain torch."""
    return [
        measured(CODE.format(module=module, name=name, make=make, size=size, backend=backend))
        for backend in ("compiled", "reference")
    ]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("network", ["style-kernel", "safin"])
def test_attention_takes_no_map(network: str) -> None:
    """relu4_1 has 96 x 96 positions there: plain torch's map of each against each takes 340 MB at any width."""
    ours, plain = peaks("tests.models.networks", "NETWORKS", f"NETWORKS['{network}']", 768)
    assert ours < plain - 4 * 96**4


if __name__ == "__main__":
    for network in ("StyleKernel", "SAFIN"):
        ours, plain = peaks("stylekern.models", network, network, 1024)
        print(f"{network}: {ours / 1e6:.0f} MB with the operators, {plain / 1e6:.0f} MB with plain torch", flush=True)

"""The matching operators at 128 x 128 positions against as many: their maps would take a gigabyte."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource, torch
from stylekern import use_backend
from stylekern.ops import {name}

def run(*tensors):
    torch.autograd.grad({call}.sum(), tensors)

torch.set_num_threads(2)
tensors = [torch.randn(1, {length}, 512, requires_grad=True) for _ in range({count})]
with use_backend("compiled"):
    run(*(x[:, :64].detach().requires_grad_() for x in tensors))  # what a first call loads
    with open("/proc/self/statm") as statm:
        before = int(statm.read().split()[1]) * resource.getpagesize()
    run(*tensors)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
gradients = sum(x.nbytes for x in tensors)
print(after - before - gradients - {output})
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("name", "call", "count", "output", "most"),
    [
        ("cgm_attention", "cgm_attention(*tensors, alpha=20.0)", 3, 512, 160),
        ("remd", "remd(*tensors)", 2, 0, 96),
    ],
)
def test_megabytes_beyond_inputs_and_results(name: str, call: str, count: int, output: int, most: int) -> None:
    length = 128 * 128
    code = CODE.format(name=name, call=call, count=count, length=length, output=output * length * 4)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    print(name, int(result.stdout) / 1e6)
    assert int(result.stdout) < most * 10**6

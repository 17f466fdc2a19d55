"""The matching operators hold nothing of the size of queries times keys, forward or backward.

At 8192 against 8192 such a map would take 268 MB in float32, at 16,384 against 16,384 a gigabyte.
"""

from __future__ import annotations

import sys

import pytest

from tests.memory import measured

CODE = """
import torch
from stylekern import use_backend
from stylekern.ops import cgm_attention, min_distances, remd

def run(*tensors):
    output = {call}
    output = output if isinstance(output, tuple) else (output,)
    return [*output, *torch.autograd.grad([y.sum() for y in output if y.requires_grad], tensors)]

torch.set_num_threads(2)
tensors = [torch.randn(1, {length}, {width}, dtype=torch.{dtype}, requires_grad=True) for _ in range({count})]
with use_backend("compiled"):
    run(*(x[:, :1100].detach().requires_grad_() for x in tensors))  # what a first call loads
    before = peak()
    results = run(*tensors)
print(peak() - before - sum(x.nbytes for x in results))
"""
CGM = "cgm_attention(*tensors, torch.ones(1, {}), alpha=4.0, gate_grad='straight_through', renormalize=True)"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("call", "count", "length", "width", "dtype", "most"),
    [
        (CGM, 3, 8192, 16, "float32", 32),
        ("min_distances(*tensors)", 2, 8192, 64, "float32", 20),
        ("min_distances(*tensors)", 2, 8192, 64, "bfloat16", 20),
        pytest.param(CGM, 3, 8192, 512, "float32", 48, marks=pytest.mark.slow),
        pytest.param("remd(*tensors)", 2, 16384, 512, "float32", 48, marks=pytest.mark.slow),
    ],
)
def test_megabytes_beyond_inputs_and_results(
    call: str, count: int, length: int, width: int, dtype: str, most: int
) -> None:
    call = call.format("tensors[0].shape[1]")
    code = CODE.format(call=call, count=count, length=length, width=width, dtype=dtype)
    # Large blocks are mapped each by itself: glibc's heap has holes between blocks, up to twice as many bytes as the
    # operators hold, by where they happen to lie.
    beyond = measured(code, MALLOC_MMAP_THRESHOLD_=str(1 << 20))
    print(f"{beyond / 1e6:.0f} MB beyond inputs and results")
    assert beyond < most * 10**6

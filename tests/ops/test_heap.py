"""Results of calls in a loop take the memory that the last one's left: caches have it, and no page is zeroed again."""

from __future__ import annotations

import platform

import pytest

from tests.memory import measured

# How many of 64 results of each loop lie where most do; of a call of several results, each counts.
PLACES = """
import collections, torch
from stylekern import use_backend
from stylekern.ops import {operator} as operator

torch.set_num_threads(2)
same = 0
with torch.no_grad(), use_backend("compiled"):
    for shape in {shapes}:
        tensors = [torch.randn(shape) for _ in range({tensors})]
        places = [[0] * 64 for _ in range({results})]
        for i in range(64):
            results = operator(*tensors)
            for k, result in enumerate(results if {results} > 1 else (results,)):
                places[k][i] = result.data_ptr()
            del results, result
        same += sum(collections.Counter(of_one).most_common(1)[0][1] for of_one in places)
print(same)
"""

FRESH_PAGES = """
import resource, torch
from stylekern import use_backend
from stylekern.ops import style_kernel_conv

x, v, u = (torch.randn(4, 256, *k, 16, 16, requires_grad=True) for k in ((), (3,), (3,)))
g = torch.randn(4, 256, 16, 16)
with use_backend("compiled"):
    for i in range(60):
        if i == 20:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.autograd.grad(style_kernel_conv(x, v, u, normalize=True), (x, v, u), g)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries place results as they please"
)


def test_most_results_of_a_loop_lie_in_one_place() -> None:
    shapes = [(1, 256, 49, 65), (1, 256, 49, 64), (1, 256, 48, 64)]
    same = measured(PLACES.format(operator="wavelet_unpool", shapes=shapes, tensors=4, results=1))
    print(f"{same} of 192 results lie where most do")  # without heap.h: about 80
    assert same >= 128


def test_so_do_several_results_of_a_call() -> None:
    shapes = [(1, 256, 99, 131), (4, 256, 64, 64), (1, 128, 99, 131)]
    same = measured(PLACES.format(operator="wavelet_pool", shapes=shapes, tensors=1, results=4))
    print(f"{same} of 768 results lie where most do")  # without `Together` of heap.h: 300 to 400
    assert same >= 480


def test_gradients_of_a_loop_are_no_fresh_pages() -> None:
    pages = measured(FRESH_PAGES)
    print(f"{pages} fresh pages in 40 steps of 8 MiB")  # without heap.h: about 60,000
    assert pages <= 4000

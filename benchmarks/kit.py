"""What every benchmark shares: baselines, interleaved timing, and the copy that a result is measured against."""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def settle_heap() -> None:
    """Fixes glibc's thresholds where a process that has run for a while has them, and keeps what is freed on the heap.

    Otherwise results of some megabytes are fresh pages in some runs, which the system has to zero first, and not in
    others: it depends on what happens to lie on top of the heap, and costs as much as the kernels that are timed.
    """
    if sys.platform == "linux":
        mallopt, m_trim_threshold, m_mmap_threshold = ctypes.CDLL(None).mallopt, -1, -3
        mallopt(m_mmap_threshold, 32 << 20)  # the largest that glibc itself arrives at
        mallopt(m_trim_threshold, -1)


def synchronize() -> None:
    """Waits for the device, where it runs ahead."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def timed(run: Callable[[], Any], calls: int) -> float:
    """Seconds a call."""
    synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    synchronize()
    return (time.perf_counter() - start) / calls


def interleaved(runs: dict[str, Callable[[], Any]], rounds: int = 9, seconds: float = 0.05) -> dict[str, float]:
    """Median seconds of each, in turns, so that a slow moment of the machine hits all of them."""
    calls = {name: max(1, int(seconds / max(timed(run, 1), timed(run, 2)))) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            samples[name].append(timed(run, calls[name]))
    return {name: statistics.median(values) for name, values in samples.items()}


def copy_of(size: int) -> Callable[[], Any]:
    """A copy that reads and writes `size` bytes together."""
    source = torch.randn(max(size // 8, 1), device=DEVICE)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def forward_backward(function: Callable[..., Tensor], tensors: list[Tensor], upstream: Tensor) -> Callable[[], Any]:
    """A call and the gradients of all tensors."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    return lambda: torch.autograd.grad(function(*leaves), leaves, upstream)

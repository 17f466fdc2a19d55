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
GRAPHED = 8  # calls a CUDA graph


def settle_heap() -> None:
    """Has glibc keep what is freed on its heap, for later results.

    Otherwise results of some megabytes are fresh pages in some runs, which the system has to zero first, and not in
    others: it depends on what happens to lie on top of the heap, and costs as much as the kernels that are timed, or,
    from 32 MiB on, several times that. What it costs a program, and what a program can do, is in docs/cpu.md.
    """
    if sys.platform == "linux":
        mallopt, m_trim_threshold, m_mmap_max = ctypes.CDLL(None).mallopt, -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, -1)


def shape_name(shape: tuple[int, ...]) -> str:
    """A shape as tables and tests' names have it: 1x512x45x67."""
    return "x".join(map(str, shape))


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


def graphed(run: Callable[[], Any]) -> Callable[[], None]:
    """GRAPHED calls as one CUDA graph, whose replay takes the GPU's time and none of Python's."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(GRAPHED):
            run()
    return graph.replay


def interleaved(runs: dict[str, Callable[[], Any]], rounds: int = 9) -> dict[str, float]:
    """Median seconds of each. On a GPU the time is the GPU's own: see `graphed`."""
    if DEVICE == "cpu":
        return medians(runs, rounds)
    seconds = medians({name: graphed(run) for name, run in runs.items()}, rounds, seconds=0.01)
    return {name: value / GRAPHED for name, value in seconds.items()}


def calls_within(seconds: float, run: Callable[[], Any]) -> int:
    """How many calls take about that long, once what compiles is compiled and caches have what a call reads."""
    run()
    first = timed(run, 2)
    return max(1, int(seconds / timed(run, max(1, int(seconds / 5 / first)))))


def medians(runs: dict[str, Callable[[], Any]], rounds: int = 9, seconds: float = 0.05) -> dict[str, float]:
    """Median seconds of each, in turns of about `seconds`, so that a slow moment of the machine hits all of them."""
    calls = {name: calls_within(seconds, run) for name, run in runs.items()}
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


def forward_backward(function: Callable[..., Any], tensors: list[Tensor], upstream: list[Tensor]) -> Callable[[], Any]:
    """A call and the gradients of all tensors that it uses."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    return lambda: torch.autograd.grad(outputs(function(*leaves)), leaves, upstream, allow_unused=True)


def three_digits(x: float) -> str:
    """Of numbers from 1000 on, all before the point."""
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def outputs(result: Any) -> tuple[Tensor, ...]:
    """What a function returned, one tensor or several."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def compare(
    benchmark: Any,
    table: list[dict[str, str]],
    *,
    operator: str,
    ours: Callable[..., Any],
    eager: Callable[..., Any],
    others: dict[str, Callable[..., Any]] | None = None,
    tensors: list[Tensor],
    backward: bool,
    values: int,
    shape: str,
) -> None:
    """Checks ours against the definition in float64, then times it against the others and a copy of the same bytes.

    Args:
        benchmark: pytest-benchmark's fixture.
        table: Where the row of results goes.
        operator: Its name, for the table.
        ours: The operator.
        eager: The definition in plain torch; it is also compiled.
        others: What else people use, by name.
        tensors: The arguments, all of which get gradients.
        backward: Whether to time forward and backward together.
        values: The fewest values that must be read and written.
        shape: For the table.
    """
    torch._dynamo.reset()
    dtype, compiled = tensors[0].dtype, torch.compile(eager, dynamic=False)
    truth, given = outputs(eager(*(t.double() for t in tensors))), outputs(ours(*tensors))
    for y, exact in zip(given, truth, strict=True):
        assert (y.double() - exact).norm() < (2e-5 if dtype == torch.float32 else 8e-3) * exact.norm()
    functions = {"ours": ours, "eager": eager, "compiled": compiled, **(others or {})}
    if backward:
        upstream = [torch.randn_like(y) for y in given]
        runs = {name: forward_backward(f, tensors, upstream) for name, f in functions.items()}
    else:
        runs = {name: (lambda f=f: f(*tensors)) for name, f in functions.items()}
    size = values * tensors[0].element_size()
    with torch.set_grad_enabled(backward):
        if benchmark.disabled:  # compiled, for the run that times
            for run in runs.values():
                run()
            return
        seconds = interleaved(runs | {"copy": copy_of(size)})
        calls = {name: runs[name] for name in ("ours", "compiled")} if DEVICE == "cuda" else {}
        launched = medians(calls, rounds=5, seconds=0.02)
        benchmark.pedantic(lambda: (runs["ours"](), synchronize()), rounds=5, iterations=3, warmup_rounds=1)
    benchmark.extra_info["median_seconds"], benchmark.extra_info["launched_seconds"] = seconds, launched
    benchmark.extra_info["bytes"] = size
    ratios = {name: seconds[name] / seconds["ours"] for name in functions if name != "ours"}
    against = {f"x {name}": f"{ratio:.{2 if ratio < 2 else 1}f}" for name, ratio in ratios.items()}
    row = {
        "operator": operator,
        "shape": shape,
        "dtype": str(dtype).removeprefix("torch."),
        "pass": "fwd+bwd" if backward else "fwd",
        "us": three_digits(1e6 * seconds["ours"]),
        "GB/s": f"{size / seconds['ours'] / 1e9:.1f}",
        "of a copy": f"{seconds['copy'] / seconds['ours']:.2f}",
        **against,
        **{f"us, {name} launched": f"{1e6 * launched[name]:.0f}" for name in launched},
    }
    benchmark.extra_info["row"] = row
    table.append(row)

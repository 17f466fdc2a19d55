"""What every operator must do on a GPU and on nothing else: streams, graphs, sizes. `OperatorSuite` has it too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import stylekern
from stylekern import _backends

from .cases import Case, assert_close, differentiable


class CudaSuite:
    """Its methods and attributes are those of `OperatorSuite`."""

    name: str
    function: Any
    cases: Any
    typical: str
    call: Any
    run: Any

    @pytest.fixture(params=["compiled", "triton"])
    def gpu_backend(self, request: pytest.FixtureRequest) -> Iterator[str]:
        if reason := _backends.why_not(request.param, self.name, "cuda"):
            pytest.skip(f"{request.param}: {reason}")
        with stylekern.use_backend(request.param):
            yield request.param

    @pytest.mark.cuda
    def test_runs_on_the_current_stream(self, gpu_backend: str) -> None:
        case = self.cases[self.typical]().to("cuda", torch.float32)
        upstream = [torch.randn_like(y) for y in differentiable(self.call(case))]
        expected = self.run(type(self).function, case, upstream)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)  # long enough that a launch on another stream would overtake the copies
            late = {k: None if x is None else x.detach().clone().requires_grad_() for k, x in case.tensors.items()}
            given = self.run(type(self).function, Case(late, case.options), [g.clone() for g in upstream])
        stream.synchronize()
        assert all(map(torch.equal, given, expected))

    @pytest.mark.cuda
    def test_a_graph_replays_forward_and_backward(self, gpu_backend: str) -> None:
        case, other = (self.cases[self.typical]().to("cuda", torch.float32) for _ in range(2))
        upstream = [torch.randn_like(y) for y in differentiable(self.call(case))]
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.run(type(self).function, case, upstream)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            replayed = self.run(type(self).function, case, upstream)
        for x, new in zip(case.tensors.values(), other.tensors.values(), strict=True):
            if x is not None and new is not None:
                x.detach().copy_(new.detach())
        graph.replay()
        assert all(map(torch.equal, replayed, self.run(type(self).function, other, upstream)))

    @pytest.mark.cuda
    def test_more_than_two_billion_elements(self, gpu_backend: str) -> None:
        """The typical case, its batch repeated until no int32 counts the elements of its largest tensor."""
        small = self.cases[self.typical]().to("cuda", torch.float16)
        batch = next(x.shape[0] for x in small.tensors.values() if x is not None)
        count = 2**31 // max(x.numel() for x in small.tensors.values() if x is not None) + 1
        many = {
            k: x if x is None or x.dim() == 1 else x.detach().repeat(count, *[1] * (x.dim() - 1)).requires_grad_()
            for k, x in small.tensors.items()
        }
        upstream = [torch.randn_like(y) for y in differentiable(self.call(small))]
        spread = [g.repeat(count, *[1] * (g.dim() - 1)) for g in upstream]
        given = self.run(type(self).function, Case(many, small.options), spread)
        for y, expected in zip(given, self.run(type(self).function, small, upstream), strict=True):
            if y.shape[:1] != (batch * count,):
                continue
            for part in (y[:batch], y[-batch:]):
                if y.is_floating_point():
                    assert_close(part, expected, torch.float16, "a sample far from the first")
                else:
                    assert torch.equal(part, expected)
        torch.cuda.empty_cache()

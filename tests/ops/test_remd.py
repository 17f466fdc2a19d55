"""remd keeps its contract on every backend. It is plain torch over min_distances, whose registered op it tests too."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stylekern import reference
from stylekern.ops import min_distances, remd

from .cases import Case, arguments_of
from .suite import OperatorSuite


def make(n: int = 2, rows: int = 13, columns: int = 21, d: int = 19, scale: float = 1.0, **options: Any) -> Case:
    x, y = (torch.randn(n, count, d, dtype=torch.float64) for count in (rows, columns))
    return Case({"x": scale * x, "y": scale * y}, options)


call = partial(arguments_of, make)


class TestRemd(OperatorSuite):
    name = "min_distances"  # what serves it
    function = staticmethod(remd)
    reference = staticmethod(reference.remd)
    cases = {
        "mean": make,
        "none": lambda: make(reduction="none"),
        "euclidean": lambda: make(metric="euclidean", reduction="none"),
        "few-values": lambda: make(d=3, metric="euclidean"),
        "columns-decide": lambda: make(rows=3, columns=40, d=40),
        "rows-decide": lambda: make(rows=40, columns=3, d=40),
        "one-of-each": lambda: make(rows=1, columns=1),
        "empty-batch": lambda: make(n=0, reduction="none"),
    }
    typical = "none"
    threaded = {"several-tiles": lambda: make(n=1, rows=1100, columns=300, d=65)}
    bad = {
        "not-a-tensor": (call(y=lambda x: 1.0), TypeError, "remd: y must be a tensor .* got float"),
        "dtypes-differ": (call(y=lambda x: x.half()), TypeError, "remd: y is torch.float16, but x is"),
        "values-differ": (call(y=lambda x: x[..., :9]), ValueError, r"remd: y must be \[2, M, 19\]"),
        "no-rows": (call(x=lambda x: x[:, :0]), ValueError, r"remd: x must have at least one row"),
        "no-rows-at-all": (
            call(x=lambda x: x[:, :0], y=lambda x: x[:, :0]),
            ValueError,
            r"remd: x and y must have at least one row, got \[2, 0, 19\] and",
        ),
        "metric-name": (call(metric="l2"), ValueError, "remd: metric must be one of cosine, euclidean, got 'l2'"),
        "reduction-name": (call(reduction="sum"), ValueError, "reduction must be one of mean, none, got 'sum'"),
    }

    def op_arguments(self, case: Case) -> tuple[Any, ...]:
        return (*case.tensors.values(), case.options.get("metric", "cosine"), 1e-12)

    def test_is_the_larger_mean(self, backend: str, device: str) -> None:
        x, y = torch.randn(3, 9, 7, device=device), torch.randn(3, 11, 7, device=device)
        found = min_distances(x, y)
        expected = torch.maximum(found.row_min.mean(1), found.col_min.mean(1))
        assert torch.allclose(remd(x, y, reduction="none"), expected)
        assert torch.allclose(remd(x, y), expected.mean()) and remd(x, y).shape == ()

    def test_equal_means_share_the_gradient(self, backend: str, device: str) -> None:
        x, y = (torch.randn(1, 1, 7, device=device, requires_grad=True) for _ in range(2))
        (shared,) = torch.autograd.grad(remd(x, y), x)
        (whole,) = torch.autograd.grad(min_distances(x, y).row_min.sum(), x)
        assert torch.allclose(shared, whole)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_means_of_many_16_bit_distances(self, dtype: torch.dtype) -> None:
        x, y = (torch.randn(1, count, 8).to(dtype) for count in (9000, 70))
        exact = reference.remd(x.double(), y.double())
        assert abs(remd(x, y).double() - exact) <= torch.finfo(dtype).eps * exact

    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(n=st.integers(1, 2), rows=st.integers(1, 60), columns=st.integers(1, 60), d=st.integers(2, 70))
    def test_any_shape(self, n: int, rows: int, columns: int, d: int) -> None:
        self.check(make(n, rows, columns, d), "cpu", torch.float32)

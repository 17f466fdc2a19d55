"""The Triton kernels of min_distances against the float64 reference, forward and backward, in the interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from stylekern.triton_kernels import min_distances as op
from stylekern.triton_kernels import min_distances_search

from stylekern import reference

from ..ops.cases import LAYOUTS, assert_close

METRICS = ["cosine", "euclidean"]


class Case:
    """Random rows, and what both implementations make of them."""

    def __init__(
        self, n=1, rows=5, columns=7, d=20, metric="cosine", dtype=torch.float32, layout="contiguous", eps=1e-12
    ) -> None:
        change = LAYOUTS[layout]
        self.x, self.y = (change(torch.randn(n, count, d).to(dtype)) for count in (rows, columns))
        self.grads = tuple(change(torch.randn(n, count).to(dtype)) for count in (rows, columns))
        self.metric, self.eps = metric, eps

    def forward(self) -> tuple[Tensor, ...]:
        return op.forward(self.x, self.y, self.metric, self.eps)

    def backward(self, needs: tuple[bool, bool] = (True, True)) -> tuple[Tensor, Tensor]:
        _, row_argmin, _, col_argmin, *found = self.forward()
        return op.backward(*self.grads, self.x, self.y, row_argmin, col_argmin, *found, self.metric, self.eps, *needs)

    def check(self) -> None:
        leaves = [side.double().detach().requires_grad_() for side in (self.x, self.y)]
        found = reference.min_distances(*leaves, metric=self.metric, eps=self.eps)
        grads = [torch.zeros(()) if g is None else g for g in self.grads]
        grads = [g.double().expand_as(y) for g, y in zip(grads, found[::2], strict=True)]
        wanted = (*found, *torch.autograd.grad(found[::2], leaves, grads))
        names = ("row_min", "row_argmin", "col_min", "col_argmin", "grad_x", "grad_y")
        for name, got, want in zip(names, (*self.forward()[:4], *self.backward()), wanted, strict=True):
            if "argmin" in name:
                assert torch.equal(got, want), name
            else:
                assert_close(got, want.detach(), self.x.dtype, name)
            assert got.is_contiguous(), name


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", [2, 16, 17])
@pytest.mark.parametrize(("rows", "columns"), [(1, 9), (9, 1), (5, 7), (131, 67)])
def test_every_size_agrees_with_the_reference(rows: int, columns: int, d: int, metric: str) -> None:
    Case(rows=rows, columns=columns, d=d, metric=metric).check()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d", [3, 40])
def test_dtypes(d: int, dtype: torch.dtype, metric: str) -> None:
    Case(rows=70, d=d, dtype=dtype, metric=metric).check()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    Case(n=2, layout=layout).check()


def test_one_set_for_many() -> None:
    case = Case(n=3)
    case.y = torch.randn(1, 7, 20).expand(3, -1, -1)
    case.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", [1, 20])
def test_ties_across_programs(d: int, metric: str, dtype: torch.dtype) -> None:
    """Three kinds of rows, in several tiles: the first of each counts."""
    case = Case(d=d, metric=metric, dtype=dtype)
    kinds = torch.randn(1, 3, d).abs().to(dtype)  # of one sign: for one value and cosine all are ties
    case.x, case.y = kinds[:, torch.randint(3, (150,))], kinds[:, torch.randint(3, (140,))]
    found = case.forward()
    truth = reference.min_distances(case.x.double(), case.y.double(), metric=metric)
    assert torch.equal(found[1], truth[1]) and torch.equal(found[3], truth[3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n", [1, 3])
def test_several_chunks(n: int, metric: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows, the last one partial; and of samples, fewer in the last; ties in different ones."""
    monkeypatch.setattr(min_distances_search, "CHUNK", 16 * 32 if n == 1 else 2 * 40 * 32)
    samples, height = min_distances_search.chunk_of(n, 40, 32)
    assert (samples, height) == (1, 16) if n == 1 else samples == 2 and height == 48
    case = Case(n=n, rows=40, columns=20, d=21, metric=metric, dtype=dtype)
    for side in (case.x, case.y):
        side[:, -9:] = side[:, :9]
    case.check()


def test_bfloat16_of_any_norm() -> None:
    case = Case(d=40, dtype=torch.bfloat16)
    case.x, case.y = 1e30 * case.x, 1e-30 * case.y
    case.eps = 1e-35
    found = case.forward()
    truth = reference.min_distances(case.x.double(), case.y.double(), eps=case.eps)
    assert torch.equal(found[1], truth[1]) and torch.equal(found[3], truth[3])


@pytest.mark.parametrize("missing", [0, 1])
def test_a_gradient_that_is_missing_is_zero(missing: int) -> None:
    case = Case()
    case.grads = tuple(None if k == missing else g for k, g in enumerate(case.grads))
    case.check()


def test_a_row_that_is_nearest_to_many() -> None:
    """More pairs than a program takes at a time."""
    Case(rows=1, columns=90, d=33, metric="euclidean").check()


@pytest.mark.parametrize("scale", [1e-3, 6e-3, 200.0])
def test_no_gradient_where_the_clamp_holds(scale: float) -> None:
    case = Case(rows=30, columns=40, d=3, metric="euclidean")
    case.x, case.y = scale * case.x, scale * case.y
    case.check()


def test_only_the_gradients_needed() -> None:
    case = Case()
    everything = case.backward()
    for needs in ((False, False), (False, True), (True, False)):
        for got, full, need in zip(case.backward(needs), everything, needs, strict=True):
            assert torch.equal(got, full) if need else got.shape == (0,)


def test_the_same_bits_every_time() -> None:
    case = Case(rows=140)
    for first, second in zip((*case.forward(), *case.backward()), (*case.forward(), *case.backward()), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("shape", [{"n": 0}, {"rows": 0, "columns": 0}, {"d": 0}], ids=str)
def test_empty(shape: dict) -> None:
    Case(**shape).check()

"""min_distances keeps its contract on every backend."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stylekern import reference
from stylekern.ops import min_distances

from .cases import TOLERANCE, Case, arguments_of, assert_close, relative_error
from .suite import OperatorSuite

METRICS = ["cosine", "euclidean"]


def make(n: int = 2, rows: int = 13, columns: int = 21, d: int = 19, scale: float = 1.0, **options: Any) -> Case:
    x, y = (torch.randn(n, count, d, dtype=torch.float64) for count in (rows, columns))
    return Case({"x": scale * x, "y": scale * y}, options)


call = partial(arguments_of, make)


def gradients(x: Tensor, y: Tensor, upstream: tuple[Tensor, Tensor], function: Any = min_distances, **options: Any):
    """The four results, and the gradients of both sides."""
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    found = function(x, y, **options)
    grads = [g.to(x) for g in upstream]
    return (*found, *torch.autograd.grad((found[0], found[2]), (x, y), grads))


class TestMinDistances(OperatorSuite):
    name = "min_distances"
    function = staticmethod(min_distances)
    reference = staticmethod(reference.min_distances)
    cases = {
        f"{metric}-{name}": lambda metric=metric, size=size: make(**size, metric=metric)
        for metric in METRICS
        for name, size in {
            "odd": {},
            "larger-than-a-block": {"n": 1, "rows": 131, "columns": 70, "d": 130},
            "few-values": {"rows": 70, "columns": 67, "d": 3},
            "a-vector-of-values": {"d": 64},
            "one-row": {"rows": 1, "d": 33},
            "one-column": {"columns": 1, "d": 16},
            "one-of-each": {"rows": 1, "columns": 1, "d": 5},
        }.items()
    } | {
        "euclidean-one-value": lambda: make(d=1, metric="euclidean"),
        "euclidean-below-the-clamp": lambda: make(d=3, scale=1e-3, metric="euclidean"),
        "euclidean-about-the-lower-clamp": lambda: make(rows=40, columns=50, d=3, scale=6e-3, metric="euclidean"),
        "euclidean-about-the-upper-clamp": lambda: make(rows=40, columns=50, d=20, scale=80, metric="euclidean"),
        "cosine-large-eps": lambda: make(d=19, eps=4.3),
        "empty-batch": lambda: make(n=0),
        "empty-batch-no-rows": lambda: make(n=0, rows=0),
        "no-rows-at-all": lambda: make(rows=0, columns=0),
        "cosine-no-values": lambda: make(d=0),
    }
    typical = "cosine-odd"
    threaded = {
        "cosine": lambda: make(n=2, rows=300, columns=200, d=70),
        "several-tiles": lambda: make(n=1, rows=1100, columns=1300, d=65),
        "euclidean": lambda: make(n=1, rows=400, columns=1100, d=33, metric="euclidean"),
        "few-values": lambda: make(n=1, rows=1100, columns=300, d=3, metric="euclidean"),
    }
    bad = {
        "not-a-tensor": (call(y=lambda x: 1.0), TypeError, "y must be a tensor .* got float"),
        "integers": (call(x=lambda x: x.int()), TypeError, "x must be float32, .* got torch.int32"),
        "dtypes-differ": (call(y=lambda x: x.half()), TypeError, "y is torch.float16, but x is"),
        "devices-differ": (call(y=lambda x: x.to("meta")), RuntimeError, "y is on meta, but x is on cpu"),
        "two-dimensions": (call(x=lambda x: x[0]), ValueError, r"x must be \[N, L, D\], got shape \[13, 19\]"),
        "values-differ": (
            call(y=lambda x: x[..., :9]),
            ValueError,
            r"y must be \[2, M, 19\].* got \[2, 21, 9\]",
        ),
        "batches-differ": (call(y=lambda x: x[:1]), ValueError, r"y must be \[2, M, 19\].*expand one"),
        "no-rows": (call(x=lambda x: x[:, :0]), ValueError, r"x must have at least one row for y \[2, 21, 19\]"),
        "no-columns": (call(y=lambda x: x[:, :0]), ValueError, r"y must have at least one row for x \[2, 13, 19\]"),
        "metric-name": (call(metric="l2"), ValueError, "metric must be one of cosine, euclidean, got 'l2'"),
        "eps-of-zero": (call(eps=0.0), ValueError, r"eps must be positive, got 0\.0"),
    }

    @pytest.mark.parametrize("stride", [(1, 1), (0, 1), (80, 1), (1, 1000)], ids=str)
    def test_products_of_strided_rows(self, stride: tuple[int, int]) -> None:
        x, y = torch.randn(1, 1024, 64), torch.randn(1000 * 80).as_strided((1, 900, 64), (0, *stride))
        pairs = zip((*min_distances(x, y), *min_distances(y, x)), self.of_dense(x, y), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)

    @staticmethod
    def of_dense(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return (*min_distances(x, y.contiguous()), *min_distances(y.contiguous(), x))

    @pytest.mark.parametrize("metric", METRICS)
    def test_rows_of_few_bits_are_told_apart(self, metric: str, backend: str, device: str) -> None:
        x, y = (torch.randint(1, 256, (1, rows, 3), device=device) / 256 for rows in (500, 400))
        u, v = x.double()[:, :, None], y.double()[:, None]
        if metric == "cosine":
            d = 1 - torch.cosine_similarity(u, v, dim=-1)
        else:
            d = ((u - v).square().sum(-1).clamp_min(1e-5) / 3).sqrt()
        found = min_distances(x, y, metric=metric)
        assert torch.allclose(found.row_min.double(), d.amin(2), atol=1e-6)
        assert torch.allclose(found.col_min.double(), d.amin(1), atol=1e-6)

    def test_rows_whose_sums_of_values_by_squares_of_places_agree(self, backend: str, device: str) -> None:
        y = torch.tensor([[[0, 0, 1, 1, 0.0], [0, 0, 0, 0, 1.0]]], device=device)  # 3^2 + 4^2 = 5^2
        assert min_distances(y, y).row_argmin.tolist() == [[0, 1]]

    def test_the_definition_takes_16_bits(self) -> None:
        found = reference.min_distances(torch.eye(3)[None].half(), torch.eye(3)[None].half())
        assert found[1].tolist() == [[0, 1, 2]]

    def test_by_hand(self, backend: str) -> None:
        x, y = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]), torch.tensor([[[0.0, 3.0], [-1.0, 0.0], [3.0, 4.0]]])
        found = min_distances(x, y)
        assert torch.allclose(found.row_min, torch.tensor([[0.4, 0.0]])) and found.row_argmin.tolist() == [[2, 0]]
        assert torch.allclose(found.col_min, torch.tensor([[0.0, 1.0, 0.2]])) and found[3].tolist() == [[1, 1, 1]]
        found = min_distances(x, y, metric="euclidean")
        assert torch.allclose(found.row_min, torch.tensor([[2.0**0.5, 0.5**0.5]]))
        assert found.row_argmin.tolist() == [[1, 0]] and found.col_argmin.tolist() == [[1, 0, 1]]

    @pytest.mark.parametrize("metric", METRICS)
    @pytest.mark.parametrize("d", [1, 3, 40, 65])
    def test_ties_go_to_the_lowest_index(self, d: int, metric: str, backend: str, device: str) -> None:
        """Rows of a few kinds, each many times and far apart, so that every minimum is a tie."""
        x, y = self.repeated(70, d, device), self.repeated(133, d, device)
        upstream = (torch.randn(2, 70), torch.randn(2, 133))
        ours = gradients(x, y, upstream, metric=metric)
        truth = gradients(x.double(), y.double(), upstream, reference.min_distances, metric=metric)
        for k, (a, b) in enumerate(zip(ours, truth, strict=True)):
            if k in (1, 3):
                assert torch.equal(a, b)
            elif metric == "cosine" and d == 1:  # distances are 0 or 2, gradients 0: differences of sums of g / |x|
                norm = {4: x, 5: y}.get(k, torch.ones((), device=device))
                bound = torch.finfo(torch.float32).eps * sum(g.abs().sum() for g in upstream)
                assert ((a.double() - b) * norm).abs().max() < bound
            else:
                assert_close(a, b, torch.float32, str(k))

    def repeated(self, count: int, d: int, device: str) -> Tensor:
        return torch.randn(2, 7, d)[:, torch.randint(7, (count,))].to(device)

    @pytest.mark.parametrize("threads", [1, 2, 3, 7])
    @pytest.mark.parametrize("metric", METRICS)
    def test_ties_across_tiles(self, metric: str, threads: int, compiled_op: Any) -> None:
        """Equal rows in different tiles, at sizes and threads at which a matrix product rounds them differently."""
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(threads)
            for rows, columns, d in ((3, 2051, 33), (17, 33, 515), (1027, 1029, 17), (1, 5, 100)):
                kinds = torch.randn(1, 3, d)
                x, y = kinds[:, torch.randint(3, (rows,))], kinds[:, torch.randint(3, (columns,))]
                found = compiled_op(x, y, metric, 1e-12)
                for side, other, index in ((x, y, found[1]), (y, x, found[3])):
                    same = (side[0, :, None] == other[0, None]).all(-1)
                    first = torch.where(same, torch.arange(other.shape[1]), other.shape[1]).amin(1)
                    missing = first == other.shape[1]
                    assert torch.equal(index[0][~missing], first[~missing])
        finally:
            torch.set_num_threads(before)

    @pytest.mark.parametrize("metric", METRICS)
    @pytest.mark.parametrize("d", [17, 65])  # products too small for oneDNN, and large enough
    def test_other_indices_only_where_distances_agree_within_rounding(
        self, d: int, metric: str, compiled_op: Any
    ) -> None:
        """Many rows in few dimensions: nearest and second nearest are close, and rounding may exchange them."""
        case = make(n=1, rows=1500, columns=1700, d=d, metric=metric)
        x, y = (t.float() for t in case.tensors.values())
        found = compiled_op(x, y, metric, 1e-12)
        row_min, row_argmin, col_min, col_argmin = reference.min_distances(x.double(), y.double(), metric=metric)
        for index, expected, minimum, exact in (
            (found[1], row_argmin, found[0], row_min),
            (found[3], col_argmin, found[2], col_min),
        ):
            assert (index != expected).double().mean() < 1e-2
            assert ((minimum - exact).abs() <= 1e-6 * exact.clamp_min(0.1)).all()

    @pytest.mark.parametrize("metric", METRICS)
    def test_short_samples_give_together_what_each_gives_alone(self, metric: str, backend: str, device: str) -> None:
        x, order = torch.randn(9, 30, 70, device=device), torch.randperm(30)
        y = x[:, order] + 0.1 * torch.randn_like(x)
        upstream = torch.randn(9, 30), torch.randn(9, 30)
        together = gradients(x, y, upstream, metric=metric)
        assert (together[1][:, order] == torch.arange(30, device=device)).all() and (together[3].cpu() == order).all()
        alone = [gradients(x[i, None], y[i, None], [g[i, None] for g in upstream], metric=metric) for i in range(9)]
        for found, parts in zip(together, zip(*alone, strict=True), strict=True):
            assert relative_error(found, torch.cat(parts).double()) <= TOLERANCE[torch.float32]

    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    @pytest.mark.parametrize("metric", METRICS)
    def test_zero_rows(self, metric: str, dtype: torch.dtype, backend: str, device: str) -> None:
        x, y = (torch.randn(2, count, 20).to(device, dtype) for count in (6, 9))
        x[:, 2], y[:, 4], y[1, :] = 0, 0, 0
        found = gradients(x, y, (torch.ones(2, 6), torch.ones(2, 9)), metric=metric)
        if metric == "cosine":
            assert (found[0][:, 2] == 1).all() and (found[1][:, 2] == 0).all() and (found[2][1] == 1).all()
            assert (found[3][1] == 0).all() and (found[3][0, 4] == 0).all()
        if backend != "reference" or dtype != torch.float16:  # whose conversion to float16 does not saturate
            assert all(a.isfinite().all() for a in found)

    @pytest.mark.parametrize("metric", METRICS)
    @pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e19, 1e37])
    def test_values_whose_squares_no_float_holds(self, scale: float, metric: str, backend: str, device: str) -> None:
        x, y = (scale * torch.randn(1, count, 24, device=device) for count in (6, 9))
        given, truth = (min_distances(x.to(t), y.to(t), metric=metric, eps=1e-35) for t in (x.dtype, torch.float64))
        if metric == "cosine":
            assert all(map(torch.equal, given[1::2], truth[1::2]))
        assert all(relative_error(a, b) < TOLERANCE[torch.float32] for a, b in zip(given[::2], truth[::2], strict=True))

    @pytest.mark.parametrize("metric", METRICS)
    @pytest.mark.parametrize("d", [5, 40, 70])
    def test_rows_equal_to_a_row_of_the_other_side(self, d: int, metric: str, backend: str, device: str) -> None:
        x = 30 * torch.randn(2, 37, d, device=device)
        y = x[:, torch.randperm(37, device=device)]
        found = min_distances(x, y, metric=metric)
        assert torch.equal(y.gather(1, found.row_argmin[:, :, None].expand_as(x)), x)
        least = 0.0 if metric == "cosine" else (1e-5 / d) ** 0.5
        bound = 1e-6 * least + (1e-6 if backend == "reference" else 0.0)  # which takes a product from one
        assert all(((z - least).abs() <= bound).all() for z in (found.row_min, found.col_min))

    def test_an_offset_that_both_share_costs_no_digits(self, backend: str, device: str) -> None:
        for d in (3, 40):
            x, y = (1000 + torch.randn(1, count, d, device=device) for count in (50, 60))
            upstream = (torch.randn(1, 50), torch.randn(1, 60))
            ours = gradients(x, y, upstream, metric="euclidean")
            truth = gradients(x.double(), y.double(), upstream, reference.min_distances, metric="euclidean")
            assert torch.equal(ours[1], truth[1]) and torch.equal(ours[3], truth[3])
            assert all(relative_error(a, b) < TOLERANCE[torch.float32] for a, b in zip(ours, truth, strict=True))

    @pytest.mark.parametrize("swapped", [False, True])
    @pytest.mark.parametrize("row", [0, 1, 29])
    def test_a_row_far_from_all_others_costs_them_no_digits(
        self, row: int, swapped: bool, backend: str, device: str
    ) -> None:
        x, y = (torch.randn(2, count, 40, device=device) for count in (50, 30))
        y[:, row] += 1e4
        x, y = (y, x) if swapped else (x, y)
        ours, truth = min_distances(x, y, metric="euclidean"), min_distances(x.double(), y.double(), metric="euclidean")
        for a, b in zip(ours, truth, strict=True):
            assert torch.equal(a, b) if a.dtype == torch.int64 else ((a - b).abs() <= 1e-6 * b).all()

    def test_nothing_of_an_empty_batch(self, backend: str, device: str) -> None:
        for metric in METRICS:
            x, y = torch.empty(0, 4, 40, device=device), torch.empty(0, 0, 40, device=device)
            assert [z.shape for z in min_distances(x, y, metric=metric)] == [(0, 4), (0, 4), (0, 0), (0, 0)]

    @pytest.mark.parametrize(("metric", "eps"), [("cosine", 0.03), ("euclidean", 1e-12)])
    @pytest.mark.parametrize("d", [3, 40])
    def test_bounds_of_float64_are_float64(self, d: int, metric: str, eps: float, backend: str, device: str) -> None:
        """What rows shorter than eps are divided by, and what distances below the clamp are."""
        x, y = (1e-4 * torch.randn(1, count, d, dtype=torch.float64, device=device) for count in (5, 6))
        upstream = (torch.randn(1, 5).double(), torch.randn(1, 6).double())
        ours = gradients(x, y, upstream, metric=metric, eps=eps)
        truth = gradients(x, y, upstream, reference.min_distances, metric=metric, eps=eps)
        assert all(relative_error(a, b) < TOLERANCE[torch.float64] for a, b in zip(ours, truth, strict=True))

    def test_gradient_at_the_clamp_itself(self, backend: str, device: str) -> None:
        """It passes where the value is equal to a bound, and not beyond."""
        y = torch.zeros(1, 1, 2, device=device)
        for first, passes in ((300.0, True), (301.0, False)):
            x = torch.tensor([[[first, 100.0]]], device=device)
            grad_x = gradients(x, y, (torch.ones(1, 1), torch.zeros(1, 1)), metric="euclidean")[4]
            assert bool(grad_x.any()) == passes

    @pytest.mark.parametrize("metric", METRICS)
    @pytest.mark.parametrize("d", [4, 20, 80])
    def test_nan_is_the_least(self, d: int, metric: str, backend: str, device: str) -> None:
        x, y = (torch.randn(4, count, d, device=device) for count in (18, 23))
        x[0, 7, d // 2], x[0, 11, 0], y[1, 5, 1], y[1, 2, 3], y[2, :, 2], y[3, 0, 1] = (float("nan") for _ in range(6))
        given = min_distances(x, y, metric=metric)
        truth = reference.min_distances(x.double(), y.double(), metric=metric)
        for a, b in zip(given, truth, strict=True):
            if a.is_floating_point():
                assert torch.equal(a.isnan(), b.isnan())
                assert relative_error(a.nan_to_num(), b.nan_to_num()) < 1e-5
            else:
                assert torch.equal(a, b)

    def test_one_gradient_is_missing(self, backend: str, device: str) -> None:
        x, y = (torch.randn(2, count, 9, device=device, requires_grad=True) for count in (8, 11))
        for k in (0, 2):
            alone = torch.autograd.grad(min_distances(x, y)[k].sum(), (x, y))
            found = min_distances(x, y)
            zeros = [torch.ones_like(found[k]) if k == j else torch.zeros_like(found[j]) for j in (0, 2)]
            assert all(map(torch.equal, alone, torch.autograd.grad((found[0], found[2]), (x, y), zeros)))
        assert not found.row_argmin.requires_grad and not found.col_argmin.requires_grad

    @pytest.mark.parametrize("metric", METRICS)
    def test_one_side_is_nearest_to_all(self, metric: str, backend: str, device: str) -> None:
        """All pairs meet in one row, whose gradient is a long sum."""
        x, y = torch.randn(1, 1, 37, device=device), torch.randn(1, 600, 37, device=device)
        x = torch.cat([x, x.expand(1, 5, -1)], 1)
        upstream = (torch.randn(1, 6), torch.randn(1, 600))
        ours = gradients(x, y, upstream, metric=metric)
        truth = gradients(x.double(), y.double(), upstream, reference.min_distances, metric=metric)
        assert not ours[3].any()
        for k, (a, b) in enumerate(zip(ours, truth, strict=True)):
            if a.is_floating_point():
                assert_close(a, b, torch.float32, str(k))

    def test_a_direct_call_of_the_registered_op_reads_nothing_outside(self, compiled_op: Any) -> None:
        x = torch.ones(3, 2, 3)
        for y in (x[0], x[..., :2], x.double(), x[:, :0], torch.ones(2, 2, 3)):
            with pytest.raises(RuntimeError, match=r"min_distances|stylekern: "):
                compiled_op(x, y, "cosine", 1e-12)
        with pytest.raises(RuntimeError, match="metric must be"):
            compiled_op(x, x, "l1", 1e-12)
        grad, index, _, _, match, _, norm, _ = compiled_op(x, x, "cosine", 1e-12)
        backward = torch.ops.stylekern.min_distances_backward
        for wrong in (index + 2, index - 1):
            with pytest.raises(RuntimeError, match="an argmin is no row"):
                backward(grad, None, x, x, wrong, index, match, match, norm, norm, "cosine", 1e-12, True, True)
        with pytest.raises(RuntimeError, match="the shape of grad_col"):
            backward(None, grad[:, :1], x, x, index, index, match, match, norm, norm, "cosine", 1e-12, True, True)
        with pytest.raises(RuntimeError, match="row_match must be of the dtype"):
            backward(grad, None, x, x, index, index, index, match, norm, norm, "cosine", 1e-12, True, True)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        n=st.integers(0, 2),
        rows=st.integers(1, 90),
        columns=st.integers(1, 90),
        d=st.integers(2, 90),
        metric=st.sampled_from(METRICS),
    )
    def test_any_shape(self, n: int, rows: int, columns: int, d: int, metric: str) -> None:
        self.check(make(n, rows, columns, d, metric=metric), "cpu", torch.float32)

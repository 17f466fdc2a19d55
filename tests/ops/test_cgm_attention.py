"""cgm_attention keeps its contract on every backend. No row is left out: none has a key at its threshold."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stylekern import _backends, reference
from stylekern.ops import OPERATORS, cgm_attention

from .cases import TOLERANCE, Case, arguments_of, relative_error
from .suite import OperatorSuite
from .thresholds import STRAIGHT, attention, make, rows_at_threshold, short_rows, threshold


def gradients(case: Case, upstream: Tensor) -> tuple[Tensor, list[Tensor]]:
    y = cgm_attention(**case.tensors, **case.options)
    leaves = [x for x in case.tensors.values() if x is not None]
    return y.detach(), list(torch.autograd.grad(y, leaves, upstream.to(y)))


call = partial(arguments_of, make)


class TestCgmAttention(OperatorSuite):
    name = "cgm_attention"
    function = staticmethod(cgm_attention)
    reference = staticmethod(reference.cgm_attention)
    cases = {
        "half-masked": make,
        "renormalized": lambda: make(renormalize=True),
        "surrogate": lambda: make(**STRAIGHT),
        "surrogate-renormalized": lambda: make(renormalize=True, **STRAIGHT),
        "no-gate": lambda: make(gate="none", **STRAIGHT),
        "no-gate-dot-product": lambda: make(gate="none", cosine=False, alpha=0.5, renormalize=True),
        "scale-only": lambda: make(gate="scale", **STRAIGHT),
        "bias-only": lambda: make(gate="bias", **STRAIGHT),
        "dot-product": lambda: make(cosine=False, alpha=0.5, **STRAIGHT),
        "dot-product-renormalized": lambda: make(cosine=False, alpha=-0.5, renormalize=True),
        "all-masked": lambda: make(gate="above-all"),
        "all-masked-surrogate": lambda: make(gate="above-all", **STRAIGHT),
        "all-masked-surrogate-renormalized": lambda: make(gate="above-all", renormalize=True, **STRAIGHT),
        "none-masked": lambda: make(gate="below-all"),
        "none-masked-surrogate": lambda: make(gate="below-all", renormalize=True, **STRAIGHT),
        "one-query": lambda: make(n=1, lq=1, lk=7),
        # Of several samples: a gate's gradient is a sum that may cancel, and errors relative to a lone one are then as
        # large as it is small.
        "one-query-surrogate": lambda: make(n=5, lq=1, lk=7, **STRAIGHT),
        "two-keys": lambda: make(lk=2, **STRAIGHT),
        "wide-values": lambda: make(d=3, dv=37, **STRAIGHT),
        "larger-than-a-block": lambda: make(n=1, lq=70, lk=75, d=35, dv=130, renormalize=True, **STRAIGHT),
        "short-rows": short_rows,
        "empty-batch": lambda: make(n=0),
        "no-queries": lambda: make(lq=0, **STRAIGHT),
        "no-keys": lambda: make(lk=0, gate="bias", renormalize=True, **STRAIGHT),
        "no-depth": lambda: make(d=0, **STRAIGHT),
        "no-values": lambda: make(dv=0, **STRAIGHT),
    }
    typical = "half-masked"
    products_of_torch = True
    threaded = {
        "few-queries": lambda: make(n=1, lq=3, lk=700, d=48, dv=40, **STRAIGHT),
        "few-keys": lambda: make(n=1, lq=700, lk=3, d=48, dv=40, **STRAIGHT),
        "several-samples": lambda: make(n=3, lq=170, lk=130, d=70, dv=33, renormalize=True, **STRAIGHT),
        "without-surrogate": lambda: make(n=1, lq=257, lk=301, d=32, dv=64),
    }
    bad = {
        "not-a-tensor": (call(key=lambda x: 1.0, alpha=1.0), TypeError, "key must be a tensor .* got float"),
        "integers": (call(query=lambda x: x.int(), alpha=1.0), TypeError, "query must be float32, .* got torch.int32"),
        "dtypes-differ": (call(value=lambda x: x.half(), alpha=1.0), TypeError, "value is torch.float16, but query is"),
        "gates-differ": (call(gate_bias=lambda x: x.double(), alpha=1.0), TypeError, "gate_bias is torch.float64, but"),
        "devices-differ": (
            call(key=lambda x: x.to("meta"), alpha=1.0),
            RuntimeError,
            "key is on meta, but query is on",
        ),
        "four-dimensions": (call(query=lambda x: x[None], alpha=1.0), ValueError, r"query must be \[N, Lq, D\], got"),
        "depths-differ": (
            call(key=lambda x: x[..., :6], alpha=1.0),
            ValueError,
            r"key must be \[2, Lk, 7\].* \[2, 13, 6\]",
        ),
        "batches-differ": (call(key=lambda x: x[:1], alpha=1.0), ValueError, r"key must be \[2, Lk, 7\].*expand one"),
        "keys-differ": (
            call(value=lambda x: x[:, :9], alpha=1.0),
            ValueError,
            r"value must be \[2, 13, Dv\].* \[2, 9, 6\]",
        ),
        "one-gate-for-all": (
            call(gate_scale=lambda x: x[:1], alpha=1.0),
            ValueError,
            r"gate_scale must be \[2, 5\].*expand",
        ),
        "gate-of-keys": (
            call(gate_bias=lambda x: x[:, :4], alpha=1.0),
            ValueError,
            r"gate_bias must be \[2, 5\], one for",
        ),
        "alpha-not-finite": (call(alpha=math.inf), ValueError, "alpha must be finite in float32, got inf"),
        "alpha-not-a-number": (call(alpha=math.nan), ValueError, "alpha must be finite in float32, got nan"),
        "alpha-too-large": (call(alpha=1e39), ValueError, "alpha must be finite in float32"),
        "alpha-learned": (call(alpha=torch.ones(())), TypeError, "alpha must be a number, got Tensor; multiply the"),
        "eps-zero": (call(alpha=1.0, eps=0.0), ValueError, "eps must be positive and finite, at least 1e-37, got 0"),
        "no-temperature": (
            call(alpha=1.0, temperature=0.0),
            ValueError,
            "temperature must be positive and finite, got 0",
        ),
        "endless-temperature": (call(alpha=1.0, temperature=math.inf), ValueError, "temperature must be positive"),
        "unknown-rule": (
            call(alpha=1.0, gate_grad="soft"),
            ValueError,
            "gate_grad must be one of none, straight_through",
        ),
    }

    def check(self, case: Case, device: str, dtype: torch.dtype, layout: str = "contiguous") -> None:
        assert rows_at_threshold(case.to(device, dtype).tensors, case.options) == 0
        super().check(case, device, dtype, layout)

    def test_one_sample_gives_what_it_gives_among_others(self) -> None:
        case = make(n=5, lq=1, lk=7, **STRAIGHT).to("cpu", torch.float32)
        upstream = torch.randn(5, 1, case.tensors["value"].shape[-1])

        def of(samples: slice) -> list[Tensor]:
            tensors = {k: None if x is None else x[samples].detach().requires_grad_() for k, x in case.tensors.items()}
            y, gradients_ = gradients(Case(tensors, case.options), upstream[samples])
            return [y, *gradients_]

        alone = zip(*(of(slice(i, i + 1)) for i in range(5)), strict=True)
        for together, parts in zip(of(slice(None)), alone, strict=True):
            assert relative_error(together, torch.cat(parts).double()) <= TOLERANCE[torch.float32]

    def test_products_large_enough_for_onednn(self) -> None:
        self.check(make(n=1, lq=603, lk=617, d=129, dv=131, **STRAIGHT), "cpu", torch.float32)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_short_samples_in_blocks_of_several(self, dtype: torch.dtype) -> None:
        self.check(make(n=37, lq=60, lk=70, d=512, dv=500, **STRAIGHT), "cpu", dtype)  # 31, and a rest

    @pytest.mark.parametrize("stride", [(1, 1), (0, 1), (136, 1), (1, 625)], ids=str)
    def test_products_of_strided_values(self, stride: tuple[int, int]) -> None:
        case = make(n=1, lq=603, lk=617, d=129, dv=131).to("cpu", torch.float32)
        value = torch.randn(617 * 140).as_strided((1, 617, 131), (0, *stride))
        given = self.call(Case(case.tensors | {"value": value}, case.options))
        dense = self.call(Case(case.tensors | {"value": value.contiguous()}, case.options))
        assert all(torch.equal(a, b) for a, b in zip(given, dense, strict=True))

    def test_no_compiled_kernel_keeps_triton_from_a_gpu(self) -> None:
        assert _backends.why_no_compiled(self.name, "cuda")

    def test_half_of_the_keys_are_masked(self) -> None:
        for name in ("half-masked", "surrogate", "larger-than-a-block"):
            case = self.cases[name]()
            query, key, _, scale, bias = case.tensors.values()
            t = threshold(scale, bias, key.shape[1])
            assert 0.2 < (attention(query, key, **case.options) > t).double().mean() < 0.8

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("renormalize", [False, True])
    def test_the_surrogate_takes_every_dtype(
        self, renormalize: bool, dtype: torch.dtype, backend: str, device: str
    ) -> None:
        self.check(make(renormalize=renormalize, **STRAIGHT), device, dtype)

    def test_opcheck_of_the_surrogate(self) -> None:
        arguments = self.op_arguments(make(renormalize=True, **STRAIGHT).to("cpu", torch.float32))
        for backend, op in OPERATORS[self.name]._ops.items():
            if _backends.why_not(backend, self.name, "cpu") is None:
                torch.library.opcheck(op, arguments)

    @pytest.mark.parametrize("renormalize", [False, True])
    @pytest.mark.parametrize("gate", ["half", "above-all", "below-all"])
    def test_the_surrogate_is_the_derivative_of_a_smooth_gate(
        self, gate: str, renormalize: bool, backend: str, device: str
    ) -> None:
        """By differences of the dense float64 function whose gate is the hard one here, and moves as the sigmoid."""
        case = make(gate=gate, renormalize=renormalize, **STRAIGHT).to(device, torch.float64)
        point = [x.detach() for x in case.tensors.values() if x is not None]
        lk, temperature = point[1].shape[1], STRAIGHT["temperature"]

        def parts(q: Tensor, k: Tensor, v: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            a, t = attention(q, k, **case.options), (scale / lk + bias).unsqueeze(-1)
            return a, t, torch.sigmoid((a - t) * lk / temperature)

        a0, t0, soft0 = parts(*point)
        hard = (a0 > t0).double()

        def smooth(*xs: Tensor) -> Tensor:
            a, _, soft = parts(*xs)
            weights = a * (hard + soft - soft0)
            mass = weights.sum(-1, keepdim=True) if renormalize and gate != "above-all" else 1
            return weights @ xs[2] / mass

        upstream = torch.randn_like(smooth(*point))
        y, grads = gradients(case, upstream)
        assert relative_error(y, smooth(*point)) < 1e-12 if gate != "above-all" else not y.any()
        for k, (x, grad) in enumerate(zip(point, grads, strict=True)):
            direction = torch.randn_like(x) * 1e-5
            ahead, behind = ([*point[:k], x + sign * direction, *point[k + 1 :]] for sign in (1, -1))
            difference = ((smooth(*ahead) - smooth(*behind)) * upstream).sum() / 2
            assert torch.isclose((grad * direction).sum(), difference, rtol=1e-6, atol=1e-12), list(case.tensors)[k]

    @pytest.mark.parametrize("renormalize", [False, True])
    @pytest.mark.parametrize("gate_grad", ["none", "straight_through"])
    @pytest.mark.parametrize("cosine", [False, True])
    def test_the_adjoint_on_paper(self, cosine: bool, gate_grad: str, renormalize: bool) -> None:
        """The formulas of docs/ops/cgm_attention.md, dense, against the definition's autograd."""
        alpha, temperature = 1.5, 0.7
        rule = {"gate_grad": gate_grad, "temperature": temperature}
        case = make(alpha=alpha, cosine=cosine, renormalize=renormalize, **rule).to("cpu", torch.float64)
        upstream = torch.randn(2, 5, 6, dtype=torch.float64)
        expected = torch.autograd.grad(
            reference.cgm_attention(**case.tensors, **case.options), list(case.tensors.values()), upstream
        )
        q, k, v, scale, bias = (x.detach() for x in case.tensors.values())
        g, lk, lengths = upstream, k.shape[1], [x.norm(dim=-1, keepdim=True) for x in (q, k)]
        q1, k1 = (x / length for x, length in zip((q, k), lengths, strict=True)) if cosine else (q, k)
        a, t = attention(q, k, alpha, cosine), (scale / lk + bias).unsqueeze(-1)
        keep = (a > t).double()
        m = (a * keep).sum(-1, keepdim=True) if renormalize else 1
        o = (a * keep) @ v / m
        e = (g @ v.mT - (g * o).sum(-1, keepdim=True) * renormalize) / m
        s = torch.sigmoid((a - t) * lk / temperature)
        slope = a * e * s * (1 - s) * lk / temperature * (gate_grad == "straight_through")
        da = keep * e + slope
        ds = a * (da - (a * da).sum(-1, keepdim=True))
        dq, dk = alpha * ds @ k1, alpha * ds.mT @ q1
        if cosine:
            dq, dk = (
                (dx - x1 * (x1 * dx).sum(-1, keepdim=True)) / length
                for dx, x1, length in zip((dq, dk), (q1, k1), lengths, strict=True)
            )
        dt = -slope.sum(-1)
        for ours, exact in zip((dq, dk, (a * keep / m).mT @ g, dt / lk, dt), expected, strict=True):
            assert relative_error(ours, exact) < 1e-12

    def test_the_surrogate_leaves_the_output_hard(self, backend: str, device: str) -> None:
        for renormalize in (False, True):
            case = make(renormalize=renormalize).to(device, torch.float32)
            exact, grads = gradients(case, torch.ones(2, 5, 6))
            straight, moved = gradients(Case(case.tensors, {**case.options, **STRAIGHT}), torch.ones(2, 5, 6))
            assert torch.equal(exact, straight)
            assert not grads[3].any() and not grads[4].any()
            assert moved[3].all() and moved[4].all()

    def test_a_threshold_that_is_no_number_keeps_nothing(self, backend: str, device: str) -> None:
        for options in ({}, STRAIGHT, {"renormalize": True, **STRAIGHT}):
            case = make(**options).to(device, torch.float32)
            with torch.no_grad():
                case.tensors["gate_bias"][0, 1], case.tensors["gate_bias"][0, 2] = math.nan, math.inf
            y, grads = gradients(case, torch.ones(2, 5, 6))
            assert y.isfinite().all() and not y[0, 1:3].any() and y[0, 3:].any()
            assert all(x.isfinite().all() for x in grads)
            assert not grads[4][0, 1:3].any()

    def test_a_threshold_of_zero_keeps_what_underflows(self, backend: str, device: str) -> None:
        """A value of infinity tells: its product with a weight of zero has no value, so the gradient has none either.

        That a dropped key's value is not even multiplied is of the compiled library alone.
        """
        query, key = torch.ones(1, 1, 2), torch.tensor([[[1.0, 1.0], [-1.0, -1.0]]])
        value = torch.tensor([[[1.0], [math.inf]]])
        for t, kept in ((0.0, True), (-1.0, True), (0.5, False)):
            q = query.to(device).requires_grad_()
            y = cgm_attention(
                q, key.to(device), value.to(device), None, torch.full((1, 1), t, device=device), alpha=1e3
            )
            (grad,) = torch.autograd.grad(y.sum(), q)
            assert grad.isnan().all() == (kept or backend != "compiled"), t

    def test_one_key(self, backend: str, device: str) -> None:
        """A is 1: what it is a softmax of has no gradient, but for rounding."""
        case = make(lk=1, **STRAIGHT).to(device, torch.float32)
        with torch.no_grad():
            case.tensors["gate_bias"][0] += 1
        upstream = torch.randn(2, 5, 6, device=device)
        y, grads = gradients(case, upstream)
        assert not y[0].any()
        assert torch.equal(y[1], case.tensors["value"][1].detach().expand(5, 6))
        assert all(x.abs().max() < 1e-5 for x in grads[:2])
        assert torch.allclose(grads[2][1], upstream[1].sum(0, keepdim=True)) and not grads[2][0].any()
        assert grads[3].all()

    def test_no_gate_is_attention(self, backend: str, device: str) -> None:
        case = make(gate="none", cosine=False, alpha=0.3).to(device, torch.float32)
        q, k, v = (case.tensors[name].detach() for name in ("query", "key", "value"))
        expected = F.scaled_dot_product_attention(q, k, v, scale=0.3)
        assert relative_error(self.call(case)[0], expected) < 1e-6
        assert torch.equal(cgm_attention(q, k[:, :0], v[:, :0], alpha=0.3), torch.zeros_like(expected))

    def test_one_style_for_many_contents(self, backend: str, device: str) -> None:
        case = make(n=1, gate="none").to(device, torch.float32)
        queries = torch.randn(3, 5, 7, device=device)
        key, value = case.tensors["key"], case.tensors["value"]
        for_all = cgm_attention(queries, key.expand(3, -1, -1), value.expand(3, -1, -1), alpha=2.5)
        for k in range(3):
            assert relative_error(for_all[k], cgm_attention(queries[k : k + 1], key, value, alpha=2.5)[0]) < 1e-6

    def test_a_query_of_zeros_attends_evenly(self, backend: str, device: str) -> None:
        case = make(gate="none").to(device, torch.float32)
        with torch.no_grad():
            case.tensors["query"][0, 0] = 0
        y, grads = gradients(case, torch.ones(2, 5, 6))
        assert torch.allclose(y[0, 0], case.tensors["value"][0].mean(0))
        assert all(x.isfinite().all() for x in grads)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    def test_rows_whose_norms_overflow_attend_evenly(self, dtype: torch.dtype, backend: str, device: str) -> None:
        case, huge = make(gate="none"), 1e175 if dtype == torch.float64 else 1e25
        for name in ("query", "key"):  # and the products of the two do
            case.tensors[name][:, ::2] *= huge
        in_double = dtype == torch.float64 or (backend, device) == ("compiled", "cpu")  # where norms are taken
        ours = case.to(device, dtype)
        truth = ours.to(device, torch.float64 if in_double else torch.float32)
        upstream = [torch.randn(2, 5, 6, device=device).to(dtype)]
        given, expected = self.run(cgm_attention, ours, upstream), self.run(reference.cgm_attention, truth, upstream)
        for a, b in zip(given, expected, strict=True):
            assert relative_error(a, b.detach()) < TOLERANCE[dtype]

    def test_large_scores(self, backend: str, device: str) -> None:
        """Scores of 1e4 and rows of 1e15 overflow nowhere."""
        for factor, options in ((1.0, {"alpha": 1e4}), (1e15, {}), (100.0, {"cosine": False, "alpha": 1.0})):
            case = make(gate="none", **options)
            scaled = {**case.tensors, "query": case.tensors["query"] * factor, "key": case.tensors["key"] * factor}
            y, grads = gradients(Case(scaled, case.options).to(device, torch.float32), torch.ones(2, 5, 6))
            assert y.isfinite().all() and all(x.isfinite().all() for x in grads)
            assert relative_error(y, reference.cgm_attention(**scaled, **case.options)) < 1e-2

    @pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
    def test_what_is_not_finite_stays_in_its_row(self, value: float, backend: str, device: str) -> None:
        case = make(lq=70, renormalize=True, **STRAIGHT).to(device, torch.float32)
        upstream = torch.randn(2, 70, 6, device=device)
        y, grads = gradients(case, upstream)
        with torch.no_grad():
            case.tensors["query"][0, 3, 1] = value
        spoiled, spoiled_grads = gradients(case, upstream)
        others = torch.arange(70) != 3
        assert spoiled[0, 3].isnan().all()
        assert torch.equal(y[:, others], spoiled[:, others])
        assert torch.equal(grads[0][:, others], spoiled_grads[0][:, others])
        assert torch.equal(grads[1][1], spoiled_grads[1][1]) and torch.equal(grads[2][1], spoiled_grads[2][1])

    def test_a_direct_call_of_the_registered_op_reads_nothing_outside(self, compiled_op: Any) -> None:
        q, k, v, gate = (torch.ones(1, *size) for size in ((3, 4), (5, 4), (5, 2), (3,)))
        options = (1.0, True, "none", 1.0, False, 1e-12)
        for arguments in (
            (q[0], k, v, gate, gate),
            (q, k[..., :3], v, gate, gate),
            (q, k, v[:, :4], gate, gate),
            (q, k, v, gate[:, :2], gate),
            (q, k, v, gate, gate[:, :2]),
            (q, k.double(), v, gate, gate),
            (q, k, v, gate.double(), gate),
        ):
            with pytest.raises(RuntimeError, match=r"cgm_attention|stylekern: "):
                compiled_op(*arguments, *options)
        y, row = q.new_ones(1, 3, 2), q.new_ones(1, 3)
        for grad, output, lse, mass in (
            (y[..., :1], y, row, row),
            (y, y[:, :2], row, row),
            (y, y, row[:, :2], row),
            (y, y, row, row[:, :2]),
        ):
            with pytest.raises(RuntimeError, match=r"cgm_attention|stylekern: "):
                torch.ops.stylekern.cgm_attention_backward(
                    grad, q, k, v, gate, gate, output, lse, mass, *options, True, True, True, True
                )

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        n=st.integers(0, 2),
        lq=st.integers(0, 40),
        lk=st.integers(3, 40),
        d=st.integers(3, 40),
        dv=st.integers(1, 40),
        cosine=st.booleans(),
        renormalize=st.booleans(),
        straight=st.booleans(),
        gate=st.sampled_from(["half", "scale", "none"]),
    )
    def test_any_shape(
        self, n: int, lq: int, lk: int, d: int, dv: int, cosine: bool, renormalize: bool, straight: bool, gate: str
    ) -> None:
        options = {"cosine": cosine, "renormalize": renormalize, **(STRAIGHT if straight else {})}
        case = make(n, lq, lk, d, dv, gate, alpha=3.0 if cosine else 0.5, **options)
        self.check(case, "cpu", torch.float32)

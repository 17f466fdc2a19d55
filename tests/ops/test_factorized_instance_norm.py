"""factorized_instance_norm keeps its contract on every backend."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stylekern import reference
from stylekern.ops import factorized_instance_norm

from .cases import Case, arguments_of, relative_error
from .normalizing_suite import NormalizingSuite
from .suite import OperatorSuite


def make(n: int = 2, c: int = 3, h: int = 7, w: int = 19, **options: Any) -> Case:
    shapes = {
        "content": (n, c, h, w),
        "gamma_ind": (c,),
        "beta_ind": (c,),
        "gamma_style": (n, c, h, w),
        "beta_style": (n, c, h, w),
    }
    return Case({name: torch.randn(shape, dtype=torch.float64) + 0.5 for name, shape in shapes.items()}, options)


call = partial(arguments_of, make)


class TestFactorizedInstanceNorm(NormalizingSuite, OperatorSuite):
    name = "factorized_instance_norm"
    function = staticmethod(factorized_instance_norm)
    reference = staticmethod(reference.factorized_instance_norm)
    cases = {
        "typical": make,
        "biased": lambda: make(correction=0),
        "large-eps": lambda: make(eps=0.5),
        "larger-than-a-block": lambda: make(n=1, c=2, h=70, w=133),
        "one-row": lambda: make(h=1, w=40),
        "one-column": lambda: make(h=40, w=1),
        "two-positions": lambda: make(h=1, w=2, eps=1.0),
        "one-position-biased": lambda: make(h=1, w=1, correction=0, eps=1.0),
        "one-channel": lambda: make(n=1, c=1),
        "empty-batch": lambda: make(n=0),
        "empty-height": lambda: make(h=0),
        "no-channels": lambda: make(c=0),
    }
    normalized = ("content",)
    sized = staticmethod(lambda h, w: make(n=1, h=h, w=w))
    typical = "typical"
    threaded = {
        "few-planes": lambda: make(n=1, c=3, h=257, w=129),
        "many-planes": lambda: make(n=2, c=64, h=40, w=61),
    }
    bad = {
        "not-a-tensor": (call(beta_ind=lambda x: 1.0), TypeError, "beta_ind must be a tensor .* got float"),
        "integers": (call(content=lambda x: x.int()), TypeError, "content must be float32, .* got torch.int32"),
        "dtypes-differ": (call(gamma_style=lambda x: x.half()), TypeError, "gamma_style is torch.float16, but content"),
        "devices-differ": (call(beta_style=lambda x: x.to("meta")), RuntimeError, "beta_style is on meta, but content"),
        "three-dimensions": (call(content=lambda x: x[0]), ValueError, r"content must be \[N, C, H, W\], got shape"),
        "gamma-ind-shape": (
            call(gamma_ind=lambda x: x[:2]),
            ValueError,
            r"gamma_ind must be \[3\] for content .* \[2\]",
        ),
        "gamma-style-shape": (
            call(gamma_style=lambda x: x[..., :1, :1]),
            ValueError,
            r"gamma_style must be \[2, 3, 7, 19\] for content \[2, 3, 7, 19\], got \[2, 3, 1, 1\]",
        ),
        "one-position": (
            lambda: (tuple(make(h=1, w=1).tensors.values()), {}),
            ValueError,
            "variance of content's 1 x 1 positions with correction=1 is not defined",
        ),
    }

    def test_without_a_style_it_is_instance_norm(self, backend: str) -> None:
        x, gamma, beta = torch.randn(2, 3, 8, 9), torch.randn(3), torch.randn(3)
        ours = factorized_instance_norm(x, gamma, beta, torch.ones_like(x), torch.zeros_like(x), correction=0)
        assert relative_error(ours, F.instance_norm(x, weight=gamma, bias=beta)) < 2e-6

    def test_a_large_mean_costs_no_more_digits_than_plain_torch(self, backend: str) -> None:
        case = make(n=1, c=16, h=48, w=48).to("cpu", torch.float32)
        tensors = {k: x.detach() for k, x in case.tensors.items() if x is not None}
        tensors["content"] = tensors["content"] + 1000
        truth = reference.factorized_instance_norm(**{k: x.double() for k, x in tensors.items()})
        plain = reference.factorized_instance_norm(**tensors)
        assert relative_error(factorized_instance_norm(**tensors), truth) <= 1.2 * relative_error(plain, truth)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    @pytest.mark.parametrize(("h", "w"), [(3700, 64), (512, 65)])
    def test_results_too_large_for_a_cache(self, dtype: torch.dtype, h: int, w: int) -> None:
        n = 1 if dtype == torch.float64 else 2  # as many bytes as of float32
        self.check(make(n=n, c=9, h=h, w=w), "cpu", dtype)

    def test_a_direct_call_of_the_registered_op_reads_nothing_outside(self, compiled_op: Any) -> None:
        x, gamma = torch.ones(1, 2, 3, 3), torch.ones(2)
        for wrong in ((x[0], gamma, gamma, x, x), (x, gamma[:1], gamma, x, x), (x, gamma, gamma, x, x[..., :1])):
            with pytest.raises(RuntimeError, match=r"factorized_instance_norm|stylekern: the shape"):
                compiled_op(*wrong, 1e-5, 1)
        with pytest.raises(RuntimeError, match="gamma_style must be of the dtype"):
            compiled_op(x, gamma, gamma, x.double(), x, 1e-5, 1)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        n=st.integers(0, 2),
        c=st.integers(0, 3),
        h=st.integers(1, 40),
        w=st.integers(1, 40),
        correction=st.integers(0, 1),
    )
    def test_any_shape(self, n: int, c: int, h: int, w: int, correction: int) -> None:
        h = max(h, 2) if correction else h
        # A plane of one or two values has a variance near zero, by which both computations divide.
        eps = 1.0 if h * w < 6 else 1e-5
        self.check(make(n, c, h, w, correction=correction, eps=eps), "cpu", torch.float32)

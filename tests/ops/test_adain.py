"""adain keeps its contract on every backend."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stylekern import reference
from stylekern.ops import adain

from .cases import Case, arguments_of, relative_error
from .normalizing_suite import NormalizingSuite
from .suite import OperatorSuite


def make(n: int = 2, c: int = 3, h: int = 7, w: int = 19, hs: int = 5, ws: int = 9, **options: Any) -> Case:
    content, style = torch.randn(n, c, h, w, dtype=torch.float64), torch.randn(n, c, hs, ws, dtype=torch.float64)
    return Case({"content": content + 1, "style": 2 * style - 3}, options)


call = partial(arguments_of, make)


class TestAdain(NormalizingSuite, OperatorSuite):
    name = "adain"
    function = staticmethod(adain)
    reference = staticmethod(reference.adain)
    cases = {
        "sizes-differ": make,
        "same-size": lambda: make(hs=7, ws=19),
        "biased": lambda: make(correction=0),
        "large-eps": lambda: make(eps=0.5),
        "larger-than-a-block": lambda: make(n=1, c=2, h=70, w=133, hs=129, ws=65),
        "one-row": lambda: make(h=1, w=40, hs=40, ws=1),
        "two-positions": lambda: make(h=1, w=2, hs=2, ws=1, eps=1.0),
        "one-position-biased": lambda: make(h=1, w=1, hs=1, ws=1, correction=0, eps=1.0),
        "one-channel": lambda: make(n=1, c=1),
        "empty-batch": lambda: make(n=0),
        "empty-content": lambda: make(h=0),
        "no-channels": lambda: make(c=0),
    }
    normalized = ("content", "style")
    sized = staticmethod(lambda h, w: make(n=1, c=2, h=h, w=w, hs=w, ws=h))
    typical = "sizes-differ"
    threaded = {
        "few-planes": lambda: make(n=1, c=3, h=257, w=129, hs=100, ws=101),
        "many-planes": lambda: make(n=2, c=64, h=40, w=61, hs=32, ws=32),
    }
    bad = {
        "not-a-tensor": (call(style=lambda x: 1.0), TypeError, "style must be a tensor .* got float"),
        "integers": (call(content=lambda x: x.int()), TypeError, "content must be float32, .* got torch.int32"),
        "dtypes-differ": (call(style=lambda x: x.half()), TypeError, "style is torch.float16, but content is"),
        "devices-differ": (call(style=lambda x: x.to("meta")), RuntimeError, "style is on meta, but content is on cpu"),
        "three-dimensions": (call(style=lambda x: x[0]), ValueError, r"style must be \[N, C, Hs, Ws\], got shape"),
        "channels-differ": (call(style=lambda x: x[:, :2]), ValueError, r"style must be \[2, 3, Hs, Ws\].* got \[2, 2"),
        "batches-differ": (call(style=lambda x: x[:1]), ValueError, r"style must be \[2, 3, .*expand one"),
        "one-content-position": (
            call(content=lambda x: x[..., :1, :1]),
            ValueError,
            "variance of content's 1 x 1 positions with correction=1 is not defined",
        ),
        "one-style-position": (call(style=lambda x: x[..., :1, :1]), ValueError, "variance of style's 1 x 1 positions"),
        "no-style-positions": (call(style=lambda x: x[..., :0]), ValueError, "style must have at least one position"),
    }

    def test_the_result_has_the_statistics_of_the_style(self, backend: str) -> None:
        content, style = torch.randn(2, 3, 16, 16), 3 * torch.randn(2, 3, 12, 10) + 5
        given_var, given_mean = torch.var_mean(adain(content, style), dim=(2, 3))
        var, mean = torch.var_mean(style, dim=(2, 3))
        assert torch.allclose(given_mean, mean, atol=1e-4) and torch.allclose(given_var, var, rtol=1e-3)

    def test_one_style_for_many_contents(self, backend: str) -> None:
        contents, style = torch.randn(3, 2, 5, 6), torch.randn(1, 2, 4, 4)
        given_all = adain(contents, style.expand(3, -1, -1, -1))
        for k in range(3):
            assert torch.equal(given_all[k : k + 1], adain(contents[k : k + 1], style))

    def test_a_large_mean_costs_no_more_digits_than_plain_torch(self, backend: str) -> None:
        content, style = torch.randn(1, 16, 48, 48) + 1000, torch.randn(1, 16, 48, 48) + 1000
        truth = reference.adain(content.double(), style.double())
        # The style's mean, 1000, rounds alike in both: what differs is the normalised content.
        ours, plain, exact = (
            x.double() - 1000 for x in (adain(content, style), reference.adain(content, style), truth)
        )
        assert relative_error(ours, exact) <= 1.2 * relative_error(plain, exact)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    @pytest.mark.parametrize(("h", "w"), [(3700, 64), (512, 65)])
    def test_results_too_large_for_a_cache(self, dtype: torch.dtype, h: int, w: int) -> None:
        n = 1 if dtype == torch.float64 else 2  # as many bytes as of float32
        self.check(make(n=n, c=9, h=h, w=w, hs=h, ws=w), "cpu", dtype)

    def test_large_results_in_bands_of_odd_rows(self) -> None:
        """Of a plane alone, whose bands begin and end within a cache line."""
        self.check(make(n=1, c=1, h=16 * 4097, w=67, hs=2, ws=3), "cpu", torch.float32)

    def test_a_direct_call_of_the_registered_op_reads_nothing_outside(self, compiled_op: Any) -> None:
        x = torch.ones(1, 2, 3, 3)
        for style in (x[0], x[:, :1], x.double(), x[..., :0]):
            with pytest.raises(RuntimeError, match=r"adain|stylekern: "):
                compiled_op(x, style, 1e-5, 1)
        statistic = torch.ones(1, 2)
        with pytest.raises(RuntimeError, match="the shape of grad"):
            torch.ops.stylekern.adain_backward(x[..., :2], x, x, *[statistic] * 4, 1, True, True)
        with pytest.raises(RuntimeError, match="the shape of statistics"):
            torch.ops.stylekern.adain_backward(x, x, x, *[statistic[:, :1]] * 4, 1, True, True)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        n=st.integers(0, 2),
        c=st.integers(0, 3),
        h=st.integers(1, 40),
        w=st.integers(1, 40),
        hs=st.integers(1, 40),
        ws=st.integers(1, 40),
        correction=st.integers(0, 1),
    )
    def test_any_shape(self, n: int, c: int, h: int, w: int, hs: int, ws: int, correction: int) -> None:
        h, hs = (max(size, 2) if correction else size for size in (h, hs))
        # A plane of one or two values has a variance near zero, by which both computations divide.
        eps = 1.0 if min(h * w, hs * ws) < 6 else 1e-5
        self.check(make(n, c, h, w, hs, ws, correction=correction, eps=eps), "cpu", torch.float32)

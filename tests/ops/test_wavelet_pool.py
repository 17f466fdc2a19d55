"""wavelet_pool keeps its contract on every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import stylekern
from stylekern import reference
from stylekern.ops import wavelet_pool, wavelet_unpool

from .cases import TOLERANCE, Case, relative_error
from .suite import OperatorSuite


def make(n: int = 2, c: int = 3, h: int = 6, w: int = 22, **options: Any) -> Case:
    return Case({"input": torch.randn(n, c, h, w, dtype=torch.float64)}, options)


def call(x: Any, **options: Any) -> Any:
    return lambda: ((x,), options)


class TestWaveletPool(OperatorSuite):
    name = "wavelet_pool"
    function = staticmethod(wavelet_pool)
    reference = staticmethod(reference.wavelet_pool)
    cases = {
        f"{odd}-{name}": lambda odd=odd, size=size: make(**size, odd=odd)
        for odd in ("floor", "pad")
        for name, size in {
            "even": {},
            "odd": {"h": 7, "w": 19},
            "odd-height": {"h": 5, "w": 64},
            "odd-width": {"h": 4, "w": 131},
            "one-pixel": {"h": 1, "w": 1},
            "one-row": {"h": 1, "w": 40},
            "one-column": {"h": 40, "w": 1},
        }.items()
    } | {
        "empty-batch": lambda: make(n=0),
        "empty-height": lambda: make(h=0),
        "empty-width": lambda: make(w=0),
        "no-channels": lambda: make(c=0),
    }
    typical = "pad-odd"
    threaded = {
        "few-planes": lambda: make(n=1, c=1, h=513, w=257, odd="pad"),
        "many-planes": lambda: make(n=2, c=64, h=64, w=64),
    }
    bad = {
        "not-a-tensor": (call([1.0]), TypeError, "input must be a tensor .* got list"),
        "integers": (call(torch.ones(1, 1, 2, 2).int()), TypeError, "input must be float32, .* got torch.int32"),
        "three-dimensions": (
            call(torch.ones(1, 2, 2)),
            ValueError,
            r"input must be \[N, C, H, W\], got shape \[1, 2, 2",
        ),
        "odd-name": (call(torch.ones(1, 1, 2, 2), odd="ceil"), ValueError, "odd must be one of floor, pad, got 'ceil'"),
    }

    def test_bands_by_hand(self, backend: str) -> None:
        bands = wavelet_pool(torch.tensor([[[[1.0, 2.0], [3.0, 5.0]]]]))
        assert [band.item() for band in bands] == [5.5, 1.5, 2.5, 0.5]
        assert bands.ll is bands[0] and bands.hh is bands[3]

    def test_results_larger_than_any_memory(self, compiled_op: Any) -> None:
        with stylekern.use_backend("compiled"), pytest.raises(RuntimeError, match="could not be allocated"):
            wavelet_pool(torch.zeros(2**24).expand(1, 1, 2**24, 2**24))

    def test_energy_is_kept(self, backend: str) -> None:
        x = torch.randn(2, 3, 8, 10)
        energy = sum(band.square().sum() for band in wavelet_pool(x))
        assert abs(energy / x.square().sum() - 1) < 1e-5

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("w", [*range(1, 37), 63, 64, 65, 66])
    def test_every_width_about_a_vector(self, w: int, dtype: torch.dtype) -> None:
        for odd in ("floor", "pad"):
            self.check(make(n=1, c=2, h=3, w=w, odd=odd), "cpu", dtype)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("odd", ["floor", "pad"])
    @pytest.mark.parametrize(("c", "h", "w"), [(9, 1900, 128), (9, 1901, 129), (1, 4099, 521), (160, 101, 130)])
    def test_results_too_large_for_a_cache(self, dtype: torch.dtype, c: int, h: int, w: int, odd: str) -> None:
        n = 1 if dtype == torch.float64 else 2  # as many bytes as of float32
        self.check(make(n=n, c=c, h=h, w=w, odd=odd), "cpu", dtype)

    def test_a_direct_call_of_the_registered_op_reads_nothing_outside(self, compiled_op: Any) -> None:
        with pytest.raises(RuntimeError, match=r"must be \[N, C, H, W\]"):
            compiled_op(torch.ones(2, 2), "floor")
        with pytest.raises(RuntimeError, match="odd must be"):
            compiled_op(torch.ones(1, 1, 2, 2), "ceil")
        band = torch.ones(1, 1, 2, 2)
        with pytest.raises(RuntimeError, match="do not make a picture"):
            torch.ops.stylekern.wavelet_pool_backward(band, band, band, band, 6, 4, "floor")
        with pytest.raises(RuntimeError, match="the shape of the bands"):
            torch.ops.stylekern.wavelet_pool_backward(band, band, band, band[..., :1], 4, 4, "floor")

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        n=st.integers(0, 2),
        c=st.integers(0, 3),
        h=st.integers(0, 40),
        w=st.integers(0, 70),
        odd=st.sampled_from(["floor", "pad"]),
    )
    def test_any_shape(self, n: int, c: int, h: int, w: int, odd: str) -> None:
        self.check(make(n, c, h, w, odd=odd), "cpu", torch.float32)

    @pytest.mark.parametrize(("h", "w"), [(6, 8), (7, 9), (1, 1), (33, 65)])
    def test_unpooling_restores_the_picture(self, h: int, w: int, backend: str) -> None:
        x = torch.randn(2, 3, h, w)
        assert relative_error(wavelet_unpool(*wavelet_pool(x, odd="pad"), size=(h, w)), x) < TOLERANCE[torch.float32]

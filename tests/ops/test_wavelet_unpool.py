"""wavelet_unpool keeps its contract on every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stylekern import reference
from stylekern.ops import wavelet_pool, wavelet_unpool

from .cases import TOLERANCE, Case, relative_error
from .suite import OperatorSuite


def make(n: int = 2, c: int = 3, h: int = 3, w: int = 11, size: tuple[int, int] | None = None) -> Case:
    bands = {name: torch.randn(n, c, h, w, dtype=torch.float64) for name in ("ll", "lh", "hl", "hh")}
    return Case(bands, {"size": size})


def call(change: Any = None, **options: Any) -> Any:
    def build() -> tuple[tuple[Any, ...], dict[str, Any]]:
        bands = [x.float() for x in make().tensors.values() if x is not None]
        return (*bands[:2], bands[2] if change is None else change(bands[2]), bands[3]), options

    return build


class TestWaveletUnpool(OperatorSuite):
    name = "wavelet_unpool"
    function = staticmethod(wavelet_unpool)
    reference = staticmethod(reference.wavelet_unpool)
    cases = {
        "whole": make,
        "cropped": lambda: make(size=(5, 21)),
        "cropped-height": lambda: make(size=(5, 22)),
        "cropped-width": lambda: make(w=65, size=(6, 129)),
        "cropped-by-more": lambda: make(size=(3, 7)),
        "cropped-to-nothing": lambda: make(size=(0, 0)),
        "one-pixel": lambda: make(h=1, w=1, size=(1, 1)),
        "one-position": lambda: make(h=1, w=1),
        "empty-batch": lambda: make(n=0, size=(5, 21)),
        "empty-height": lambda: make(h=0),
        "empty-width": lambda: make(w=0),
        "no-channels": lambda: make(c=0),
    }
    typical = "cropped"
    threaded = {
        "few-planes": lambda: make(n=1, c=1, h=257, w=129, size=(513, 257)),
        "many-planes": lambda: make(n=2, c=64, h=32, w=32),
    }
    bad = {
        "not-a-tensor": (call(lambda x: None), TypeError, "hl must be a tensor .* got NoneType"),
        "integers": (call(lambda x: x.int()), TypeError, "hl must be float32, .* got torch.int32"),
        "dtypes-differ": (call(lambda x: x.half()), TypeError, "hl is torch.float16, but ll is torch.float32"),
        "devices-differ": (call(lambda x: x.to("meta")), RuntimeError, "hl is on meta, but ll is on cpu"),
        "shapes-differ": (
            call(lambda x: x[..., :5]),
            ValueError,
            r"hl must have the shape of ll, \[2, 3, 3, 11\], got",
        ),
        "three-dimensions": (call(lambda x: x[0]), ValueError, r"hl must be \[N, C, h, w\], got shape"),
        "size-too-large": (call(size=(7, 22)), ValueError, r"at most \(6, 22\) for bands of 3 x 11, got \(7, 22\)"),
        "size-negative": (call(size=(-1, 22)), ValueError, r"at most \(6, 22\)"),
        "size-not-a-pair": (call(size=6), ValueError, "size must be .height, width. or None, got 6"),
    }

    def test_pooling_restores_the_bands(self, backend: str) -> None:
        bands = [torch.randn(2, 3, 5, 9) for _ in range(4)]
        for given_band, band in zip(wavelet_pool(wavelet_unpool(*bands)), bands, strict=True):
            assert relative_error(given_band, band) < TOLERANCE[torch.float32]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("w", [*range(1, 20), 31, 32, 33])
    def test_every_width_about_a_vector(self, w: int, dtype: torch.dtype) -> None:
        for size in (None, (3, 2 * w - 1)):
            self.check(make(n=1, c=2, h=2, w=w, size=size), "cpu", dtype)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    @pytest.mark.parametrize(
        ("h", "w", "size"), [(950, 64, None), (950, 65, None), (950, 65, (1899, 129)), (951, 66, (1902, 131))]
    )
    def test_results_too_large_for_a_cache(
        self, dtype: torch.dtype, h: int, w: int, size: tuple[int, int] | None
    ) -> None:
        n = 1 if dtype == torch.float64 else 2  # as many bytes as of float32
        self.check(make(n=n, c=9, h=h, w=w, size=size), "cpu", dtype)

    def test_large_results_of_misaligned_bands(self) -> None:
        self.check(make(n=2, c=9, h=950, w=64), "cpu", torch.float32, "misaligned")

    def test_a_direct_call_of_the_registered_op_reads_nothing_outside(self, compiled_op: Any) -> None:
        band = torch.ones(1, 1, 2, 2)
        with pytest.raises(RuntimeError, match="do not make a picture"):
            compiled_op(band, band, band, band, 5, 4)
        with pytest.raises(RuntimeError, match="the shape of the bands"):
            compiled_op(band, band, band, band[:, :0], 4, 4)
        with pytest.raises(RuntimeError, match="the bands must be of the dtype"):
            compiled_op(band, band, band, band.double(), 4, 4)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        n=st.integers(0, 2),
        c=st.integers(0, 3),
        height=st.integers(0, 40),
        width=st.integers(0, 70),
    )
    def test_any_shape(self, n: int, c: int, height: int, width: int) -> None:
        self.check(make(n, c, (height + 1) // 2, (width + 1) // 2, (height, width)), "cpu", torch.float32)

"""The CUDA kernels of wavelet_pool and wavelet_unpool, run on the CPU, against the definitions in fp64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from stylekern.reference.wavelet_pool import wavelet_pool
from stylekern.reference.wavelet_unpool import wavelet_unpool

from .arrays import (
    DTYPES,
    Layout,
    array,
    assert_close,
    assert_order_does_not_matter,
    cases,
    name,
    off_the_16_bytes,
    unwritten,
    values,
)

BANDS = ("ll", "lh", "hl", "hh")
RULES = ("drop", "repeat", "zero")  # wavelet_pool "floor" and "pad", wavelet_unpool


@dataclass(frozen=True)
class Case(Layout):
    """A picture, its bands, and how the one that is read lies in memory."""

    n: int = 2
    c: int = 3
    h: int = 6
    w: int = 16
    odd: str = "drop"
    dtype: torch.dtype = torch.float32
    shift: int = 0
    row_gap: int = 0
    only: str = ""

    @property
    def band(self) -> tuple[int, int]:
        up = 0 if self.odd == "drop" else 1
        return (self.h + up) // 2, (self.w + up) // 2


def arguments(case: Case) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    result = {"picture": values(case, generator, case.n, case.c, case.h, case.w, key="picture")}
    return result | {band: values(case, generator, case.n, case.c, *case.band, key=band) for band in BANDS}


def run(host, case: Case) -> dict[str, Tensor]:
    """The bands of the picture, and the picture of the bands."""
    picture, *bands = arguments(case).values()
    shape = (case.n, case.c, *case.band)
    result = {f"to_{band}": unwritten(*shape, dtype=case.dtype) for band in BANDS}
    host.pool(name(case.dtype), array(picture), [array(x) for x in result.values()], case.odd, False)
    result["to_picture"] = unwritten(*picture.shape, dtype=case.dtype)
    host.unpool(name(case.dtype), [array(x) for x in bands], array(result["to_picture"]), case.odd, False)
    return result


def expected(case: Case) -> dict[str, Tensor]:
    """Each way is the gradient of the other one's definition, or the definition itself."""
    picture, *bands = (x.double().clone().requires_grad_() for x in arguments(case).values())
    if case.odd == "zero":
        y = wavelet_unpool(*bands, size=(case.h, case.w))
        pooled, unpooled = torch.autograd.grad(y, bands, picture.detach()), y
    else:
        pooled = wavelet_pool(picture, odd="floor" if case.odd == "drop" else "pad")
        (unpooled,) = torch.autograd.grad(pooled, picture, bands)
    result = dict(zip(("to_ll", "to_lh", "to_hl", "to_hh"), pooled, strict=True)) | {"to_picture": unpooled}
    return {key: x.detach() for key, x in result.items()}


def assert_matches_reference(host, case: Case) -> None:
    assert_close(run(host, case), expected(case), case.dtype)


@cases(*(Case(odd=odd, h=h, w=w) for odd in RULES for h in (6, 7) for w in (16, 17, 12, 8)))
def test_every_rule_for_odd_sizes(host, case):
    assert_matches_reference(host, case)


@cases(*(Case(odd=odd, dtype=dtype, h=5, w=w) for odd in RULES for dtype in DTYPES for w in (32, 13)))
def test_dtypes(host, case):
    assert_matches_reference(host, case)


@cases(*(Case(odd=odd, h=h, w=w) for odd in RULES for h, w in ((1, 1), (1, 8), (3, 1), (2, 2), (1, 9))))
def test_the_smallest_planes(host, case):
    assert_matches_reference(host, case)


@cases(
    *(Case(n=1, c=2, h=h, w=w, odd=odd) for odd in RULES for h, w in ((33, 528), (141, 134))),
    Case(n=1, c=1, h=70, w=1040, dtype=torch.bfloat16),
)
def test_planes_of_several_blocks(host, case):
    assert_matches_reference(host, case)


@cases(
    *(
        Case(shift=shift, row_gap=gap, w=w)
        for shift, gap, w in ((1, 0, 16), (0, 4, 16), (0, 1, 16), (2, 3, 8), (0, 3, 13))
    )
)
def test_rows_are_read_through_their_strides(host, case):
    for odd in RULES:
        assert_matches_reference(host, replace(case, odd=odd))


@pytest.mark.parametrize("odd", ("repeat", "drop"))
def test_unpooling_restores_what_was_pooled(host, odd):
    case = Case(h=7 if odd == "repeat" else 6, odd=odd)
    picture = arguments(case)["picture"]
    bands = [unwritten(case.n, case.c, *case.band, dtype=case.dtype) for _ in range(4)]
    host.pool("float32", array(picture), [array(x) for x in bands], odd, False)
    back = unwritten(*picture.shape, dtype=case.dtype)
    host.unpool("float32", [array(x) for x in bands], array(back), "zero", False)
    torch.testing.assert_close(back, picture.contiguous(), rtol=0, atol=1e-6)


@cases(Case(n=1, h=35, w=136, odd="repeat"), Case(h=9, w=13, odd="zero"))
def test_the_order_of_threads_and_blocks_does_not_change_a_bit(host, case):
    assert_order_does_not_matter(host, lambda: run(host, case))


@cases(*(Case(**{size: 0}, odd=odd) for size in ("n", "c", "h", "w") for odd in RULES), Case(h=1), Case(w=1))
def test_empty_tensors_and_bands(host, case):
    assert_matches_reference(host, case)


SANITIZED = [
    *(Case(n=1, odd=odd, h=h, w=w) for odd in RULES for h, w in ((7, 16), (5, 13), (1, 1))),
    Case(n=1, shift=1, row_gap=1, odd="repeat", w=15),
    Case(n=1, c=1, dtype=torch.float16, h=33, w=544, odd="zero"),
    *off_the_16_bytes(Case(n=1), "picture", *BANDS),
]


def test_the_sanitizers_find_nothing(assert_sanitized):
    assert_sanitized()

"""The CUDA kernels of wavelet_unpool, run on the CPU: the definition in fp64, inverse and adjoint of wavelet_pool."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from stylekern.reference.wavelet_unpool import wavelet_unpool

from .arrays import DTYPES, accumulation, array, assert_close, assert_order_does_not_matter, cases, name, unwritten
from .test_wavelet_pool import BANDS, RULES, Case, arguments

SOURCE = "wavelet_pool_host.cpp"


def unpool(host, case: Case, bands: list[Tensor]) -> Tensor:
    picture = unwritten(case.n, case.c, case.h, case.w, dtype=case.dtype)
    host.unpool(name(case.dtype), [array(x) for x in bands], array(picture), case.odd, False)
    return picture


def pool(host, case: Case, picture: Tensor) -> list[Tensor]:
    bands = [unwritten(case.n, case.c, *case.band, dtype=case.dtype) for _ in BANDS]
    host.pool(name(case.dtype), array(picture), [array(x) for x in bands], case.odd, False)
    return bands


def run(host, case: Case) -> dict[str, Tensor]:
    """The output, and the gradients of the bands: the pooling of the output's."""
    grad, *bands = arguments(case).values()
    return {"output": unpool(host, case, bands), **dict(zip(BANDS, pool(host, case, grad), strict=True))}


def expected(case: Case) -> dict[str, Tensor]:
    grad, *bands = (x.double().clone().requires_grad_() for x in arguments(case).values())
    y = wavelet_unpool(*bands, size=(case.h, case.w))
    return {"output": y.detach(), **dict(zip(BANDS, torch.autograd.grad(y, bands, grad.detach()), strict=True))}


def assert_matches_reference(host, case: Case) -> None:
    assert_close(run(host, case), expected(case), case.dtype)


@cases(
    *(
        Case(odd="zero", dtype=dtype, h=h, w=w, shift=shift, row_gap=gap)
        for dtype in DTYPES
        for h, w in ((6, 32), (5, 32), (6, 31), (1, 1), (2, 1), (35, 136))
        for shift, gap in ((0, 0), (1, 0), (0, 3))
    )
)
def test_output_and_gradients_of_every_dtype_size_and_layout(host, case):
    assert_matches_reference(host, case)


@cases(*(Case(odd=odd, h=h, w=w, dtype=torch.float64) for odd in RULES for h in (6, 7) for w in (8, 9, 1)))
def test_each_is_the_adjoint_of_the_other(host, case):
    """The sum of pool(x) * b is that of x * unpool(b), whatever the rule for odd sizes."""
    picture, *bands = arguments(case).values()
    pooled = sum((ours * theirs).sum() for ours, theirs in zip(pool(host, case, picture), bands, strict=True))
    torch.testing.assert_close(pooled, (picture * unpool(host, case, bands)).sum(), rtol=1e-12, atol=1e-12)


@cases(*(Case(odd="repeat", h=h, w=w, dtype=dtype) for h in (6, 7) for w in (16, 15) for dtype in DTYPES))
def test_what_was_pooled_comes_back(host, case):
    picture = arguments(case)["picture"]
    back = unpool(host, replace(case, odd="zero"), pool(host, case, picture))
    tolerance = 1e-6 if accumulation(case.dtype) == case.dtype else 16 * torch.finfo(case.dtype).eps
    torch.testing.assert_close(back, picture.contiguous(), rtol=0, atol=tolerance)


@cases(Case(n=1, h=35, w=136, odd="zero"), Case(h=9, w=13, odd="zero", dtype=torch.float16))
def test_the_order_of_threads_and_blocks_does_not_change_a_bit(host, case):
    assert_order_does_not_matter(host, lambda: run(host, case))


SANITIZED = [
    Case(n=1, odd="zero", h=h, w=w, dtype=dtype, shift=shift, row_gap=shift)
    for dtype in DTYPES
    for h, w, shift in ((7, 32, 0), (5, 13, 1), (1, 1, 0))
]


def test_the_sanitizers_find_nothing(assert_sanitized):
    assert_sanitized()

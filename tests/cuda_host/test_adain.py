"""The CUDA kernels of adain, run on the CPU, against the definition in fp64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from stylekern.reference.adain import adain as reference

from .arrays import (
    DTYPES,
    HARD_PLANES,
    Layout,
    accumulation,
    array,
    assert_close,
    assert_order_does_not_matter,
    cases,
    name,
    off_the_16_bytes,
    unwritten,
    values,
)

GRADIENTS = ("grad_content", "grad_style")
STATISTICS = ("content_mean", "content_rstd", "style_mean", "style_rstd")


@dataclass(frozen=True)
class Case(Layout):
    """One call: sizes, options, and how its tensors lie in memory."""

    n: int = 2
    c: int = 3
    h: int = 6
    w: int = 16
    style_h: int = 5
    style_w: int = 8
    eps: float = 1e-5
    correction: int = 1
    mean: float = 5  # of both inputs
    first: float | None = None  # value of every plane
    dtype: torch.dtype = torch.float32
    shift: int = 0
    row_gap: int = 0
    only: str = ""


def arguments(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    content = values(case, generator, case.n, case.c, case.h, case.w, key="content").mul_(3).add_(case.mean)
    style = values(case, generator, case.n, case.c, case.style_h, case.style_w, key="style").mul_(2).sub_(case.mean)
    if case.first is not None:
        content[..., 0, 0] = style[..., 0, 0] = case.first
    return content, style, values(case, generator, case.n, case.c, case.h, case.w, key="grad")


def run(host, case: Case, needs: tuple[str, ...] = GRADIENTS) -> dict[str, Tensor]:
    content, style, grad = arguments(case)
    result = {"output": unwritten(*content.shape, dtype=case.dtype)}
    result |= {key: unwritten(case.n, case.c, dtype=accumulation(case.dtype)) for key in STATISTICS}
    statistics = [array(result[key]) for key in STATISTICS]
    inputs, dtype = (array(content), array(style)), name(case.dtype)
    host.forward(dtype, *inputs, array(result["output"]), statistics, case.eps, case.correction, False)
    like = dict(zip(GRADIENTS, (content, style), strict=True))
    result |= {key: unwritten(*like[key].shape, dtype=case.dtype) for key in needs}
    gradients = [array(result.get(key)) for key in GRADIENTS]
    host.backward(dtype, array(grad), *inputs, statistics, *gradients, case.correction, False)
    return result


def expected(case: Case) -> dict[str, Tensor]:
    content, style, grad = (x.double().clone() for x in arguments(case))
    leaves = content.requires_grad_(), style.requires_grad_()
    y = reference(content, style, eps=case.eps, correction=case.correction)
    result = {"output": y.detach()}
    for key, x in (("content", content.detach()), ("style", style.detach())):
        var, mean = torch.var_mean(x, dim=(2, 3), correction=case.correction)
        result |= {f"{key}_mean": mean, f"{key}_rstd": (var + case.eps).rsqrt()}
    return result | dict(zip(GRADIENTS, torch.autograd.grad(y, leaves, grad), strict=True))


def assert_matches_reference(host, case: Case) -> None:
    assert_close(run(host, case), expected(case), case.dtype)


SIZES = [(6, 16, 5, 8), (7, 13, 6, 16), (6, 16, 3, 5), (1, 64, 16, 1), (3, 1, 1, 2), (8, 9, 4, 7)]


@cases(
    *(
        Case(h=h, w=w, style_h=style_h, style_w=style_w, correction=correction)
        for h, w, style_h, style_w in SIZES
        for correction in (0, 1)
    )
)
def test_content_and_style_of_any_size(host, case):
    assert_matches_reference(host, case)


@cases(*(Case(dtype=dtype, w=w, style_w=w) for dtype in DTYPES for w in (16, 13)))
def test_dtypes(host, case):
    assert_matches_reference(host, case)


@cases(
    Case(n=1, c=2, h=75, w=132, style_h=70, style_w=69),
    Case(n=1, c=1, h=3, w=3, style_h=64, style_w=128, dtype=torch.bfloat16),
    Case(n=1, c=2, h=70, w=300, style_h=2, style_w=2, row_gap=4),
)
def test_planes_of_more_vectors_than_a_block(host, case):
    assert_matches_reference(host, case)


@cases(
    Case(n=1, c=2, h=45, w=67, style_h=45, style_w=67),
    Case(n=1, c=2, h=64, w=64, style_h=32, style_w=32),
    *(Case(n=1, c=1, h=75, w=w, style_h=50, style_w=w, dtype=dtype) for dtype in DTYPES for w in (88, 83)),
)
def test_planes_in_registers_and_over_several_blocks(host, case):
    assert_matches_reference(host, case)


@cases(
    Case(n=16, c=16, h=40, w=42, style_h=3, style_w=3, row_gap=1),
    Case(n=16, c=16, h=3, w=3, style_h=40, style_w=42, row_gap=1),
)
def test_many_planes_of_more_than_a_block_holds(host, case):
    assert_matches_reference(host, case)


@cases(*(Case(shift=shift, row_gap=gap) for shift, gap in ((1, 0), (0, 4), (0, 1), (2, 3))), Case(w=13, row_gap=3))
def test_rows_are_read_through_their_strides(host, case):
    assert_matches_reference(host, case)


@cases(Case(h=1, w=1, style_h=1, style_w=1, correction=0), Case(h=1, w=1, correction=0))
def test_one_position(host, case):
    """Nothing is left of the content; the output is the style's mean."""
    actual, wanted = run(host, case), expected(case)
    for key in ("output", "grad_style"):
        torch.testing.assert_close(actual[key].double(), wanted[key], rtol=1e-6, atol=1e-6)
    assert not actual["grad_content"].any()


def test_statistics_keep_their_digits_under_a_large_mean(host):
    case = Case(n=1, c=2, h=64, w=64, style_h=64, style_w=64, mean=3000)
    actual, wanted = run(host, case), expected(case)
    for key in STATISTICS:
        torch.testing.assert_close(actual[key].double(), wanted[key], rtol=1e-5, atol=0)


LARGE = [
    {"n": 1, "c": 1, "h": 45, "w": 67, "style_h": 64, "style_w": 64},  # in registers
    {"n": 16, "c": 16, "h": 77, "w": 81, "style_h": 3, "style_w": 5},  # several tiles
    {"n": 1, "c": 1, "h": 150, "w": 140, "style_h": 130, "style_w": 83},  # several blocks
]


@cases(*(Case(**size, **planes) for size in LARGE for planes in HARD_PLANES))
def test_statistics_of_hard_planes(host, case):
    assert_matches_reference(host, case)


@pytest.mark.parametrize("needs", [(), ("grad_content",), ("grad_style",)], ids=str)
def test_each_gradient_alone_is_the_same_as_both(host, needs):
    together, alone = run(host, Case()), run(host, Case(), needs)
    for key in needs:
        assert torch.equal(alone[key], together[key])


@cases(Case(h=20, w=132), Case(w=13, row_gap=1), Case(dtype=torch.float16), Case(n=1, c=2, h=75, w=132))
def test_the_order_of_threads_and_blocks_does_not_change_a_bit(host, case):
    assert_order_does_not_matter(host, lambda: run(host, case))


@cases(Case(n=0), Case(c=0), Case(h=0), Case(w=0))
def test_empty_tensors_launch_nothing(host, case):
    assert run(host, case)["output"].numel() == 0


SANITIZED = [
    Case(n=1),
    Case(n=1, w=13, shift=1, row_gap=1),
    *(Case(n=1, h=20, w=w, dtype=dtype, shift=w % 2) for dtype in DTYPES for w in (136, 13)),
    Case(n=1, c=1, h=45, w=67, row_gap=1),
    Case(n=1, c=1, h=77, w=83),
    Case(n=1, h=3, w=1, style_h=9, style_w=9, correction=0),
    *off_the_16_bytes(Case(n=1), "content", "style", "grad"),
]


def test_the_sanitizers_find_nothing(assert_sanitized):
    assert_sanitized()

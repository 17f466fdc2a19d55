"""The CUDA kernels of factorized_instance_norm, run on the CPU, against the definition in fp64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from stylekern.reference.factorized_instance_norm import factorized_instance_norm as reference

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

GRADIENTS = ("grad_content", "grad_gamma_style")


@dataclass(frozen=True)
class Case(Layout):
    """One call: sizes, options, and how its tensors lie in memory."""

    n: int = 2
    c: int = 3
    h: int = 6
    w: int = 16
    eps: float = 1e-5
    correction: int = 1
    mean: float = 5  # of the content
    first: float | None = None  # value of every plane of the content
    dtype: torch.dtype = torch.float32
    shift: int = 0
    row_gap: int = 0
    only: str = ""


def arguments(case: Case) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    planes, channels = (case.n, case.c, case.h, case.w), torch.Generator().manual_seed(1)
    content = values(case, generator, *planes, key="content").mul_(3).add_(case.mean)
    if case.first is not None:
        content[..., 0, 0] = case.first
    return {
        "content": content,
        "gamma_ind": torch.randn(case.c, generator=channels).to(case.dtype),
        "beta_ind": torch.randn(case.c, generator=channels).to(case.dtype),
        "gamma_style": values(case, generator, *planes, key="gamma_style"),
        "beta_style": values(case, generator, *planes, key="beta_style"),
        "grad": values(case, generator, *planes, key="grad"),
    }


def run(host, case: Case, needs: tuple[str, ...] = GRADIENTS) -> dict[str, Tensor]:
    *inputs, grad = (array(x) for x in arguments(case).values())
    shape, sums = (case.n, case.c, case.h, case.w), accumulation(case.dtype)
    result = {"output": unwritten(*shape, dtype=case.dtype)}
    result |= {key: unwritten(*shape[:2], dtype=sums) for key in ("mean", "rstd", "sum_gx", "sum_g")}
    result |= {key: unwritten(*shape, dtype=case.dtype) for key in needs}
    out = {key: array(x) for key, x in result.items()}
    options = case.correction, False
    host.forward(name(case.dtype), *inputs, out["output"], out["mean"], out["rstd"], case.eps, *options)
    gradients = [out.get(key) for key in GRADIENTS]
    statistics = out["mean"], out["rstd"]
    host.backward(
        name(case.dtype), grad, *inputs[:4], *statistics, *gradients, out["sum_gx"], out["sum_g"], *options
    )  # fmt: skip
    return result


def expected(case: Case) -> dict[str, Tensor]:
    given = {key: x.double().clone() for key, x in arguments(case).items()}
    grad, content, gamma = given.pop("grad"), given["content"], given["gamma_style"]
    var, mean = torch.var_mean(content, dim=(2, 3), correction=case.correction)
    rstd = (var + case.eps).rsqrt()
    x = (content - mean[:, :, None, None]) * rstd[:, :, None, None]
    leaves = content.requires_grad_(), gamma.requires_grad_()
    y = reference(**given, eps=case.eps, correction=case.correction)
    result = {"output": y, "mean": mean, "rstd": rstd}
    result |= dict(zip(GRADIENTS, torch.autograd.grad(y, leaves, grad), strict=True))
    result |= {"sum_gx": (grad * gamma * x).sum((2, 3)), "sum_g": (grad * gamma).sum((2, 3))}
    return {key: value.detach() for key, value in result.items()}


def assert_matches_reference(host, case: Case) -> None:
    assert_close(run(host, case), expected(case), case.dtype)


@cases(*(Case(h=h, w=w, correction=k) for h, w in ((6, 16), (7, 13), (8, 9), (1, 64), (3, 1)) for k in (0, 1)))
def test_planes_of_any_size(host, case):
    assert_matches_reference(host, case)


@cases(*(Case(dtype=dtype, w=w) for dtype in DTYPES for w in (16, 13)))
def test_dtypes(host, case):
    assert_matches_reference(host, case)


@cases(Case(n=1, c=2, h=75, w=132), Case(n=1, c=2, h=70, w=300, row_gap=4), Case(n=1, c=1, h=71, w=67))
def test_planes_of_more_vectors_than_a_block(host, case):
    assert_matches_reference(host, case)


@cases(
    Case(n=1, c=2, h=45, w=67),
    Case(n=1, c=2, h=64, w=64),
    *(Case(n=1, c=2, h=75, w=w, mean=1, dtype=dtype) for dtype in DTYPES for w in (88, 83)),
)
def test_planes_in_registers_and_over_several_blocks(host, case):
    assert_matches_reference(host, case)


def test_many_planes_of_more_than_a_block_holds(host):
    assert_matches_reference(host, Case(n=16, c=16, h=40, w=42, row_gap=1))


@cases(*(Case(shift=shift, row_gap=gap) for shift, gap in ((1, 0), (0, 4), (0, 1), (2, 3))), Case(w=13, row_gap=3))
def test_rows_are_read_through_their_strides(host, case):
    assert_matches_reference(host, case)


def test_statistics_keep_their_digits_under_a_large_mean(host):
    case = Case(n=1, c=2, h=64, w=64, mean=3000)
    actual, wanted = run(host, case), expected(case)
    for key in ("mean", "rstd"):
        torch.testing.assert_close(actual[key].double(), wanted[key], rtol=1e-5, atol=0)


LARGE = [
    {"n": 1, "c": 4, "h": 45, "w": 67},  # in registers
    {"n": 16, "c": 16, "h": 77, "w": 81},  # several tiles
    {"n": 1, "c": 2, "h": 150, "w": 140},  # several blocks
]


@cases(*(Case(**size, **planes) for size in LARGE for planes in HARD_PLANES))
def test_statistics_of_hard_planes(host, case):
    assert_matches_reference(host, case)


@pytest.mark.parametrize("needs", [(), ("grad_content",), ("grad_gamma_style",)], ids=str)
def test_each_gradient_alone_is_the_same_as_both(host, needs):
    together, alone = run(host, Case()), run(host, Case(), needs)
    for key in ("sum_gx", "sum_g", *needs):
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
    Case(n=1, h=45, w=67, row_gap=1),
    Case(n=1, c=1, h=77, w=83),
    Case(n=1, h=3, w=1, correction=0),
    *off_the_16_bytes(Case(n=1), "content", "gamma_style", "beta_style", "grad"),
]


def test_the_sanitizers_find_nothing(assert_sanitized):
    assert_sanitized()

"""The CUDA kernels of adaconv, run on the CPU, against the definition in fp64."""

from __future__ import annotations

import itertools
import mmap
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stylekern.reference._common import instance_norm, pad

from .arrays import (
    DTYPES,
    HARD_PLANES,
    Layout,
    accumulation,
    array,
    assert_close,
    assert_order_does_not_matter,
    assert_same_bits,
    cases,
    name,
    off_the_16_bytes,
    unwritten,
    values,
)

GRADIENTS = ("grad_input", "grad_kernel", "grad_bias")


@dataclass(frozen=True)
class Case(Layout):
    """One call: sizes, options, and how its tensors lie in memory."""

    n: int = 2
    c: int = 4
    size: int = 2  # C/G
    out: int = 4  # channels, of all groups
    h: int = 6
    w: int = 16
    kh: int = 3
    kw: int = 3
    padding: str = "reflect"
    normalize: bool = True
    bias: bool = True
    correction: int = 0
    dtype: torch.dtype = torch.float32
    shift: int = 0
    row_gap: int = 0
    only: str = ""
    eps: float = 1e-5
    mean: float = 5  # of the input, where it is normalised
    first: float | None = None  # value of every plane of the input


def arguments(case: Case) -> dict[str, Tensor | None]:
    """The kernel and the bias are of the accumulation type."""
    generator, dtype = torch.Generator().manual_seed(0), accumulation(case.dtype)
    kernel = torch.randn(case.n, case.out, case.size, case.kh, case.kw, generator=generator, dtype=dtype)
    bias = torch.randn(case.n, case.out, generator=generator, dtype=dtype)
    x = values(case, generator, case.n, case.c, case.h, case.w, key="input")
    if case.normalize:
        x.mul_(3).add_(case.mean)
    if case.first is not None:
        x[..., 0, 0] = case.first
    grad = values(case, generator, case.n, case.out, case.h, case.w, key="grad")
    return {"input": x, "kernel": kernel, "bias": bias if case.bias else None, "grad": grad}


def run(host, case: Case, needs: tuple[str, ...] = GRADIENTS, given=None, in_place: bool = False) -> dict[str, Tensor]:
    given = given or arguments(case)
    x, kernel, bias, grad = given.values()
    sums, dtype, options = accumulation(case.dtype), name(case.dtype), (case.correction, in_place)
    result = {"output": unwritten(case.n, case.out, case.h, case.w, dtype=case.dtype)}
    if case.normalize:
        result |= {key: unwritten(case.n, case.c, dtype=sums) for key in ("mean", "rstd")}
    statistics = array(result.get("mean")), array(result.get("rstd"))
    inputs = array(x), array(kernel)
    host.forward(dtype, *inputs, array(bias), array(result["output"]), *statistics, case.padding, case.eps, *options)
    like = {"grad_input": x.shape, "grad_kernel": kernel.shape, "grad_bias": kernel.shape[:2]}
    result |= {key: unwritten(*like[key], dtype=case.dtype if key == "grad_input" else sums) for key in needs}
    gradients = [array(result.get(key)) for key in GRADIENTS]
    host.backward(dtype, array(grad), *inputs, *statistics, *gradients, case.padding, *options)
    return result


def expected(case: Case) -> dict[str, Tensor]:
    """With the kernel composed: one grouped convolution of the whole batch."""
    given = arguments(case)
    x, kernel, grad = (given[key].double().clone() for key in ("input", "kernel", "grad"))
    bias = torch.zeros(case.n, case.out, dtype=torch.float64) if given["bias"] is None else given["bias"].double()
    leaves = [leaf.requires_grad_() for leaf in (x, kernel, bias)]
    t = instance_norm(x, case.eps, case.correction) if case.normalize else x
    for dim, taps in ((-2, case.kh), (-1, case.kw)):
        t = pad(t, taps // 2, (taps - 1) // 2, dim=dim, mode=case.padding)
    groups = case.n * case.c // case.size
    y = F.conv2d(t.flatten(0, 1)[None], kernel.flatten(0, 1), bias.flatten(), groups=groups).view_as(grad)
    result = {"output": y.detach(), **dict(zip(GRADIENTS, torch.autograd.grad(y, leaves, grad), strict=True))}
    if case.normalize:
        var, mean = torch.var_mean(x.detach(), dim=(2, 3), correction=case.correction)
        result |= {"mean": mean, "rstd": (var + case.eps).rsqrt()}
    return result


def assert_matches_reference(host, case: Case) -> None:
    terms = case.size * case.kh * case.kw  # of a sum that runs from one end to the other
    assert_close(run(host, case), expected(case), case.dtype, scale=max(1, terms / 1000))


OPTIONS = [
    Case(n=1, padding=padding, normalize=normalize, bias=normalize, w=w)
    for padding in ("reflect", "replicate", "zeros")
    for normalize in (False, True)
    for w in (16, 13)
]


@cases(*OPTIONS)
def test_every_option(host, case):
    assert_matches_reference(host, case)


@cases(
    *(replace(case, kh=kh, kw=kw) for case in OPTIONS for kh, kw in ((2, 2), (5, 4))),
    *(Case(n=1, kh=kh, kw=kw, padding="replicate") for kh, kw in ((1, 1), (1, 3), (3, 1), (4, 5), (7, 9), (11, 3))),
    *(Case(n=1, h=h, w=w, kh=2 * h - 1, kw=2 * w - 1, normalize=False) for h, w in ((3, 4), (5, 3))),
)
def test_kernels_of_any_size(host, case):
    assert_matches_reference(host, case)


def depthwise(**given) -> Case:
    """A plane for a plane, which a block holds where it fits."""
    return Case(**{"c": 2, "size": 1, "out": 2, **given})


@cases(
    *(
        depthwise(n=1, h=h, w=w, padding=padding, normalize=normalize, bias=normalize, dtype=dtype)
        for h, w in ((19, 16), (18, 13))
        for padding in ("reflect", "replicate", "zeros")
        for normalize in (False, True)
        for dtype in DTYPES
    ),
    *(
        depthwise(h=h, w=w, padding=padding)
        for h, w in ((2, 2), (3, 4), (2, 8), (16, 4), (17, 4), (33, 5), (45, 67), (3, 1000))
        for padding in ("reflect", "replicate", "zeros")
    ),
    *(depthwise(h=33, w=24, **{where: 1, "only": key}) for where in ("shift", "row_gap") for key in ("input", "grad")),
    depthwise(h=18, w=16, correction=1),
)
def test_depthwise_planes_that_a_block_holds(host, case):
    assert_matches_reference(host, case)


LARGE = [
    {"n": 1, "c": 1, "out": 1, "h": 45, "w": 67},  # in registers and shared memory
    {"n": 1, "c": 1, "out": 1, "h": 150, "w": 140, "padding": "replicate"},  # several tiles
]


@cases(*(depthwise(**size, **planes) for size in LARGE for planes in HARD_PLANES))
def test_statistics_of_hard_planes(host, case):
    assert_matches_reference(host, case)


@cases(
    depthwise(n=1, c=1, out=1, h=100, w=100),  # the forward's block holds the plane, the backward's not that and g
    depthwise(n=1, c=1, out=1, h=99, w=85, padding="replicate"),
    depthwise(n=1, c=1, out=1, h=110, w=112, padding="zeros"),
    depthwise(n=1, c=1, out=1, h=4, w=1100),
    depthwise(n=1, c=1, out=1, h=70, w=70, dtype=torch.float64),
    depthwise(n=1, out=4, h=16, w=16),
)
def test_depthwise_planes_that_no_block_holds(host, case):
    assert_matches_reference(host, case)


@cases(
    depthwise(n=1, h=19, w=16), depthwise(n=1, h=18, w=13, padding="zeros"), depthwise(h=8, w=16, dtype=torch.float16)
)
def test_the_order_of_threads_does_not_change_a_bit_of_depthwise_planes(host, case):
    wanted = run(host, case)
    for order, seed in (("descending", 0), ("shuffled", 1)):
        host.set_order(order, seed)
        assert_same_bits(run(host, case), wanted)
    host.set_order("ascending", 0)


@cases(
    *(
        Case(n=1, c=c, size=size, out=out, w=w, kh=k, kw=k)
        for c, size, out in (
            (3, 1, 3), (3, 1, 9), (4, 2, 2), (6, 3, 6), (8, 4, 8), (8, 4, 4), (16, 8, 16), (5, 5, 7), (12, 12, 19),
        )
        for w, k in ((8, 3), (7, 3), (8, 2))
    )
)  # fmt: skip
def test_groups_of_any_size(host, case):
    assert_matches_reference(host, case)


GROUPS = ((1, 32), (2, 8), (4, 12), (8, 6), (16, 5))  # channels in and, of all groups, out


@cases(
    *(
        Case(n=2, c=16, size=size, out=out, h=5, w=w, kh=k, kw=k, padding=padding, normalize=k == 3, dtype=dtype)
        for size, out in GROUPS
        for w, k, padding in ((16, 3, "reflect"), (9, 3, "zeros"), (16, 2, "replicate"))
        for dtype in DTYPES
    ),
    *(
        Case(n=2, c=16, size=size, out=out, h=5, w=9, kh=5, kw=5, normalize=False, dtype=dtype)
        for (size, out), dtype in zip(GROUPS, itertools.cycle(DTYPES), strict=False)
    ),
)
def test_channels_out_other_than_in(host, case):
    assert_matches_reference(host, case)


@cases(
    *(
        Case(n=1, h=h, w=w, kh=k, kw=k, padding=padding, normalize=False)
        for h, w in ((1, 1), (1, 8), (5, 1), (2, 2))
        for padding in ("replicate", "zeros")
        for k in (2, 3, 6)
    ),
    Case(h=2, w=2),
    Case(h=2, w=2, kh=2, kw=2),
    Case(h=3, w=1, kw=1),
)
def test_the_smallest_planes(host, case):
    assert_matches_reference(host, case)


@cases(
    *(
        Case(n=1, c=2, size=size, out=2, h=h, w=w, padding=padding)
        for h, w in ((37, 132), (35, 67))
        for padding in ("reflect", "replicate", "zeros")
        for size in (1, 2)
    ),
    Case(n=1, c=2, out=2, h=33, w=70, kh=5, kw=6),
    Case(n=1, c=8, size=8, out=12, h=34, w=68),
    Case(n=1, c=16, size=16, out=1, h=33, w=68, normalize=False),
)
def test_planes_of_several_tiles(host, case):
    assert_matches_reference(host, case)


@cases(
    Case(n=1, c=1, size=1, out=1, h=4, w=4, kh=120, kw=111, padding="replicate"),
    Case(n=1, c=1, size=1, out=2, h=4, w=4, kh=1, kw=6200, padding="replicate", normalize=False),
    Case(n=1, c=2, size=2, out=2, h=20, w=21, kh=39, kw=41),
)
def test_kernels_beyond_shared_memory(host, case):
    assert_matches_reference(host, case)


@cases(Case(n=1, c=1, size=1, out=1, h=128, w=128), Case(n=1, c=1, size=1, out=2, h=100, w=99, kh=2, kw=1))
def test_blocks_that_share_the_sums_of_a_kernel(host, case):
    assert_matches_reference(host, case)


@cases(*(Case(dtype=dtype, w=w, normalize=n, kh=k) for dtype in DTYPES for w in (16, 13) for n, k in ((1, 3), (0, 2))))
def test_dtypes(host, case):
    assert_matches_reference(host, case)


@cases(*(Case(c=8, size=8, out=16, dtype=dtype, w=24, normalize=False) for dtype in DTYPES))
def test_many_channels_of_every_dtype(host, case):
    assert_matches_reference(host, case)


@cases(*(Case(shift=shift, row_gap=gap) for shift, gap in ((1, 0), (0, 4), (0, 1), (2, 3))), Case(w=13, row_gap=3))
def test_rows_are_read_through_their_strides(host, case):
    assert_matches_reference(host, case)


def test_correction(host):
    assert_matches_reference(host, Case(correction=1))


def test_reflect_and_replicate_gradients_at_every_position(host):
    for padding in ("reflect", "replicate"):
        for size in range(3, 8):
            for k in (2, 3, 4, 5):
                case = Case(n=1, c=1, size=1, out=1, h=size, w=size, kh=k, kw=k, padding=padding, normalize=False)
                assert_matches_reference(host, case)


@pytest.mark.parametrize("needs", [(), *((key,) for key in GRADIENTS)], ids=str)
@cases(Case(), Case(dtype=torch.float16), Case(normalize=False, kh=2), depthwise(), depthwise(normalize=False, w=13))
def test_each_gradient_alone_is_the_same_as_all_together(host, case, needs):
    together, alone = run(host, case), run(host, case, needs)
    for key in needs:
        assert torch.equal(alone[key], together[key])


@cases(Case(h=35, w=132), Case(kh=5, kw=2, w=13), Case(dtype=torch.bfloat16, c=8, size=8, out=9))
def test_the_order_of_threads_and_blocks_does_not_change_a_bit(host, case):
    assert_order_does_not_matter(host, lambda: run(host, case))


@cases(*(Case(**{size: 0}, normalize=normalize) for size in ("n", "h", "w") for normalize in (False, True)))
def test_empty_tensors_launch_nothing(host, case):
    assert run(host, case)["output"].numel() == 0


def test_no_channels_in_give_the_bias_and_none_out_give_zeros(host):
    nothing_in = Case(c=0, size=0, normalize=False)
    bias = arguments(nothing_in)["bias"]
    result = run(host, nothing_in)
    assert torch.equal(result["output"], bias[:, :, None, None].expand_as(result["output"]))
    assert not run(host, Case(out=0))["grad_input"].any()


@cases(Case(c=2, out=2, h=3, w=8), Case(c=2, out=2, h=3, w=8, kh=2, kw=5), depthwise(h=3, w=8))
def test_offsets_beyond_two_to_the_31(host, case):
    given = arguments(case)
    for key in ("input", "grad"):
        x, strides = given[key], list(given[key].stride())
        strides[:2] = 2**31 + 8, 2**30  # from sample to sample, and from plane to plane
        extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, strides, strict=True))
        # Pages that are never touched are never there.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        storage = torch.frombuffer(mmap.mmap(-1, 4 * extent, flags=flags), dtype=torch.float32)
        given[key] = storage.as_strided(x.shape, strides).copy_(x)
    assert_same_bits(run(host, case, in_place=True, given=given), run(host, case))


SANITIZED = [
    Case(n=1),
    Case(n=1, h=17, w=68, c=8, size=8, out=9),
    Case(n=1, w=13, shift=1, row_gap=1, padding="replicate"),
    Case(n=1, kh=2, kw=5, padding="zeros", bias=False),
    *(
        Case(n=1, c=16, size=size, out=16 // size * 2, dtype=dtype, w=w, kh=k, kw=k, padding=padding, normalize=k == 3)
        for size, dtype in zip((1, 2, 4, 16), DTYPES, strict=True)
        for w, k, padding in ((16, 3, "reflect"), (13, 2, "zeros"))
    ),
    Case(n=1, h=1, w=1, dtype=torch.bfloat16, out=6, normalize=False, padding="replicate"),
    Case(n=1, c=1, size=1, out=1, h=4, w=4, kh=120, kw=111, padding="replicate"),
    Case(n=1, c=1, size=1, out=1, h=99, w=85),
    *(depthwise(n=1, h=18, w=w, dtype=dtype, padding="replicate") for w in (16, 13) for dtype in DTYPES),
    depthwise(n=1, h=17, w=33, padding="zeros"),
    *off_the_16_bytes(depthwise(n=1, h=33), "input", "grad"),
    *off_the_16_bytes(Case(n=1), "input", "grad"),
]


def test_the_sanitizers_find_nothing(assert_sanitized):
    """No access out of bounds or misaligned, no undefined behaviour."""
    assert_sanitized()

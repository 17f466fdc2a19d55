"""The CUDA kernels of style_kernel_conv, run on the CPU, against the definition in fp64."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from stylekern.reference.style_kernel_conv import style_kernel_conv as reference

from .arrays import HARD_PLANES, Layout, array, assert_close, cases, values

GRADIENTS = ("grad_input", "grad_vertical", "grad_horizontal")


@dataclass(frozen=True)
class Case(Layout):
    """One call: sizes, options, and how its tensors lie in memory."""

    c: int = 2
    g: int = 2
    h: int = 7
    w: int = 12
    kv: int = 3
    kh: int = 3
    n: int = 2
    padding: str = "reflect"
    composition: str = "sequential"
    normalize: bool = False
    correction: int = 0
    bias: int | None = None  # its channels
    dtype: torch.dtype = torch.float32
    packed: bool = False  # the filters are views of one tensor [N, G, kv + kh + 1, H, W]
    shift: int = 0  # values between 16 bytes and the start of every row
    row_gap: int = 0  # values between the end of a row and the next
    eps: float = 1e-5
    mean: float = 5  # of the input, where it is normalised
    first: float | None = None  # value of every plane of the input


def arguments(case: Case) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    n, c, g, h, w, kv, kh = case.n, case.c, case.g, case.h, case.w, case.kv, case.kh
    in_h, in_w = (h + kv - 1, w + kh - 1) if case.padding == "none" else (h, w)
    if case.packed:
        filters = values(case, generator, n, g, kv + kh + 1, h, w)
        vertical, horizontal, bias = filters.split([kv, kh, 1], dim=2)
        bias = bias.squeeze(2) if case.bias == g else None
    else:
        vertical, horizontal = values(case, generator, n, g, kv, h, w), values(case, generator, n, g, kh, h, w)
        bias = None
    if bias is None and case.bias:
        bias = values(case, generator, n, case.bias, h, w)
    x = values(case, generator, n, c, in_h, in_w)
    if case.normalize:
        x.mul_(3).add_(case.mean)
    if case.first is not None:
        x[..., 0, 0] = case.first
    return {"input": x, "vertical": vertical, "horizontal": horizontal, "bias": bias}


def run(host, case: Case, needs: tuple[str, ...] = GRADIENTS, in_place: bool = False, given=None) -> dict[str, Tensor]:
    """Output, statistics and gradients of sum(output * grad); whatever the kernels leave unwritten is NaN."""
    given = given or arguments(case)
    dtype, stats_dtype = case.dtype, torch.float64 if case.dtype == torch.float64 else torch.float32
    name, options = str(dtype).removeprefix("torch."), (case.padding, case.composition)
    x, vertical, horizontal = given["input"], given["vertical"], given["horizontal"]
    shape = (case.n, case.c, case.h, case.w)
    result = {"output": torch.full(shape, torch.nan, dtype=dtype)}
    if case.normalize:
        result |= {key: torch.full(shape[:2], torch.nan, dtype=stats_dtype) for key in ("mean", "rstd")}
    mean, rstd = array(result.get("mean")), array(result.get("rstd"))
    filters = array(vertical), array(horizontal)
    host.forward(
        name, array(x), *filters, array(given["bias"]), array(result["output"]), mean, rstd, *options, case.eps,
        case.correction, in_place,
    )  # fmt: skip
    grad = given.get("grad")
    if grad is None:
        grad = values(case, torch.Generator().manual_seed(1), *shape)
    like = dict(zip(GRADIENTS, (x, vertical, horizontal), strict=True))
    result |= {key: torch.full(like[key].shape, torch.nan, dtype=dtype) for key in needs}
    gradients = [array(result.get(key)) for key in GRADIENTS]
    host.backward(name, array(grad), array(x), *filters, mean, rstd, *gradients, *options, case.correction, in_place)
    return result


def expected(case: Case) -> dict[str, Tensor]:
    given = {key: None if x is None else x.double().clone().requires_grad_() for key, x in arguments(case).items()}
    y = reference(
        **given, padding_mode=case.padding, composition=case.composition, normalize=case.normalize, eps=case.eps,
        correction=case.correction,
    )  # fmt: skip
    grad = values(case, torch.Generator().manual_seed(1), *y.shape)
    leaves = [given["input"], given["vertical"], given["horizontal"]]
    gradients = torch.autograd.grad(y, leaves, grad.double())
    result = {"output": y.detach(), **dict(zip(GRADIENTS, gradients, strict=True))}
    if case.normalize:
        var, mean = torch.var_mean(given["input"].detach(), dim=(2, 3), correction=case.correction)
        result |= {"mean": mean, "rstd": (var + case.eps).rsqrt()}
    return result


def assert_matches_reference(host, case: Case) -> None:
    assert_close(run(host, case), expected(case), case.dtype)


OPTIONS = [
    Case(composition=composition, padding=padding, normalize=normalize, bias=bias)
    for composition, paddings in (
        ("sequential", ("reflect", "replicate", "zeros")),
        ("outer", ("reflect", "replicate", "zeros", "none")),
    )
    for padding in paddings
    for normalize, bias in ((False, None), (True, 2))
    if not (padding == "none" and normalize)
]


@cases(*OPTIONS)
def test_every_option(host, case):
    assert_matches_reference(host, case)


@cases(*(replace(case, kv=5, kh=1, w=11) for case in OPTIONS), *(replace(case, kv=3, kh=7) for case in OPTIONS))
def test_any_number_of_taps_each_way(host, case):
    assert_matches_reference(host, case)


@cases(
    *(
        Case(kv=k, kh=k, w=w, composition=composition, normalize=k == 1)
        for k in (1, 3, 5)
        for w in (12, 13)
        for composition in ("sequential", "outer")
    ),
    Case(kv=1, kh=1, composition="outer", padding="none"),
)
def test_taps_known_at_compile_time(host, case):
    assert_matches_reference(host, case)


@cases(
    Case(n=1, c=1, g=1, h=3, w=56, kv=1, kh=51),
    Case(n=1, c=1, g=1, h=27, w=28, kv=51, kh=51),
    Case(n=1, c=2, g=1, h=5, w=4, kv=51, kh=51, padding="replicate"),
    Case(n=1, c=2, g=1, h=4, w=300, kv=3, kh=51, padding="zeros"),
    Case(n=1, c=1, g=1, h=4, w=8, kv=51, kh=51, padding="none", composition="outer"),
    Case(n=1, c=1, g=1, h=26, w=26, kv=51, kh=51, composition="outer"),
    Case(n=1, c=1, g=1, h=3, w=3, kv=51, kh=51, composition="outer", padding="replicate", normalize=True),
)
def test_51_taps(host, case):
    assert_matches_reference(host, case)


@cases(
    *(
        Case(n=1, c=4, g=g, bias=bias, composition=composition, kv=kv, normalize=True)
        for g in (1, 2, 4)
        for bias in {g, 4}
        for composition in ("sequential", "outer")
        for kv in (3, 5)
    )
)
def test_groups(host, case):
    assert_matches_reference(host, case)


@cases(
    *(
        Case(n=1, c=1, g=1, h=h, w=w, padding=padding, composition=composition, kv=kv, correction=0)
        for h, w in ((1, 1), (1, 9), (5, 1), (2, 2))
        for padding in ("replicate", "zeros")
        for composition in ("sequential", "outer")
        for kv in (3, 5)
    ),
    *(
        Case(n=1, c=3, g=3, h=h, w=w, padding=padding, kv=5, kh=5)
        for h, w in ((1, 1), (1, 4), (2, 3))
        for padding in ("replicate", "zeros")
    ),
    *(Case(h=2, w=2, composition=composition) for composition in ("sequential", "outer")),
    *(Case(h=3, w=w, kv=5, kh=5) for w in (3, 4)),
    Case(h=1, w=4, kv=1, kh=7),
)
def test_the_smallest_planes(host, case):
    assert_matches_reference(host, case)


@cases(
    # Several tiles each way: their halos, and the border rule across a tile that is narrower than the taps reach.
    *(
        Case(n=1, c=1, g=1, h=h, w=w, padding=padding, kv=k, kh=k)
        for h, w in ((37, 132), (33, 63))
        for padding in ("reflect", "replicate", "zeros")
        for k in (3, 5)
    ),
    *(
        Case(n=1, c=1, g=1, h=7, w=w, padding=padding, kv=5, kh=5, dtype=dtype)
        for w, dtype in ((260, torch.float32), (131, torch.bfloat16), (260, torch.float64), (229, torch.float64))
        for padding in ("reflect", "replicate")
    ),
    Case(n=1, c=2, g=1, h=35, w=140, normalize=True),
    Case(n=1, c=1, g=1, h=5, w=516, kh=51),
    Case(n=1, c=1, g=1, h=5, w=131, kh=51, padding="replicate"),
    Case(n=1, c=1, g=1, h=9, w=260, composition="outer"),
    Case(n=1, c=1, g=1, h=19, w=65, kv=1, kh=1),
)
def test_planes_of_several_tiles(host, case):
    assert_matches_reference(host, case)


LAYOUTS = [
    Case(packed=True, bias=2),
    Case(packed=True, bias=1, g=1, kv=5),
    Case(shift=1),
    Case(shift=1, normalize=True),
    Case(row_gap=4, packed=True),
    Case(row_gap=1),
    Case(row_gap=1, w=11, composition="outer"),
    Case(row_gap=3, shift=2, kv=5, normalize=True),
]


@cases(*LAYOUTS)
def test_filters_and_inputs_are_read_through_their_strides(host, case):
    assert_matches_reference(host, case)


@cases(
    *(
        replace(case, dtype=dtype, w=w)
        for dtype in (torch.float64, torch.float16, torch.bfloat16)
        for w in (16, 13)
        for case in (
            Case(bias=2, normalize=True),
            Case(composition="outer", g=1),
            Case(kv=1, kh=5, normalize=True),
            Case(kv=5, kh=5, padding="zeros"),
            Case(kv=1, kh=1),
        )
    )
)
def test_dtypes(host, case):
    assert_matches_reference(host, case)


def test_reflect_and_replicate_gradients_at_every_position(host):
    for padding in ("reflect", "replicate"):
        for size in range(3, 9):
            for k in (3, 5):
                assert_matches_reference(host, Case(n=1, c=1, g=1, h=size, w=size, kv=k, kh=k, padding=padding))


@cases(Case(correction=1, normalize=True), Case(correction=1, normalize=True, kv=5, w=13))
def test_correction(host, case):
    assert_matches_reference(host, case)


def test_statistics_keep_their_digits_under_a_large_mean(host):
    case = Case(n=1, c=1, g=1, h=64, w=64, normalize=True)
    given = arguments(case)
    given["input"].copy_(given["input"] / 3 + 1000)
    actual = run(host, case, given=given)
    var, mean = torch.var_mean(given["input"].double(), dim=(2, 3), correction=0)
    torch.testing.assert_close(actual["mean"].double(), mean, rtol=1e-7, atol=0)
    torch.testing.assert_close(actual["rstd"].double(), (var + case.eps).rsqrt(), rtol=1e-5, atol=0)


@cases(*(Case(n=1, h=h, w=w, normalize=True, **planes) for h, w in ((45, 67), (150, 140)) for planes in HARD_PLANES))
def test_statistics_of_hard_planes(host, case):
    assert_matches_reference(host, case)


MANY = Case(c=128, g=128, h=7, normalize=True)  # planes enough for a block each


@cases(
    *(
        replace(MANY, kv=k, kh=k, w=w, padding=padding, bias=128)
        for k in (3, 5)
        for w in (12, 13)
        for padding in ("reflect", "replicate", "zeros")
    ),
    *(replace(MANY, w=w, dtype=dtype) for w in (8, 9) for dtype in (torch.float64, torch.float16, torch.bfloat16)),
    replace(MANY, kv=5, kh=5, w=8, dtype=torch.bfloat16),
    # several tiles, for five taps of too many values and of nearly
    *(replace(MANY, h=h, w=w, kv=k, kh=k) for h, w, k in ((37, 132, 3), (37, 132, 5), (61, 64, 5), (30, 131, 3))),
    replace(MANY, g=2, bias=2, packed=True, correction=1),
    replace(MANY, row_gap=1),
    *(replace(MANY, h=1, w=w, padding="replicate") for w in (1, 4)),
    *(replace(MANY, h=45, w=67, **planes) for planes in HARD_PLANES),
)
def test_a_block_for_each_of_many_planes(host, case):
    assert_matches_reference(host, case)


@pytest.mark.parametrize("needs", [(), *((name,) for name in GRADIENTS), GRADIENTS[:2], GRADIENTS[1:]], ids=str)
@cases(
    *(Case(normalize=True), Case(kv=5), Case(kv=5, kh=5, w=13), Case(composition="outer")),
    Case(dtype=torch.float16, normalize=True, w=16),
)
def test_each_gradient_alone_is_the_same_as_all_together(host, case, needs):
    together, alone = run(host, case), run(host, case, needs)
    for name in needs:
        assert torch.equal(alone[name], together[name])


@cases(
    Case(c=4, normalize=True, h=35, w=132),
    Case(c=4, kv=5, kh=7, normalize=True),
    Case(c=4, composition="outer", normalize=True),
    Case(c=4, dtype=torch.bfloat16, w=16, normalize=True),
    Case(c=4, h=20, w=65),
    *(Case(c=4, g=4, h=20, w=w, kv=5, kh=5, dtype=torch.float64) for w in (64, 65)),
    replace(MANY, h=30, w=64),
)
def test_the_order_of_threads_does_not_change_a_bit(host, case):
    results = []
    for order, seed in (("ascending", 0), ("descending", 0), ("shuffled", 1), ("shuffled", 2)):
        host.set_order(order, seed)
        results.append(run(host, case))
    host.set_order("ascending", 0)
    for other in results[1:]:
        for name, value in other.items():
            assert torch.equal(value, results[0][name]), name


@cases(
    Case(c=4, normalize=True, h=35, w=132),
    Case(c=4, kv=5, w=65, normalize=True),
    Case(c=4, g=4, kv=5, kh=5, w=65),
    MANY,
    Case(c=4, composition="outer", normalize=True),
)
def test_a_grid_of_fewer_blocks_than_tiles_does_the_same(host, case):
    """As on a GPU that is given more than 2^31 - 1 tiles."""
    wanted = run(host, case)
    host.set_max_blocks(3)
    actual = run(host, case)
    host.set_max_blocks(2**31 - 1)
    for name, value in wanted.items():
        assert torch.equal(actual[name], value), name


@cases(*(Case(**{size: 0}, normalize=normalize) for size in ("n", "h", "w") for normalize in (False, True)))
def test_empty_tensors_launch_nothing(host, case):
    run(host, case)


def test_no_channels_give_zero_tap_gradients(host):
    result = run(host, Case(c=0, g=2))
    assert not result["grad_vertical"].any() and not result["grad_horizontal"].any()


@cases(
    *(
        Case(n=2, c=2, g=2, h=3, w=8, kv=kv, composition=composition)
        for kv in (3, 5)
        for composition in ("sequential", "outer")
    )
)
def test_offsets_beyond_two_to_the_31(host, case):
    case = replace(case, padding="zeros", normalize=True)
    given = arguments(case) | {"grad": values(case, torch.Generator().manual_seed(1), 2, 2, 3, 8)}
    for key, x in given.items():
        if x is None:
            continue
        strides = list(x.stride())
        strides[:2] = 2**31 + 8, 2**30  # from sample to sample, and from plane to plane
        extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, strides, strict=True))
        # Pages that are never touched are never there.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        storage = torch.frombuffer(mmap.mmap(-1, 4 * extent, flags=flags), dtype=torch.float32)
        given[key] = storage.as_strided(x.shape, strides).copy_(x)
    actual, wanted = run(host, case, in_place=True, given=given), run(host, case)
    for name, value in wanted.items():
        assert torch.equal(actual[name], value), name


SANITIZED = [
    Case(n=1, normalize=True, bias=2),
    Case(n=1, h=35, w=132, c=1, g=1),
    Case(n=1, w=13, shift=1, row_gap=1, padding="replicate"),
    Case(n=1, kv=5, kh=7, c=4, packed=True, padding="zeros", normalize=True),
    Case(n=1, composition="outer", padding="none", w=16),
    Case(n=1, composition="outer", kv=1, kh=5, normalize=True),
    Case(n=1, dtype=torch.bfloat16, w=16, normalize=True),
    Case(n=1, c=1, g=1, h=2, w=260, kv=1, kh=51),
    *(Case(n=1, c=1, g=1, h=9, w=w, kv=5, kh=5, dtype=d) for w, d in ((12, torch.float64), (131, torch.float32))),
    replace(MANY, h=9, w=13),
]


def test_the_sanitizers_find_nothing(assert_sanitized):
    """No access out of bounds or misaligned, no undefined behaviour."""
    assert_sanitized()

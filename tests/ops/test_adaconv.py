"""adaconv keeps its contract on every backend."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import stylekern
from stylekern import reference
from stylekern.ops import adaconv

from .cases import TOLERANCE, Case, arguments_of, far_at_quarters, relative_error
from .normalizing_suite import NormalizingSuite
from .suite import OperatorSuite


def make(
    n: int = 2,
    c: int = 4,
    co: int = 4,
    size: int = 2,
    k: tuple[int, int] = (3, 3),
    h: int = 5,
    w: int = 9,
    bias: bool = True,
    **options: Any,
) -> Case:
    tensors: dict[str, Tensor | None] = {
        "input": torch.randn(n, c, h, w, dtype=torch.float64),
        "spatial": torch.randn(n, c, size, *k, dtype=torch.float64),
        "pointwise": torch.randn(n, co, size, dtype=torch.float64),
        "bias": torch.randn(n, co, dtype=torch.float64) if bias else None,
    }
    return Case(tensors, options)


call = partial(arguments_of, make)


class TestAdaconv(NormalizingSuite, OperatorSuite):
    name = "adaconv"
    function = staticmethod(adaconv)
    reference = staticmethod(reference.adaconv)
    cases = {
        "depthwise": lambda: make(size=1),
        "two-a-group": make,
        "one-group": lambda: make(n=1, size=4, bias=False),
        "more-channels-out": lambda: make(n=1, co=6),
        "fewer-channels-out": lambda: make(n=1, co=2, padding_mode="replicate"),
        "zeros": lambda: make(n=1, padding_mode="zeros"),
        "not-normalized": lambda: make(n=1, normalize=False),
        "unbiased": lambda: make(n=1, correction=1),
        "even-kernel": lambda: make(n=1, k=(2, 4)),
        "pointwise-only": lambda: make(n=1, k=(1, 1)),
        "wide-kernel": lambda: make(n=1, c=2, co=2, size=1, k=(5, 7)),
        "wide-kernel-of-two-a-group": lambda: make(n=1, k=(7, 5), h=9, padding_mode="zeros"),
        "one-pixel": lambda: make(n=1, h=1, w=1, padding_mode="replicate", eps=1.0),
        "eight-a-group": lambda: make(n=1, c=8, co=24, size=8, h=11, w=21),
        "odd-groups": lambda: make(n=1, c=14, co=14, size=7, h=4, w=33, padding_mode="replicate"),
        "one-column": lambda: make(n=1, c=2, co=2, size=1, h=4, w=1, padding_mode="replicate"),
        "bands-of-rows": lambda: make(n=1, c=1, co=1, size=1, h=67, w=20),
        "two-steps": lambda: make(n=1, c=16, co=24, size=16, k=(1, 3), h=4, w=5),
        "one-row": lambda: make(n=1, c=2, co=2, h=1, w=40, padding_mode="zeros"),
        "empty-batch": lambda: make(n=0),
        "empty-height": lambda: make(h=0),
        "no-channels": lambda: make(c=0, co=0),
        "no-channels-depthwise": lambda: make(c=0, co=0, size=1),
        "no-channels-in": lambda: make(c=0, co=3, size=1),
        "no-channels-in-of-two-a-group": lambda: make(c=0, co=3),
    }
    normalized = ("input",)
    sized = staticmethod(lambda h, w: make(n=1, size=1, h=h, w=w))
    typical = "two-a-group"
    threaded = {
        "whole-groups": lambda: make(c=32, co=32, size=2, h=33, w=50),
        "bands-of-a-group": lambda: make(n=1, c=8, co=8, size=8, h=70, w=50),
        "bands-of-one-plane": lambda: make(n=1, c=1, co=3, size=1, k=(5, 4), h=90, w=37),
        "planes-of-two-vectors": lambda: make(n=2, c=80, co=80, size=1, h=41, w=21),
        "planes-of-two-vectors-of-doubles": lambda: make(n=2, c=80, co=80, size=1, h=41, w=11),
    }
    bad = {
        "not-a-tensor": (call(spatial=lambda x: 1.0), TypeError, "spatial must be a tensor .* got float"),
        "integers": (call(input=lambda x: x.int()), TypeError, "input must be float32, .* got torch.int32"),
        "dtypes-differ": (call(bias=lambda x: x.half()), TypeError, "bias is torch.float16, but input is"),
        "devices-differ": (call(bias=lambda x: x.to("meta")), RuntimeError, "bias is on meta, but input is on cpu"),
        "three-dimensions": (call(input=lambda x: x[0]), ValueError, r"input must be \[N, C, H, W\], got shape"),
        "batches-differ": (call(spatial=lambda x: x[:1]), ValueError, r"spatial must be \[2, 4, C/G, kh, kw\]"),
        "groups-do-not-divide": (call(spatial=lambda x: x[:, :, [0, 0, 0]]), ValueError, "a divisor of 4"),
        "no-taps": (call(spatial=lambda x: x[..., :0]), ValueError, "at least one tap"),
        "pointwise-shape": (
            call(pointwise=lambda x: x[:, :3]),
            ValueError,
            r"pointwise must be \[2, Co, 2\] with Co a",
        ),
        "bias-shape": (call(bias=lambda x: x[:, :3]), ValueError, r"bias must be \[2, 4\], got \[2, 3\]"),
        "padding-name": (
            call(padding_mode="none"),
            ValueError,
            "padding_mode must be one of reflect, replicate, zeros",
        ),
        "reflect-too-small": (call(input=lambda x: x[..., :1]), ValueError, "reflect padding needs k // 2 < size"),
        "variance-undefined": (
            lambda: (tuple(make(h=1, w=1).tensors.values()), {"padding_mode": "zeros", "correction": 1}),
            ValueError,
            "variance of input's 1 x 1 positions with correction=1 is not defined",
        ),
    }

    @pytest.mark.parametrize(("size", "k"), [(1, (3, 3)), (2, (3, 3)), (4, (2, 3))])
    def test_is_the_loop_over_samples_that_it_replaces(self, size: int, k: tuple[int, int], backend: str) -> None:
        x, spatial, pointwise, bias = (t for t in make(size=size, k=k).to("cpu", torch.float32).tensors.values())
        assert x is not None and spatial is not None and pointwise is not None and bias is not None
        pads = (k[1] // 2, (k[1] - 1) // 2, k[0] // 2, (k[0] - 1) // 2)
        padded = F.pad(F.instance_norm(x), pads, mode="reflect")
        looped = []
        for i in range(len(x)):
            t = F.conv2d(padded[i : i + 1], spatial[i], groups=4 // size)
            looped.append(F.conv2d(t, pointwise[i, :, :, None, None], bias[i], groups=4 // size))
        assert relative_error(adaconv(x, spatial, pointwise, bias), torch.cat(looped)) < 4e-6

    def test_many_channels_a_group_cost_no_composed_kernel(self, backend: str) -> None:
        tensors = make(2, 32, 32, 32, h=2, w=4).to("cpu", torch.float32).tensors.values()
        composed = 32 * 32 * 9 * 4  # bytes, of one sample; what autograd keeps must stay below
        kept: list[Tensor] = []

        def pack(x: Tensor) -> Tensor:
            kept.append(x)
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            adaconv(*tensors)
        given = {x.untyped_storage().data_ptr() for x in tensors if x is not None}
        assert kept and sum(x.nbytes for x in kept if x.untyped_storage().data_ptr() not in given) < composed

    def test_several_groups_of_several_samples_in_two_steps(self, compiled_op: Any) -> None:
        """So many channels take the interpreter of Triton a minute."""
        with stylekern.use_backend("compiled"):
            self.check(make(c=32, co=48, size=16, h=4, w=5), "cpu", torch.float32)

    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    @pytest.mark.parametrize(("h", "w"), [(110, 40), (40, 8), (9, 33)])
    def test_groups_of_more_channels_than_a_tile_has_room_for(self, h: int, w: int, dtype: torch.dtype) -> None:
        self.check(make(n=2, c=80, co=6, size=80, h=h, w=w), "cpu", dtype)

    def test_two_steps_on_meta_tensors(self) -> None:
        arguments = make(c=32, co=64, size=32).to("meta", torch.float32).tensors
        assert adaconv(**arguments).shape == (2, 64, 5, 9)

    def test_pointwise_may_have_the_shape_of_a_convolution(self, backend: str) -> None:
        x, spatial, pointwise, bias = (t for t in make().to("cpu", torch.float32).tensors.values())
        assert pointwise is not None
        given = adaconv(x, spatial, pointwise[..., None, None], bias)
        assert torch.equal(given, adaconv(x, spatial, pointwise, bias))

    @pytest.mark.parametrize("w", [*range(2, 19), 24, 31, 32, 33, 40, 48, 50, 64, 65, 80])
    @pytest.mark.parametrize("padding", ["reflect", "replicate", "zeros"])
    def test_every_width_about_a_few_vectors(self, w: int, padding: str) -> None:
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            for size in (1, 2):
                self.check(make(n=1, c=2, co=2, size=size, h=11, w=w, padding_mode=padding), "cpu", dtype)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    @pytest.mark.parametrize(
        ("size", "c", "h", "w"),
        [
            (1, 9, 3700, 64),
            (1, 9, 3700, 65),
            (1, 1, 33000, 65),
            (1, 720, 45, 67),
            (1, 9, 15, 16001),
            (1, 2160, 32, 32),
            (1, 2160, 16, 64),
            (3, 9, 3700, 64),
            (3, 2160, 16, 64),
        ],
    )
    def test_results_too_large_for_a_cache(self, dtype: torch.dtype, size: int, c: int, h: int, w: int) -> None:
        n = 1 if dtype == torch.float64 else 2  # as many bytes as of float32
        self.check(make(n=n, c=c, co=c, size=size, h=h, w=w), "cpu", dtype)

    @pytest.mark.parametrize(("h", "w"), [(45, 67), (64, 64)])
    def test_results_too_large_for_a_cache_that_are_not_normalized(self, h: int, w: int) -> None:
        self.check(make(c=720, co=720, size=1, h=h, w=w, normalize=False), "cpu", torch.float32)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("outputs", [1, 2])
    @pytest.mark.parametrize(("h", "w"), [(96, 8), (50, 15), (48, 16), (40, 25), (32, 32), (24, 48)])
    def test_a_plane_among_others_has_the_bits_that_it_has_alone(
        self, h: int, w: int, outputs: int, dtype: torch.dtype
    ) -> None:
        """Its statistics may have been taken along with another's convolution, whatever that has."""
        c = 80
        x, spatial, pointwise = torch.randn(1, c, h, w), torch.randn(1, c, 1, 3, 3), torch.randn(1, outputs * c, 1)
        x[0, 1] = far_at_quarters(x[0, 1], 1e4)
        x[0, 3] *= 1e20
        x[0, 5, 1, 1] = torch.nan
        x[0, 7] = 3.0

        def of(first: int, last: int) -> Tensor:
            kernel = spatial[:, first:last], pointwise[:, outputs * first : outputs * last]
            return adaconv(x[:, first:last].to(dtype), *(t.to(dtype) for t in kernel))

        together = of(0, c)
        assert together[0, 5 * outputs].isnan().all() and not together[0, 6 * outputs :].isnan().any()
        for k in range(c):
            alone = of(k, k + 1)
            given = together[:, outputs * k : outputs * (k + 1)]
            torch.testing.assert_close(given, alone, rtol=0, atol=0, equal_nan=True)

    def test_a_large_mean_costs_no_more_digits_than_plain_torch(self, backend: str) -> None:
        case = make(n=1, c=16, co=16, size=1, h=32, w=48)
        tensors = {k: None if x is None else x.float() for k, x in case.tensors.items()}
        assert tensors["input"] is not None
        tensors["input"] = tensors["input"] + 1000
        exact = reference.adaconv(**{k: None if x is None else x.double() for k, x in tensors.items()})
        assert relative_error(adaconv(**tensors), exact) <= 1.2 * relative_error(reference.adaconv(**tensors), exact)

    def test_padded_zeros_stay_zeros_beside_a_nan(self) -> None:
        for w in (9, 40):
            x, kernel = torch.randn(1, 1, 6, w), torch.ones(1, 1, 1, 3, 3)
            x[0, 0, 0, 0] = torch.nan
            y = adaconv(x, kernel, torch.ones(1, 1, 1), normalize=False, padding_mode="zeros")
            assert y[0, 0, :2, :2].isnan().all() and not y[0, 0, 2:].isnan().any() and not y[0, 0, :, 2:].isnan().any()

    def test_a_direct_call_of_the_registered_op_reads_nothing_outside(self, compiled_op: Any) -> None:
        x, kernel, bias = torch.randn(2, 4, 5, 6), torch.randn(2, 4, 2, 3, 3), torch.randn(2, 4)
        for a, b, c in (
            (x[0], kernel, bias),
            (x[:1], kernel, bias),
            (x[:, :3], kernel, bias),
            (x, kernel[:, :3], bias[:, :3]),
            (x, kernel[:, :, :0], bias),
            (x, kernel[..., :0], bias),
            (x, kernel.double(), bias),
            (x, kernel, bias[:1]),
            (x[..., :1], kernel, bias),
        ):
            with pytest.raises(RuntimeError, match=r"adaconv|stylekern: "):
                compiled_op(a, b, None, c, False, "reflect", 1e-5, 0)
        for scale in (bias[:, :3], bias.double(), kernel):
            with pytest.raises(RuntimeError, match="scale"):
                compiled_op(x, kernel, scale, bias, False, "reflect", 1e-5, 0)
        with pytest.raises(RuntimeError, match="padding_mode must be reflect, replicate or zeros"):
            compiled_op(x, kernel, None, bias, False, "none", 1e-5, 0)
        statistic = torch.ones(2, 4)
        backward = torch.ops.stylekern.adaconv_backward
        with pytest.raises(RuntimeError, match="the shape of grad"):
            backward(x[..., 1:], x, kernel, statistic, statistic, True, "reflect", 0, True, True, True)
        with pytest.raises(RuntimeError, match="the shape of rstd"):
            backward(x, x, kernel, statistic, statistic[:1], True, "reflect", 0, True, True, True)

    @pytest.mark.parametrize(("size", "outputs"), [(1, 4), (1, 8), (2, 4)])
    @pytest.mark.parametrize("k", [(3, 3), (2, 5)], ids=str)
    def test_a_scale_is_the_kernels(self, size: int, outputs: int, k: tuple[int, int], compiled_op: Any) -> None:
        kernel, scale, *others = torch.randn(2, outputs, size, *k), torch.randn(2, outputs), True, "reflect", 1e-5, 0
        x, g = torch.randn(2, 4, 9, 20), torch.randn(2, outputs, 9, 20)

        def results(scaled: bool) -> list[Tensor]:
            leaves = [t.clone().requires_grad_() for t in (x, kernel, scale)]
            product = leaves[1] * leaves[2][:, :, None, None, None]
            pair = (leaves[1], leaves[2]) if scaled else (product, None)
            y = compiled_op(leaves[0], *pair, None, *others)[0]
            return [y, *torch.autograd.grad(y, leaves, g)]

        for got, expected in zip(results(True), results(False), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)

    @settings(max_examples=80, deadline=None, derandomize=True)
    @given(
        n=st.integers(0, 2),
        groups=st.integers(1, 3),
        size=st.sampled_from([1, 2, 3, 4, 8, 11, 17]),
        out=st.integers(1, 9),
        k=st.sampled_from([(3, 3), (3, 3), (1, 1), (2, 2), (4, 3), (5, 7)]),
        h=st.integers(1, 40),
        w=st.integers(1, 40),
        padding=st.sampled_from(["reflect", "replicate", "zeros"]),
        bias=st.booleans(),
        normalize=st.booleans(),
    )
    def test_any_shape(
        self, n: int, groups: int, size: int, out: int, k: tuple[int, int], h: int, w: int, padding: str, bias: bool,
        normalize: bool,
    ) -> None:  # fmt: skip
        if padding == "reflect":
            h, w = max(h, k[0] // 2 + 1), max(w, k[1] // 2 + 1)
        case = make(n, groups * size, groups * out, size, k, h, w, bias, padding_mode=padding, normalize=normalize)
        # A plane of few values may have a variance near zero, by which both computations divide.
        if normalize and h * w < 6:
            case.options["eps"] = 1.0
        self.check(case, "cpu", torch.float32)

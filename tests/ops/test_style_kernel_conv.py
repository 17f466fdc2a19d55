"""style_kernel_conv keeps its contract on every backend."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import stylekern
from stylekern import _backends, reference
from stylekern.ops import style_kernel_conv

from .cases import TOLERANCE, Case, arguments_of, far_at_quarters, relative_error
from .normalizing_suite import NormalizingSuite
from .suite import OperatorSuite


def make(
    n: int = 2,
    c: int = 4,
    g: int = 4,
    kv: int = 3,
    kh: int = 3,
    h: int = 7,
    w: int = 19,
    bias: str | None = "channel",
    **options: Any,
) -> Case:
    """Random arguments; the filters and a bias a group are views of one packed prediction."""
    grown = (kv - 1, kh - 1) if options.get("padding_mode") == "none" else (0, 0)
    packed = torch.randn(n, g, kv + kh + 1, h, w, dtype=torch.float64)
    biases: dict[str | None, Tensor | None] = {
        None: None,
        "group": packed[:, :, -1],
        "channel": torch.randn(n, c, h, w, dtype=torch.float64),
    }
    x = torch.randn(n, c, h + grown[0], w + grown[1], dtype=torch.float64)
    tensors = {
        "input": x,
        "vertical": packed[:, :, :kv],
        "horizontal": packed[:, :, kv : kv + kh],
        "bias": biases[bias],
    }
    return Case(tensors, options)


def cases() -> dict[str, Any]:
    found: dict[str, Any] = {}
    modes = itertools.product(("sequential", "outer"), ("reflect", "replicate", "zeros", "none"), (False, True))
    for composition, padding, normalize in modes:
        if padding == "none" and (composition == "sequential" or normalize):
            continue
        options = {"composition": composition, "padding_mode": padding, "normalize": normalize}
        name = f"{composition}-{padding}" + ("-normalize" if normalize else "")
        found[name] = lambda o=options: make(**o)
        found[f"{name}-5x3-two-groups"] = lambda o=options: make(g=2, kv=5, kh=3, bias="group", **o)
        found[f"{name}-1x7-one-group"] = lambda o=options: make(g=1, kv=1, kh=7, bias=None, **o)
    for padding, w in itertools.product(("reflect", "replicate", "zeros"), (16, 19)):
        found[f"5x5-{padding}-{w}-wide"] = lambda p=padding, w=w: make(kv=5, kh=5, w=w, padding_mode=p)
    found |= {
        "one-pixel": lambda: make(h=1, w=1, padding_mode="replicate"),
        "one-row": lambda: make(h=1, w=40, padding_mode="zeros"),
        "one-column": lambda: make(h=40, w=1, padding_mode="replicate"),
        "one-channel": lambda: make(n=1, c=1, g=1),
        "as-small-as-reflect-goes": lambda: make(h=2, w=2, normalize=True),
        "wider-than-a-vector": lambda: make(n=1, c=2, g=2, h=5, w=131, normalize=True, correction=1),
        "5x5-wider-than-a-vector": lambda: make(n=1, c=2, g=2, kv=5, kh=5, h=5, w=231),
        "many-planes": lambda: make(c=130, g=2, h=5, w=16, normalize=True),
        "many-planes-5x5": lambda: make(c=130, g=130, kv=5, kh=5, h=5, w=6, normalize=True, correction=1),
        "many-tiles": lambda: make(n=1, c=2, g=1, h=70, w=33, normalize=True),
        "51-taps": lambda: make(n=1, c=2, g=1, kv=51, kh=51, h=26, w=27),
        "51x3-taps-outer": lambda: make(n=1, c=2, g=1, kv=51, h=4, w=5, composition="outer", padding_mode="none"),
        "3x51-taps-outer": lambda: make(n=1, c=2, g=1, kh=51, h=4, w=5, composition="outer", padding_mode="none"),
        "empty-batch": lambda: make(n=0),
        "empty-height": lambda: make(h=0),
        "empty-width": lambda: make(w=0, normalize=True),
        "no-channels": lambda: make(c=0, g=2),
    }
    return found


call = partial(arguments_of, make)


class TestStyleKernelConv(NormalizingSuite, OperatorSuite):
    name = "style_kernel_conv"
    function = staticmethod(style_kernel_conv)
    reference = staticmethod(reference.style_kernel_conv)
    cases = cases()
    normalized = ("input",)
    sized = staticmethod(lambda h, w: make(n=1, c=2, g=2, h=h, w=w, normalize=True))
    typical = "sequential-reflect-normalize"
    threaded = {
        "few-planes": lambda: make(n=1, c=4, g=1, h=90, w=70, normalize=True),
        "few-planes-short-rows": lambda: make(n=1, c=3, g=3, h=150, w=32, normalize=True),
        "some-planes": lambda: make(n=1, c=8, g=8, h=128, w=128, normalize=True),
        "many-planes": lambda: make(n=2, c=40, g=40, h=40, w=64, normalize=True),
        "many-planes-odd-width": lambda: make(n=2, c=40, g=40, h=40, w=61, normalize=True),
    }
    bad = {
        "not-a-tensor": (call(input=[1.0]), TypeError, "input must be a tensor .* got list"),
        "integers": (call(input=lambda x: x.int()), TypeError, "input must be float32, .* got torch.int32"),
        "sparse": (call(input=lambda x: x.to_sparse()), TypeError, "input must be a dense tensor"),
        "dtypes-differ": (call(vertical=lambda x: x.half()), TypeError, "vertical is torch.float16, but input is"),
        "devices-differ": (call(bias=lambda x: x.to("meta")), RuntimeError, "bias is on meta, but input is on cpu"),
        "three-dimensions": (call(input=lambda x: x[0]), ValueError, r"input must be \[N, C, H, W\], got shape \[4, 7"),
        "even-taps": (call(vertical=lambda x: x[:, :, :2]), ValueError, "vertical must have an odd number .* got 2"),
        "too-many-taps": (
            call(horizontal=lambda x: x.repeat(1, 1, 18, 1, 1)[:, :, :53]),
            ValueError,
            "horizontal must have an odd number of taps, 1 to 51, got 53",
        ),
        "no-taps": (call(horizontal=lambda x: x[:, :, :0]), ValueError, "odd number of taps, 1 to 51, got 0"),
        "filters-differ": (call(horizontal=lambda x: x[..., :5]), ValueError, "must agree but for their taps"),
        "sizes-differ": (
            call(input=lambda x: x[..., :5]),
            ValueError,
            r"input must be \[2, C, 7, 19\], got \[2, 4, 7, 5\]",
        ),
        "groups-do-not-divide": (
            call(input=lambda x: x[:, :3]),
            ValueError,
            "4 groups must divide the input's 3 channels",
        ),
        "bias-shape": (call(bias=lambda x: x[:, :2]), ValueError, r"bias must be \[2, 4, 7, 19\]"),
        "padding-name": (
            call(padding_mode="mirror"),
            ValueError,
            "padding_mode must be one of reflect, .* got 'mirror'",
        ),
        "composition-name": (call(composition="inner"), ValueError, "composition must be one of sequential, outer"),
        "none-sequential": (call(padding_mode="none"), ValueError, "padded already"),
        "reflect-too-small": (
            lambda: (tuple(make(h=1, w=9).tensors.values()), {}),
            ValueError,
            "reflect padding needs k // 2 < size, got 3 x 3 taps on 1 x 9 pixels",
        ),
        "variance-undefined": (
            lambda: (
                tuple(make(h=1, w=1).tensors.values()),
                {"padding_mode": "zeros", "normalize": True, "correction": 1},
            ),
            ValueError,
            "variance of input's 1 x 1 positions with correction=1 is not defined",
        ),
    }

    def test_the_compositions_differ(self, backend: str) -> None:
        tensors = make().to("cpu", torch.float32).tensors
        sequential, outer = (style_kernel_conv(**tensors, composition=c) for c in ("sequential", "outer"))
        assert relative_error(outer, sequential) > 0.5

    def test_constant_filters_are_a_separable_convolution(self, backend: str) -> None:
        x = torch.randn(1, 3, 9, 11)
        v, u = torch.randn(3), torch.randn(5)
        filters = [k[None, None, :, None, None].expand(1, 3, -1, 9, 11) for k in (v, u)]
        kernel = torch.outer(v, u).expand(3, 1, 3, 5)
        expected = torch.nn.functional.conv2d(x, kernel, padding=(1, 2), groups=3)
        assert relative_error(style_kernel_conv(x, *filters, padding_mode="zeros"), expected) < 2e-6

    def test_a_large_mean_costs_no_more_digits_than_plain_torch(self, backend: str) -> None:
        case = make(c=16, g=16, h=32, w=32, normalize=True).to("cpu", torch.float32)
        x = (case.tensors["input"].detach() + 1000).float()  # type: ignore[union-attr]
        filters = {k: t.detach() for k, t in case.tensors.items() if k != "input" and t is not None}
        truth = reference.style_kernel_conv(x.double(), **{k: t.double() for k, t in filters.items()}, normalize=True)
        plain = reference.style_kernel_conv(x, **filters, normalize=True)
        ours = style_kernel_conv(x, **filters, normalize=True)
        assert relative_error(ours, truth) <= 2 * relative_error(plain, truth)

    @pytest.mark.parametrize("c", [1, 2])
    def test_51_by_51_taps_outer(self, c: int, device: str) -> None:
        """Of a channel alone, and of two that share them. 2,601 taps take the interpreter of Triton minutes."""
        case = make(n=1, c=c, g=1, kv=51, kh=51, h=4, w=5, composition="outer", padding_mode="none")
        for backend in ("compiled", "reference") if device == "cpu" else ("compiled", "triton", "reference"):
            if _backends.why_not(backend, self.name, device) is None:
                with stylekern.use_backend(backend):
                    self.check(case, device, torch.float32)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize(("kv", "kh"), [(13, 11), (9, 15)], ids=str)
    @pytest.mark.parametrize(
        ("composition", "padding"), [("sequential", "reflect"), ("outer", "zeros"), ("outer", "none")]
    )
    def test_many_taps_over_several_tiles_and_vectors(
        self, composition: str, padding: str, kv: int, kh: int, dtype: torch.dtype
    ) -> None:
        case = make(n=1, c=3, g=1, kv=kv, kh=kh, h=40, w=70, composition=composition, padding_mode=padding)
        self.check(case, "cpu", dtype)

    @pytest.mark.parametrize("w", [*range(2, 19), 31, 32, 33, 63, 64, 65, 128])
    @pytest.mark.parametrize("padding", ["reflect", "replicate", "zeros"])
    def test_every_width_about_a_vector(self, w: int, padding: str) -> None:
        fewest = 2 if padding == "reflect" or w < 16 else 1  # few values, normalised, hardly depend on any
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            for g, h in ((1, 4), (2, 4), (2, fewest)):
                case = make(n=1, c=2, g=g, h=h, w=w, padding_mode=padding, normalize=True)
                self.check(case, "cpu", dtype)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    @pytest.mark.parametrize(("h", "w"), [(3700, 64), (512, 65)])
    def test_results_too_large_for_a_cache(self, dtype: torch.dtype, h: int, w: int) -> None:
        n = 1 if dtype == torch.float64 else 2  # as many bytes as of float32
        self.check(make(n=n, c=9, g=9, h=h, w=w, normalize=True), "cpu", dtype)

    def test_statistics_of_a_plane_that_drifts(self, backend: str) -> None:
        case = make(n=1, c=3, g=3, h=48, w=48, normalize=True).to("cpu", torch.float32)
        x = case.tensors["input"]
        assert x is not None
        x = x.detach().clone()
        x[:, :, :8] *= 1e-3
        x[:, 0, 8:] += 100
        x[:, 1, 40:] -= 1e4
        self.check(Case({**case.tensors, "input": x.double()}, case.options), "cpu", torch.float32)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("values", [768, 25600, 51200], ids=["in-cache", "from-memory", "16-bit-from-memory"])
    @pytest.mark.parametrize("w", [8, 16, 32, 64, 128])
    def test_a_plane_among_others_has_the_bits_that_it_has_alone(self, w: int, values: int, dtype: torch.dtype) -> None:
        """Its statistics may have been taken together with theirs, whatever they have."""
        c, h = 48, values // w
        x, packed = torch.randn(1, c, h, w), torch.randn(1, c, 7, h, w).to(dtype)
        x[0, 1, h // 4 :] += 1e4
        x[0, 3] *= 1e20
        x[0, 5, 1, 1] = torch.nan
        x[0, 9] = far_at_quarters(x[0, 9], 1e4)
        x[0, 7] = 3.0
        x = x.to(dtype)

        def of(first: int, last: int) -> Tensor:
            v, u, bias = packed[:, first:last].split((3, 3, 1), dim=2)
            return style_kernel_conv(x[:, first:last], v, u, bias[:, :, 0], normalize=True)

        together = of(0, c)
        assert together[0, 5].isnan().all() and not together[0, 6:].isnan().any()
        for k in range(c):
            torch.testing.assert_close(together[:, k : k + 1], of(k, k + 1), rtol=0, atol=0, equal_nan=True)

    @pytest.mark.parametrize("scale", [1e-18, 3e18, 1e20])
    def test_values_whose_squares_leave_the_range_of_a_float(self, scale: float) -> None:
        case = make(n=1, c=2, g=2, h=37, w=53, normalize=True, eps=0.0)
        x = case.tensors["input"]
        assert x is not None
        ours = Case({k: None if t is None else t.float() for k, t in case.tensors.items()})
        output = style_kernel_conv(**(ours.tensors | {"input": (x * scale).float()}), normalize=True, eps=0.0)
        truth = reference.style_kernel_conv(**case.tensors, **case.options)
        assert relative_error(output, truth) < TOLERANCE[torch.float32]

    def test_padded_zeros_stay_zeros_beside_a_nan(self) -> None:
        case = make(n=1, c=1, g=1, padding_mode="zeros", normalize=True).to("cpu", torch.float32)
        x = case.tensors["input"]
        assert x is not None
        x = x.detach().clone()
        x[0, 0, 2, 2] = torch.nan
        tensors = case.tensors | {"input": x}
        output = style_kernel_conv(**tensors, **case.options)
        (grad,) = torch.autograd.grad(output.sum(), tensors["vertical"])
        assert output.isnan().all() and grad[0, 0, 1].isnan().all()
        assert (grad[0, 0, 0, 0] == 0).all() and (grad[0, 0, 2, -1] == 0).all()

    def test_a_direct_call_of_the_registered_op_reads_nothing_outside(self, compiled_op: Any) -> None:
        x, v, u, _ = (t for t in make().to("cpu", torch.float32).tensors.values())
        for wrong in ((x, v[..., :5], u), (x[:, :3], v, u), (x, v.double(), u), (x[0], v, u), (x, v[:, :, :2], u)):
            with pytest.raises(RuntimeError, match="style_kernel_conv"):
                compiled_op(*wrong, None, "reflect", "sequential", False, 1e-5, 0)
        with pytest.raises(RuntimeError, match="padding_mode"):
            compiled_op(x, v, u, None, "mirror", "sequential", False, 1e-5, 0)

    def test_gradients_of_a_shared_bias_can_be_batched(self) -> None:
        x, v, u = torch.randn(2, 4, 6, 7), torch.randn(2, 2, 3, 6, 7), torch.randn(2, 2, 5, 6, 7)
        bias = torch.randn(2, 2, 6, 7, requires_grad=True)
        y = style_kernel_conv(x, v, u, bias)
        upstream = torch.randn(3, *y.shape)
        (together,) = torch.autograd.grad(y, bias, upstream, is_grads_batched=True, retain_graph=True)
        each = [torch.autograd.grad(y, bias, g, retain_graph=True)[0] for g in upstream]
        assert torch.equal(together, torch.stack(each))

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        n=st.integers(0, 2),
        g=st.integers(1, 3),
        per_group=st.integers(1, 3),
        kv=st.sampled_from([1, 3, 5, 9]),
        kh=st.sampled_from([1, 3, 7]),
        h=st.integers(1, 40),
        w=st.integers(1, 40),
        padding=st.sampled_from(["reflect", "replicate", "zeros"]),
        composition=st.sampled_from(["sequential", "outer"]),
        bias=st.sampled_from([None, "group", "channel"]),
        normalize=st.booleans(),
    )
    def test_any_shape(
        self, n: int, g: int, per_group: int, kv: int, kh: int, h: int, w: int, padding: str, composition: str,
        bias: str | None, normalize: bool,
    ) -> None:  # fmt: skip
        if padding == "reflect":
            h, w = max(h, kv // 2 + 1), max(w, kh // 2 + 1)
        case = make(
            n, g * per_group, g, kv, kh, h, w, bias, padding_mode=padding, composition=composition, normalize=normalize
        )
        # A plane of one or two values has a variance near zero, by which both computations divide.
        if normalize and h * w < 6:
            case.options["eps"] = 1.0
        self.check(case, "cpu", torch.float32)

"""The Triton kernels of cgm_attention against the float64 reference, forward and backward, in the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="triton is not installed")

from stylekern.triton_kernels import _cgm_attention as shared
from stylekern.triton_kernels import cgm_attention as op

from stylekern import reference

from ..ops.cases import LAYOUTS, assert_close, relative_error
from ..ops.thresholds import STRAIGHT, attention, make, rows_at_threshold

NAMES = ("output", "grad_query", "grad_key", "grad_value", "grad_scale", "grad_bias")


class Case:
    """Random tensors, and what both implementations make of them."""

    def __init__(self, dtype: torch.dtype = torch.float32, layout: str = "contiguous", **arguments: Any) -> None:
        made = make(**arguments).to("cpu", dtype, layout)
        self.tensors = {name: None if x is None else x.detach() for name, x in made.tensors.items()}
        defaults = {"cosine": True, "gate_grad": "none", "temperature": 1.0, "renormalize": False, "eps": 1e-12}
        self.options = {**defaults, **made.options}
        (n, lq), width = self.tensors["query"].shape[:2], self.tensors["value"].shape[2]
        self.grad = LAYOUTS[layout](torch.randn(n, lq, width).to(dtype))

    def arguments(self) -> tuple[Any, ...]:
        order = ("alpha", "cosine", "gate_grad", "temperature", "renormalize", "eps")
        return tuple(self.options[name] for name in order)

    def forward(self) -> tuple[Tensor, ...]:
        return op.forward(*self.tensors.values(), *self.arguments())

    def backward(self, needs: tuple[bool, ...] = (True,) * 4) -> tuple[Tensor, ...]:
        return op.backward(self.grad, *self.tensors.values(), *self.forward(), *self.arguments(), *needs)

    def truth(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        leaves = {k: None if x is None else x.detach().to(dtype).requires_grad_() for k, x in self.tensors.items()}
        output = reference.cgm_attention(**leaves, **self.options)
        wanted = [x for x in leaves.values() if x is not None]
        return [output.detach(), *torch.autograd.grad(output, wanted, self.grad.to(dtype))]

    def check(self) -> None:
        assert rows_at_threshold(self.tensors, self.options) == 0
        dtype = self.grad.dtype
        given = [x for x in (self.forward()[0], *self.backward()) if x.shape != (0,)]
        names = [name for name, x in zip(NAMES, (self.grad, *self.tensors.values()), strict=True) if x is not None]
        plain = self.truth(dtype) if dtype == torch.float32 else [None] * len(names)
        for name, got, want, by_torch in zip(names, given, self.truth(), plain, strict=True):
            assert_close(got, want, dtype, name, by_torch)
            assert got.is_contiguous(), name


@pytest.mark.parametrize("gate", ["half", "above-all", "below-all", "none"])
@pytest.mark.parametrize("size", [(5, 9, 7, 3), (1, 67, 17, 19), (65, 3, 33, 1)], ids=str)
def test_odd_sizes_agree_with_the_reference(size: tuple[int, ...], gate: str) -> None:
    lq, lk, d, dv = size
    Case(n=1, lq=lq, lk=lk, d=d, dv=dv, gate=gate, renormalize=True, **STRAIGHT).check()
    Case(n=1, lq=lq, lk=lk, d=d, dv=dv, gate=gate, cosine=False, alpha=0.3).check()


def test_more_keys_than_a_program_sums() -> None:
    Case(torch.float16, n=1, lq=2, lk=1100, d=5, dv=4, gate="bias", alpha=8.0, renormalize=True, **STRAIGHT).check()


@pytest.mark.parametrize("size", [(1030, 4), (4, 1030)], ids=str)
def test_widths_above_1024(size: tuple[int, int]) -> None:
    Case(torch.float16, n=1, lq=3, lk=5, d=size[0], dv=size[1], **STRAIGHT).check()


def test_one_key() -> None:
    """A is 1, of which nothing but values and gates has a gradient."""
    case = Case(lk=1, **STRAIGHT)
    output, lse, mass = case.forward()
    truth = case.truth()
    given = case.backward()
    assert torch.equal(output, case.tensors["value"].expand_as(output)) and mass.eq(1).all() and lse.isfinite().all()
    assert all(x.abs().max() < 1e-5 for x in given[:2])
    for got, want in zip(given[2:], truth[3:], strict=True):
        assert_close(got, want, torch.float32, "gradients")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("renormalize", [False, True])
def test_dtypes(dtype: torch.dtype, renormalize: bool) -> None:
    case = Case(dtype, lq=7, lk=40, renormalize=renormalize, **STRAIGHT)
    case.check()
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    assert [x.dtype for x in case.forward()[1:]] == [accumulator] * 2


def test_log_sum_exp_and_kept_mass() -> None:
    case = Case(lk=37)
    _, lse, mass = case.forward()
    a = attention(case.tensors["query"], case.tensors["key"], **case.options)
    q, k = (torch.nn.functional.normalize(case.tensors[name].double(), dim=-1) for name in ("query", "key"))
    t = case.tensors["gate_scale"].double() / 37 + case.tensors["gate_bias"].double()
    torch.testing.assert_close(lse.double(), torch.logsumexp(2.5 * q @ k.mT, -1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mass.double(), (a * (a > t.unsqueeze(-1))).sum(-1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_chunks_of_rows_and_of_samples(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Case(dtype, n=3, lq=35, lk=21, d=9, dv=10, renormalize=True, **STRAIGHT)
    monkeypatch.setattr(shared, "MOST", 0)
    monkeypatch.setattr(shared, "CHUNK", 32 * 16)
    whole.check()  # 12, 12 and 11 rows of a sample
    few = Case(dtype, n=5, lq=3, lk=11, **STRAIGHT)
    monkeypatch.setattr(shared, "CHUNK", 2 * 3 * 16)
    few.check()  # 2, 2 and 1 samples


def test_a_key_of_zeros_leaves_the_others_their_digits() -> None:
    """It is divided by eps: what is multiplied by that does not share a scale with the others."""
    for dtype in (torch.float32, torch.float16):
        case = Case(dtype, n=1, gate="none", alpha=3.0)
        case.tensors["key"][0, 4] = 0
        given, truth = case.backward(), case.truth()
        assert_close(given[0], truth[1], dtype, "grad_query")
        others = torch.arange(13) != 4
        assert_close(given[1][:, others], truth[2][:, others], dtype, "grad_key")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    Case(layout=layout, **STRAIGHT).check()


def test_float16_holds_the_gradients_of_a_scaled_loss() -> None:
    """dS is above what float16 holds, and the weights of one key below what it resolves."""
    case = Case(torch.float16, n=1, gate="none", dv=32, alpha=8.0)
    case.tensors["query"] = (200 + torch.randn(1, 5, 7)).half()
    case.tensors["key"][0, :, :] = (1 + torch.randn(1, 13, 7) / 8).half()
    case.tensors["key"][0, 4, :] = -1
    case.grad = (case.grad * 2**13).clamp(-60000, 60000)
    truth, given = case.truth(), case.backward()
    assert truth[1].abs().max() < 65504 and attention(*list(case.tensors.values())[:2], 8.0)[..., 4].max() < 1e-6
    for got, want in zip(given[:3], truth[1:], strict=True):
        assert relative_error(got, want) < 2e-3
    assert relative_error(given[2][0, 4], truth[3][0, 4]) < 2e-3


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that any torch function returns."""

    size = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor):
                self.size = max(self.size, x.nbytes)
        return result


def test_nothing_has_the_size_of_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "MOST", 0)
    monkeypatch.setattr(shared, "CHUNK", 16 * 144)
    case = Case(n=1, lq=130, lk=140, renormalize=True, **STRAIGHT)
    with Largest() as largest:
        case.backward()
    assert largest.size <= 4 * 3 * 16 * 144  # the weights of a chunk, in parts that are float32 on the CPU


@pytest.mark.parametrize(
    ("n", "lq", "lk", "depth", "width"),
    [
        (1, 4096, 4096, 512, 512),
        (1, 16384, 16384, 512, 512),
        (3, 50, 2**21, 8, 8),
        (10**6, 5, 13, 7, 6),
        (7, 900, 33, 600, 1),
    ],
)
def test_a_chunk_is_no_larger_than_the_inputs_or_a_fixed_number(
    n: int, lq: int, lk: int, depth: int, width: int
) -> None:
    across = max(-(-lk // 16) * 16, depth, width)
    most = max(min(n * (lq + lk) * (depth + width), 2**24), 2**22, 16 * across)
    done = 0
    for samples, chunks in shared.samples_of(n, lq, lk, depth, width):
        assert [row for rows in chunks for row in range(rows.start, rows.stop)] == list(range(lq))
        count = samples.stop - samples.start
        assert max(count * (rows.stop - rows.start) * across for rows in chunks) <= most
        done += count
    assert done == n


@pytest.mark.parametrize("gate_grad", ["none", "straight_through"])
def test_only_the_gradients_needed(gate_grad: str) -> None:
    case = Case(gate_grad=gate_grad)
    everything = case.backward()
    for k in range(4):
        needs = tuple(j == k for j in range(4))
        for got, full, need in zip(case.backward(needs), everything, (*needs, needs[3]), strict=True):
            assert torch.equal(got, full) if need else got.shape == (0,)
    assert all(x.shape == (0,) for x in case.backward((False,) * 4))


def test_one_gate_alone() -> None:
    for gate, missing in (("scale", 4), ("bias", 3)):
        assert Case(gate=gate, **STRAIGHT).backward()[missing].shape == (0,)


def test_the_same_bits_every_time() -> None:
    case = Case(n=1, lq=9, lk=40, **STRAIGHT)
    for first, second in zip((*case.forward(), *case.backward()), (*case.forward(), *case.backward()), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("shape", [{"n": 0}, {"lq": 0}, {"lk": 0}, {"d": 0}, {"dv": 0}], ids=str)
def test_empty(shape: dict) -> None:
    case = Case(renormalize=True, **STRAIGHT, **shape)
    output, lse, mass = case.forward()
    assert output.shape == case.grad.shape and lse.shape == mass.shape == case.grad.shape[:2]
    if "lk" in shape:
        assert not output.any() and lse.eq(-torch.inf).all() and not mass.any()
    for got, like in zip(case.backward(), case.tensors.values(), strict=True):
        assert got.shape == like.shape and got.isfinite().all()

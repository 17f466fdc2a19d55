"""What every operator must do. An operator's tests subclass `OperatorSuite` and add what is its own."""

from __future__ import annotations

import ctypes
import functools
import gc
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import stylekern
from stylekern import _backends
from stylekern.ops import OPERATORS

from .cases import LAYOUTS, TOLERANCE, Case, assert_close, differentiable, outputs, relative_error
from .cuda_suite import CudaSuite
from .refusal_suite import RefusalSuite

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


class OperatorSuite(CudaSuite, RefusalSuite):
    """Subclasses set the operator's name, its functions, and its cases."""

    name: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    cases: dict[str, Callable[[], Case]]  # "empty-batch" among them
    typical: str  # the case that the tests of layouts, dtypes and torch's features use
    threaded: dict[str, Callable[[], Case]]  # large enough for several threads, cut in all ways there are
    products_of_torch = False  # whether its CPU kernels hand matrix products to torch
    bad: dict[str, tuple[Callable[[], tuple[tuple[Any, ...], dict[str, Any]]], type[Exception], str]]

    @pytest.fixture(params=["compiled", "triton", "reference"])
    def backend(self, request: pytest.FixtureRequest) -> Iterator[str]:
        device = request.getfixturevalue("device") if "device" in request.fixturenames else "cpu"
        reason = _backends.why_not(request.param, self.name, device)
        if reason:
            pytest.skip(f"{request.param}: {reason}")
        with stylekern.use_backend(request.param):
            yield request.param

    @pytest.fixture
    def compiled_op(self) -> Any:
        """The compiled library's own; an installation without a compiler has no library."""
        if reason := _backends.why_no_compiled(self.name, "cpu"):
            pytest.skip(reason)
        return OPERATORS[self.name]._ops["compiled"]

    def call(self, case: Case) -> tuple[Tensor, ...]:
        return outputs(type(self).function(**case.tensors, **case.options))

    def run(self, function: Callable[..., Any], case: Case, upstream: Sequence[Tensor]) -> list[Tensor]:
        """The outputs, and the gradient of every tensor."""
        given = outputs(function(**case.tensors, **case.options))
        wanted = [x for x in case.tensors.values() if x is not None]
        from_ = differentiable(given)
        return [*given, *torch.autograd.grad(from_, wanted, [g.to(y) for g, y in zip(upstream, from_, strict=True)])]

    def check(self, case: Case, device: str, dtype: torch.dtype, layout: str = "contiguous") -> None:
        ours = case.to(device, dtype, layout)
        truth = Case(
            {k: None if x is None else x.detach().double().cpu().requires_grad_() for k, x in ours.tensors.items()},
            case.options,
        )
        shaped = outputs(type(self).reference(**truth.tensors, **truth.options))
        upstream = [torch.randn(y.shape, dtype=torch.float64).to(dtype).double() for y in differentiable(shaped)]
        given, expected = self.run(type(self).function, ours, upstream), self.run(type(self).reference, truth, upstream)
        names = [f"output {k}" for k in range(len(shaped))]
        names += [f"grad_{k}" for k, x in case.tensors.items() if x is not None]
        plain = functools.cache(lambda: self.run(type(self).reference, ours, upstream))
        for k, (name, a, b) in enumerate(zip(names, given, expected, strict=True)):
            if b.is_floating_point():
                assert_close(a, b, dtype, name, (lambda k=k: plain()[k]) if dtype == torch.float32 else None)
            else:
                assert torch.equal(a.cpu(), b), name
        assert all(y.is_contiguous() for y in given[: len(shaped)])

    @pytest.fixture(params=DEVICES)
    def device(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    def test_equals_the_definition(self, case_name: str, backend: str, device: str) -> None:
        self.check(self.cases[case_name](), device, torch.float32)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
    def test_takes_every_dtype(self, dtype: torch.dtype, backend: str, device: str) -> None:
        self.check(self.cases[self.typical](), device, dtype)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_takes_every_layout(self, layout: str, backend: str, device: str) -> None:
        self.check(self.cases[self.typical](), device, torch.float32, layout)

    def test_gradients_by_finite_differences(self, backend: str, device: str) -> None:
        case = self.cases[self.typical]().to(device, torch.float64)
        given = {k: x for k, x in case.tensors.items() if x is not None}
        fixed = {k: x for k, x in case.tensors.items() if x is None}
        assert torch.autograd.gradcheck(
            lambda *xs: type(self).function(**dict(zip(given, xs, strict=True)), **fixed, **case.options),
            tuple(given.values()),
            fast_mode=True,
        )

    def test_each_gradient_alone(self, backend: str, device: str) -> None:
        case = self.cases[self.typical]().to(device, torch.float32)
        upstream = [torch.randn_like(y) for y in differentiable(self.call(case))]
        given = [x for x in case.tensors.values() if x is not None]
        everything = torch.autograd.grad(differentiable(self.call(case)), given, upstream)
        for (name, x), expected in zip(
            [(k, x) for k, x in case.tensors.items() if x is not None], everything, strict=True
        ):
            tensors = {k: y if k == name or y is None else y.detach() for k, y in case.tensors.items()}
            (alone,) = torch.autograd.grad(differentiable(self.call(Case(tensors, case.options))), [x], upstream)
            assert torch.equal(alone, expected), name

    def test_calls_that_record_no_gradient_give_the_same(self, backend: str, device: str) -> None:
        """They bypass torch's autograd."""
        case = self.cases[self.typical]().to(device, torch.float32)
        recorded = self.call(case)
        with torch.no_grad():
            unrecorded = self.call(case)
        detached = self.call(
            Case({k: None if x is None else x.detach() for k, x in case.tensors.items()}, case.options)
        )
        for y, *others in zip(recorded, unrecorded, detached, strict=True):
            assert y.requires_grad or not y.is_floating_point()
            assert all(torch.equal(other, y) and not other.requires_grad for other in others)

    def test_whatever_handles_a_call_may_record_gradients(self, backend: str, device: str) -> None:
        """A TorchFunctionMode that multiplies what the op gets by a parameter."""
        if backend == "reference":
            pytest.skip("the reference calls no op")
        factor = torch.ones((), device=device, requires_grad=True)

        class Multiplied(TorchFunctionMode):
            def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if "stylekern" in str(function):
                    args = tuple(x * factor if isinstance(x, Tensor) else x for x in args)
                return function(*args, **(kwargs or {}))

        case = self.cases[self.typical]().to(device, torch.float32)
        case = Case({k: None if x is None else x.detach() for k, x in case.tensors.items()}, case.options)
        with Multiplied():
            handled = self.call(case)
        assert all(y.requires_grad for y in differentiable(handled))

    def test_checkpointing_gives_the_same_gradients(self, backend: str, device: str) -> None:
        """It ends the second forward pass by an error, within what saves the last tensor."""
        case = self.cases[self.typical]().to(device, torch.float32)
        plain = differentiable(self.call(case))
        upstream, given = [torch.randn_like(y) for y in plain], [x for x in case.tensors.values() if x is not None]
        again = differentiable(checkpoint(self.call, case, use_reentrant=False))
        grads = (torch.autograd.grad(ys, given, upstream) for ys in (plain, again))
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))

    def test_transforms_of_torch_func(self, backend: str, device: str) -> None:
        """Gradients, and those of each sample at once."""
        case = self.cases[self.typical]().to(device, torch.float32)
        given = {k: x for k, x in case.tensors.items() if x is not None}
        upstream = [torch.randn_like(y) for y in differentiable(self.call(case))]

        def call(*xs: Tensor) -> tuple[Tensor, ...]:
            return differentiable(self.call(Case(case.tensors | dict(zip(given, xs, strict=True)), case.options)))

        def gradients(*xs: Tensor) -> tuple[Tensor, ...]:
            return torch.func.vjp(call, *xs)[1](tuple(upstream))

        xs = [x.detach() for x in given.values()]
        expected = torch.autograd.grad(differentiable(self.call(case)), given.values(), upstream)
        assert all(torch.equal(a, b) for a, b in zip(gradients(*xs), expected, strict=True))
        several = [torch.stack([x, x.flip(0)]) for x in xs]
        each = [gradients(*(x[k] for x in several)) for k in range(2)]
        for together, alone in zip(torch.func.vmap(gradients)(*several), zip(*each, strict=True), strict=True):
            assert torch.allclose(together, torch.stack(alone), rtol=1e-4, atol=1e-5)

    def test_an_error_of_a_hook_reaches_the_caller(self, backend: str) -> None:
        case, packed = self.cases[self.typical]().to("cpu", torch.float32), []

        def pack(x: Tensor) -> Tensor:
            packed.append(x)
            raise MemoryError("no place for what is saved")

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), suppress(MemoryError):
            self.call(case)
            assert not packed
        assert len(packed) < 2

    def test_same_bits_twice(self, backend: str, device: str) -> None:
        case = self.cases[self.typical]().to(device, torch.float32)
        upstream = [torch.randn_like(y) for y in differentiable(self.call(case))]
        first, second = (self.run(type(self).function, case, upstream) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    @pytest.mark.parametrize("threads", [2, 3, 16])
    def test_threads_do_not_change_results(self, threaded_name: str, threads: int, compiled_op: Any) -> None:
        """Not by a bit, but where products are torch's own, which round by the number of threads.

        Of the registered op: what prepares its arguments is torch's own as well.
        """
        before = torch.get_num_threads()
        for dtype in (torch.float32, torch.bfloat16):
            arguments = self.op_arguments(self.threaded[threaded_name]().to("cpu", dtype))
            arguments = tuple(x.detach().requires_grad_() if isinstance(x, Tensor) else x for x in arguments)
            leaves = [x for x in arguments if isinstance(x, Tensor)]
            upstream: list[Tensor] = []
            try:
                results = []
                for count in (1, threads):
                    torch.set_num_threads(count)
                    given = outputs(compiled_op(*arguments))
                    differentiable = [y for y in given if y.requires_grad]
                    upstream = upstream or [torch.randn_like(y) for y in differentiable]
                    results.append([*given, *torch.autograd.grad(differentiable, leaves, upstream)])
            finally:
                torch.set_num_threads(before)
            if not self.products_of_torch:
                assert all(map(torch.equal, *results))
                continue
            for alone, together in zip(*results, strict=True):
                assert_close(together, alone, alone.dtype, f"with {threads} threads")

    def arguments(self, case: Case) -> tuple[Any, ...]:
        """Those of the definition."""
        bound = inspect.signature(type(self).reference).bind(**case.tensors, **case.options)
        bound.apply_defaults()
        return tuple(bound.arguments.values())

    def op_arguments(self, case: Case) -> tuple[Any, ...]:
        """Those of the registered op."""
        return self.prepared(self.arguments(case))

    def prepared(self, arguments: Sequence[Any]) -> tuple[Any, ...]:
        prepare = OPERATORS[self.name].prepare
        return prepare(*arguments) if prepare else tuple(arguments)

    def test_meta_tensors_give_shapes(self) -> None:
        case = self.cases[self.typical]().to("meta", torch.float32)
        truth = outputs(type(self).reference(**self.cases[self.typical]().tensors, **case.options))
        given = outputs(type(self).function(**case.tensors, **case.options))
        assert [(y.device.type, y.shape) for y in given] == [("meta", y.shape) for y in truth]

    # Not an empty batch permuted: opcheck itself cannot clone that.
    @pytest.mark.parametrize(
        ("case_name", "layout"),
        [
            ("typical", "contiguous"),
            ("typical", "channels_last"),
            ("typical", "permuted"),
            ("empty-batch", "contiguous"),
        ],
    )
    def test_opcheck(self, case_name: str, layout: str) -> None:
        make = self.cases[self.typical if case_name == "typical" else case_name]
        arguments = self.op_arguments(make().to("cpu", torch.float32, layout))
        leaves = tuple(x.detach().requires_grad_() if isinstance(x, Tensor) else x for x in arguments)
        for backend, op in OPERATORS[self.name]._ops.items():
            if _backends.why_not(backend, self.name, "cpu") is None:
                opcheck(op, leaves)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
    def test_a_traced_call_is_the_op_and_records_gradients(self, compiled_op: Any) -> None:
        case = self.cases[self.typical]().to("cpu", torch.float32)
        names, leaves = zip(*((k, x) for k, x in case.tensors.items() if x is not None), strict=True)

        def call(*tensors: Tensor) -> Tensor:
            return self.call(Case(case.tensors | dict(zip(names, tensors, strict=True)), case.options))[0]

        traced = torch.jit.trace(call, leaves)
        assert f"stylekern::{self.name}(" in str(traced.graph)
        expected = torch.autograd.grad(call(*leaves).sum(), leaves, allow_unused=True)
        assert all(map(torch.equal, torch.autograd.grad(traced(*leaves).sum(), leaves, allow_unused=True), expected))

    def test_inputs_are_left_alone(self, backend: str, device: str) -> None:
        case = self.cases[self.typical]().to(device, torch.float32)
        before = [x.detach().clone() for x in case.tensors.values() if x is not None]
        self.run(type(self).function, case, [torch.randn_like(y) for y in differentiable(self.call(case))])
        after = [x for x in case.tensors.values() if x is not None]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    def test_calls_keep_no_memory(self, compiled_op: Any) -> None:
        """A leak of some bytes a call is also what keeps the allocator from using the memory around it again."""
        libc = ctypes.CDLL(None)
        if not hasattr(libc, "mallinfo2"):
            pytest.skip("only glibc, from 2.33 on, tells what malloc holds")
        libc.mallinfo2.restype = type("mallinfo2", (ctypes.Structure,), {"_fields_": [("x", ctypes.c_size_t * 10)]})
        case = self.cases[self.typical]().to("cpu", torch.float32)
        upstream = [torch.randn_like(y) for y in differentiable(self.call(case))]

        def held(calls: int) -> int:
            with stylekern.use_backend("compiled"):
                for _ in range(calls):
                    self.run(type(self).function, case, upstream)
            gc.collect()
            return int(libc.mallinfo2().x[7])  # uordblks

        before = held(300)
        assert held(1000) - before < 16 * 1000

    def test_compiles_without_a_graph_break(self, backend: str, device: str) -> None:
        if backend == "triton" and device == "cpu":
            pytest.skip("interpreted Triton does not run under fake tensors")
        case = self.cases[self.typical]().to(device, torch.float32)

        def doubled(**tensors: Tensor) -> tuple[Tensor, ...]:
            return tuple(2 * y for y in outputs(type(self).function(**tensors, **case.options)))

        torch._dynamo.reset()
        compiled = torch.compile(doubled, fullgraph=True, backend="aot_eager")
        upstream = [torch.randn_like(y) for y in differentiable(doubled(**case.tensors))]
        expected = self.run(doubled, Case(case.tensors), upstream)
        for a, b in zip(self.run(compiled, Case(case.tensors), upstream), expected, strict=True):
            assert relative_error(a, b) <= TOLERANCE[torch.float32]

    def test_exports(self, compiled_op: Any) -> None:
        """test_export.py makes a program without Python of it, of all operators at once: that takes a C++ compiler."""
        case = self.cases[self.typical]().to("cpu", torch.float32)
        names = list(case.tensors)
        tensors = tuple(None if x is None else x.detach() for x in case.tensors.values())
        function, options = type(self).function, case.options

        class Module(torch.nn.Module):
            def forward(self, *tensors: Tensor | None) -> tuple[Tensor, ...]:
                return outputs(function(**dict(zip(names, tensors, strict=True)), **options))

        exported = torch.export.export(Module(), tensors)
        assert all(map(torch.equal, exported.module()(*tensors), Module()(*tensors)))

    def test_autocast_decides_the_dtype(self, backend: str, device: str) -> None:
        case = self.cases[self.typical]().to(device, torch.float32)
        with torch.autocast(device, dtype=torch.bfloat16):
            given = self.call(case)
        assert all(y.dtype == torch.bfloat16 for y in differentiable(given))
        narrow = {k: None if x is None else x.bfloat16() for k, x in case.tensors.items()}
        assert all(map(torch.equal, given, self.call(Case(narrow, case.options))))

    def test_second_derivatives_are_refused(self, backend: str, device: str) -> None:
        if backend == "reference":
            pytest.skip("the reference is plain torch, and has them")
        case = self.cases[self.typical]().to(device, torch.float32)
        first = next(iter(case.tensors.values()))
        assert first is not None
        (grad,) = torch.autograd.grad(self.call(case)[0].square().sum(), first, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiable once"):
            grad.sum().backward()

    def test_forward_mode_is_refused(self, device: str) -> None:
        case = self.cases[self.typical]().to(device, torch.float32)
        tensors = {k: None if x is None else x.detach() for k, x in case.tensors.items()}
        with torch.autograd.forward_ad.dual_level():
            name, x = next((k, x) for k, x in tensors.items() if x is not None)
            tensors[name] = torch.autograd.forward_ad.make_dual(x, x)
            with pytest.raises(RuntimeError, match="jvp"):
                type(self).function(**tensors, **case.options)

    def test_forward_mode_over_reverse_mode_is_refused(self, backend: str, device: str) -> None:
        if backend == "reference":
            pytest.skip("the reference is plain torch, and has it")
        case = self.cases[self.typical]().to(device, torch.float32)
        name, x = next((k, x) for k, x in case.tensors.items() if x is not None)

        def loss(x: Tensor) -> Tensor:
            return differentiable(self.call(Case(case.tensors | {name: x}, case.options)))[0].square().sum()

        with pytest.raises(RuntimeError, match=f"{self.name} has no forward-mode derivative"):
            torch.func.hessian(loss)(x.detach())

    def test_the_reference_has_forward_mode(self) -> None:
        case = self.cases[self.typical]()
        name, x = next((k, x) for k, x in case.tensors.items() if x is not None)
        x, along, step = x.detach(), torch.randn_like(x), 1e-6

        def at(x: Tensor) -> Tensor:
            return differentiable(self.call(Case(case.tensors | {name: x}, case.options)))[0].detach()

        with stylekern.use_backend("reference"):
            difference = (at(x + step * along) - at(x - step * along)) / (2 * step)
            with torch.autograd.forward_ad.dual_level():
                dual = torch.autograd.forward_ad.make_dual(x, along)
                y = differentiable(self.call(Case(case.tensors | {name: dual}, case.options)))[0]
                tangent = torch.autograd.forward_ad.unpack_dual(y).tangent
        assert relative_error(tangent, difference) < 1e-5

    def test_is_in_the_table(self) -> None:
        assert self.name in OPERATORS

"""From an operator's schemas, fakes and gradient formula to registered torch ops, one a backend."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import has_torch_function

from stylekern import _backends, _library
from stylekern.ops._checks import (
    autocast_enabled,
    forward_mode_enabled,
    no_forward_mode,
    refuse_forward_mode,
    without_autocast,
)

#: Torch's namespace for the ops of a backend. The compiled library defines its own, in C++.
NAMESPACES = {"compiled": "stylekern", "triton": "stylekern_triton"}

#: What `isinstance(x, Tensor)` need not be asked about: torch answers it itself, and takes its time.
_OPTIONS = frozenset((bool, int, float, str, type(None)))

_libraries = {"triton": torch.library.Library("stylekern_triton", "FRAGMENT")}


def _is_seen(args: tuple[Any, ...]) -> bool:
    """Whether something transforms or records the call itself."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or has_torch_function(args)  # whatever handles the call may record gradients of its own
    )


def _in_library(name: str, schema: str) -> bool:
    """Whether the compiled library has the op, with these arguments: one that was built from other sources may not."""
    op = getattr(torch.ops.stylekern, name, None)
    return op is not None and op.default._schema == torch._C.parse_schema(f"stylekern::{name}{schema}")


def _call(
    op: Callable[..., Any], recorded: Callable[..., Any], transformed: Callable[..., Any], args: tuple[Any, ...]
) -> Any:
    """Calls an op, or `recorded` for tensors that record gradients, below torch's own autograd kernel for the op.

    That one is generic, written in Python, and enters the dispatcher once more: forward and backward of a small picture
    would take half as long again. Nor do torch.func's transforms get past it: they take `transformed` apart. What else
    sees the call gets the registered op.
    """
    if not _is_seen(args):
        return _call_unseen(op, recorded, args)
    if torch._C._functorch.peek_interpreter_stack() is None or torch.compiler.is_compiling():
        return op(*args)
    return transformed(*args)


def _call_unseen(op: Callable[..., Any], recorded: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    if torch.is_grad_enabled():
        for x in args:
            if type(x) not in _OPTIONS and isinstance(x, Tensor) and x.requires_grad:
                return recorded(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def _below(op: Callable[..., Any]) -> Callable[..., Any]:
    """An op below autograd."""

    def forward(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    return forward


def _function(name: str, **methods: Callable[..., Any]) -> Callable[..., Any]:
    """An autograd function of these methods, as what is called."""
    members: dict[str, Any] = {key: staticmethod(method) for key, method in methods.items()}
    function: Any = type(name, (torch.autograd.Function,), members | {"generate_vmap_rule": "setup_context" in methods})
    apply: Callable[..., Any] = function.apply
    return apply


def _are_plain(args: tuple[Any, ...], tensors: int) -> bool:
    """Whether the first are dense tensors on the CPU, taken as they are.

    The others have to be words, numbers and tuples of integers: torch would take a tensor's value for a number, and
    drop its gradient.
    """
    for x in args[tensors:]:
        if type(x) not in _OPTIONS and not (isinstance(x, tuple) and all(type(y) is int for y in x)):
            return False
    for x in args[:tensors]:
        if type(x) in _OPTIONS:
            continue
        if type(x) is Tensor or type(x) is Parameter:
            if not x.is_cpu or x.layout is not torch.strided:
                return False
        elif isinstance(x, Tensor):
            return False
    return not (autocast_enabled("cpu") or forward_mode_enabled() or torch._C._len_torch_dispatch_stack())


@dataclass(frozen=True)
class Operator:
    """An operator as torch sees it.

    Attributes:
        name: The stem that every folder uses.
        schema: Of the forward op, without its name: "(Tensor input, ...) -> (Tensor, ...)".
        backward_schema: Of the op `<name>_backward`.
        fake: Shapes and dtypes of the forward's outputs.
        backward_fake: The same for the backward.
        setup_context: What the gradient formula keeps, as in `torch.autograd.Function`.
        backward: The gradient formula: `backward(ctx, run, *grads)`, where run is the backend's backward op.
        reference: The definition, in plain torch; returns the outputs alone.
        check: Raises where the definition's arguments do not fit, in words for the user; returns the dtype to cast
            tensors to under autocast, or None. What it refuses, the compiled op refuses too, in fewer words and less
            time. None where the public function works on its arguments between its own checks and the call.
        outputs: How many of the schema's results are the function's own; the others are for the gradient formula.
        prepare: From the definition's arguments to the schema's, in plain torch, where they differ. It refuses what
            `check` refuses and the op, after it, cannot see.
        preference: Backends, best first.
        cuda: Whether the compiled library has CUDA kernels for it; Triton alone serves the GPU else.
    """

    name: str
    schema: str
    backward_schema: str
    fake: Callable[..., Any]
    backward_fake: Callable[..., Any]
    setup_context: Callable[..., None]
    backward: Callable[..., tuple[Tensor | None, ...]]
    reference: Callable[..., Any]
    check: Callable[..., torch.dtype | None] | None = None
    outputs: int = 1
    prepare: Callable[..., tuple[Any, ...]] | None = None
    preference: tuple[str, ...] = _backends.BACKENDS
    cuda: bool = True
    _ops: dict[str, Callable[..., Any]] = field(default_factory=dict)
    _recorded: dict[str, Callable[..., Any]] = field(default_factory=dict)
    _transformed: dict[str, Callable[..., Any]] = field(default_factory=dict)
    _choices: dict[tuple[str, str], str] = field(default_factory=dict)
    _names: list[str] = field(default_factory=list)
    _tensors: int = field(init=False)  # how many arguments, the first, are tensors

    def __post_init__(self) -> None:
        if not self.cuda:
            _backends.without_cuda.add(self.name)
        object.__setattr__(self, "_tensors", self.schema.partition("->")[0].count("Tensor"))
        self._names.extend(inspect.signature(self.reference).parameters)
        for backend, namespace in NAMESPACES.items():
            if backend != "compiled":
                self._define(backend)
            elif _library.missing:
                continue
            elif not (
                _in_library(self.name, self.schema) and _in_library(f"{self.name}_backward", self.backward_schema)
            ):
                _backends.outdated.add(self.name)
                continue
            self._register(backend, namespace)
        self._choices.update(_backends.choices(self.name, self.preference))

    def __call__(self, *args: Any) -> Any:
        """Checks the definition's arguments, and runs them on the backend that was chosen.

        Raises:
            What `check` raises; RuntimeError where the backend asked for by name cannot run.
        """
        if self.check is not None:
            error = None
            compiled = self._choices.get((_backends.asked(), "cpu")) == "compiled"
            if compiled and not _is_seen(args) and _are_plain(args, self._tensors):
                # The op checks them itself, in less time.
                try:
                    prepared = args if self.prepare is None else self.prepare(*args)
                    return self._results(_call_unseen(self._ops["compiled"], self._recorded["compiled"], prepared))
                except Exception as raised:
                    error = raised
            try:
                cast = self.check(*args)
                if error is not None:  # `check` has nothing against them: it came from elsewhere, as a hook's does
                    raise error
            finally:
                error = None  # its traceback has this frame, and with it the tensors
            if cast is not None:
                args = tuple(x.to(cast) if isinstance(x, Tensor) else x for x in args)
        return self.run(args)

    def run(self, args: tuple[Any, ...]) -> Any:
        """Runs arguments that were checked; the first one decides the device."""
        asked, device = _backends.asked(), args[0].device.type
        backend = self._choices.get((asked, device))
        if backend is None:
            backend = _backends.resolve(asked, self.name, device, self.preference)
        if backend != "reference" and forward_mode_enabled():
            refuse_forward_mode(self.name, *(x for x in args if isinstance(x, Tensor)))
        if backend == "reference" or self.prepare is not None:
            # They are cast for autocast already; products in plain torch would be cast again.
            with without_autocast(device):
                if self.prepare is None or backend == "reference":
                    return self._run_reference(args)
                args = self.prepare(*args)
        return self._results(_call(self._ops[backend], self._recorded[backend], self._transformed[backend], args))

    def _results(self, result: Any) -> Any:
        """The function's own among an op's results."""
        if not isinstance(result, (tuple, list)):
            return result
        return result[0] if self.outputs == 1 else tuple(result[: self.outputs])

    def _run_reference(self, args: tuple[Any, ...]) -> Any:
        """The definition, in float32 or better, its outputs as every backend gives them."""
        dtype = args[0].dtype
        if dtype in (torch.float16, torch.bfloat16):
            args = tuple(x.float() if isinstance(x, Tensor) else x for x in args)
        result = self.reference(**dict(zip(self._names, args, strict=True)))
        results = result if isinstance(result, tuple) else (result,)
        outputs = tuple((x.to(dtype) if x.is_floating_point() else x).contiguous() for x in results)
        return outputs if self.outputs > 1 else outputs[0]

    def _define(self, backend: str) -> None:
        library = _libraries[backend]

        def implementation(function: str) -> Callable[..., Any]:
            def run(*args: Any) -> Any:  # imported at the first call: importing stylekern must not import triton
                module = importlib.import_module(f"stylekern.triton_kernels.{self.name}")
                if function == "backward":  # statistics are read as dense: hooks of saved tensors may have moved them
                    args = tuple(x.contiguous() if isinstance(x, Tensor) and x.dim() < 3 else x for x in args)
                return getattr(module, function)(*args)

            return run

        for name, schema, function in (
            (self.name, self.schema, "forward"),
            (f"{self.name}_backward", self.backward_schema, "backward"),
        ):
            library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
            library.impl(name, implementation(function), "CompositeExplicitAutograd")

    def _register(self, backend: str, namespace: str) -> None:
        ops = getattr(torch.ops, namespace)
        forward_name, backward_name = f"{namespace}::{self.name}", f"{namespace}::{self.name}_backward"
        op, backward_op = getattr(ops, self.name).default, getattr(ops, f"{self.name}_backward").default

        def run_backward(*args: Any) -> Any:
            return _call(backward_op, backward_op, transformed_backward, args)

        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            return self.backward(ctx, run_backward, *grads)

        def refuse(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            raise RuntimeError(
                f"stylekern.{self.name} is differentiable once: its gradient has no gradient. "
                'Within `stylekern.use_backend("reference")` it is plain torch, and has all of them.'
            )

        def jvp(ctx: Any, *tangents: Tensor | None) -> Any:  # where one transform hides tangents from the next
            raise no_forward_mode(self.name)

        def forward(ctx: Any, *args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                result = op(*args)
            self.setup_context(ctx, args, result)
            return result

        torch.library.register_fake(forward_name, self.fake)
        torch.library.register_fake(backward_name, self.backward_fake)
        torch.library.register_autograd(forward_name, backward, setup_context=self.setup_context)
        torch.library.register_autograd(backward_name, refuse)
        self._ops[backend], self._recorded[backend] = op, _function(self.name, forward=forward, backward=backward)
        # What torch.func can take apart has its context set up apart, which takes torch tens of microseconds a call.
        self._transformed[backend] = _function(
            self.name, forward=_below(op), setup_context=self.setup_context, backward=backward, jvp=jvp
        )
        transformed_backward = _function(
            f"{self.name}_backward",
            forward=_below(backward_op),
            setup_context=lambda *_: None,
            backward=refuse,
            jvp=jvp,
        )

"""Triton's interpreter without what it does over and over: of the results not a bit changes.

Of a kernel on small tensors it spends little time on the arrays, and most on the types that describe them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

#: The versions of Triton whose inner workings these are.
KNOWN = ("3.7.0", "3.7.1")


@contextmanager
def quick_interpreter() -> Iterator[None]:
    import triton.language as tl
    from triton.runtime import interpreter

    core, builder = tl.core, interpreter.interpreter_builder

    @functools.cache
    def modules_of(function: Any) -> list[Any]:
        return [module for module in (tl, core) if any(x is module for x in function.__globals__.values())]

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        """What to patch in triton.language was found by the first call; there is nothing left within a kernel."""
        if any(core.is_builtin(module.load) for module in modules_of(self.fn)):
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    init_block, equal = core.block_type.__init__, core.tuple.__eq__

    @functools.cache
    def described(sizes: tuple[int, ...], element: str) -> dict[str, Any]:
        """What types of one shape and one type of element have in common."""
        block = core.block_type.__new__(core.block_type)
        init_block(block, core.int1, list(sizes))
        extent = core.constexpr(math.prod(sizes)), core.tuple([core.constexpr(size) for size in sizes])
        return {"shape": block.shape, "numel": block.numel, "name": f"<{block.shape}, {element}>", "extent": extent}

    def init_block_once(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = shape.values if type(shape) is core.tuple else shape
        vars(self).update(described(tuple([getattr(size, "value", size) for size in sizes]), element_ty.name))
        self.element_ty = element_ty

    def init_tensor(self: Any, handle: Any, ty: Any) -> None:
        self.handle, self.type, self.dtype = handle, ty, ty.scalar
        self.numel, self.shape = ty.extent if isinstance(ty, core.block_type) else scalar

    def equal_sizes(self: Any, other: Any) -> Any:
        values = other.values if type(other) is core.tuple else other
        if type(values) is list and all(type(value) is int for value in values):
            return core.constexpr(self.values == values)
        return equal(self, other)

    scalar = core.constexpr(1), core.tuple([])
    numpy_type, numpy_types = interpreter._get_np_dtype, {}

    def numpy_type_once(ty: Any) -> Any:
        if ty.name not in numpy_types:
            numpy_types[ty.name] = numpy_type(ty)
        return numpy_types[ty.name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        patch.setattr(interpreter, "_get_np_dtype", numpy_type_once)
        patch.setattr(core.block_type, "__init__", init_block_once)
        patch.setattr(core.tensor, "__init__", init_tensor)
        patch.setattr(core.tuple, "__eq__", equal_sizes)
        # Of each sum and product it works out whether it overflows, and says so in debug mode alone.
        assert not builder.options.debug
        patch.setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))
        yield

"""What the tests of the host-run kernels share: tensors that lie in memory as a test asks, and comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = tuple(TOLERANCE)
# Planes that cost careless statistics their digits: with a first value far from the others, and constant ones, which
# float32 makes of such means.
HARD_PLANES = ({"mean": 1, "first": 30}, {"mean": 1, "first": 1e5}, {"mean": 3e9}, {"mean": 1e37})


class Layout:
    """The part of a case that says how its tensors lie in memory; cases are frozen dataclasses that derive from it."""

    dtype: torch.dtype
    shift: int  # values between 16 bytes and the start of every row
    row_gap: int  # values between the end of a row and the next
    only: str = ""  # the one tensor that these two hold for, else all

    def __str__(self) -> str:
        given = [f"{name}={value}" for name, value in vars(self).items() if value != getattr(type(self), name)]
        return ",".join(given).replace("torch.", "").replace("=True", "") or "default"


def accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def values(case: Any, generator: torch.Generator, *shape: int, key: str = "") -> Tensor:
    """A random tensor of this shape whose rows start `shift` values after 16 bytes and lie `row_gap` apart."""
    *outer, w = shape
    shift, row_gap = (case.shift, case.row_gap) if case.only in ("", key) else (0, 0)
    storage = torch.full((shift + math.prod(outer) * (w + row_gap) + 16,), torch.nan, dtype=case.dtype)
    start = (-storage.data_ptr() % 16) // storage.element_size() + shift
    step, strides = w + row_gap, [1]
    for size in reversed(outer):
        strides.insert(0, step)
        step *= size
    x = storage.as_strided(shape, strides, start)
    return x.copy_(torch.randn(shape, generator=generator, dtype=torch.float64))


def unwritten(*shape: int, dtype: torch.dtype) -> Tensor:
    """What a kernel leaves as it was is NaN."""
    return torch.full(shape, torch.nan, dtype=dtype)


def array(x: Tensor | None) -> np.ndarray | None:
    """The same memory in NumPy, which has no bfloat16."""
    if x is None:
        return None
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def assert_close(actual: dict[str, Tensor], wanted: dict[str, Tensor], dtype: torch.dtype, scale: float = 1) -> None:
    """By relative error of the norm. What is of the accumulation type has its tolerance, whatever the inputs are."""
    assert actual.keys() == wanted.keys()
    for key, y in wanted.items():
        tolerance = scale * TOLERANCE[actual[key].dtype if actual[key].dtype == accumulation(dtype) else dtype]
        error = (actual[key].double() - y).norm() / y.norm().clamp(min=1e-12)
        assert actual[key].shape == y.shape and (error <= tolerance or not y.numel()), f"{key}: error {error:.1e}"


def assert_same_bits(actual: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for key, value in actual.items():
        assert torch.equal(value, wanted[key]), key


def assert_order_does_not_matter(host: Any, run: Callable[[], dict[str, Tensor]]) -> None:
    """Neither that of the threads, nor how many blocks share the work."""
    wanted = run()
    for order, seed in (("descending", 0), ("shuffled", 1)):
        host.set_order(order, seed)
        assert_same_bits(run(), wanted)
    host.set_order("ascending", 0)
    host.set_max_blocks(3)
    assert_same_bits(run(), wanted)
    host.set_max_blocks(2**31 - 1)


def off_the_16_bytes(case: Any, *keys: str) -> list[Any]:
    """The case with one of these tensors at a time misplaced, by its start and by its rows."""
    return [replace(case, only=key, **{where: 1}) for key in keys for where in ("shift", "row_gap")]


def cases(*given: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", given, ids=str)

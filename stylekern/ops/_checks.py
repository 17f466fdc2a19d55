"""Argument checks: what was given, what was expected, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def shape(x: Tensor) -> str:
    """A shape for a message: [2, 3, 8, 8]."""
    return str(list(x.shape))


def check_tensors(operator: str, tensors: dict[str, tuple[Any, int, str]]) -> None:
    """Checks type, dimensions, dtype and device of named tensors against the first.

    Args:
        operator: For messages.
        tensors: name -> (value, dimensions, shape in words).

    Raises:
        TypeError: Not a dense tensor; a dtype that is not floating point; dtypes that differ.
        ValueError: A wrong number of dimensions.
        RuntimeError: Devices that differ.
    """
    first_name, first = "", None
    for name, (x, dims, words) in tensors.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{operator}: {name} must be a tensor {words}, got {type(x).__name__}")
        if x.layout is not torch.strided:
            raise TypeError(f"{operator}: {name} must be a dense tensor, got layout {x.layout}; call .to_dense()")
        if x.dim() != dims:
            raise ValueError(f"{operator}: {name} must be {words}, got shape {shape(x)}")
        if first is None:
            first_name, first = name, x
            if x.dtype not in DTYPES:
                raise TypeError(f"{operator}: {name} must be float32, float64, float16 or bfloat16, got {x.dtype}")
        if x.dtype is not first.dtype and x.dtype != first.dtype:
            raise TypeError(
                f"{operator}: {name} is {x.dtype}, but {first_name} is {first.dtype}; convert one, or use autocast"
            )
        if x.device != first.device:
            raise RuntimeError(
                f"{operator}: {name} is on {x.device}, but {first_name} is on {first.device}; move one with .to()"
            )


def check_option(operator: str, name: str, value: str, options: Sequence[str]) -> None:
    """Raises ValueError unless value is one of the options."""
    if value not in options:
        raise ValueError(f"{operator}: {name} must be one of {', '.join(options)}, got {value!r}")


def refuse_forward_mode(operator: str, *tensors: Tensor | None) -> None:
    """Raises RuntimeError where a tensor carries a forward-mode tangent, which the kernels would drop in silence."""
    if forward_ad._current_level < 0:
        return
    for x in tensors:
        if x is not None and forward_ad.unpack_dual(x).tangent is not None:
            raise RuntimeError(
                f"{operator} has no forward-mode derivative (jvp); use reverse mode, "
                'or `stylekern.use_backend("reference")`, which is plain torch'
            )


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in the autocast dtype of the first one's device, where autocast is on; float64 stays."""
    first = tensors[0]
    assert first is not None
    if first.dtype == torch.float64 or not torch.is_autocast_enabled(first.device.type):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)
    return tuple(x if x is None else x.to(dtype) for x in tensors)

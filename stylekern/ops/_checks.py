"""Argument checks: what was given, what was expected, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral, Real
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def shape(x: Tensor) -> str:
    """A shape for a message: [2, 3, 8, 8]."""
    return str(list(x.shape))


def sums_dtype(x: Tensor) -> torch.dtype:
    """What sums over x run in: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def autocast_enabled(device_type: str) -> bool:
    """Whether autocast is on; the meta device has none, and torch refuses the question."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def without_autocast(device_type: str) -> AbstractContextManager[None]:
    """A context in which plain torch keeps its arguments' dtypes."""
    return torch.autocast(device_type, enabled=False) if autocast_enabled(device_type) else nullcontext()


def check_tensors(operator: str, tensors: Iterable[tuple[str, Any, int, str]]) -> torch.dtype | None:
    """Checks type, dimensions, dtype and device of named tensors.

    Args:
        operator: For messages.
        tensors: (name, value, dimensions, shape in words), without those that are None. The first decides the device,
            and the dtype unless autocast does.

    Returns:
        The dtype to cast all of them to, where autocast is on for the device; None where they stay. float64 stays.

    Raises:
        TypeError: Not a dense tensor; a dtype that is not floating point; dtypes that differ outside of autocast.
        ValueError: A wrong number of dimensions.
        RuntimeError: Devices that differ.
    """
    first_name, first, cast = "", None, None
    for name, x, dims, words in tensors:
        if not isinstance(x, Tensor):
            raise TypeError(f"{operator}: {name} must be a tensor {words}, got {type(x).__name__}")
        if x.layout is not torch.strided or x.is_nested:
            got = "a nested one; call .to_padded_tensor(0)" if x.is_nested else f"layout {x.layout}; call .to_dense()"
            raise TypeError(f"{operator}: {name} must be a dense tensor, got {got}")
        if x.dim() != dims:
            raise ValueError(f"{operator}: {name} must be {words}, got shape {shape(x)}")
        dtype = x.dtype
        if dtype not in DTYPES:
            raise TypeError(f"{operator}: {name} must be float32, float64, float16 or bfloat16, got {dtype}")
        if first is None:
            first_name, first = name, x
            if dtype != torch.float64 and autocast_enabled(x.device.type):
                cast = torch.get_autocast_dtype(x.device.type)
            continue
        if dtype != first.dtype and (cast is None or dtype == torch.float64):
            raise TypeError(
                f"{operator}: {name} is {dtype}, but {first_name} is {first.dtype}; convert one, or use autocast"
            )
        if x.device != first.device:
            raise RuntimeError(
                f"{operator}: {name} is on {x.device}, but {first_name} is on {first.device}; move one with .to()"
            )
    return cast


def check_tensor(owner: str, name: str, x: Any) -> None:
    """Raises TypeError unless x is a tensor of floating point."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{owner}: {name} must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{owner}: {name} must be of floating point, got {x.dtype}; call .float()")


def check_option(operator: str, name: str, value: str, options: Sequence[str]) -> None:
    """Raises ValueError unless value is one of the options."""
    if value not in options:
        raise ValueError(f"{operator}: {name} must be one of {', '.join(options)}, got {value!r}")


def check_pixels(owner: str, name: str, images: Any) -> None:
    """Raises TypeError unless images are a tensor of floating point."""
    if isinstance(images, Tensor) and images.is_floating_point():
        return
    given, remedy = type(images).__name__, ""
    if isinstance(images, Tensor):
        given, remedy = str(images.dtype), f"; {name}.float() / 255 makes them of bytes"
    raise TypeError(f"{owner}: {name} must be a floating-point tensor with values in [0, 1], got {given}{remedy}")


def is_number(value: Any) -> bool:
    """Whether value is a number that torch takes as one; a tensor is none, which would lose its gradient."""
    return isinstance(value, (int, float, torch.SymInt, torch.SymFloat, Real))


def is_integer(value: Any) -> bool:
    """Whether value is an integer that torch takes as one."""
    return isinstance(value, (int, torch.SymInt, Integral))


def check_finite(owner: str, name: str, value: Any) -> None:
    """Raises TypeError unless value is a number, ValueError unless it is finite."""
    if not is_number(value):
        raise TypeError(f"{owner}: {name} must be a number, got {type(value).__name__}")
    if not abs(value) < float("inf"):
        raise ValueError(f"{owner}: {name} must be finite, got {value}")


def check_positive(owner: str, name: str, value: Any) -> None:
    """Raises TypeError unless value is a number, ValueError unless it is positive and finite."""
    if is_number(value) and not 0 < value < float("inf"):
        raise ValueError(f"{owner}: {name} must be positive and finite, got {value}")
    check_finite(owner, name, value)


def check_count(owner: str, name: str, value: Any) -> None:
    """Raises TypeError unless value is an integer, ValueError unless it is positive."""
    if not is_integer(value):
        raise TypeError(f"{owner}: {name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{owner}: {name} must be positive, got {value}")


def check_counts(owner: str, name: str, values: Any, length: int | None = None) -> None:
    """Raises TypeError unless values are integers, ValueError unless they are positive and as many as `length` says."""
    many = "a sequence of" if length is None else str(length)
    if not isinstance(values, Iterable) or not all(is_integer(value) for value in values):
        raise TypeError(f"{owner}: {name} must be {many} positive integers, got {values!r}")
    given = list(values)
    if not given or length not in (None, len(given)) or min(given) < 1:
        raise ValueError(f"{owner}: {name} must be {many} positive integers, got {given}")


def check_numbers(operator: str, eps: float, correction: int = 0) -> None:
    """Raises TypeError unless eps is a number and correction an integer."""
    if not is_number(eps):
        raise TypeError(f"{operator}: eps must be a number, got {type(eps).__name__}")
    if not is_integer(correction):
        raise TypeError(f"{operator}: correction must be an integer, got {type(correction).__name__}")


def check_variance(operator: str, name: str, x: Tensor, correction: int) -> None:
    """Raises ValueError where a plane of x, [N, C, H, W], has too few positions for a variance with this correction."""
    n, c, h, w = x.shape
    if n and c and 0 < h * w <= correction:
        raise ValueError(
            f"{operator}: the variance of {name}'s {h} x {w} positions with correction={correction} is not defined"
        )


def forward_mode_enabled() -> bool:
    """Whether tensors can carry forward-mode tangents here."""
    return forward_ad._current_level >= 0


def no_forward_mode(operator: str) -> RuntimeError:
    """What to raise where a forward-mode derivative is asked for."""
    return RuntimeError(
        f"{operator} has no forward-mode derivative (jvp); use reverse mode, "
        'or `stylekern.use_backend("reference")`, which is plain torch'
    )


def refuse_forward_mode(operator: str, *tensors: Tensor | None) -> None:
    """Raises RuntimeError where a tensor carries a forward-mode tangent, which the kernels would drop in silence."""
    if not forward_mode_enabled():
        return
    for x in tensors:
        if x is not None and forward_ad.unpack_dual(x).tangent is not None:
            raise no_forward_mode(operator)

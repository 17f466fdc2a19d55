"""Cases and what they are judged by: layouts, tolerances, relative errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

#: The error's norm over the truth's. One table for every operator: float32 sums in float32, 16-bit types round once.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.clone(memory_format=torch.contiguous_format),
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1) if x.dim() > 1 else x,
    "permuted": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.dim() > 1 else x,
    "sliced": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "strided": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "misaligned": lambda x: torch.cat([x.new_zeros(1), x.reshape(-1)])[1:].view(x.shape),
}


@dataclass
class Case:
    """Arguments in float64: tensors by name (None stays None), and options."""

    tensors: dict[str, Tensor | None]
    options: dict[str, Any] = field(default_factory=dict)

    def to(self, device: str, dtype: torch.dtype, layout: str = "contiguous") -> Case:
        change = LAYOUTS[layout]
        moved = {k: None if x is None else change(x.to(device, dtype)) for k, x in self.tensors.items()}
        return Case({k: None if x is None else x.detach().requires_grad_() for k, x in moved.items()}, self.options)


def arguments_of(make: Callable[[], Case], **changes: Any) -> Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]:
    """Builds a call's arguments, float32, some of them replaced; values that are functions change the tensor."""

    def build() -> tuple[tuple[Any, ...], dict[str, Any]]:
        tensors: dict[str, Any] = {k: None if x is None else x.float() for k, x in make().tensors.items()}
        for name in tensors.keys() & changes.keys():
            change = changes[name]
            tensors[name] = change(tensors[name]) if callable(change) else change
        return tuple(tensors.values()), {k: v for k, v in changes.items() if k not in tensors}

    return build


def outputs(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a function returned, one tensor or several."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def differentiable(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Those that can have gradients: indices have none."""
    return tuple(y for y in outputs(result) if y.is_floating_point())


def relative_error(given: Tensor, truth: Tensor) -> float:
    """The norm of the difference over the norm of the truth; NaN is an infinite error."""
    difference = (given.double().cpu() - truth.double().cpu()).norm().item()
    return math.inf if math.isnan(difference) else difference / max(truth.double().norm().item(), 1e-30)


def assert_close(
    given: Tensor, truth: Tensor, dtype: torch.dtype, what: str, plain: Callable[[], Tensor] | None = None
) -> None:
    """Within the table's tolerance, and not off to one side.

    Where plain torch's own result at that dtype, which `plain` computes, is itself further off, the problem is
    ill-conditioned, and the bound is four times its error, unless that is not finite.
    """
    assert given.dtype == dtype and given.shape == truth.shape, what
    if truth.numel() == 0:
        return
    bound, error = TOLERANCE[dtype], relative_error(given, truth)
    bias = (given.double().cpu() - truth.double().cpu()).mean().abs() / truth.double().cpu().abs().mean().clamp_min(
        1e-30
    )
    if plain is not None and not (error <= bound and bias <= 4 * bound):
        torchs = relative_error(plain(), truth)
        bound = max(bound, 4 * torchs) if math.isfinite(torchs) else bound
    assert error <= bound, f"{what}: relative error {error:.2e}"
    assert bias <= 4 * bound, f"{what}: signed bias {bias:.2e}"


def far_at_quarters(x: Tensor, value: float) -> Tensor:
    """x with a value far from the others at the quarters of each plane: by rows and columns, and as one long row.

    Statistics that are taken about a few values from all over a plane begin there.
    """
    h, w = x.shape[-2:]
    x = x.clone()
    for k in range(4):
        for i in (k * h // 4 * w + k * w // 4, k * h * w // 4):
            x[..., i // w, i % w] = value
    return x

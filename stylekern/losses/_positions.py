"""Fewer positions, chosen in a way that depends on the size only."""

from __future__ import annotations

from torch import Tensor

from stylekern.ops._checks import is_integer


def check_max_positions(owner: str, max_positions: int | None) -> None:
    """Raises TypeError or ValueError unless at least one position, or all, may be taken."""
    if max_positions is not None and not is_integer(max_positions):
        raise TypeError(f"{owner}: max_positions must be an integer or None, got {max_positions!r}")
    if max_positions is not None and max_positions < 1:
        raise ValueError(f"{owner}: max_positions must be at least 1, or None for all, got {max_positions}")


def regular_grid(features: Tensor, max_positions: int | None) -> Tensor:
    """At most so many positions of [N, C, h, w], a view: every s-th row and column, with the least s that will do.

    The grid starts half a step in. It depends on nothing but h and w, so that pictures of one size are seen at the same
    places, and every call sees the same.
    """
    h, w = features.shape[2:]
    step = 1
    while max_positions is not None and len(_every(step, h)) * len(_every(step, w)) > max_positions:
        step += 1
    return features[:, :, _every(step, h).start :: step, _every(step, w).start :: step]


def _every(step: int, size: int) -> range:
    return range(min((step - 1) // 2, (size - 1) // 2), size, step)

"""The Triton kernels are tested in memory that is as poisoned as the operators'."""

from __future__ import annotations

from ..ops.conftest import poisoned_memory

__all__ = ["poisoned_memory"]

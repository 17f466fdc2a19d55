"""The Triton kernels are tested in the interpreter, in memory that is as poisoned as the operators'."""

from __future__ import annotations

import os

import pytest

from ..ops.conftest import poisoned_memory

__all__ = ["poisoned_memory"]


@pytest.fixture(autouse=True)
def interpreted() -> None:
    """These tests call kernels with tensors of the CPU, so they need the interpreter; a GPU runs them in tests/ops."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("on a GPU tests/ops runs these kernels; here they need the interpreter")

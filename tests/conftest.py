"""Before anything imports triton: without a GPU its kernels run in the interpreter. Each test has inputs of its own."""

from __future__ import annotations

import functools
import importlib.util
import os
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch asks of deterministic products on a GPU
torch.backends.cudnn.allow_tf32 = False
torch.set_num_threads(2)


@pytest.fixture(autouse=True, scope="session")
def quick_interpreter() -> Iterator[None]:
    """Triton's interpreter looks for what to patch in triton.language at each call of a function within a kernel.

    That takes a third of its time, and finds nothing after the first.
    """
    if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    @functools.cache
    def modules_of(function: Any) -> list[Any]:
        return [module for module in (tl, tl.core) if any(x is module for x in function.__globals__.values())]

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(tl.core.is_builtin(module.load) for module in modules_of(self.fn)):
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    """By the test's name: the same inputs each time, and others in each test."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(skip)

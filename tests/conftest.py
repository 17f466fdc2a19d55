"""Before anything imports torch or triton: without a GPU kernels are interpreted. Each test has inputs of its own."""

from __future__ import annotations

import importlib.util
import os
import zlib
from collections.abc import Iterator

import pytest

# Tests run side by side: a thread that has nothing to do sleeps, rather than take the time of another process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch

from .quick_interpreter import quick_interpreter

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch asks of deterministic products on a GPU
torch.backends.cudnn.allow_tf32 = False
torch.set_num_threads(2)


@pytest.fixture(autouse=True, scope="session")
def interpreter() -> Iterator[None]:
    if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
        yield
        return
    with quick_interpreter():
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

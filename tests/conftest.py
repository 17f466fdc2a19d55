"""Before anything imports torch or triton: without a GPU kernels are interpreted. Each test has inputs of its own."""

from __future__ import annotations

import importlib
import importlib.util
import os
import zlib
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

# Tests run side by side: a thread that has nothing to do sleeps, rather than take the time of another process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch

from .quick_interpreter import KNOWN, quick_interpreter

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch asks of deterministic products on a GPU
torch.backends.cudnn.allow_tf32 = False
torch.set_num_threads(2)


@pytest.fixture(autouse=True, scope="session")
def interpreter() -> Iterator[None]:
    """Triton's, in less time where it is the one that quick_interpreter knows; another's results are the same."""
    known = importlib.util.find_spec("triton") and importlib.import_module("triton").__version__ in KNOWN
    with quick_interpreter() if known and os.environ.get("TRITON_INTERPRET") == "1" else nullcontext():
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

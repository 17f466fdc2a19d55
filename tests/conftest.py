"""Before anything imports triton: without a GPU its kernels run in the interpreter. Each test has inputs of its own."""

from __future__ import annotations

import os
import zlib

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
torch.set_num_threads(2)


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

"""What the operators' tests share without a call: poisoned memory, and the cases of each suite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN, so that a value which no kernel writes cannot pass."""
    # On a GPU the gradients of torch's own padding, which the reference uses, have no deterministic algorithm.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    yield
    torch.use_deterministic_algorithms(False)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrises by the own cases of a subclass of OperatorSuite."""
    if "threaded_name" in metafunc.fixturenames:
        metafunc.parametrize("threaded_name", metafunc.cls.threaded)
    if "case_name" in metafunc.fixturenames and metafunc.function.__name__ != "test_opcheck":
        metafunc.parametrize("case_name", metafunc.cls.cases)
    if "bad_name" in metafunc.fixturenames:
        metafunc.parametrize("bad_name", metafunc.cls.bad)

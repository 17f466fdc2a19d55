"""A program without Python that calls every operator: torch exports it and compiles it ahead of time, once for all."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stylekern import _backends
from stylekern.ops import OPERATORS

from .cases import outputs
from .suite import OperatorSuite

# remd is not among them: it is plain torch over min_distances, and a compiler adds means up in an order of its own.
SUITES = [
    suite
    for name in OPERATORS
    for suite in vars(importlib.import_module(f"{__package__}.test_{name}")).values()
    if isinstance(suite, type) and issubclass(suite, OperatorSuite) and suite is not OperatorSuite
]


def test_every_operator_has_its_suite() -> None:
    assert [suite.name for suite in SUITES] == list(OPERATORS)


@pytest.mark.slow
def test_a_program_without_python_gives_the_same(tmp_path: Path) -> None:
    if missing := [reason for name in OPERATORS if (reason := _backends.why_no_compiled(name, "cpu"))]:
        pytest.skip(missing[0])
    cases = [suite.cases[suite.typical]().to("cpu", torch.float32) for suite in SUITES]
    tensors = tuple(None if x is None else x.detach() for case in cases for x in case.tensors.values())

    class Program(torch.nn.Module):
        def forward(self, *tensors: Tensor | None) -> tuple[Tensor, ...]:
            waiting, results = iter(tensors), []
            for suite, case in zip(SUITES, cases, strict=True):
                given = {name: next(waiting) for name in case.tensors}
                results += [2 * y for y in outputs(suite.function(**given, **case.options))]
            return tuple(results)

    exported = torch.export.export(Program(), tensors)
    assert all(f"stylekern.{name}." in exported.graph_module.code for name in OPERATORS)
    package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "program.pt2"))
    assert all(map(torch.equal, torch._inductor.aoti_load_package(package)(*tensors), Program()(*tensors)))

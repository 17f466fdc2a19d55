"""Collects a row for each benchmark, prints them as one table, and keeps versions in pytest-benchmark's JSON."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import stylekern
from stylekern import _library

from .kit import DEVICE, settle_heap

settle_heap()

rows: list[dict[str, str]] = []


@pytest.fixture
def table() -> list[dict[str, str]]:
    """Benchmarks append a row: column -> text."""
    return rows


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["torch"], machine_info["stylekern"] = torch.__version__, stylekern.__version__
    machine_info["threads"], machine_info["library"] = torch.get_num_threads(), dict(_library.build_options)
    if torch.cuda.is_available():
        machine_info["gpu"] = torch.cuda.get_device_name()


def pytest_collection_modifyitems() -> None:
    if DEVICE == "cpu" and _library.missing:
        raise pytest.UsageError(f"the reference would be timed against itself: {_library.missing}")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not rows:
        return
    columns = list(dict.fromkeys(column for row in rows for column in row))
    widths = [max(len(column), *(len(row.get(column, "")) for row in rows)) for column in columns]
    terminalreporter.section("ours against eager, torch.compile, and a copy of the same bytes, in one run each")
    for cells in (columns, *([row.get(c, "") for c in columns] for row in rows)):
        terminalreporter.write_line("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))

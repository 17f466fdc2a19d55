"""The results that a file of pytest-benchmark's JSON holds, as a page of Markdown.

python -m benchmarks.table benchmarks/results/FILE.json
"""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any


def markdown(rows: list[dict[str, str]], leave_out: tuple[str, ...] = ()) -> str:
    """One table of rows, column -> text."""
    columns = [column for column in dict.fromkeys(c for row in rows for c in row) if column not in leave_out]
    lines = [columns, ["---"] * len(columns), *([row.get(c, "") for c in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def page(data: dict[str, Any]) -> str:
    """All results: where they were measured, and a table an operator."""
    machine, gpu = data["machine_info"], data.get("gpu")
    commit = data.get("commit") or data["commit_info"]["id"][:7]  # the former: `make gpu` leaves out the rest
    where = f"{gpu['name']} (driver {gpu['driver']})" if gpu else machine["cpu"]["brand_raw"]
    parts = [f"{where}, torch {machine['torch']}, Python {machine['python_version']}, commit {commit}."]
    rows = [benchmark["extra_info"]["row"] for benchmark in data["benchmarks"]]
    for name, some in groupby(rows, lambda row: row.get("operator", "networks")):
        parts += [f"### {name}", markdown(list(some), leave_out=("operator",))]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page(json.loads(Path(sys.argv[1]).read_text())))

"""CPU kernels touch no byte beyond their tensors: each tensor lies alone between pages that cannot be touched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stylekern import _library

HERE = Path(__file__).resolve().parent

START = """
import ctypes, faulthandler, torch
faulthandler.enable()
x = torch.randn(3, 16)  # 192 bytes: as long as its alignment asks for
"""
MISTAKES = {
    "reads-behind": ("end", "ctypes.string_at(x.data_ptr() + x.nbytes, 1)", "Segmentation fault"),
    "reads-before": ("begin", "ctypes.string_at(x.data_ptr() - 1, 1)", "Segmentation fault"),
    "writes-behind": ("begin", "ctypes.memset(x.data_ptr() + x.nbytes, 0, 1); del x", "byte 192 of a tensor of 192"),
    "writes-before": ("end", "ctypes.memset(x.data_ptr() - 1, 0, 1); del x", "byte -1 of a tensor of 192"),
    "reads-freed": ("end", "p = x.data_ptr(); del x; ctypes.string_at(p, 1)", "Segmentation fault"),
}
# Every case of every operator, with inputs that begin or end where their memory does.
OPERATORS = f"""
import importlib, os, pathlib, sys
sys.path.insert(0, {str(HERE.parents[1])!r})
import stylekern
from tests.ops.cases import LAYOUTS, differentiable
from tests.ops.suite import OperatorSuite

def last(x):
    room = x.new_empty(-(-x.nbytes // 64) * 64 // x.itemsize)
    room[room.numel() - x.numel():] = x.reshape(-1)
    return room[room.numel() - x.numel():].view(x.shape)

LAYOUTS["last"] = last
layout = "last" if os.environ["GUARDED_MEMORY"] == "end" else "contiguous"
for path in sorted(pathlib.Path({str(HERE)!r}).glob("test_*.py")):
    importlib.import_module(f"tests.ops.{{path.stem}}")
with stylekern.use_backend("compiled"):
    for suite in OperatorSuite.__subclasses__():
        for name, case in (suite.cases | suite.threaded).items():
            for dtype in (torch.float32, torch.bfloat16, torch.float64):
                print(suite.name, name, dtype, flush=True)
                given = case().to("cpu", dtype, layout)
                upstream = [LAYOUTS[layout](torch.randn_like(y)) for y in differentiable(suite().call(given))]
                suite().run(suite.function, given, upstream)
print("all done")
"""


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python code with every tensor in guarded memory, at the begin or the end of its pages."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if sys.platform != "linux" or not compiler:
        pytest.skip("needs Linux and a C compiler")
    if b"mimalloc" in (Path(torch.__file__).parent / "lib" / "libc10.so").read_bytes():
        pytest.skip("this torch, as those for aarch64, has an allocator of its own for tensors")
    library = tmp_path_factory.mktemp("guarded") / "guarded_memory.so"
    source = HERE / "guarded_memory.c"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)

    def run(code: str, placement: str, **environment: str) -> subprocess.CompletedProcess[str]:
        environment |= {"LD_PRELOAD": str(library), "GUARDED_MEMORY": placement}
        return subprocess.run(
            [sys.executable, "-c", START + code], env=os.environ | environment, capture_output=True, text=True
        )

    return run


@pytest.mark.parametrize("mistake", MISTAKES)
def test_notices(mistake: str, guarded: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    placement, code, message = MISTAKES[mistake]
    done = guarded(code, placement)
    assert done.returncode < 0 and message in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(bool(_library.missing), reason=_library.missing or "")
@pytest.mark.parametrize("target", ["baseline", "avx2", "best"])
@pytest.mark.parametrize("placement", ["begin", "end"])
def test_operators_stay_within(
    placement: str, target: str, guarded: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    if _library.build_options["cpu_target"] == target:
        pytest.skip(f"{target} is this processor's best")
    done = guarded(OPERATORS, placement, STYLEKERN_CPU_TARGET="" if target == "best" else target)
    assert done.stdout.endswith("all done\n"), f"{done.stdout[-200:]}\n{done.stderr[-4000:]}"

"""The house keeps its rules: layers, lengths, one list of sources, an import that costs nothing."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = [
    {"stylekern.cli"},
    {"stylekern.models"},
    {"stylekern.losses", "stylekern.encoders", "stylekern.nn"},
    {"stylekern.ops"},
    {"stylekern.reference", "stylekern.triton_kernels"},
]


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, cwd="/"
    )


def layer(module: str) -> int | None:
    return next((i for i, names in enumerate(LAYERS) if any(re.match(rf"{n}(\.|$)", module) for n in names)), None)


def test_arrows_run_one_way():
    for path in (ROOT / "stylekern").rglob("*.py"):
        own = layer(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
            for name in names:
                theirs = layer(name)
                assert own is None or theirs is None or theirs >= own, f"{path} imports {name}"


def test_triton_kernels_import_torch_and_triton_only():
    allowed = {"torch", "triton", "__future__", "collections", "contextlib", "functools", "math", "struct", "typing"}
    for path in (ROOT / "triton_kernels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            assert {name.split(".")[0] for name in names} <= allowed, path


def test_the_bare_name_triton_kernels_is_refused():
    result = run("import triton_kernels", PYTHONPATH=str(ROOT))
    assert result.returncode and "ImportError" in result.stderr and "stylekern" in result.stderr


def test_no_file_is_longer_than_400_lines():
    for folder in ("csrc", "stylekern", "triton_kernels", "tests", "benchmarks", "tools", "examples"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".cpp", ".h", ".cu", ".cuh"}:
                assert len(path.read_text().splitlines()) <= 400, path


def test_the_page_of_results_is_what_was_measured():
    from benchmarks.table import page

    found = list((ROOT / "benchmarks" / "results").glob("*.json"))
    assert found
    for path in found:
        assert page(json.loads(path.read_text())) in (ROOT / "docs" / "gpu.md").read_text(), path


def test_every_operator_has_all_its_rooms():
    from stylekern.ops import OPERATORS

    rooms = "stylekern/reference/{}.py stylekern/ops/{}.py csrc/cpu/{}.cpp triton_kernels/{}.py docs/ops/{}.md"
    tests = "tests/ops/test_{}.py tests/triton/test_{}.py benchmarks/bench_{}.py"
    cuda = "csrc/cuda/{}.cu csrc/cuda/{}.cuh tests/cuda_host/test_{}.py"
    missing, readme = [], (ROOT / "README.md").read_text()
    for name, operator in OPERATORS.items():
        all_rooms = (*rooms.split(), *tests.split(), *(cuda.split() if operator.cuda else ()))
        missing += [room.format(name) for room in all_rooms if not (ROOT / room.format(name)).is_file()]
        if f"](docs/ops/{name}.md)" not in readme:
            missing.append(f"{name} in README's table of operators")
    assert not missing


def test_every_operator_goes_through_the_sanitizers():
    import gpu

    from stylekern.ops import OPERATORS

    missing = [name for name in OPERATORS if f"ops.{name}," not in gpu.SANITIZED]
    assert not missing, f"tools/gpu.py: SANITIZED lacks {missing}"
    result = run(gpu.SANITIZED.replace('"cuda"', '"cpu"', 1))
    assert result.returncode == 0, result.stderr


def test_setup_and_cmake_build_the_same_sources():
    import build_library

    cmake = (ROOT / "CMakeLists.txt").read_text()
    patterns = [p for line in re.findall(r"file\(GLOB \w+ CONFIGURE_DEPENDS (.*)\)", cmake) for p in line.split()]
    globbed = sorted(str(path.relative_to(ROOT)) for p in patterns for path in ROOT.glob(p))
    assert globbed == build_library.sources("cuda")
    assert any(name.endswith(".cu") for name in globbed)


def test_the_readme_runs_as_it_stands():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        result = run(block)
        assert result.returncode == 0, result.stderr


def test_importing_the_operators_is_quick_and_touches_no_driver():
    code = (
        "import time, sys, torch; t = time.process_time(); import stylekern.ops; t = time.process_time() - t;"
        "assert 'triton' not in sys.modules and 'torch._dynamo' not in sys.modules;"
        "assert not torch.cuda.is_initialized(); print(t)"
    )
    seconds = min(float(run(code).stdout) for _ in range(3))
    assert seconds < 0.2


def test_an_operator_that_the_library_lacks_is_served_by_the_reference():
    """As after a pull, until the library is built again."""
    code = (
        "import torch; from dataclasses import replace; from stylekern import _backends, use_backend\n"
        "from stylekern.ops._operator import _in_library; from stylekern.ops import OPERATORS, adain\n"
        "fresh = {name: {} for name in ('_ops', '_recorded', '_transformed', '_choices')}\n"
        "newer = replace(OPERATORS['adain'], name='newer', _names=[], **fresh)\n"
        "x, y = torch.randn(2, 1, 3, 5, 6)\n"
        "with use_backend('reference'): expected = adain(x, y, correction=0)\n"
        "print(torch.equal(newer(x, y, 1e-5, 0), expected))\n"
        "assert _backends.outdated <= {'newer'}, _backends.outdated\n"
        "assert not _in_library('adain', '(Tensor content) -> Tensor')\n"
        "print(_backends.why_not('compiled', 'newer', 'cpu'))"
    )
    result = run(code)
    assert result.stdout.startswith("True\n"), result.stderr
    assert re.search("was built from other sources|was not built", result.stdout)


def test_without_a_library_the_reference_serves():
    code = (
        "import sys; sys.modules['stylekern._C'] = None; import torch\n"
        "from stylekern.ops import style_kernel_conv as f\n"
        "x, k = torch.randn(1, 2, 5, 6), torch.randn(1, 2, 3, 5, 6); print(f(x, k, k).shape)\n"
        "import stylekern\n"
        "with stylekern.use_backend('compiled'):\n  f(x, k, k)"
    )
    result = run(code)
    assert "[1, 2, 5, 6]" in result.stdout
    assert "backend 'compiled' cannot run on device cpu: the compiled library" in result.stderr


def test_a_backend_of_another_name_is_refused():
    import stylekern

    with (
        pytest.raises(ValueError, match="auto, compiled, triton, reference, got 'cudnn'"),
        stylekern.use_backend("cudnn"),
    ):
        pass


def test_blocks_of_backends_may_end_in_any_order():
    """Those of threads and generators do."""
    import stylekern
    from stylekern import _backends

    before = _backends.asked()
    first, second, third = (stylekern.use_backend(name) for name in ("reference", "triton", "reference"))
    for block in (first, second, third):
        block.__enter__()
    for block, asked in ((second, "reference"), (third, "reference"), (first, before)):
        block.__exit__(None, None, None)
        assert _backends.asked() == asked
    with stylekern.use_backend("reference"), pytest.raises(KeyError), stylekern.use_backend("triton"):
        raise KeyError
    assert _backends.asked() == before


def test_info_says_who_serves_and_why_others_do_not():
    result = run("from stylekern.cli import main; main(['info'])", TRITON_INTERPRET="0")
    assert re.search(r"style_kernel_conv on cpu: \w+", result.stdout)
    assert "not triton: Triton runs on a GPU" in result.stdout


def test_info_lists_what_a_backend_asked_for_by_name_cannot_serve():
    code = "import sys; sys.modules['stylekern._C'] = None; from stylekern.cli import main; main(['info'])"
    result = run(code, STYLEKERN_BACKEND="compiled")
    assert result.returncode == 0, result.stderr
    assert (
        "min_distances on cpu: an error, as compiled is asked for\n  not compiled: the compiled library"
        in result.stdout
    )


def test_sources_that_hide_an_installation_are_told(tmp_path: Path):
    (tmp_path / "stylekern").mkdir()
    (tmp_path / "stylekern/_C.abi3.so").touch()
    code = (
        f"import sys; sys.modules['stylekern._C'] = None; sys.path.append({str(tmp_path)!r}); import stylekern._library"
    )
    result = run(f"{code} as library; print(library.missing)", PYTHONPATH=str(ROOT))
    assert f"the sources in {ROOT / 'stylekern'} hide the compiled installation in {tmp_path}" in result.stdout


def test_benchmarks_give_what_compiles_first_turns_as_long_as_the_others():
    from benchmarks.kit import medians

    calls = 0

    def compiles_first() -> None:
        nonlocal calls
        time.sleep(0.0005 if calls else 0.1)
        calls += 1

    medians({"compiled": compiles_first}, rounds=2, seconds=0.02)
    assert calls > 20


def test_benchmarks_refuse_to_time_the_reference_against_itself():
    code = (
        "import sys, pytest; sys.modules['stylekern._C'] = None\n"
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', {str(ROOT / 'benchmarks/bench_adain.py')!r}]))"
    )
    result = run(code)
    assert result.returncode == pytest.ExitCode.USAGE_ERROR, result.stdout
    assert "the reference would be timed against itself: the compiled library" in result.stdout + result.stderr


@pytest.mark.parametrize("variable", ["STYLEKERN_BACKEND", "STYLEKERN_CPU_TARGET"])
def test_environment_variables_name_themselves_when_they_are_wrong(variable: str):
    result = run("import stylekern.ops", **{variable: "cudnn"})
    assert f"ValueError: {variable} must be" in result.stderr and "got 'cudnn'" in result.stderr
    assert run("import stylekern.ops", **{variable: ""}).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("target", ["baseline", "avx2"])
def test_every_instruction_set_keeps_the_contract(target: str):
    from stylekern import _library

    if _library.missing:
        pytest.skip(_library.missing)
    if _library.build_options["cpu_target"] == target:
        pytest.skip(f"{target} is this processor's best: all tests run on it")
    code = (
        "import pytest, sys; from stylekern import _library; print(_library.build_options['cpu_target'])\n"
        "wanted = '(equals_the_definition or takes_every_dtype or any_shape) and not triton and not reference'\n"
        "options = ['-q', '-p', 'no:cacheprovider', '-m', 'not cuda', '-k', wanted]\n"
        f"sys.exit(pytest.main([*options, {str(ROOT / 'tests/ops')!r}]))"
    )
    result = run(code, STYLEKERN_CPU_TARGET=target)
    assert result.returncode == 0, result.stdout[-4000:]
    assert result.stdout.split()[0] in ("baseline", target) and " passed" in result.stdout

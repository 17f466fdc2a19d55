"""The build: what an sdist and a wheel hold, which compiler is taken, and paths and architectures as they come."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import build_library
import pytest
from built_copy import copy_sources

ROOT = build_library.ROOT
HOOK = "import sys; sys.path.insert(0, 'tools'); import build_backend; print(build_backend.{}({!r}))"
OF_GIT = {".ci/run", ".gitignore", ".pre-commit-config.yaml"}


def built(hook: str, folder: Path, into: Path) -> Path:
    """What a hook of the build backend makes of the sources in a folder."""
    command = [sys.executable, "-c", HOOK.format(hook, str(into))]
    environment = os.environ | {"STYLEKERN_BUILD": "none"}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return into / ran.stdout.split()[-1]


@pytest.mark.slow
def test_an_sdist_holds_the_repository_and_builds_a_typed_wheel(tmp_path: Path):
    if not (ROOT / ".git").exists():
        pytest.skip("git says what the repository holds")
    names = set(copy_sources(tmp_path / "copy"))
    with tarfile.open(built("build_sdist", tmp_path / "copy", tmp_path)) as sdist:
        held = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
        sdist.extractall(tmp_path / "unpacked")
    made = {"PKG-INFO", "setup.cfg"}
    assert {name for name in held - made if not name.startswith("stylekern.egg-info/")} == names - OF_GIT

    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheel = set(zipfile.ZipFile(built("build_wheel", unpacked, tmp_path)).namelist())
    modules = {name for name in names if name.startswith(("stylekern/", "triton_kernels/"))}
    assert "stylekern/py.typed" in modules
    expected = {name.replace("triton_kernels/", "stylekern/triton_kernels/") for name in modules}
    assert {name for name in wheel if ".dist-info/" not in name} == expected


def test_the_compiler_may_be_several_words_but_has_to_exist(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STYLEKERN_BUILD", "auto")
    monkeypatch.setenv("CXX", "env c++ -pipe")
    assert build_library.cxx() == [shutil.which("env"), "c++", "-pipe"]
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build_library.BuildError, match="CXX is 'no-such-compiler'"):
        build_library.cxx()
    with pytest.raises(SystemExit, match=r"(?s)CXX is 'no-such-compiler'.*STYLEKERN_BUILD=none"):
        build_library.build_mode()


def test_a_compiler_that_does_not_tell_its_version_is_named(tmp_path: Path):
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\n")
    silent.chmod(0o755)
    assert '-DSTYLEKERN_COMPILER="silent"' in build_library.cxx_flags([str(silent)], tmp_path)


@pytest.mark.parametrize("name", ["with space", "with $dollar", "with:colon"])
def test_any_path_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    folder = tmp_path / name
    (folder / "csrc").mkdir(parents=True)
    (folder / "csrc/library.cpp").write_text('#include <here.h>\nextern "C" const char* compiler() { return HERE; }\n')
    (folder / "torch/include").mkdir(parents=True)
    (folder / "torch/include/here.h").write_text("#define HERE STYLEKERN_COMPILER\n")
    (folder / "torch/lib").mkdir()
    compiler = folder / "compiler"  # leaves out torch's libraries, which are not there
    words = '[ "$a" = -ltorch ] || [ "$a" = -ltorch_cpu ] || [ "$a" = -lc10 ] || set -- "$@" "$a"'
    compiler.write_text(f'#!/bin/sh\nall=$#\nfor a; do {words}; done\nshift $all\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(build_library, "ROOT", folder)
    monkeypatch.setattr(build_library, "torch_root", lambda: folder / "torch")
    output, objects = folder / "_C.abi3.so", folder / "objects"
    objects.mkdir()
    (objects / "build.ninja").write_text(build_library.ninja_file("cpu", output, objects))
    ninja = [shutil.which("ninja")] if shutil.which("ninja") else [sys.executable, "-m", "ninja"]
    ran = subprocess.run([*ninja, "-C", str(objects)], capture_output=True, text=True)
    assert ran.returncode == 0 and output.is_file(), ran.stdout + shlex.join(ran.args)


def test_torch_is_found_from_within_build_isolation(monkeypatch: pytest.MonkeyPatch):
    root = build_library.torch_root()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("PYTHONNOUSERSITE", "1")
    assert build_library.torch_root.__wrapped__() == root is not None


def test_an_older_setuptools_is_named():
    code = "import setuptools; setuptools.__version__ = '65.5.0'; import build_backend"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "tools")
    assert ran.returncode and "needs setuptools>=77, and this environment has 65.5.0" in ran.stderr
    assert "pip install --upgrade 'setuptools>=77'" in ran.stderr.splitlines()[-1]


def test_architectures_are_numbers_or_torchs_names():
    assert build_library.gencode_flags("8.0;9.0+PTX")[-1] == "-gencode=arch=compute_90,code=compute_90"
    assert build_library.gencode_flags("Ampere Hopper") == build_library.gencode_flags("8.0;8.6+PTX;9.0+PTX")
    with pytest.raises(build_library.BuildError, match=r"'sm_90'; expected 8\.0.*Hopper"):
        build_library.gencode_flags("sm_90")


def test_an_unknown_mode_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STYLEKERN_BUILD", "gpu")
    with pytest.raises(SystemExit, match="auto, none, cpu, cuda, got 'gpu'"):
        build_library.build_mode()


@pytest.mark.parametrize("cuda", ["OFF", "ON"])
def test_cmake_makes_a_build_of_it(cuda: str, tmp_path: Path):
    cmake = shutil.which("cmake") or pytest.skip("no cmake")
    if cuda == "ON" and not build_library.nvcc():
        pytest.skip("no nvcc")
    command = [cmake, "-S", str(ROOT), "-B", str(tmp_path), f"-DSTYLEKERN_CUDA={cuda}"]
    environment = os.environ | {"CUDACXX": build_library.nvcc() or ""} if cuda == "ON" else None
    ran = subprocess.run(
        [*command, f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_CUDA_ARCHITECTURES=90"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr


def test_cmake_asks_for_a_python_that_has_torch(tmp_path: Path):
    cmake = shutil.which("cmake") or pytest.skip("no cmake")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S "$@"\n')
    python.chmod(0o755)
    command = [cmake, "-S", str(ROOT), "-B", str(tmp_path / "build"), f"-DPython_EXECUTABLE={python}"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode and f"{python} does not import torch" in " ".join(ran.stderr.split())

"""Compiles a C++ file of this folder with g++ into a Python module, once for each content of what it includes."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "cuda_host"
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")


class Unavailable(Exception):
    """Why nothing can be compiled here."""


@functools.cache
def cuda_include() -> Path:
    """The folder of cuda_fp16.h: of the toolkit that nvcc or CUDA_HOME names, or of the usual place."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    if nvcc := shutil.which("nvcc"):
        homes.insert(0, str(Path(nvcc).resolve().parents[1]))
    for home in filter(None, homes):
        if (Path(home) / "include" / "cuda_fp16.h").is_file():
            return Path(home) / "include"
    raise Unavailable("no CUDA headers (cuda_fp16.h): set CUDA_HOME")


@contextlib.contextmanager
def locked(path: Path):
    """Holds a lock file, so that of several test processes one compiles and the others wait for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def compile_once(target: Path, command: list[str]) -> Path:
    """Runs `command`, which ends in the output's name, unless an earlier run left `target`."""
    with locked(target.with_name(target.name + ".lock")):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                output = Path(folder) / target.name
                done = subprocess.run([*command, str(output)], capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-8000:]}")
                output.with_suffix(".log").write_text(done.stdout + done.stderr)
                output.with_suffix(".log").replace(target.with_suffix(".log"))
                output.replace(target)
    return target


def content_hash(files: list[Path], *words: str) -> str:
    digest = hashlib.sha256("\0".join(words).encode())
    for file in sorted(files):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def with_includes(source: Path) -> list[Path]:
    """A file of this repository and all that it includes of it."""
    found, waiting = set(), [source.resolve()]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            names = re.findall(r'^#include "(.+)"', file.read_text(), re.MULTILINE)
            waiting += [path for name in names if (path := (file.parent / name).resolve()).is_file()]
    return list(found)


def build(source: str, *, sanitize: bool = False) -> Path:
    """Path of the module compiled from `source`; raises Unavailable where it cannot be."""
    try:
        import pybind11
    except ImportError:
        raise Unavailable("pybind11 is not installed") from None
    if (compiler := shutil.which("g++")) is None:
        raise Unavailable("no g++")
    flags = ["-std=c++20", "-O1", "-g1", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    flags += ["-Wno-unknown-pragmas", "-Wno-maybe-uninitialized", "-Wno-missing-field-initializers", "-Wno-clobbered"]
    flags += SANITIZE if sanitize else ()
    name = Path(source).stem + ("_sanitized" if sanitize else "")
    includes = [cuda_include(), pybind11.get_include(), sysconfig.get_paths()["include"]]
    flags += [f"-DSTYLEKERN_MODULE={name}", *(f"-isystem{path}" for path in includes)]
    target = BUILD / content_hash(with_includes(HERE / source), compiler, *map(str, flags)) / (name + ".so")
    return compile_once(target, [compiler, *flags, str(HERE / source), "-o"])


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sanitizer_environment() -> dict[str, str]:
    """What a Python process needs before it loads a sanitized module: the sanitizer comes first."""
    libasan = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    libasan = str(Path(libasan).resolve())
    libstdcxx = subprocess.run(["g++", "-print-file-name=libstdc++.so"], capture_output=True, text=True).stdout.strip()
    return {
        **os.environ,
        "LD_PRELOAD": f"{libasan} {Path(libstdcxx).resolve()}",  # ASan looks for __cxa_throw when it starts
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }

"""A copy of the working tree with a library of its own kind: of another architecture, or sanitized."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import build_library


def make_copy(inside: Path, compiler: list[str], torch: Path, compile_flags: list[str], link_flags: list[str]) -> None:
    """Copies the working tree, and builds the CPU kernels there, in place."""
    shutil.rmtree(inside, ignore_errors=True)
    copy_sources(inside)
    flags = [*build_library.cxx_flags(compiler, torch), *compile_flags]
    sources = [inside / name for name in build_library.sources("cpu")]
    objects = [source.with_suffix(".o") for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = zip(sources, objects, strict=True)
        list(pool.map(lambda job: run(*compiler, *flags, "-c", job[0], "-o", job[1]), jobs))
    link = ["-shared", "-Wl,--no-as-needed", *link_flags, f"-L{torch / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    run(*compiler, *objects, *link, "-o", inside / "stylekern" / "_C.abi3.so")


def copy_sources(inside: Path) -> list[str]:
    """Copies what git knows of the working tree, or would; returns the files' names."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=build_library.ROOT, check=True, capture_output=True).stdout.decode()
    names = [name for name in listed.split("\0") if (build_library.ROOT / name).is_file()]
    for name in names:
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build_library.ROOT / name, inside / name)
    return names


def run(*command: str | Path) -> None:
    """Runs a command, or ends here."""
    subprocess.run([str(part) for part in command], check=True)

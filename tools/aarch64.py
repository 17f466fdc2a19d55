"""The compiled library on aarch64, without such a machine: cross-compiled, and its operators' tests emulated.

Run by `make aarch64`, on Debian and as root; it needs debootstrap, qemu-user-static with binfmt-support and
g++-aarch64-linux-gnu, and a network. A Debian of that architecture is made in build/aarch64, once, in ten minutes; the
tests then take twenty. ARGS goes to pytest.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import build_library

ROOT = build_library.ROOT
DEBIAN = ROOT / "build" / "aarch64"
PACKAGES = DEBIAN / "usr/local/lib/python3.11/dist-packages"  # Debian 12's Python
COMPILER = "aarch64-linux-gnu-g++"
NEEDED = {"debootstrap": "debootstrap", "qemu-aarch64-static": "qemu-user-static", COMPILER: "g++-aarch64-linux-gnu"}
TORCH = "torch==2.10.0"  # the oldest that the library runs under
OF_TORCH = ("filelock", "fsspec", "jinja2", "networkx", "sympy", "typing-extensions", "setuptools")
OF_TESTS = ("expecttest", "hypothesis", "numpy", "pytest", "pytest-xdist")
# The mounts are the process's own, and gone with it.
MOUNTED = "mount -t proc proc {0}/proc && mount --rbind /dev {0}/dev && exec chroot {0} {1}"
IN_COPY = 'sh -c \'cd /stylekern && exec "$@"\' sh "$@"'


def main(arguments: list[str]) -> int:
    """Returns pytest's exit status."""
    missing = [package for name, package in NEEDED.items() if not shutil.which(name)]
    if missing or os.geteuid():
        print("make aarch64 needs Debian, root, and: apt-get install", *(missing or NEEDED.values()), "binfmt-support")
        return 2
    if not PACKAGES.is_dir():
        make_debian()
    copy_sources()
    build()
    tests = arguments or ["-q", "-n", "2", "--dist", "worksteal", "-m", "not slow", "tests/ops"]
    inside = MOUNTED.format(shlex.quote(str(DEBIAN)), IN_COPY)
    return subprocess.call(["unshare", "--mount", "sh", "-c", inside, "sh", "python3", "-m", "pytest", *tests])


def make_debian() -> None:
    """Debian with a Python and a C compiler, and in it torch and what the tests import."""
    system = "--include=ca-certificates,gcc,libc6-dev,python3"
    run("debootstrap", "--arch=arm64", "--variant=minbase", system, "bookworm", DEBIAN)
    platforms = [f"--platform=manylinux_{version}_aarch64" for version in ("2_28", "2_27", "2_17")]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "--python-version=3.11"]
    target = PACKAGES.with_suffix(".unfinished")
    # Without its dependencies: pip would take those of the machine that it runs on.
    run(*install, *platforms, "--no-deps", "--target", target, TORCH)
    run(*install, *platforms, "--upgrade", "--target", target, *OF_TORCH, *OF_TESTS)
    target.rename(PACKAGES)


def copy_sources() -> None:
    """What git knows of the working tree, or would."""
    inside = DEBIAN / "stylekern"
    shutil.rmtree(inside, ignore_errors=True)
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for name in listed.stdout.decode().split("\0"):
        if (ROOT / name).is_file():
            (inside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, inside / name)


def build() -> None:
    """The compiled library, from the copy's sources into the copy."""
    torch, inside = PACKAGES / "torch", DEBIAN / "stylekern"
    flags = shlex.split(" ".join(build_library.cxx_flags(COMPILER, torch)))
    sources = [inside / name for name in build_library.sources("cpu")]
    objects = [source.with_suffix(".o") for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = zip(sources, objects, strict=True)
        list(pool.map(lambda job: run(COMPILER, *flags, "-c", job[0], "-o", job[1]), jobs))
    link = ["-shared", "-Wl,--no-as-needed", "-Wl,--allow-shlib-undefined", f"-L{torch / 'lib'}"]
    libraries = ["-ltorch", "-ltorch_cpu", "-lc10"]
    run(COMPILER, *link, *objects, *libraries, "-o", inside / "stylekern" / "_C.abi3.so")


def run(*command: str | Path) -> None:
    """Runs a command, or ends here."""
    subprocess.run([str(part) for part in command], check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

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
from pathlib import Path

import build_library
from built_copy import make_copy, run

DEBIAN = build_library.ROOT / "build" / "aarch64"
PACKAGES = DEBIAN / "usr/local/lib/python3.11/dist-packages"  # Debian 12's Python
COMPILER = "aarch64-linux-gnu-g++"
BINFMT = Path("/proc/sys/fs/binfmt_misc")
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
    if not (BINFMT / "qemu-aarch64").exists():
        print(f"make aarch64 needs qemu registered: mount -t binfmt_misc binfmt_misc {BINFMT};", end=" ")
        print("update-binfmts --enable qemu-aarch64")
        return 2
    if not PACKAGES.is_dir():
        make_debian()
    make_copy(DEBIAN / "stylekern", [COMPILER], PACKAGES / "torch", [], ["-Wl,--allow-shlib-undefined"])
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`python -m stylekern`."""

from __future__ import annotations

import argparse
import platform

import torch

from stylekern import __version__, _backends, _library
from stylekern.ops import OPERATORS


def info() -> str:
    """What will serve each operator on each device type, what will not and why; versions and build options."""
    lines = [
        f"stylekern {__version__}, torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}",
        f"triton {_triton_version()}",
    ]
    if _library.missing:
        lines.append(f"compiled library: {_library.missing}")
    else:
        options = ", ".join(f"{name} {value or 'none'}" for name, value in _library.build_options.items())
        lines.append(f"compiled library: {options}")
    for name, operator in OPERATORS.items():
        for device in ("cpu", "cuda"):
            asked = _backends.asked()
            if _backends.why_not(asked, name, device):
                lines.append(f"{name} on {device}: an error, as {asked} is asked for")
            else:
                lines.append(f"{name} on {device}: {_backends.resolve(asked, name, device, operator.preference)}")
            for backend in operator.preference:
                reason = _backends.why_not(backend, name, device)
                if reason:
                    lines.append(f"  not {backend}: {reason}")
    return "\n".join(lines)


def _triton_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="stylekern", description="Fused operators for neural style transfer.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="which backend serves each operator, and why the others do not")
    parser.add_argument("--version", action="version", version=__version__)
    parser.parse_args(arguments)
    print(info())

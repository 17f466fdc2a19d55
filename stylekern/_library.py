"""Loads the compiled library, once, and says why where it cannot."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import torch  # noqa: F401  (the library resolves its symbols in torch's)

CPU_TARGETS = ("baseline", "avx2", "avx512")


def _load() -> tuple[dict[str, str], str | None]:
    target = os.environ.get("STYLEKERN_CPU_TARGET")
    if target and target not in CPU_TARGETS:
        raise ValueError(f"STYLEKERN_CPU_TARGET must be one of {', '.join(CPU_TARGETS)}, got {target!r}")
    try:
        options: dict[str, str] = importlib.import_module("stylekern._C").build_options()
    except ModuleNotFoundError:
        return {}, _why_not_built()
    except ImportError as error:
        return {}, f"the compiled library does not load: {error}"
    return options, None


def _why_not_built() -> str:
    here = Path(__file__).resolve().parent
    for place in sys.path:
        other = Path(place or ".").resolve() / "stylekern"
        if other != here and any(other.glob("_C.*")):
            return (
                f"the sources in {here} hide the compiled installation in {other}: run from another folder, or install "
                "by pip install --editable ."
            )
    return "the compiled library was not built; reinstall with STYLEKERN_BUILD=cpu or STYLEKERN_BUILD=cuda"


#: How the library was built, and None; or nothing, and why there is none.
build_options, missing = _load()

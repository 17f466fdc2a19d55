"""Loads the compiled library, once, and says why where it cannot."""

from __future__ import annotations

import importlib

import torch  # noqa: F401  (the library resolves its symbols in torch's)


def _load() -> tuple[dict[str, str], str | None]:
    try:
        options: dict[str, str] = importlib.import_module("stylekern._C").build_options()
    except ModuleNotFoundError:
        return {}, "the compiled library was not built; reinstall with STYLEKERN_BUILD=cpu or STYLEKERN_BUILD=cuda"
    except ImportError as error:
        return {}, f"the compiled library does not load: {error}"
    return options, None


#: How the library was built, and None; or nothing, and why there is none.
build_options, missing = _load()

"""Which implementation serves an operator: the compiled library, Triton, or the reference.

Every step is a predicate that returns why a backend cannot run, or None where it can. The choice touches no driver.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stylekern import _library

BACKENDS = ("compiled", "triton", "reference")

#: Operators that the compiled library serves on the CPU only, by design.
without_cuda: set[str] = set()

#: Operators that the compiled library lacks, or has with other arguments.
outdated: set[str] = set()


def _checked(name: str, what: str = "backend") -> str:
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"{what} must be auto, {', '.join(BACKENDS)}, got {name!r}")
    return name


# The environment's choice, and those of the blocks that are open.
_blocks = [[_checked(os.environ.get("STYLEKERN_BACKEND") or "auto", "STYLEKERN_BACKEND")]]
# A plain global: torch.compile guards on it and compiles again when it changes, which it cannot do for a ContextVar.
_asked = _blocks[0][0]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Serves every operator by the named backend within a `with` block.

    It holds for the whole process: threads share it. A compiled function that is called within is compiled again.

    Args:
        name: "compiled" (the C++ and CUDA library), "triton", "reference" (plain torch), or "auto", the default:
            the first that can run. The environment variable STYLEKERN_BACKEND sets the same from the start.

    Raises:
        ValueError: The name is none of these. An operator that the named backend cannot serve raises RuntimeError,
            with the reason, when it is called.
    """
    global _asked
    block = [_checked(name)]
    _blocks.append(block)
    _asked = name
    try:
        yield
    finally:
        # By identity: blocks of threads and generators may end in another order than they began in.
        _blocks[:] = [other for other in _blocks if other is not block]
        _asked = _blocks[-1][0]


def why_no_compiled(operator: str, device: str) -> str | None:
    """Why the compiled library cannot serve an operator on a device type; None where it can."""
    if _library.missing:
        return _library.missing
    if operator in outdated:
        return (
            "the library was built from other sources, and lacks this operator or takes it with other arguments; "
            "install again: pip install ., or of a checkout --editable ."
        )
    key = {"cpu": "CPU", "cuda": "CUDA", "meta": "Meta"}.get(device)
    if key is None:
        return f"it has no kernels for device {device}"
    if device == "cuda" and operator in without_cuda:
        return "it has no CUDA kernel in C++: Triton serves it on a GPU"
    if device != "meta" and not torch._C._dispatch_has_kernel_for_dispatch_key(f"stylekern::{operator}", key):
        if device == "cuda" and not _library.build_options["cuda_archs"]:
            return "the library was built without CUDA; reinstall with STYLEKERN_BUILD=cuda"
        return f"the library has no {key} kernel for it: csrc/{device}/{operator} registers none"
    return None


def why_no_triton(operator: str, device: str) -> str | None:
    """Why Triton cannot serve an operator on a device type; None where it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if importlib.util.find_spec("stylekern.triton_kernels") is None:
        return "imported from the sources, which have the Triton kernels elsewhere (pip install --editable .)"
    if importlib.util.find_spec(f"stylekern.triton_kernels.{operator}") is None:
        return "it has no Triton kernel"
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton runs on a GPU (TRITON_INTERPRET=1, set before Python starts, interprets its kernels on the CPU)"
    if device == "cuda" and not torch.backends.cuda.is_built():
        return "this torch has no CUDA"
    if device not in ("cpu", "cuda", "meta"):
        return f"it is not tried on device {device}"
    return None


def why_not(backend: str, operator: str, device: str) -> str | None:
    """Why a backend cannot serve an operator on a device type; None where it can."""
    if backend == "compiled":
        return why_no_compiled(operator, device)
    if backend == "triton":
        return why_no_triton(operator, device)
    return None


def resolve(asked: str, operator: str, device: str, preference: tuple[str, ...] = BACKENDS) -> str:
    """The backend that serves an operator on a device type.

    Interpreted Triton is for tests: it serves the CPU only where it is asked for by name.

    Raises:
        RuntimeError: The backend asked for by name cannot run; the message says why.
    """
    if asked != "auto":
        reason = why_not(asked, operator, device)
        if reason:
            raise RuntimeError(f"stylekern.{operator}: backend {asked!r} cannot run on device {device}: {reason}")
        return asked
    for backend in preference:
        if not (backend == "triton" and device == "cpu") and why_not(backend, operator, device) is None:
            return backend
    return "reference"


def choices(operator: str, preference: tuple[str, ...]) -> dict[tuple[str, str], str]:
    """What `resolve` answers for each (asked, device type), where it does not raise: a call then only looks it up."""
    return {
        (asked, device): resolve(asked, operator, device, preference)
        for asked in ("auto", *BACKENDS)
        for device in ("cpu", "cuda", "meta")
        if asked == "auto" or why_not(asked, operator, device) is None
    }


def asked() -> str:
    """What `use_backend` or STYLEKERN_BACKEND asks for; "auto" where they do not."""
    return _asked

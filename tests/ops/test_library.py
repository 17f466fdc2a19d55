"""The compiled library has every operator, as Python knows it. Other tests skip a backend that is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import stylekern
from stylekern import _backends, _library
from stylekern.ops import OPERATORS

BUILT = list(Path(stylekern.__file__).parent.glob("_C.*so"))

pytestmark = pytest.mark.skipif(not BUILT, reason="installed with STYLEKERN_BUILD=none: there is no library")


def test_it_loads() -> None:
    assert _library.missing is None


@pytest.mark.parametrize("name", OPERATORS)
def test_schemas_of_library_and_python_agree(name: str) -> None:
    for op in (name, f"{name}_backward"):
        compiled = getattr(torch.ops.stylekern, op).default._schema
        python = getattr(torch.ops.stylekern_triton, op).default._schema
        assert str(compiled).split("::")[1] == str(python).split("::")[1]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", OPERATORS)
def test_every_device_that_it_was_built_for_has_kernels(name: str, device: str) -> None:
    if device == "cuda" and not _library.build_options["cuda_archs"]:
        pytest.skip("the library was built without CUDA")
    if device == "cuda" and not OPERATORS[name].cuda:
        pytest.skip("Triton serves it on a GPU")
    assert _backends.why_no_compiled(name, device) is None
    backward = torch._C._dispatch_has_kernel_for_dispatch_key(f"stylekern::{name}_backward", device.upper())
    assert backward

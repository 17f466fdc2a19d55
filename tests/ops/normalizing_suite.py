"""What every operator must do that normalises planes by their own statistics."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from .cases import Case, far_at_quarters

# in a vector or two, in one block or program, and in several
SIZES = [(3, 5), (45, 67), (95, 97)]


class NormalizingSuite:
    """Beside OperatorSuite. Subclasses also say which tensors are normalised, and make cases of a size."""

    normalized: tuple[str, ...]
    sized: Callable[[int, int], Case]
    check: Callable[[Case, str, torch.dtype], None]

    def check_with(self, change: Callable[[torch.Tensor], torch.Tensor], size: tuple[int, int], device: str) -> None:
        case = type(self).sized(*size)
        planes = {name: change(x) for name, x in case.tensors.items() if x is not None and name in self.normalized}
        self.check(Case(case.tensors | planes, case.options), device, torch.float32)

    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_planes_that_are_constant(self, size: tuple[int, int], backend: str, device: str) -> None:
        # torch's own gradient of such a variance is NaN from about 1e36 on
        for value in (3e9,) if backend == "reference" else (3e9, 1e37):
            self.check_with(lambda x, value=value: torch.full_like(x, value), size, device)

    @pytest.mark.parametrize("value", [30.0, 1e5])
    @pytest.mark.parametrize("size", SIZES[1:], ids=str)
    def test_a_first_value_far_from_the_others(
        self, value: float, size: tuple[int, int], backend: str, device: str
    ) -> None:
        def change(x: torch.Tensor) -> torch.Tensor:
            x = x + 1
            x[..., 0, 0] = value
            return x

        self.check_with(change, size, device)

    @pytest.mark.parametrize("value", [30.0, 1e5])
    @pytest.mark.parametrize("size", SIZES[1:], ids=str)
    def test_values_all_over_a_plane_far_from_the_others(
        self, value: float, size: tuple[int, int], backend: str, device: str
    ) -> None:
        self.check_with(lambda x: far_at_quarters(x + 1, value), size, device)

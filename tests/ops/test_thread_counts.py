"""Equal calls give equal bits on as many threads as before, however many there were in between."""

from __future__ import annotations

import pytest
import torch

from stylekern.ops import cgm_attention, min_distances

CALLS = {
    "cgm_attention": (
        lambda q, k: cgm_attention(q, k, k[..., :15], alpha=0.1, cosine=False),
        ((16, 64, 290), (16, 200, 290)),
    ),
    "min_distances": (lambda x, y: min_distances(x, y)[0], ((16, 60, 290), (16, 70, 290))),
    "min_distances-large": (lambda x, y: min_distances(x, y)[0], ((2, 600, 290), (2, 700, 290))),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("call", "shapes"), CALLS.values(), ids=CALLS)
def test_other_counts_before_leave_no_trace(call, shapes, dtype: torch.dtype) -> None:
    tensors = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]

    def bits() -> tuple[bytes, ...]:
        y = call(*tensors)
        return tuple(x.detach().numpy().tobytes() for x in (y, *torch.autograd.grad(y.square().sum(), tensors)))

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first = bits()
        for count in (4, 2):
            torch.set_num_threads(count)
            found = {bits() for _ in range(20)}
            assert len(found) == 1
        assert found == {first}
    finally:
        torch.set_num_threads(before)

"""What the passes of cgm_attention share: chunks of queries, thresholds, and what is made of a row of scores.

Scores exist for a chunk of queries at a time, and the library makes them, so that both passes, which cut the same
chunks, keep the same keys. Between its products a program owns whole rows of a chunk and goes over the keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import accumulator, ceil_div, inside, offsets, on_device_of, power_of_2
from ._products import halves, product, row_factor, scale_of

# Numbers of a chunk: as many as the inputs have, so that memory grows no faster than theirs, but at least enough that a
# product fills the device, and at most what a part of it holds. Fewer chunks are fewer launches.
CHUNK, MOST = 2**22, 2**24
LINE = 16  # keys are filled up to this, so that rows of scores are read and written in 16 bytes


# Host side


def key_rows(lk: int) -> int:
    """What keys are filled up to."""
    return ceil_div(lk, LINE) * LINE


def samples_of(n: int, lq: int, lk: int, depth: int, width: int) -> Iterator[tuple[slice, list[slice]]]:
    """The samples that are made together, and their rows that are: what fits into a chunk, or parts of one sample."""
    across = max(key_rows(lk), depth, width)
    chunk = max(min(n * (lq + lk) * (depth + width), MOST), CHUNK)
    samples = max(chunk // (lq * across), 1)
    parts = ceil_div(lq, max(chunk // (min(samples, n) * across), LINE))
    rows = ceil_div(lq, parts)
    chunks = [slice(start, min(start + rows, lq)) for start in range(0, lq, rows)]
    for start in range(0, n, samples):
        yield slice(start, min(start + samples, n)), chunks


def cut(xs: Iterable[Tensor | None], samples: slice, rows: slice) -> list[Tensor | None]:
    """Of tensors [N, Lq], where there are any, a chunk."""
    return [None if x is None else x[samples, rows] for x in xs]


def block(keys: int, dtype: torch.dtype) -> dict[str, int]:
    """The rows of a program, and the keys that it reads at once."""
    size = 512 if dtype == torch.float64 else 2048
    block_k = min(power_of_2(keys), size)
    options = {"BLOCK_Q": size // block_k, "BLOCK_K": block_k, "num_warps": 8}
    # Unsaid, some assemblers spill doubles so that a second program fits beside the first.
    return options | ({"maxnreg": 255} if dtype == torch.float64 else {})


def parts_of(x: Tensor, keys: int) -> Tensor:  # [N, rows, keys or 3 keys]
    """Room for a first factor of weights, for what :func:`factor` makes of x's dtype; x is any [N, rows, ...] of it."""
    single = x.dtype == torch.float32
    return x.new_empty((*x.shape[:2], 3 * keys if single else keys), dtype=torch.float16 if single else x.dtype)


def dense(*gates: Tensor | None) -> list[Tensor | None]:
    """Tensors [N, Lq], where there are any, as kernels read them."""
    return [None if x is None else x.contiguous() for x in gates]


class Scores:
    """The scores of some samples, a chunk of queries at a time, and what they are to be multiplied by."""

    def __init__(self, q: Tensor, k: Tensor, alpha: float, cosine: bool, eps: float) -> None:
        norms = eps if cosine else None
        self.q = row_factor(q, eps=norms, alpha=alpha)
        self.k = row_factor(k, second=True, rows=key_rows(k.shape[1]), eps=norms)

    def of(self, rows: slice) -> tuple[Tensor, Tensor]:
        """q . k, and the scales of the queries; those of the keys are `k.scale`."""
        return product(self.q.factor[:, rows], self.k.factor.mT), self.q.scale[:, rows]


def finish(
    product: Tensor,  # [N, L, at least D]
    row: Tensor | None,  # [N, L], of rnorm's strides
    col: Tensor | None,  # [N, D]
    out: Tensor,  # [N, L, D]
    x: Tensor | None = None,  # [N, L, D]
    rnorm: Tensor | None = None,  # [N, L]
    eps: float = 0.0,
) -> None:
    """Writes the product times its scales; with `rnorm` as a gradient of x, without what of it lies along x."""
    n, length, width = out.shape
    if not out.numel():
        return
    block_w = min(power_of_2(width), 512)
    block_l = max(1024 // block_w, 1)
    with on_device_of(out):
        _finish_kernel[(n * ceil_div(length, block_l),)](
            product, row, col, x, rnorm, out, length, width, *product.stride()[:2],
            *(0, 0) if row is None else row.stride(), *(0, 0, 0) if x is None else x.stride(), *out.stride()[:2],
            EPS=eps, BLOCK_L=block_l, BLOCK_W=block_w, ACC=accumulator(product), num_warps=4,
        )  # fmt: skip


@triton.jit
def _finish_kernel(
    product_ptr, row_ptr, col_ptr, x_ptr, rnorm_ptr, out_ptr, length, width, stride_pn, stride_pl,
    stride_rn, stride_rl, stride_xn, stride_xl, stride_xd, stride_on, stride_ol,
    EPS: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_W: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(length, BLOCK_L)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    u = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    row = load_rows(row_ptr, n * stride_rn + u * stride_rl, u < length, 1.0)
    product_ptr += (n * stride_pn + u * stride_pl)[:, None]
    out_ptr += (n * stride_on + u * stride_ol)[:, None]
    if rnorm_ptr is not None:
        x_ptr += (n * stride_xn + u * stride_xl)[:, None]
        rnorm = load_rows(rnorm_ptr, n * stride_rn + u * stride_rl, u < length, 0.0)
        along = tl.zeros([BLOCK_L], ACC)
        for start in range(0, width, BLOCK_W):
            d = start + tl.arange(0, BLOCK_W)
            there = inside(u, d, length, width)
            total = scaled(product_ptr, row, col_ptr, n, d, width, there)
            x = tl.load(x_ptr + d.to(tl.int64)[None, :] * stride_xd, mask=there, other=0.0).to(ACC)
            along += tl.sum(total * (x * rnorm[:, None]), 1)
        # dx = (dx^ - x^ (x^ . dx^)) / |x|; a row no longer than eps is divided by eps: 1 but for what 1 / eps rounds
        along = tl.where(rnorm * EPS < 1 - 1e-6, along, 0.0)
    for start in range(0, width, BLOCK_W):
        d = start + tl.arange(0, BLOCK_W)
        there = inside(u, d, length, width)
        total = scaled(product_ptr, row, col_ptr, n, d, width, there)
        if rnorm_ptr is not None:
            x = tl.load(x_ptr + d.to(tl.int64)[None, :] * stride_xd, mask=there, other=0.0).to(ACC)
            total -= x * rnorm[:, None] * along[:, None]
        tl.store(out_ptr + d[None, :], rounded(total, out_ptr.dtype.element_ty), mask=there)


# Device side


@triton.jit
def scaled(product_ptr, row, col_ptr, n, d, width, there):
    total = tl.load(product_ptr + d[None, :], mask=there, other=0.0) * row[:, None]
    if col_ptr is not None:
        total *= tl.load(col_ptr + n * width + d, mask=d < width, other=0.0)[None, :]
    return total


@triton.jit
def load_rows(x_ptr, at, there, other):
    """A number a row; `other` behind the last, and for all of them where there is no tensor."""
    if x_ptr is None:
        return tl.full([at.shape[0]], other, tl.float32)
    else:
        return tl.load(x_ptr + at, mask=there, other=other)


INTERPRETED = tl.constexpr(not isinstance(load_rows, triton.JITFunction))


@triton.jit
def rounded(w, dtype: tl.constexpr):
    """w in another dtype."""
    if INTERPRETED and dtype == tl.bfloat16:  # the interpreter would cut off, and a GPU rounds
        bits = w.to(tl.uint32, bitcast=True)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    else:
        return w.to(dtype)


@triton.jit
def rows_of(count, rows, lq, BLOCK_Q: tl.constexpr):
    """This program's rows of a chunk, their samples, and where they are in [N, Lq]; tensors start at the chunk's."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    return r, r // rows, r // rows * lq + r % rows


@triton.jit
def load_scaled(x_ptr, row, col_ptr, r, n, cols, count, keys):
    """A product's numbers, times the scales of their rows and columns.

    A scale of zero is that of a norm that overflowed; its product may be infinite.
    """
    there = inside(r, cols, count, keys)
    scale = row[:, None]
    x = tl.load(x_ptr + offsets(r, cols, keys), mask=there, other=0.0)
    x = tl.where(scale == 0, 0.0, x * scale)
    if col_ptr is not None:
        scale = tl.load(col_ptr + offsets(n, cols, keys), mask=there, other=0.0)
        x = tl.where(scale == 0, 0.0, x * scale)
    return x


@triton.jit
def threshold(gate_scale_ptr, gate_bias_ptr, at, there, lk, ACC: tl.constexpr):
    """T = gate_scale / Lk + gate_bias; infinite where that is not a number, which keeps nothing; without both, -inf."""
    if gate_scale_ptr is None and gate_bias_ptr is None:
        return tl.full([at.shape[0]], float("-inf"), ACC)
    else:
        t = tl.zeros([at.shape[0]], ACC)
        if gate_scale_ptr is not None:
            scale = tl.load(gate_scale_ptr + at, mask=there, other=0.0).to(ACC)
            t += scale / lk if scale.dtype == tl.float64 else tl.div_rn(scale, tl.full((), lk, ACC))
        if gate_bias_ptr is not None:
            t += tl.load(gate_bias_ptr + at, mask=there, other=0.0).to(ACC)
        return tl.where(t == t, t, float("inf"))


@triton.jit
def least_kept(t, lse):
    """A > T is S > this: lse + log T, or -inf where T <= 0."""
    return tl.where(t <= 0, float("-inf"), lse + tl.log(tl.where(t <= 0, 1.0, t)))


@triton.jit
def attention(s, lse, cols, width):
    """A = exp(S - lse); zero behind the last key."""
    return tl.where((cols < width)[None, :], tl.exp(s - lse[:, None]), 0.0)


@triton.jit
def gated(x, s, least):
    """x where the key is kept, else zero. What is not a number is kept: it has to be seen."""
    return tl.where(s <= least[:, None], 0.0, x)


@triton.jit
def factor_scale(most, dtype: tl.constexpr):
    """What rows of weights are multiplied by before :func:`store_factor`, by the largest of each, and the inverse.

    float16 holds neither small weights of many keys nor the large gradients of a scaled loss.
    """
    if dtype == tl.float16:
        return scale_of(most)
    else:
        one = tl.zeros_like(most) + 1
        return one, one


@triton.jit
def store_factor(x_ptr, r, cols, count, keys, x, PARTS: tl.constexpr):
    """Weights as the first factor of a product: three parts a row, or one."""
    there = inside(r, cols, count, keys)
    at = x_ptr + offsets(r, cols, PARTS * keys)
    if PARTS == 3:
        high, low = halves(x)
        tl.store(at, high, mask=there)
        tl.store(at + keys, high, mask=there)
        tl.store(at + 2 * keys, low, mask=there)
    else:
        tl.store(at, rounded(x, x_ptr.dtype.element_ty), mask=there)

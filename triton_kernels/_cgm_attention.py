"""What the passes of cgm_attention share: scores, threshold, and products whose weights are made on the way.

A program owns a block of queries or of keys and goes over blocks of the others; a block of scores exists in registers
only. Every pass makes it by :func:`products`, in the same order over the depth, so that all passes keep the same keys.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import accumulator, dense_rows, inside, offsets, on_device_of, torch_accumulator

# float32 on tensor cores: three products of TF32, which keep 22 of an operand's 24 bits. "ieee" would keep all of them,
# and leave the tensor cores idle. Where a dtype has one precision only, this says nothing.
PRECISION = "tf32x3"


# Host side


def blocks(x: Tensor) -> dict[str, object]:
    """Queries and keys of a block, the chunk of the depth, and the columns of a result that a program makes.

    A result's 512 columns together would not fit into the registers, so a program makes some and the scores are made
    again for the others.
    """
    query, key, depth, width = {8: (32, 32, 16, 64), 4: (64, 32, 16, 128), 2: (64, 64, 64, 256)}[x.element_size()]
    return {
        "BLOCK_Q": query, "BLOCK_K": key, "BLOCK_D": depth, "BLOCK_W": width,
        "PRECISION": PRECISION if x.dtype == torch.float32 else "ieee", "ACC": accumulator(x), "num_warps": 8,
        "maxnreg": 255,  # unsaid, the assembler spills some bytes where that fits a second program beside the first
    }  # fmt: skip


def grid(n: int, length: int, block: object, width: int = 1, block_w: object = 1) -> tuple[int]:
    """The grid that :func:`block_of` takes apart."""
    assert isinstance(block, int) and isinstance(block_w, int)
    return (n * triton.cdiv(length, block) * max(triton.cdiv(width, block_w), 1),)


def whole_lines(x: Tensor) -> Tensor:  # [N, L, D] as [N, L, D rounded up to 16]
    """x itself where each row starts on 16 bytes and ends with them; otherwise a copy, with zeros behind each row.

    Zeros change no product. What is read without wide loads needs an address for every number, which would spill.
    """
    if x.stride(2) == 1 and all(y % 16 == 0 for y in (x.shape[2], *row_strides(x), x.data_ptr())):
        return x
    copy = x.new_zeros((*x.shape[:2], triton.cdiv(x.shape[2], 16) * 16))
    copy[..., : x.shape[2]] = x
    return copy


def row_strides(x: Tensor) -> tuple[int, int]:
    """All but the last's, which is 1."""
    return x.stride(0), x.stride(1)


def thresholds(
    gate_scale: Tensor | None,  # [N, Lq]
    gate_bias: Tensor | None,  # [N, Lq]
    keys: int,
    like: Tensor,
) -> Tensor | None:  # [N, Lq], or None without a gate
    """T = gate_scale / Lk + gate_bias; infinite where that is not a number, which keeps nothing."""
    dtype = torch_accumulator(like)
    terms = [x.to(dtype) / by for x, by in ((gate_scale, keys), (gate_bias, 1)) if x is not None]
    if not terms:
        return None
    t = functools.reduce(torch.add, terms)
    return torch.where(t.isnan(), torch.inf, t).contiguous()


def scales(q: Tensor, k: Tensor, alpha: float, cosine: bool, eps: float) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What the products of queries and keys are to be multiplied by, alpha with the queries'; the queries' without it.

    Triton passes numbers as float32, which would be too little of alpha for float64.
    """
    if not cosine:
        return torch.full(q.shape[:2], alpha, dtype=torch_accumulator(q), device=q.device), None, None
    q_rnorm, k_rnorm = row_products(q, q, eps), row_products(k, k, eps)
    return q_rnorm * alpha, k_rnorm, q_rnorm


def row_products(x: Tensor, y: Tensor, eps: float | None = None) -> Tensor:  # [N, L] of [N, L, D]
    """sum x y; with eps 1 / max(sqrt(sum x y), eps)."""
    x, y = dense_rows(x), dense_rows(y)
    n, length, depth = x.shape
    out = torch.empty((n, length), dtype=torch_accumulator(x), device=x.device)
    with on_device_of(x):
        _row_products_kernel[grid(n, length, 16)](
            x, y, out, length, depth, *row_strides(x), *row_strides(y),
            EPS=eps, BLOCK_L=16, BLOCK_D=128, ACC=accumulator(x), num_warps=4,
        )  # fmt: skip
    return out


@triton.jit
def _row_products_kernel(
    x_ptr, y_ptr, out_ptr, length, depth, stride_xn, stride_xl, stride_yn, stride_yl,
    EPS: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    n, start, _ = block_of(length, BLOCK_L, 1, 1)
    rows = start + tl.arange(0, BLOCK_L)
    x_ptr += n * stride_xn
    y_ptr += n * stride_yn
    total = tl.zeros([BLOCK_L, BLOCK_D], ACC)
    for first in range(0, depth, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        x = load_block(x_ptr, rows, d, length, depth, stride_xl).to(ACC)
        total += x * load_block(y_ptr, rows, d, length, depth, stride_yl).to(ACC)
    value = tl.sum(total, 1)
    if EPS is not None:
        value = 1 / tl.maximum(tl.sqrt(value), EPS)
    tl.store(out_ptr + n * length + rows, value, mask=rows < length)


# Device side


@triton.jit
def block_of(length, BLOCK: tl.constexpr, width, BLOCK_W: tl.constexpr):
    """This program's sample, its first row, and its first column."""
    pid = tl.program_id(0)
    parts = tl.maximum(tl.cdiv(width, BLOCK_W), 1)
    count = tl.cdiv(length, BLOCK)
    return (pid // (parts * count)).to(tl.int64), pid // parts % count * BLOCK, pid % parts * BLOCK_W


@triton.jit
def load_block(x_ptr, rows, cols, height, width, stride_l):
    return tl.load(x_ptr + offsets(rows, cols, stride_l), mask=inside(rows, cols, height, width), other=0.0)


@triton.jit
def load_rows(x_ptr, n, rows, length, other):
    """A number a row; `other` behind the last, and for all of them where there is no tensor."""
    if x_ptr is None:
        return tl.full([rows.shape[0]], other, tl.float32)
    else:
        return tl.load(x_ptr + n * length + rows, mask=rows < length, other=other)


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
def dot(x, y, total, PRECISION: tl.constexpr, ACC: tl.constexpr):
    if INTERPRETED and y.dtype == tl.bfloat16:  # it would multiply the bits, as integers
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, y, total, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def products(
    x_ptr, y_ptr, rows, cols, height, width, depth, stride_xl, stride_yl,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """x[u] . y[v] for a block of u and v."""
    total = tl.zeros([rows.shape[0], cols.shape[0]], ACC)
    for start in range(0, depth, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = load_block(x_ptr, rows, d, height, depth, stride_xl)
        y = load_block(y_ptr, cols, d, width, depth, stride_yl)
        total = dot(x, tl.trans(y), total, PRECISION, ACC)
    return total


@triton.jit
def least_kept(t_ptr, lse, n, rows, length):
    """A > T is S > this: lse + log T, or -inf where T <= 0."""
    t = load_rows(t_ptr, n, rows, length, float("-inf"))
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
def accumulate(total, peak, w, x, PRECISION: tl.constexpr, ACC: tl.constexpr):
    """total * peak + w @ x, as (total, peak): w takes x's dtype.

    float16 cannot hold small weights of many keys, nor the large gradients of a scaled loss: there they are relative to
    the largest of their row so far. Elsewhere the peak stays 1.
    """
    if x.dtype == tl.float16:
        most = tl.maximum(peak, tl.max(tl.abs(w), 1))
        total *= (peak / most)[:, None]
        w /= most[:, None]
        peak = most
    return dot(rounded(w, x.dtype), x, total, PRECISION, ACC), peak


@triton.jit
def no_peak(dtype, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """What :func:`accumulate` starts with."""
    if dtype == tl.float16:
        return tl.full([BLOCK], 1e-30, ACC)
    else:
        return tl.full([BLOCK], 1, ACC)


@triton.jit
def store_block(x_ptr, rows, cols, height, width, value):
    """Into a contiguous tensor."""
    tl.store(
        x_ptr + offsets(rows, cols, width), value.to(x_ptr.dtype.element_ty), mask=inside(rows, cols, height, width)
    )

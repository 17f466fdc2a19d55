"""What the kernels share: tiles of a plane, the border rule, and separable filters.

A plane is one sample's channel (or filter group), H x W with W dense. Offsets are 64-bit from the plane's base on, and
grids have one dimension, the only one whose limit, 2^31 - 1, holds for tensors above 2^31 elements.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

THREADS = 128  # 4 warps a program: small enough that many fit on a multiprocessor, which is what hides memory latency


# Host side. Plain integers: triton.cdiv and its like, which kernels can call too, take as long as a small op of torch.


def ceil_div(x: int, y: int) -> int:
    return -(-x // y)


def power_of_2(x: int) -> int:
    """The smallest that is not below x, of x >= 1."""
    return 1 << (x - 1).bit_length()


def on_device_of(x: Tensor) -> AbstractContextManager:
    if not x.is_cuda or x.get_device() == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)


def dense_rows(x: Tensor) -> Tensor:
    """x itself where W is dense: the kernels read it through its other strides."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def torch_accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def accumulator(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def tile(x: Tensor, width: int, most: int = 8) -> dict[str, int]:
    """A tile that gives every thread 16 bytes of x, up to `most` values; rows of up to 128 values, whole lines."""
    block_w = min(max(power_of_2(width), 16), 128)
    return {"BLOCK_H": THREADS * min(16 // x.element_size(), most) // block_w, "BLOCK_W": block_w}


def tiles(planes: int, height: int, width: int, block: dict[str, int]) -> tuple[int]:
    """The grid that :func:`tile_of` takes apart."""
    return (planes * ceil_div(height, block["BLOCK_H"]) * ceil_div(width, block["BLOCK_W"]),)


def taps(f: Tensor | None) -> int:
    return 1 if f is None else f.shape[2]


def strides(x: Tensor | None, count: int) -> tuple[int, ...]:
    """All but W's; zeros for a tensor that is left out."""
    return (0,) * count if x is None else x.stride()[:count]


# Bounds


@triton.jit
def at_least(x, least: tl.constexpr):
    """max(x, least) with a constant of x's type: `tl.maximum` rounds a number to float32."""
    return tl.maximum(x, tl.full((), least, x.dtype))


# Tiles and borders


@triton.jit
def tile_of(height, width, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
    """This program's plane, and its tile's rows and columns."""
    pid = tl.program_id(0)
    tiles_h = tl.cdiv(height, BLOCK_H)
    tiles_w = tl.cdiv(width, BLOCK_W)
    rows = (pid // tiles_w) % tiles_h * BLOCK_H + tl.arange(0, BLOCK_H)
    cols = pid % tiles_w * BLOCK_W + tl.arange(0, BLOCK_W)
    return pid // (tiles_h * tiles_w), rows, cols


@triton.jit
def offsets(rows, cols, stride_h):
    return rows.to(tl.int64)[:, None] * stride_h + cols[None, :]


@triton.jit
def inside(rows, cols, height, width):
    return ((rows >= 0) & (rows < height))[:, None] & ((cols >= 0) & (cols < width))[None, :]


@triton.jit
def inner(p, size, PADDING: tl.constexpr):
    """What position p of a padded axis reads: a position in [0, size), or -1 where it reads a zero."""
    if PADDING == "reflect":
        q = tl.where(p < 0, -p, tl.where(p >= size, 2 * (size - 1) - p, p))
    elif PADDING == "replicate":
        q = tl.minimum(tl.maximum(p, 0), size - 1)
    else:
        q = tl.where((p >= 0) & (p < size), p, -1)
    return q


@triton.jit
def border(i, tap, TAPS: tl.constexpr, size, PADDING: tl.constexpr):
    """What position i reads through a tap: a position in [0, size), or -1 where it reads a zero."""
    if TAPS == 1:
        q = i  # a contiguous range stays one, which is loaded in vectors
    elif PADDING == "none":
        q = i + tap
    else:
        q = inner(i + tap - TAPS // 2, size, PADDING)
    return q


# Separable filters. x is (pointer to the plane, row stride), and mean and rstd follow where it is to be normalised. A
# filter is (pointer, tap stride, row stride), or () where it is left out: Triton 3.6 returns no tuple that holds None.


@triton.jit
def plane_of(x_ptr, mean_ptr, rstd_ptr, n, c, plane, stride_xn, stride_xc, stride_xh):
    x_ptr += n * stride_xn + c * stride_xc
    if mean_ptr is None:
        return x_ptr, stride_xh
    else:
        return x_ptr, stride_xh, tl.load(mean_ptr + plane), tl.load(rstd_ptr + plane)


@triton.jit
def filter_of(f_ptr, n, g, stride_fn, stride_fg, stride_fk, stride_fh):
    if f_ptr is None:
        return ()
    else:
        return f_ptr + n * stride_fn + g * stride_fg, stride_fk, stride_fh


@triton.jit
def load_x(x, rows, cols, mask, ACC: tl.constexpr):
    """x, normalised, at rows and columns that went through the border rule: a zero where they are -1."""
    mask = mask & (rows >= 0)[:, None] & (cols >= 0)[None, :]
    value = tl.load(x[0] + offsets(rows, cols, x[1]), mask=mask, other=0.0).to(ACC)
    if len(x) == 4:
        value = tl.where(mask, (value - x[2]) * x[3], 0.0)
    return value


@triton.jit
def load_filter(f, tap, rows, cols, mask, ACC: tl.constexpr):
    f_ptr, stride_fk, stride_fh = f
    f_ptr += tl.full((), tap, tl.int64) * stride_fk
    mask = mask & (rows >= 0)[:, None] & (cols >= 0)[None, :]
    return tl.load(f_ptr + offsets(rows, cols, stride_fh), mask=mask, other=0.0).to(ACC)


@triton.jit
def _vertical_tap(
    t, a, x, v, rows, x_cols, v_cols, mask, height, KV: tl.constexpr, PADDING: tl.constexpr, ACC: tl.constexpr
):
    value = load_x(x, border(rows, a, KV, height, PADDING), x_cols, mask, ACC)
    if len(v) != 0:
        value *= load_filter(v, a, rows, v_cols, mask, ACC)
    return t + value


@triton.jit
def vertical_sum(
    x, v, rows, x_cols, v_cols, mask, height,
    KV: tl.constexpr, PADDING: tl.constexpr, UNROLL: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """sum_a v[a,i,j] * x[pad(i+a-rv), j']: t where v_cols is j', the inner sum of `outer` where it is j."""
    t = tl.zeros([rows.shape[0], x_cols.shape[0]], ACC)
    if UNROLL:
        for a in tl.static_range(KV):
            t = _vertical_tap(t, a, x, v, rows, x_cols, v_cols, mask, height, KV, PADDING, ACC)
    else:
        for a in range(KV):
            t = _vertical_tap(t, a, x, v, rows, x_cols, v_cols, mask, height, KV, PADDING, ACC)
    return t

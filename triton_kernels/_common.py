"""What the kernels share: tiles of a plane, the border rule, and instance normalisation.

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
CHUNK = 8192  # values of a plane that one program of 8 warps holds in registers to take their moments


# Host side


def on_device_of(x: Tensor) -> AbstractContextManager:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def dense_rows(x: Tensor) -> Tensor:
    """x itself where W is dense: the kernels read it through its other strides."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def torch_accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def accumulator(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def tile(x: Tensor, width: int, most: int = 8) -> dict[str, int]:
    """A tile that gives every thread 16 bytes of x, up to `most` values; rows of up to 128 values, whole lines."""
    block_w = min(max(triton.next_power_of_2(width), 16), 128)
    return {"BLOCK_H": THREADS * min(16 // x.element_size(), most) // block_w, "BLOCK_W": block_w}


def tiles(planes: int, height: int, width: int, block: dict[str, int]) -> tuple[int]:
    """The grid that :func:`tile_of` takes apart."""
    return (planes * triton.cdiv(height, block["BLOCK_H"]) * triton.cdiv(width, block["BLOCK_W"]),)


def taps(f: Tensor | None) -> int:
    return 1 if f is None else f.shape[2]


def strides(x: Tensor | None, count: int) -> tuple[int, ...]:
    """All but W's; zeros for a tensor that is left out."""
    return (0,) * count if x is None else x.stride()[:count]


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
def border(i, tap, TAPS: tl.constexpr, size, PADDING: tl.constexpr):
    """What position i reads through a tap: a position in [0, size), or -1 where it reads a zero."""
    p = i + tap - TAPS // 2
    if TAPS == 1:
        q = i  # a contiguous range stays one, which is loaded in vectors
    elif PADDING == "none":
        q = i + tap
    elif PADDING == "reflect":
        q = tl.where(p < 0, -p, tl.where(p >= size, 2 * (size - 1) - p, p))
    elif PADDING == "replicate":
        q = tl.minimum(tl.maximum(p, 0), size - 1)
    else:
        q = tl.where((p >= 0) & (p < size), p, -1)
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


# Instance normalisation: a plane is cut into chunks, so that few large planes still fill the device. The cut depends on
# the plane's size alone, and parts are summed in order: the same bits every time.


@triton.jit
def _load_chunk(x_ptr, i, size, width, stride_xh, DENSE: tl.constexpr, ACC: tl.constexpr):
    offset = i if DENSE else i // width * stride_xh + i % width
    return tl.load(x_ptr + offset, mask=i < size, other=0.0).to(ACC)


@triton.jit
def _moments_kernel(
    x_ptr, part_ptr, channels, size, width, parts, stride_xn, stride_xc, stride_xh,
    DENSE: tl.constexpr, CHUNK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """part[plane, chunk] = (mean, sum of (x - mean)^2): two passes, over registers."""
    pid = tl.program_id(0).to(tl.int64)
    plane = pid // parts
    start = pid % parts * CHUNK
    i = start + tl.arange(0, CHUNK)
    x_ptr += plane // channels * stride_xn + plane % channels * stride_xc
    x = _load_chunk(x_ptr, i, size, width, stride_xh, DENSE, ACC)
    mean = tl.sum(x, 0) / tl.minimum(size - start, CHUNK).to(ACC)
    centred = tl.where(i < size, x - mean, 0.0)
    tl.store(part_ptr + 2 * pid, mean)
    tl.store(part_ptr + 2 * pid + 1, tl.sum(centred * centred, 0))


@triton.jit
def _statistics_kernel(
    part_ptr, mean_ptr, rstd_ptr, parts, size, divisor,
    EPS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Merges the chunks of a plane: sum (x-mean)^2 = sum over chunks of m2 + count * (chunk mean - mean)^2."""
    plane = tl.program_id(0).to(tl.int64)
    part_ptr += 2 * plane * parts
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], ACC)
    for start in range(0, parts, BLOCK):
        i = start + lane
        count = tl.minimum(size - i.to(tl.int64) * CHUNK, CHUNK).to(ACC)
        total += tl.load(part_ptr + 2 * i, mask=i < parts, other=0.0) * count
    mean = tl.sum(total, 0) / size
    m2 = tl.zeros([BLOCK], ACC)
    for start in range(0, parts, BLOCK):
        i = start + lane
        count = tl.minimum(size - i.to(tl.int64) * CHUNK, CHUNK).to(ACC)
        shift = tl.load(part_ptr + 2 * i, mask=i < parts, other=0.0) - mean
        within = tl.load(part_ptr + 2 * i + 1, mask=i < parts, other=0.0)
        m2 += tl.where(i < parts, within + count * shift * shift, 0.0)
    tl.store(mean_ptr + plane, mean)
    tl.store(rstd_ptr + plane, 1.0 / tl.sqrt(tl.sum(m2, 0) / divisor + EPS))  # EPS: a float argument would be fp32


@triton.jit
def _gradient_sums_kernel(
    grad_xhat_ptr, x_ptr, mean_ptr, rstd_ptr, part_ptr, channels, size, width, parts, stride_xn, stride_xc, stride_xh,
    DENSE: tl.constexpr, CHUNK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """part[plane, chunk] = (sum of grad_xhat, sum of grad_xhat * xhat)."""
    pid = tl.program_id(0).to(tl.int64)
    plane = pid // parts
    i = pid % parts * CHUNK + tl.arange(0, CHUNK)
    x_ptr += plane // channels * stride_xn + plane % channels * stride_xc
    x = _load_chunk(x_ptr, i, size, width, stride_xh, DENSE, ACC)
    xhat = (x - tl.load(mean_ptr + plane)) * tl.load(rstd_ptr + plane)
    grad_xhat = tl.load(grad_xhat_ptr + plane * size + i, mask=i < size, other=0.0)
    tl.store(part_ptr + 2 * pid, tl.sum(grad_xhat, 0))
    tl.store(part_ptr + 2 * pid + 1, tl.sum(grad_xhat * xhat, 0))


@triton.jit
def _normalize_bwd_kernel(
    grad_xhat_ptr, x_ptr, mean_ptr, rstd_ptr, part_ptr, grad_x_ptr,
    channels, size, width, parts, divisor, stride_xn, stride_xc, stride_xh,
    DENSE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    plane = pid // parts
    i = pid % parts * CHUNK + tl.arange(0, CHUNK)
    lane = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], ACC)
    dots = tl.zeros([BLOCK], ACC)
    part_ptr += 2 * plane * parts
    for start in range(0, parts, BLOCK):
        sums += tl.load(part_ptr + 2 * (start + lane), mask=start + lane < parts, other=0.0)
        dots += tl.load(part_ptr + 2 * (start + lane) + 1, mask=start + lane < parts, other=0.0)
    x_ptr += plane // channels * stride_xn + plane % channels * stride_xc
    x = _load_chunk(x_ptr, i, size, width, stride_xh, DENSE, ACC)
    rstd = tl.load(rstd_ptr + plane)
    xhat = (x - tl.load(mean_ptr + plane)) * rstd
    grad_xhat = tl.load(grad_xhat_ptr + plane * size + i, mask=i < size, other=0.0)
    # grad_x = rstd * (grad_xhat - mean(grad_xhat) - xhat * sum(grad_xhat * xhat) / (size - correction))
    grad_x = rstd * (grad_xhat - tl.sum(sums, 0) / size - xhat * (tl.sum(dots, 0) / divisor))
    tl.store(grad_x_ptr + plane * size + i, grad_x.to(grad_x_ptr.dtype.element_ty), mask=i < size)


def _chunks(x: Tensor, correction: int) -> tuple[int, int, int, int, dict[str, object]]:
    """planes, size, parts, divisor of the variance, and the launch options."""
    planes, size = x.shape[0] * x.shape[1], x.shape[2] * x.shape[3]
    chunk = min(CHUNK, max(triton.next_power_of_2(size), 128))
    options = {"CHUNK": chunk, "ACC": accumulator(x), "num_warps": max(1, min(8, chunk // 1024))}
    return planes, size, triton.cdiv(size, chunk), max(size - correction, 0), options


def instance_statistics(x: Tensor, eps: float, correction: int) -> tuple[Tensor, Tensor]:
    """mean and 1 / sqrt(var + eps) of every plane of [N, C, H, W], W dense; each [N, C], float32 (float64)."""
    mean = torch.empty(x.shape[:2], dtype=torch_accumulator(x), device=x.device)
    rstd = torch.empty_like(mean)
    planes, size, parts, divisor, options = _chunks(x, correction)
    part = torch.empty((planes, parts, 2), dtype=mean.dtype, device=x.device)
    with on_device_of(x):
        _moments_kernel[(planes * parts,)](
            x, part, x.shape[1], size, x.shape[3], parts, *x.stride()[:3], DENSE=x.stride(2) == x.shape[3], **options
        )
        _statistics_kernel[(planes,)](
            part, mean, rstd, parts, size, divisor, EPS=eps, CHUNK=options["CHUNK"], BLOCK=128, ACC=options["ACC"]
        )
    return mean, rstd


def instance_norm_backward(grad_xhat: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, correction: int) -> Tensor:
    """The gradient of x from that of the normalised x, which is contiguous and of the accumulator's dtype."""
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    planes, size, parts, divisor, options = _chunks(x, correction)
    part = torch.empty((planes, parts, 2), dtype=mean.dtype, device=x.device)
    dense = x.stride(2) == x.shape[3]
    with on_device_of(x):
        _gradient_sums_kernel[(planes * parts,)](
            grad_xhat, x, mean, rstd, part, x.shape[1], size, x.shape[3], parts, *x.stride()[:3], DENSE=dense, **options
        )
        _normalize_bwd_kernel[(planes * parts,)](
            grad_xhat, x, mean, rstd, part, grad_x, x.shape[1], size, x.shape[3], parts, divisor, *x.stride()[:3],
            DENSE=dense, BLOCK=128, **options,
        )  # fmt: skip
    return grad_x

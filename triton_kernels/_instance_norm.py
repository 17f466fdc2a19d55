"""Instance normalisation: statistics, sums and gradients of planes, whose positions are taken row after row.

A plane is cut into chunks, so that few large planes still fill the device. The cut depends on the plane's size alone,
and parts are summed in order: the same bits every time. A plane that one program holds in registers is a single chunk:
its program takes the statistics or sums itself and goes on, so that the plane is read once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import accumulator, ceil_div, on_device_of, power_of_2, torch_accumulator

CHUNK = 8192  # float32 values of a plane that one program holds in registers, 16 to 32 a thread
STREAM = 2048  # values of a plane that one program passes on, given its statistics: 16 a thread


@triton.jit
def plane_at(x_ptr, plane, channels, stride_xn, stride_xc):
    return x_ptr + plane // channels * stride_xn + plane % channels * stride_xc


@triton.jit
def load_chunk(x_ptr, i, size, width, stride_xh, DENSE: tl.constexpr, ACC: tl.constexpr):
    """Positions i of a plane; zeros beyond its end."""
    offset = i if DENSE else i // width * stride_xh + i % width
    return tl.load(x_ptr + offset, mask=i < size, other=0.0).to(ACC)


@triton.jit
def store_chunk(x_ptr, plane, i, size, value):
    """To positions i of a contiguous tensor's plane."""
    tl.store(x_ptr + plane * size + i, value.to(x_ptr.dtype.element_ty), mask=i < size)


@triton.jit
def _moments(x, first, inside, count):
    """The mean, and the sum of (x - mean)^2, in two passes over registers.

    The mean is taken from `first` on, one of the values, so that a large one costs no digits and planes that are
    constant have no variance. The deviations from it then mend what a value far from the others cost.
    """
    mean = first + tl.sum(tl.where(inside, x - first, 0.0), 0) / count
    centred = tl.where(inside, x - mean, 0.0)
    rest = tl.sum(centred, 0) / count
    return mean + rest, tl.sum(centred * centred, 0) - count * rest * rest


@triton.jit
def plane_statistics(
    x, x_ptr, i, mean_ptr, rstd_ptr, plane, size, divisor, WHOLE: tl.constexpr, EPS: tl.constexpr
):  # fmt: skip
    """The plane's mean and 1 / sqrt(var + eps): stored where x is the whole plane at x_ptr, else loaded."""
    if WHOLE:
        mean, m2 = _moments(x, tl.load(x_ptr).to(x.dtype), i < size, size)
        rstd = 1.0 / tl.sqrt(m2 / divisor + EPS)  # EPS: a float argument would be fp32
        tl.store(mean_ptr + plane, mean)
        tl.store(rstd_ptr + plane, rstd)
    else:
        mean = tl.load(mean_ptr + plane)
        rstd = tl.load(rstd_ptr + plane)
    return mean, rstd


@triton.jit
def normalized(x, i, mean, rstd, size):
    """Positions i of a plane. Beyond its end zero, where (0 - mean) * rstd could be infinite."""
    return tl.where(i < size, (x - mean) * rstd, 0.0)


@triton.jit
def plane_sums(grad, xhat, sum_ptr, dot_ptr, plane, WHOLE: tl.constexpr):
    """The plane's sums of grad and of grad * xhat: stored where grad is the whole plane, else loaded.

    xhat is zero beyond the plane's end, as normalized has it.
    """
    if WHOLE:
        total = tl.sum(grad, 0)
        dot = tl.sum(grad * xhat, 0)
        tl.store(sum_ptr + plane, total)
        tl.store(dot_ptr + plane, dot)
    else:
        total = tl.load(sum_ptr + plane)
        dot = tl.load(dot_ptr + plane)
    return total, dot


@triton.jit
def normalize_gradient(grad, xhat, total, dot, rstd, size, divisor):
    """The gradient of x from grad, that of xhat, and the plane's sums of grad and of grad * xhat."""
    # grad_x = rstd * (grad - sum(grad) / size - xhat * sum(grad * xhat) / (size - correction))
    return rstd * (grad - total / size - xhat * (dot / divisor))


@triton.jit
def _moments_kernel(
    x_ptr, mean_ptr, m2_ptr, channels, size, width, parts, divisor, stride_xn, stride_xc, stride_xh,
    WHOLE: tl.constexpr, EPS: tl.constexpr, DENSE: tl.constexpr, CHUNK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A chunk's mean and sum of (x - mean)^2; of a plane in one chunk, its mean and 1 / sqrt(var + eps)."""
    pid = tl.program_id(0).to(tl.int64)
    plane = pid // parts
    start = pid % parts * CHUNK
    i = start + tl.arange(0, CHUNK)
    x_ptr = plane_at(x_ptr, plane, channels, stride_xn, stride_xc)
    x = load_chunk(x_ptr, i, size, width, stride_xh, DENSE, ACC)
    if WHOLE:
        plane_statistics(x, x_ptr, i, mean_ptr, m2_ptr, plane, size, divisor, WHOLE, EPS)
    else:
        first = load_chunk(x_ptr, start, size, width, stride_xh, DENSE, ACC)
        mean, m2 = _moments(x, first, i < size, tl.minimum(size - start, CHUNK).to(ACC))
        tl.store(mean_ptr + pid, mean)
        tl.store(m2_ptr + pid, m2)


@triton.jit
def _statistics_kernel(
    part_mean_ptr, part_m2_ptr, mean_ptr, rstd_ptr, parts, size, divisor,
    EPS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Merges the chunks of a plane: sum (x-mean)^2 = sum over chunks of m2 + count * (chunk mean - mean)^2.

    The mean in two passes, as _moments takes it.
    """
    plane = tl.program_id(0).to(tl.int64)
    part_mean_ptr += plane * parts
    part_m2_ptr += plane * parts
    lane = tl.arange(0, BLOCK)
    first = tl.load(part_mean_ptr)
    total = tl.zeros([BLOCK], ACC)
    for start in range(0, parts, BLOCK):
        i = start + lane
        count = tl.minimum(size - i.to(tl.int64) * CHUNK, CHUNK).to(ACC)
        shift = tl.load(part_mean_ptr + i, mask=i < parts, other=0.0) - first
        total += tl.where(i < parts, shift * count, 0.0)
    mean = first + tl.sum(total, 0) / size
    rest = tl.zeros([BLOCK], ACC)
    m2 = tl.zeros([BLOCK], ACC)
    for start in range(0, parts, BLOCK):
        i = start + lane
        count = tl.minimum(size - i.to(tl.int64) * CHUNK, CHUNK).to(ACC)
        shift = tl.load(part_mean_ptr + i, mask=i < parts, other=0.0) - mean
        within = tl.load(part_m2_ptr + i, mask=i < parts, other=0.0)
        rest += tl.where(i < parts, shift * count, 0.0)
        m2 += tl.where(i < parts, within + count * shift * shift, 0.0)
    rest = tl.sum(rest, 0) / size
    m2 = tl.sum(m2, 0) - size * rest * rest
    tl.store(mean_ptr + plane, mean + rest)
    tl.store(rstd_ptr + plane, 1.0 / tl.sqrt(m2 / divisor + EPS))


@triton.jit
def _gradient_sums_kernel(
    grad_ptr, factor_ptr, x_ptr, mean_ptr, rstd_ptr, sum_ptr, dot_ptr, channels, size, width, parts,
    stride_gn, stride_gc, stride_gh,
    stride_fn, stride_fc, stride_fh,
    stride_xn, stride_xc, stride_xh,
    DENSE: tl.constexpr, CHUNK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A chunk's sums of grad and grad * xhat, grad times `factor` where there is one."""
    pid = tl.program_id(0).to(tl.int64)
    plane = pid // parts
    i = pid % parts * CHUNK + tl.arange(0, CHUNK)
    grad = load_chunk(plane_at(grad_ptr, plane, channels, stride_gn, stride_gc), i, size, width, stride_gh, DENSE, ACC)
    if factor_ptr is not None:
        factor_ptr = plane_at(factor_ptr, plane, channels, stride_fn, stride_fc)
        grad *= load_chunk(factor_ptr, i, size, width, stride_fh, DENSE, ACC)
    x = load_chunk(plane_at(x_ptr, plane, channels, stride_xn, stride_xc), i, size, width, stride_xh, DENSE, ACC)
    xhat = normalized(x, i, tl.load(mean_ptr + plane), tl.load(rstd_ptr + plane), size)
    plane_sums(grad, xhat, sum_ptr, dot_ptr, pid, True)


@triton.jit
def _normalize_bwd_kernel(
    grad_ptr, x_ptr, mean_ptr, rstd_ptr, sum_ptr, dot_ptr, grad_x_ptr,
    channels, size, width, parts, divisor, stride_xn, stride_xc, stride_xh,
    WHOLE: tl.constexpr, DENSE: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    plane = pid // parts
    i = pid % parts * BLOCK + tl.arange(0, BLOCK)
    x = load_chunk(plane_at(x_ptr, plane, channels, stride_xn, stride_xc), i, size, width, stride_xh, DENSE, ACC)
    rstd = tl.load(rstd_ptr + plane)
    xhat = normalized(x, i, tl.load(mean_ptr + plane), rstd, size)
    grad = load_chunk(grad_ptr + plane * size, i, size, width, width, True, ACC)
    total, dot = plane_sums(grad, xhat, sum_ptr, dot_ptr, plane, WHOLE)
    store_chunk(grad_x_ptr, plane, i, size, normalize_gradient(grad, xhat, total, dot, rstd, size, divisor))


# Host side


def plane_size(x: Tensor) -> int:
    return x.shape[2] * x.shape[3]


def variance_divisor(x: Tensor, correction: int) -> int:
    return max(plane_size(x) - correction, 0)


def is_whole(x: Tensor) -> bool:
    """Whether one program holds a plane of x."""
    return plane_size(x) * (2 if x.dtype == torch.float64 else 1) <= CHUNK


def _dense(*tensors: Tensor) -> bool:
    return all(x.stride(2) == x.shape[3] for x in tensors)


def _cut(x: Tensor) -> tuple[int, int, dict[str, object]]:
    """planes, chunks of a plane, and the launch options, where all of a chunk is summed."""
    planes, size = x.shape[0] * x.shape[1], plane_size(x)
    most = CHUNK // (2 if x.dtype == torch.float64 else 1)
    chunk = min(most, max(power_of_2(size), 128))
    options = {"CHUNK": chunk, "ACC": accumulator(x), "num_warps": max(1, min(8, chunk // 1024))}
    return planes, ceil_div(size, chunk), options


def streaming(x: Tensor, *others: Tensor) -> tuple[tuple[int], int, dict[str, object]]:
    """The grid, chunks of a plane, and launch options of a kernel that passes planes of x (and the others) on."""
    size, whole = plane_size(x), is_whole(x)
    block = max(power_of_2(size), 128) if whole else STREAM
    parts = ceil_div(size, block)
    options = {"WHOLE": whole, "DENSE": _dense(x, *others), "BLOCK": block, "ACC": accumulator(x)}
    return (x.shape[0] * x.shape[1] * parts,), parts, options | {"num_warps": max(1, min(16, block // 512))}


def instance_statistics(x: Tensor, eps: float, correction: int) -> tuple[Tensor, Tensor]:
    """mean and 1 / sqrt(var + eps) of every plane of [N, C, H, W], W dense; each [N, C], float32 (float64)."""
    mean = torch.empty(x.shape[:2], dtype=torch_accumulator(x), device=x.device)
    rstd = torch.empty_like(mean)
    planes, parts, options = _cut(x)
    size, divisor = plane_size(x), variance_divisor(x, correction)
    whole = parts == 1
    part_mean, part_m2 = (mean, rstd) if whole else (mean.new_empty((planes, parts)) for _ in range(2))
    with on_device_of(x):
        _moments_kernel[(planes * parts,)](
            x, part_mean, part_m2, x.shape[1], size, x.shape[3], parts, divisor, *x.stride()[:3],
            WHOLE=whole, EPS=eps, DENSE=_dense(x), **options,
        )  # fmt: skip
        if not whole:
            _statistics_kernel[(planes,)](
                part_mean, part_m2, mean, rstd, parts, size, divisor,
                EPS=eps, CHUNK=options["CHUNK"], BLOCK=128, ACC=options["ACC"],
            )  # fmt: skip
    return mean, rstd


def gradient_sums(
    grad: Tensor,  # [N, C, H, W]
    x: Tensor,  # [N, C, H, W]
    mean: Tensor,
    rstd: Tensor,
    factor: Tensor | None = None,  # [N, C, H, W]
) -> tuple[Tensor, Tensor]:
    """The sums over every plane of grad and of grad * xhat, each [N, C]; grad times `factor` where there is one."""
    planes, parts, options = _cut(x)
    sums, dots = (mean.new_empty((*x.shape[:2], parts)) for _ in range(2))
    f = x if factor is None else factor
    with on_device_of(x):
        _gradient_sums_kernel[(planes * parts,)](
            grad, factor, x, mean, rstd, sums, dots, x.shape[1], plane_size(x), x.shape[3], parts,
            *grad.stride()[:3], *f.stride()[:3], *x.stride()[:3], DENSE=_dense(grad, f, x), **options,
        )  # fmt: skip
    return sums.sum(2), dots.sum(2)


def instance_norm_backward(grad_xhat: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, correction: int) -> Tensor:
    """The gradient of x from that of the normalised x, which is contiguous and of the accumulator's dtype."""
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid, parts, options = streaming(x)
    if options["WHOLE"]:
        total, dot = torch.empty_like(mean), torch.empty_like(mean)
    else:
        total, dot = gradient_sums(grad_xhat, x, mean, rstd)
    with on_device_of(x):
        _normalize_bwd_kernel[grid](
            grad_xhat, x, mean, rstd, total, dot, grad_x, x.shape[1], plane_size(x), x.shape[3], parts,
            variance_divisor(x, correction), *x.stride()[:3], **options,
        )  # fmt: skip
    return grad_x

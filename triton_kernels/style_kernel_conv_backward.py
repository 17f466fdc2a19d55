"""style_kernel_conv: the kernels of the backward pass and what launches them.

All gather: a program owns the values that it writes, and reads whatever contributes to them, in fixed order. There are
no atomics, and the bits are the same every time.

`sequential` with few taps is one kernel, which computes t and its gradient again at each neighbour (k = 3, G = C: 15
values a value of x). All else is built of two: the gradient of a filter, and that of what was filtered. `sequential`
calls them once for each direction with the other filter left out, and t and its gradient go through memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import (
    accumulator,
    border,
    filter_of,
    inside,
    load_filter,
    load_x,
    offsets,
    on_device_of,
    plane_of,
    strides,
    taps,
    tile,
    tile_of,
    tiles,
    torch_accumulator,
    vertical_sum,
)

FUSED_TAPS = 3  # 5 taps would read (h, grad) 121 times a value, 3 taps 25 times; r = 1 also keeps `reader` short


@triton.jit
def reader(p, d: tl.constexpr, MIRROR: tl.constexpr, size, PADDING: tl.constexpr):
    """The position whose tap at distance d (-1, 0 or 1) reads p: the plain one, or the one that the border sends there.

    -1 where there is none. reflect sends -1 to 1 and `size` to size - 2, replicate -1 to 0 and `size` to size - 1.
    """
    if not MIRROR:
        q = tl.where((p - d >= 0) & (p - d < size), p - d, -1)
    else:
        edge = 0 if d < 0 else size - 1  # its tap at distance d leaves the picture
        target = edge - d if PADDING == "reflect" else edge
        q = tl.where(p == target, edge, -1)
    return q


@triton.jit
def _horizontal_adjoint(grad, h, rows, cols, mask, width, KH: tl.constexpr, PADDING: tl.constexpr, ACC: tl.constexpr):
    grad_t = tl.zeros([rows.shape[0], cols.shape[0]], ACC)
    # grad_t[i,j'] = sum over (j,b) with pad(j+b-rh) = j' of h[b,i,j] * grad[i,j]
    for b in tl.static_range(KH):
        q = cols if b == KH // 2 else reader(cols, b - KH // 2, False, width, PADDING)
        grad_t += load_filter(h, b, rows, q, mask, ACC) * load_x(grad, rows, q, mask, ACC)
        if b != KH // 2 and PADDING != "zeros":
            q = reader(cols, b - KH // 2, True, width, PADDING)
            grad_t += load_filter(h, b, rows, q, mask, ACC) * load_x(grad, rows, q, mask, ACC)
    return grad_t


@triton.jit
def _style_kernel_conv_bwd_kernel(
    grad_ptr, x_ptr, v_ptr, h_ptr, mean_ptr, rstd_ptr, grad_x_ptr, grad_v_ptr, grad_h_ptr,
    groups, group_size, height, width,
    stride_gn, stride_gc, stride_gh,
    stride_xn, stride_xc, stride_xh,
    stride_vn, stride_vg, stride_vk, stride_vh,
    stride_hn, stride_hg, stride_hk, stride_hh,
    KV: tl.constexpr, KH: tl.constexpr, PADDING: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """`sequential`, 1 or 3 taps: a tile of one group's filter gradients, and of its channels' input gradients."""
    plane, rows, cols = tile_of(height, width, BLOCK_H, BLOCK_W)
    plane = plane.to(tl.int64)
    n, g = plane // groups, plane % groups
    mask = inside(rows, cols, height, width)
    v = filter_of(v_ptr, n, g, stride_vn, stride_vg, stride_vk, stride_vh)
    h = filter_of(h_ptr, n, g, stride_hn, stride_hg, stride_hk, stride_hh)
    size = tl.full((), height, tl.int64) * width
    out = offsets(rows, cols, width)

    grad_v = (tl.zeros([BLOCK_H, BLOCK_W], ACC),) * KV
    grad_h = (tl.zeros([BLOCK_H, BLOCK_W], ACC),) * KH
    for k in range(group_size):
        c = g * group_size + k
        xc = plane * group_size + k  # the plane of [N, C]
        x = plane_of(x_ptr, mean_ptr, rstd_ptr, n, c, xc, stride_xn, stride_xc, stride_xh)
        grad = plane_of(grad_ptr, None, None, n, c, xc, stride_gn, stride_gc, stride_gh)
        if grad_h_ptr is not None:
            # grad_h[b,i,j] = sum_c grad[i,j] * t[i, pad(j+b-rh)]
            y = load_x(grad, rows, cols, mask, ACC)
            sums = ()
            for b in tl.static_range(KH):
                q = cols if b == KH // 2 else border(cols, b, KH, width, PADDING)
                t = vertical_sum(x, v, rows, q, q, mask, height, KV, PADDING, True, ACC)
                sums += (grad_h[b] + y * t,)
            grad_h = sums
        if grad_v_ptr is not None or grad_x_ptr is not None:
            grad_t = _horizontal_adjoint(grad, h, rows, cols, mask, width, KH, PADDING, ACC)
        if grad_v_ptr is not None:
            # grad_v[a,i,j] = sum_c grad_t[i,j] * x[pad(i+a-rv), j]
            sums = ()
            for a in tl.static_range(KV):
                sums += (grad_v[a] + grad_t * load_x(x, border(rows, a, KV, height, PADDING), cols, mask, ACC),)
            grad_v = sums
        if grad_x_ptr is not None:
            # grad_x[i',j] = sum over (i,a) with pad(i+a-rv) = i' of v[a,i,j] * grad_t[i,j]
            grad_x = grad_t * load_filter(v, KV // 2, rows, cols, mask, ACC)
            for a in tl.static_range(KV):
                if a != KV // 2:
                    i = reader(rows, a - KV // 2, False, height, PADDING)
                    grad_t = _horizontal_adjoint(grad, h, i, cols, mask, width, KH, PADDING, ACC)
                    grad_x += grad_t * load_filter(v, a, i, cols, mask, ACC)
                    if PADDING != "zeros":
                        i = reader(rows, a - KV // 2, True, height, PADDING)
                        if tl.max(i, 0) >= 0:  # only tiles at the border have such a row
                            grad_t = _horizontal_adjoint(grad, h, i, cols, mask, width, KH, PADDING, ACC)
                            grad_x += grad_t * load_filter(v, a, i, cols, mask, ACC)
            tl.store(grad_x_ptr + xc * size + out, grad_x.to(grad_x_ptr.dtype.element_ty), mask=mask)
    if grad_v_ptr is not None:
        for a in tl.static_range(KV):
            tl.store(grad_v_ptr + (plane * KV + a) * size + out, grad_v[a].to(grad_v_ptr.dtype.element_ty), mask=mask)
    if grad_h_ptr is not None:
        for b in tl.static_range(KH):
            tl.store(grad_h_ptr + (plane * KH + b) * size + out, grad_h[b].to(grad_h_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _style_kernel_conv_bwd_filter_kernel(
    grad_ptr, x_ptr, other_ptr, mean_ptr, rstd_ptr, grad_f_ptr, groups, group_size, height, width,
    stride_gn, stride_gc, stride_gh,
    stride_xn, stride_xc, stride_xh,
    stride_on, stride_og, stride_ok, stride_oh,
    TAPS: tl.constexpr, OTHER_TAPS: tl.constexpr, VERTICAL: tl.constexpr, PADDING: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A tile of one group's filter gradient, tap after tap. The other filter, `other`, may be left out."""
    plane, rows, cols = tile_of(height, width, BLOCK_H, BLOCK_W)
    plane = plane.to(tl.int64)
    n, g = plane // groups, plane % groups
    mask = inside(rows, cols, height, width)
    other = filter_of(other_ptr, n, g, stride_on, stride_og, stride_ok, stride_oh)
    size = tl.full((), height, tl.int64) * width
    for a in range(TAPS):
        # grad_v[a,i,j] = sum_c grad[i,j] * sum_b h[b,i,j] * x[pad(i+a-rv), pad(j+b-rh)], and the same with v, a
        # and h, b exchanged
        grad_f = tl.zeros([BLOCK_H, BLOCK_W], ACC)
        for k in range(group_size):
            xc = plane * group_size + k
            x = plane_of(x_ptr, mean_ptr, rstd_ptr, n, g * group_size + k, xc, stride_xn, stride_xc, stride_xh)
            grad = plane_of(grad_ptr, None, None, n, g * group_size + k, xc, stride_gn, stride_gc, stride_gh)
            inner = tl.zeros([BLOCK_H, BLOCK_W], ACC)
            for b in range(OTHER_TAPS):
                if VERTICAL:
                    i = border(rows, a, TAPS, height, PADDING)
                    j = border(cols, b, OTHER_TAPS, width, PADDING)
                else:
                    i = border(rows, b, OTHER_TAPS, height, PADDING)
                    j = border(cols, a, TAPS, width, PADDING)
                value = load_x(x, i, j, mask, ACC)
                if other_ptr is not None:
                    value *= load_filter(other, b, rows, cols, mask, ACC)
                inner += value
            grad_f += load_x(grad, rows, cols, mask, ACC) * inner
        out = (plane * TAPS + a) * size + offsets(rows, cols, width)
        tl.store(grad_f_ptr + out, grad_f.to(grad_f_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _style_kernel_conv_bwd_source_kernel(
    grad_ptr, v_ptr, h_ptr, grad_s_ptr, channels, group_size, height, width, out_h, out_w, margin_h, margin_w,
    stride_gn, stride_gc, stride_gh,
    stride_vn, stride_vg, stride_vk, stride_vh,
    stride_hn, stride_hg, stride_hk, stride_hh,
    KV: tl.constexpr, KH: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A tile of the gradient of the padded source, whose first row and column are -margin_h and -margin_w."""
    plane, rows, cols = tile_of(out_h, out_w, BLOCK_H, BLOCK_W)
    plane = plane.to(tl.int64)
    n, c = plane // channels, plane % channels
    g = c // group_size
    grad = plane_of(grad_ptr, None, None, n, c, plane, stride_gn, stride_gc, stride_gh)
    v = filter_of(v_ptr, n, g, stride_vn, stride_vg, stride_vk, stride_vh)
    h = filter_of(h_ptr, n, g, stride_hn, stride_hg, stride_hk, stride_hh)
    # grad_s[p,q] = sum over a, b of v[a,i,j] * h[b,i,j] * grad[i,j] at i = p-(a-rv), j = q-(b-rh)
    grad_s = tl.zeros([BLOCK_H, BLOCK_W], ACC)
    for a in range(KV):
        i = rows if KV == 1 else rows - margin_h - a + KV // 2
        for b in range(KH):
            j = cols if KH == 1 else cols - margin_w - b + KH // 2
            mask = inside(i, j, height, width)
            value = load_x(grad, i, j, mask, ACC)
            if v_ptr is not None:
                value *= load_filter(v, a, i, j, mask, ACC)
            if h_ptr is not None:
                value *= load_filter(h, b, i, j, mask, ACC)
            grad_s += value
    grad_s_ptr += plane * out_h * out_w
    tl.store(
        grad_s_ptr + offsets(rows, cols, out_w),
        grad_s.to(grad_s_ptr.dtype.element_ty),
        mask=inside(rows, cols, out_h, out_w),
    )


@triton.jit
def _image(p, s, R: tl.constexpr, size, REFLECT: tl.constexpr):
    """The s-th position of [-R, size + R) that the border rule sends to p, from 0 up, and whether there is one."""
    if R == 0:
        q = p
        exists = p >= 0
    elif REFLECT:  # p itself; its mirror on the left; on the right
        q = tl.where(s == 0, p, tl.where(s == 1, -p, 2 * (size - 1) - p))
        exists = (s == 0) | ((q != p) & (q >= -R) & (q < size + R))
    else:  # p itself; at the edges also the R positions beyond
        q = tl.where(s == 0, p, tl.where(s <= R, -s, size - 1 + s - R))
        exists = (s == 0) | tl.where(s <= R, p == 0, p == size - 1)
    return q + R, exists


@triton.jit
def _fold_kernel(
    padded_ptr, out_ptr, height, width,
    RV: tl.constexpr, RH: tl.constexpr, ROW_IMAGES: tl.constexpr, COL_IMAGES: tl.constexpr, REFLECT: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The adjoint of padding: out[p] = the sum of padded over the positions that the border rule sends to p."""
    plane, rows, cols = tile_of(height, width, BLOCK_H, BLOCK_W)
    plane = plane.to(tl.int64)
    mask = inside(rows, cols, height, width)
    padded_ptr += plane * (height + 2 * RV) * (width + 2 * RH)
    total = tl.zeros([BLOCK_H, BLOCK_W], ACC)
    for s in range(ROW_IMAGES):
        i, i_exists = _image(rows, s, RV, height, REFLECT)
        for u in range(COL_IMAGES):
            j, j_exists = _image(cols, u, RH, width, REFLECT)
            exists = mask & i_exists[:, None] & j_exists[None, :]
            total += tl.load(padded_ptr + offsets(i, j, width + 2 * RH), mask=exists, other=0.0)
    out_ptr += plane * height * width
    tl.store(out_ptr + offsets(rows, cols, width), total.to(out_ptr.dtype.element_ty), mask=mask)


def fused_gradients(
    grad: Tensor,  # [N, C, H, W]
    x: Tensor,  # [N, C, H, W]
    vertical: Tensor,  # [N, G, kv, H, W]
    horizontal: Tensor,  # [N, G, kh, H, W]
    mean: Tensor | None,
    rstd: Tensor | None,
    padding_mode: str,
    x_dtype: torch.dtype,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """`sequential`, up to FUSED_TAPS: the gradients of x (normalised), vertical and horizontal; None: not needed."""
    (n, c, h, w), groups = x.shape, vertical.shape[1]
    grad_x, grad_v, grad_h = (
        torch.empty(like.shape, dtype=dtype, device=x.device) if need else None
        for like, dtype, need in zip((x, vertical, horizontal), (x_dtype, x.dtype, x.dtype), needs, strict=True)
    )
    block = tile(x, w, most=4)  # 8 values a thread, for half precision, spill registers
    with on_device_of(x):
        _style_kernel_conv_bwd_kernel[tiles(n * groups, h, w, block)](
            grad, x, vertical, horizontal, mean, rstd, grad_x, grad_v, grad_h, groups, c // groups, h, w,
            *strides(grad, 3), *strides(x, 3), *strides(vertical, 4), *strides(horizontal, 4),
            KV=taps(vertical), KH=taps(horizontal), PADDING=padding_mode, ACC=accumulator(x), num_warps=4,
            enable_fp_fusion=False,  # else a gradient's last bits depend on which others are asked for
            **block,
        )  # fmt: skip
    return grad_x, grad_v, grad_h


def filter_gradient(
    grad: Tensor,  # [N, C, H, W]
    x: Tensor,  # [N, C, H, W]
    mean: Tensor | None,
    rstd: Tensor | None,
    other: Tensor | None,  # [N, G, k, H, W], the filter of the other direction
    like: Tensor,  # [N, G, k, H, W], the filter itself
    padding_mode: str,
    direction: str,
) -> Tensor:
    """The gradient of one filter, of its shape and dtype; `other` may be left out."""
    grad_f = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    (n, groups, k, h, w), c = like.shape, x.shape[1]
    block = tile(x, w)
    with on_device_of(x):
        _style_kernel_conv_bwd_filter_kernel[tiles(n * groups, h, w, block)](
            grad, x, other, mean, rstd, grad_f, groups, c // groups, h, w,
            *strides(grad, 3), *strides(x, 3), *strides(other, 4),
            TAPS=k, OTHER_TAPS=taps(other), VERTICAL=direction == "vertical", PADDING=padding_mode,
            ACC=accumulator(x), num_warps=4, **block,
        )  # fmt: skip
    return grad_f


def source_gradient(
    grad: Tensor,  # [N, C, H, W]
    vertical: Tensor | None,  # [N, G, kv, H, W]
    horizontal: Tensor | None,  # [N, G, kh, H, W]
    padding_mode: str,
    dtype: torch.dtype,
) -> Tensor:
    """The gradient of what the filters were applied to; one of them may be left out."""
    (n, c, h, w), kv, kh = grad.shape, taps(vertical), taps(horizontal)
    groups = (horizontal if vertical is None else vertical).shape[1]
    # Where taps read beyond the border, the gradient of the padded source comes first and is folded then: that keeps
    # the border out of the loops over taps, in which replicate would have up to r^2 readers for a value.
    fold = padding_mode in ("reflect", "replicate")
    margin_h, margin_w = (0, 0) if padding_mode == "zeros" else (kv // 2, kh // 2)
    size = (h + 2 * margin_h, w + 2 * margin_w)
    padded = torch.empty((n, c, *size), dtype=torch_accumulator(grad) if fold else dtype, device=grad.device)
    block = tile(grad, size[1])
    with on_device_of(grad):
        _style_kernel_conv_bwd_source_kernel[tiles(n * c, *size, block)](
            grad, vertical, horizontal, padded, c, c // groups, h, w, *size, margin_h, margin_w,
            *strides(grad, 3), *strides(vertical, 4), *strides(horizontal, 4),
            KV=kv, KH=kh, ACC=accumulator(grad), num_warps=4, **block,
        )  # fmt: skip
    if not fold:
        return padded
    out = torch.empty((n, c, h, w), dtype=dtype, device=grad.device)
    block = tile(padded, w)
    reflect = padding_mode == "reflect"
    row_images, col_images = (1 if r == 0 else 3 if reflect else 1 + 2 * r for r in (margin_h, margin_w))
    with on_device_of(grad):
        _fold_kernel[tiles(n * c, h, w, block)](
            padded, out, h, w, RV=margin_h, RH=margin_w, ROW_IMAGES=row_images, COL_IMAGES=col_images,
            REFLECT=reflect, ACC=accumulator(padded), num_warps=4, **block,
        )  # fmt: skip
    return out

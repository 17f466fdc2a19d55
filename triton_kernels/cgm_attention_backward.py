"""The gradients of cgm_attention, recomputed from the log-sum-exp: a pass for each, none of which writes the map.

With g the gradient of the output o, m the kept mass (1 without `renormalize`, and for a row that keeps nothing), keep
the hard gate, and with the surrogate s = sigmoid((A - T) Lk / temperature):

  e[u,v]     = (g[u] . value[v] - (renormalize ? g[u] . o[u] : 0)) / m[u]
  slope[u,v] = A e s (1 - s) Lk / temperature                                           (zero without the surrogate)
  grad_value = (A keep / m)^T g
  grad_bias  = -sum_v slope,  grad_scale = grad_bias / Lk
  dA         = keep e + slope
  dS         = A (dA - sum_v A dA)
  dq^        = alpha dS k^,  dk^ = alpha dS^T q^
  dx         = (dx^ - x^ (x^ . dx^)) / |x|, or dx^ / eps for a row no longer than eps

sum_v A dA is g . o without the surrogate (0 with `renormalize`); with it, a pass of its own makes these sums and those
of the gates. x^ . dx^ is the sum of dS S over the row or column, so each program can finish its columns of a gradient.
Programs own queries or keys and go over the others, so no sum needs an atomic.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._cgm_attention import (
    accumulate,
    attention,
    block_of,
    blocks,
    gated,
    grid,
    least_kept,
    load_block,
    load_rows,
    no_peak,
    products,
    row_products,
    row_strides,
    scales,
    store_block,
    thresholds,
    whole_lines,
)
from ._common import on_device_of


@triton.jit
def _map(
    q, k, v, g, t_ptr, lse_ptr, q_scale_ptr, k_scale_ptr, sharpness_ptr, n, rows, cols, lq, lk, depth, width,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """g . value, S, the S above which keys are kept, A, and s (1 - s) Lk / temperature (zero without the surrogate).

    q, k, v and g are (pointer to the sample, row stride). g . value comes first: fewer numbers then wait in registers
    for the other product.
    """
    gv = products(g[0], v[0], rows, cols, lq, lk, width, g[1], v[1], BLOCK_D, PRECISION, ACC)
    s = products(q[0], k[0], rows, cols, lq, lk, depth, q[1], k[1], BLOCK_D, PRECISION, ACC)
    s *= load_rows(q_scale_ptr, n, rows, lq, 0.0)[:, None]
    s *= load_rows(k_scale_ptr, n, cols, lk, 1.0)[None, :]
    lse = load_rows(lse_ptr, n, rows, lq, float("inf"))
    a = attention(s, lse, cols, lk)
    least = least_kept(t_ptr, lse, n, rows, lq)
    if sharpness_ptr is None:
        return gv, s, least, a, 0.0
    else:
        sharpness = tl.load(sharpness_ptr)
        soft = tl.sigmoid((a - load_rows(t_ptr, n, rows, lq, 0.0)[:, None]) * sharpness)
        return gv, s, least, a, soft * (1 - soft) * sharpness


@triton.jit
def _score_gradient(
    q, k, v, g, t_ptr, lse_ptr, q_scale_ptr, k_scale_ptr, sharpness_ptr, shift_ptr, mass_ptr, delta_ptr,
    n, rows, cols, lq, lk, depth, width, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """S and dS of a block."""
    gv, s, least, a, ds_da = _map(
        q, k, v, g, t_ptr, lse_ptr, q_scale_ptr, k_scale_ptr, sharpness_ptr, n, rows, cols, lq, lk, depth, width,
        BLOCK_D, PRECISION, ACC,
    )  # fmt: skip
    # e = (g . value - (renormalize ? g . o : 0)) / m
    e = (gv - load_rows(shift_ptr, n, rows, lq, 0.0)[:, None]) * share(mass_ptr, n, rows, lq)[:, None]
    # dA = keep e + slope, slope = A e s (1 - s) Lk / temperature
    da = gated(e, s, least) + a * e * ds_da
    # dS = A (dA - sum_v A dA)
    return s, a * (da - load_rows(delta_ptr, n, rows, lq, 0.0)[:, None])


@triton.jit
def share(mass_ptr, n, rows, length):
    """1 / m: 1 without renormalisation, and where nothing is kept."""
    mass = load_rows(mass_ptr, n, rows, length, 1.0)
    return 1 / tl.where(mass > 0, mass, 1.0)


@triton.jit
def _cgm_attention_bwd_gate_kernel(
    q_ptr, k_ptr, v_ptr, g_ptr, t_ptr, lse_ptr, q_scale_ptr, k_scale_ptr, sharpness_ptr, shift_ptr, mass_ptr,
    delta_ptr, grad_t_ptr, lq, lk, depth, width,
    stride_qn, stride_ql, stride_kn, stride_kl, stride_vn, stride_vl, stride_gn, stride_gl,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_W: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The sums over keys. g . o too: the output is rounded, and what is left of e after it may be small."""
    n, start, _ = block_of(lq, BLOCK_Q, 1, 1)
    rows = start + tl.arange(0, BLOCK_Q)
    q, k = (q_ptr + n * stride_qn, stride_ql), (k_ptr + n * stride_kn, stride_kl)
    v, g = (v_ptr + n * stride_vn, stride_vl), (g_ptr + n * stride_gn, stride_gl)
    hard = tl.zeros([BLOCK_Q], ACC)
    slopes = tl.zeros([BLOCK_Q], ACC)
    moved = tl.zeros([BLOCK_Q], ACC)
    slopes_a = tl.zeros([BLOCK_Q], ACC)
    moved_a = tl.zeros([BLOCK_Q], ACC)
    for at in range(0, lk, BLOCK_K):
        cols = at + tl.arange(0, BLOCK_K)
        gv, s, least, a, ds_da = _map(
            q, k, v, g, t_ptr, lse_ptr, q_scale_ptr, k_scale_ptr, sharpness_ptr, n, rows, cols, lq, lk, depth, width,
            BLOCK_D, PRECISION, ACC,
        )  # fmt: skip
        hard += tl.sum(gated(a * gv, s, least), 1)
        slope = a * ds_da
        slopes += tl.sum(slope, 1)
        moved += tl.sum(slope * gv, 1)
        slope *= a
        slopes_a += tl.sum(slope, 1)
        moved_a += tl.sum(slope * gv, 1)
    if mass_ptr is not None:
        # g . o = sum_v A keep g . value / m, after which sum_v A keep e = 0
        inverse = share(mass_ptr, n, rows, lq)
        shift = hard * inverse
        tl.store(shift_ptr + n * lq + rows, shift, mask=rows < lq)
        hard = tl.zeros([BLOCK_Q], ACC)
        moved = (moved - shift * slopes) * inverse
        moved_a = (moved_a - shift * slopes_a) * inverse
    # sum_v A dA = sum_v A keep e + sum_v A slope
    tl.store(delta_ptr + n * lq + rows, hard + moved_a, mask=rows < lq)
    # grad_bias = -sum_v slope
    tl.store(grad_t_ptr + n * lq + rows, -moved, mask=rows < lq)


@triton.jit
def _cgm_attention_bwd_query_kernel(
    q_ptr, k_ptr, v_ptr, g_ptr, t_ptr, lse_ptr, q_scale_ptr, k_scale_ptr, sharpness_ptr, shift_ptr, mass_ptr,
    delta_ptr, q_rnorm_ptr, grad_q_ptr, lq, lk, depth, width,
    stride_qn, stride_ql, stride_kn, stride_kl, stride_vn, stride_vl, stride_gn, stride_gl,
    EPS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_W: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    n, start, column = block_of(lq, BLOCK_Q, depth, BLOCK_W)
    rows = start + tl.arange(0, BLOCK_Q)
    d = column + tl.arange(0, BLOCK_W)
    q, k = (q_ptr + n * stride_qn, stride_ql), (k_ptr + n * stride_kn, stride_kl)
    v, g = (v_ptr + n * stride_vn, stride_vl), (g_ptr + n * stride_gn, stride_gl)
    total = tl.zeros([BLOCK_Q, BLOCK_W], ACC)
    peak = no_peak(k_ptr.dtype.element_ty, BLOCK_Q, ACC)
    along = tl.zeros([BLOCK_Q], ACC)
    for at in range(0, lk, BLOCK_K):
        cols = at + tl.arange(0, BLOCK_K)
        s, ds = _score_gradient(
            q, k, v, g, t_ptr, lse_ptr, q_scale_ptr, k_scale_ptr, sharpness_ptr, shift_ptr, mass_ptr, delta_ptr,
            n, rows, cols, lq, lk, depth, width, BLOCK_D, PRECISION, ACC,
        )  # fmt: skip
        # dq^ = alpha dS k^, of which alpha is left for the end; q^ . dq^ = sum_v dS S
        along += tl.sum(ds * s, 1)
        ds *= load_rows(k_scale_ptr, n, cols, lk, 1.0)[None, :]
        total, peak = accumulate(total, peak, ds, load_block(k[0], cols, d, lk, depth, k[1]), PRECISION, ACC)
    # dq = (dq^ - q^ (q^ . dq^)) / |q|
    total *= (peak * load_rows(q_scale_ptr, n, rows, lq, 0.0))[:, None]
    if q_rnorm_ptr is not None:
        total -= load_block(q[0], rows, d, lq, depth, q[1]).to(ACC) * along_of(along, q_rnorm_ptr, n, rows, lq, EPS)
    store_block(grad_q_ptr + n * lq * depth, rows, d, lq, depth, total)


@triton.jit
def _cgm_attention_bwd_key_kernel(
    q_ptr, k_ptr, v_ptr, g_ptr, t_ptr, lse_ptr, q_scale_ptr, k_scale_ptr, sharpness_ptr, shift_ptr, mass_ptr,
    delta_ptr, grad_k_ptr, lq, lk, depth, width,
    stride_qn, stride_ql, stride_kn, stride_kl, stride_vn, stride_vl, stride_gn, stride_gl,
    EPS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_W: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    n, start, column = block_of(lk, BLOCK_K, depth, BLOCK_W)
    cols = start + tl.arange(0, BLOCK_K)
    d = column + tl.arange(0, BLOCK_W)
    q, k = (q_ptr + n * stride_qn, stride_ql), (k_ptr + n * stride_kn, stride_kl)
    v, g = (v_ptr + n * stride_vn, stride_vl), (g_ptr + n * stride_gn, stride_gl)
    total = tl.zeros([BLOCK_K, BLOCK_W], ACC)
    peak = no_peak(q_ptr.dtype.element_ty, BLOCK_K, ACC)
    along = tl.zeros([BLOCK_K], ACC)
    for at in range(0, lq, BLOCK_Q):
        rows = at + tl.arange(0, BLOCK_Q)
        s, ds = _score_gradient(
            q, k, v, g, t_ptr, lse_ptr, q_scale_ptr, k_scale_ptr, sharpness_ptr, shift_ptr, mass_ptr, delta_ptr,
            n, rows, cols, lq, lk, depth, width, BLOCK_D, PRECISION, ACC,
        )  # fmt: skip
        # dk^ = alpha dS^T q^; k^ . dk^ = sum_u dS S
        along += tl.sum(ds * s, 0)
        ds *= load_rows(q_scale_ptr, n, rows, lq, 0.0)[:, None]
        x = load_block(q[0], rows, d, lq, depth, q[1])
        total, peak = accumulate(total, peak, tl.trans(ds), x, PRECISION, ACC)
    # dk = (dk^ - k^ (k^ . dk^)) / |k|
    total *= (peak * load_rows(k_scale_ptr, n, cols, lk, 1.0))[:, None]
    if k_scale_ptr is not None:
        total -= load_block(k[0], cols, d, lk, depth, k[1]).to(ACC) * along_of(along, k_scale_ptr, n, cols, lk, EPS)
    store_block(grad_k_ptr + n * lk * depth, cols, d, lk, depth, total)


@triton.jit
def along_of(along, rnorm_ptr, n, rows, length, EPS: tl.constexpr):
    """x^ . dx^ / |x|^2, what is taken of x itself; nothing of a row no longer than eps, which is divided by eps."""
    rnorm = load_rows(rnorm_ptr, n, rows, length, 0.0)
    return tl.where(rnorm * EPS < 1 - 1e-6, along * rnorm * rnorm, 0.0)[:, None]  # 1 but for what 1 / eps rounds


@triton.jit
def _cgm_attention_bwd_value_kernel(
    q_ptr, k_ptr, g_ptr, t_ptr, lse_ptr, q_scale_ptr, k_scale_ptr, mass_ptr, grad_v_ptr, lq, lk, depth, width,
    stride_qn, stride_ql, stride_kn, stride_kl, stride_gn, stride_gl,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_W: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    n, start, column = block_of(lk, BLOCK_K, width, BLOCK_W)
    cols = start + tl.arange(0, BLOCK_K)
    w = column + tl.arange(0, BLOCK_W)
    q_ptr += n * stride_qn
    k_ptr += n * stride_kn
    g_ptr += n * stride_gn
    k_scale = load_rows(k_scale_ptr, n, cols, lk, 1.0)
    total = tl.zeros([BLOCK_K, BLOCK_W], ACC)
    peak = no_peak(g_ptr.dtype.element_ty, BLOCK_K, ACC)
    for at in range(0, lq, BLOCK_Q):
        rows = at + tl.arange(0, BLOCK_Q)
        lse = load_rows(lse_ptr, n, rows, lq, float("inf"))
        s = products(q_ptr, k_ptr, rows, cols, lq, lk, depth, stride_ql, stride_kl, BLOCK_D, PRECISION, ACC)
        s = s * load_rows(q_scale_ptr, n, rows, lq, 0.0)[:, None] * k_scale[None, :]
        p = gated(attention(s, lse, cols, lk), s, least_kept(t_ptr, lse, n, rows, lq))
        # grad_value = (A keep / m)^T g
        p *= share(mass_ptr, n, rows, lq)[:, None]
        x = load_block(g_ptr, rows, w, lq, width, stride_gl)
        total, peak = accumulate(total, peak, tl.trans(p), x, PRECISION, ACC)
    store_block(grad_v_ptr + n * lk * width, cols, w, lk, width, total * peak[:, None])


def backward(
    grad: Tensor,  # [N, Lq, Dv]
    query: Tensor,  # [N, Lq, D]
    key: Tensor,  # [N, Lk, D]
    value: Tensor,  # [N, Lk, Dv]
    gate_scale: Tensor | None,  # [N, Lq]
    gate_bias: Tensor | None,  # [N, Lq]
    output: Tensor,  # [N, Lq, Dv], as forward gave it, and so on
    lse: Tensor,  # [N, Lq]
    mass: Tensor,  # [N, Lq]
    alpha: float,
    cosine: bool,
    gate_grad: str,
    temperature: float,
    renormalize: bool,
    eps: float,
    need_query: bool,
    need_key: bool,
    need_value: bool,
    need_gate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of query, key, value, gate_scale and gate_bias; size [0] where not needed."""
    tensors = (query, key, value, gate_scale, gate_bias)
    needs = (need_query, need_key, need_value, need_gate, need_gate)
    if 0 in (*grad.shape, key.shape[1]) or not any(needs):
        return tuple(
            query.new_zeros(x.shape if x is not None and need else 0) for x, need in zip(tensors, needs, strict=True)
        )
    q, k, v, g = (whole_lines(x) for x in (query, key, value, grad))
    (n, lq, depth), (lk, width) = q.shape, v.shape[1:]
    t = thresholds(gate_scale, gate_bias, lk, q)
    surrogate = gate_grad == "straight_through" and t is not None
    q_scale, k_scale, q_rnorm = scales(q, k, alpha, cosine, eps)
    options = blocks(q)
    # The gradients of queries and keys fill the registers: a third stage of loads would spill, as do float16's peaks
    # and, under older assemblers, float64's 64 columns.
    smaller = {torch.float16: {"BLOCK_D": 32}, torch.float64: {"BLOCK_W": 32}}
    tight = {**options, "num_stages": 2, **smaller.get(q.dtype, {})}
    block_q, block_k, block_w, tight_w = (*(options[f"BLOCK_{x}"] for x in "QKW"), tight["BLOCK_W"])
    sizes = (lq, lk, depth, width, *row_strides(q), *row_strides(k), *row_strides(v), *row_strides(g))
    mass = mass if renormalize else None
    if surrogate:  # the gates' pass writes them
        delta, grad_t = torch.empty_like(lse), torch.empty_like(lse)
        shift = torch.empty_like(lse) if renormalize else None
        sharpness = torch.full((), lk / temperature, dtype=lse.dtype, device=lse.device)
    else:
        dot, grad_t, sharpness = row_products(grad, output), torch.zeros_like(lse), None
        shift, delta = (dot, None) if renormalize else (None, dot)
    common = (q, k, v, g, t, lse, q_scale, k_scale, sharpness, shift, mass)
    grad_q, grad_k, grad_v = (
        torch.empty(x.shape if need else 0, dtype=x.dtype, device=x.device)
        for x, need in ((q, need_query), (k, need_key), (v, need_value))
    )
    with on_device_of(q):
        if surrogate and (need_query or need_key or need_gate):
            _cgm_attention_bwd_gate_kernel[grid(n, lq, block_q)](*common, delta, grad_t, *sizes, **options)
        if need_query and depth:
            _cgm_attention_bwd_query_kernel[grid(n, lq, block_q, depth, tight_w)](
                *common, delta, q_rnorm, grad_q, *sizes, EPS=eps, **tight
            )
        if need_key and depth:
            _cgm_attention_bwd_key_kernel[grid(n, lk, block_k, depth, tight_w)](
                *common, delta, grad_k, *sizes, EPS=eps, **tight
            )
        if need_value:
            _cgm_attention_bwd_value_kernel[grid(n, lk, block_k, width, block_w)](
                q, k, g, t, lse, q_scale, k_scale, mass, grad_v, lq, lk, depth, width,
                *row_strides(q), *row_strides(k), *row_strides(g), **options,
            )  # fmt: skip
    full = (grad_q, grad_k, grad_v, grad_t / lk, grad_t)
    return tuple(
        query.new_empty(0) if x is None or not need else y[..., : x.shape[-1]].to(x.dtype).contiguous()
        for x, y, need in zip(tensors, full, needs, strict=True)
    )

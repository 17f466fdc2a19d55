"""The gradients of cgm_attention, recomputed from the log-sum-exp, a chunk of queries at a time.

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

The library makes the scores and g . value of a chunk; a pass over its rows makes their sums, and writes dS and
A keep / m as factors of the library's products with keys, queries and g. The latter two products sum over queries and
are added up chunk by chunk, in order: no sum needs an atomic.

What dS is written times: alpha / |q|, and of 1 / |k| the mantissa. Its power of two goes into the keys, exactly: a key
of zeros, which is divided by eps, would leave the others no digits in float16.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._cgm_attention import (
    Scores,
    attention,
    block,
    cut,
    dense,
    factor_scale,
    finish,
    gated,
    key_rows,
    least_kept,
    load_rows,
    load_scaled,
    parts_of,
    rows_of,
    samples_of,
    store_factor,
    threshold,
)
from ._common import accumulator, ceil_div, inside, offsets, on_device_of
from ._products import column_factor, float64_bits, float64_of, product, row_factor, tied


@triton.jit(do_not_specialize=["sharpness_bits"])
def _cgm_attention_bwd_kernel(
    s_ptr, gv_ptr, q_scale_ptr, k_scale_ptr, g_scale_ptr, v_scale_ptr, alpha_ptr, k_part_ptr, gate_scale_ptr,
    gate_bias_ptr, lse_ptr, mass_ptr, ds_ptr, ds_weight_ptr, p_ptr, p_weight_ptr, grad_t_ptr, sharpness_bits,
    count, rows, lq, lk, keys,
    PARTS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    r, n, at = rows_of(count, rows, lq, BLOCK_Q)
    there = r < count
    q_scale = load_rows(q_scale_ptr, at, there, 0.0)
    g_scale = load_rows(g_scale_ptr, at, there, 1.0)
    lse = load_rows(lse_ptr, at, there, float("inf"))
    t = threshold(gate_scale_ptr, gate_bias_ptr, at, there, lk, ACC)
    least = least_kept(t, lse)
    mass = load_rows(mass_ptr, at, there, 1.0)
    share = 1 / tl.where(mass > 0, mass, 1.0)  # 1 / m
    sharpness = None if sharpness_bits is None else float64_of(sharpness_bits, ACC)

    # The sums over keys. g . o too: the output is rounded, and what is left of e after it may be small.
    p_most = tl.zeros([BLOCK_Q], ACC)
    hard = tl.zeros([BLOCK_Q], ACC)
    slopes = tl.zeros([BLOCK_Q], ACC)
    moved = tl.zeros([BLOCK_Q], ACC)
    slopes_a = tl.zeros([BLOCK_Q], ACC)
    moved_a = tl.zeros([BLOCK_Q], ACC)
    for start in range(0, keys, BLOCK_K):
        cols = start + tl.arange(0, BLOCK_K)
        s = load_scaled(s_ptr, q_scale, k_scale_ptr, r, n, cols, count, keys)
        a = attention(s, lse, cols, lk)
        p = gated(a, s, least)
        p_most = tl.maximum(p_most, tl.max(p, 1))
        if gv_ptr is not None:
            gv = load_scaled(gv_ptr, g_scale, v_scale_ptr, r, n, cols, count, keys)
            hard += tl.sum(p * gv, 1)
            if sharpness is not None:
                slope = a * soft_slope(a, t, sharpness)
                slopes += tl.sum(slope, 1)
                moved += tl.sum(slope * gv, 1)
                slope *= a
                slopes_a += tl.sum(slope, 1)
                moved_a += tl.sum(slope * gv, 1)
    shift = tl.zeros([BLOCK_Q], ACC)
    if mass_ptr is not None:
        # g . o = sum_v A keep g . value / m, after which sum_v A keep e = 0
        shift = hard * share
        hard = tl.zeros([BLOCK_Q], ACC)
        moved = (moved - shift * slopes) * share
        moved_a = (moved_a - shift * slopes_a) * share
    if sharpness is not None:
        # grad_bias = -sum_v slope
        tl.store(grad_t_ptr + at, -moved, mask=there)
    # sum_v A dA = sum_v A keep e + sum_v A slope
    delta = hard + moved_a

    if ds_ptr is not None:
        alpha = load_rows(alpha_ptr, at, there, 0.0)
        ds_most = tl.zeros([BLOCK_Q], ACC)
        for start in range(0, keys, BLOCK_K):
            cols = start + tl.arange(0, BLOCK_K)
            s = load_scaled(s_ptr, q_scale, k_scale_ptr, r, n, cols, count, keys)
            gv = load_scaled(gv_ptr, g_scale, v_scale_ptr, r, n, cols, count, keys)
            ds = score_gradient(s, gv, t, lse, least, share, shift, delta, sharpness, cols, lk)
            ds = load_part(ds * alpha[:, None], k_part_ptr, r, n, cols, count, keys)
            ds_most = tl.maximum(ds_most, tl.max(tl.abs(ds), 1))
        scale, inverse = factor_scale(ds_most, ds_ptr.dtype.element_ty)
        tl.store(ds_weight_ptr + at, inverse, mask=there)
        for start in range(0, keys, BLOCK_K):
            cols = start + tl.arange(0, BLOCK_K)
            s = load_scaled(s_ptr, q_scale, k_scale_ptr, r, n, cols, count, keys)
            gv = load_scaled(gv_ptr, g_scale, v_scale_ptr, r, n, cols, count, keys)
            ds = score_gradient(s, gv, t, lse, least, share, shift, delta, sharpness, cols, lk)
            ds = load_part(ds * alpha[:, None], k_part_ptr, r, n, cols, count, keys)
            store_factor(ds_ptr, r, cols, count, keys, ds * scale[:, None], PARTS)
    if p_ptr is not None:
        # grad_value = (A keep / m)^T g
        scale, inverse = factor_scale(p_most * share, p_ptr.dtype.element_ty)
        tl.store(p_weight_ptr + at, inverse, mask=there)
        for start in range(0, keys, BLOCK_K):
            cols = start + tl.arange(0, BLOCK_K)
            s = load_scaled(s_ptr, q_scale, k_scale_ptr, r, n, cols, count, keys)
            p = gated(attention(s, lse, cols, lk), s, least) * share[:, None]
            store_factor(p_ptr, r, cols, count, keys, p * scale[:, None], PARTS)


@triton.jit
def soft_slope(a, t, sharpness):
    """s (1 - s) Lk / temperature."""
    soft = tl.sigmoid((a - t[:, None]) * sharpness)
    return soft * (1 - soft) * sharpness


@triton.jit
def score_gradient(s, gv, t, lse, least, share, shift, delta, sharpness, cols, lk):
    """dS, zero behind the last key."""
    a = attention(s, lse, cols, lk)
    # e = (g . value - (renormalize ? g . o : 0)) / m
    e = (gv - shift[:, None]) * share[:, None]
    # dA = keep e + slope, slope = A e s (1 - s) Lk / temperature
    da = gated(e, s, least)
    if sharpness is not None:
        da += a * e * soft_slope(a, t, sharpness)
    # dS = A (dA - sum_v A dA)
    return tl.where((cols < lk)[None, :], a * (da - delta[:, None]), 0.0)


@triton.jit
def load_part(ds, k_part_ptr, r, n, cols, count, keys):
    """dS times the mantissas of the keys' inverse norms, where there are any."""
    if k_part_ptr is None:
        return ds
    else:
        return ds * tl.load(k_part_ptr + offsets(n, cols, keys), mask=inside(r, cols, count, keys), other=0.0)


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
    (n, lq, depth), (lk, width) = query.shape, value.shape[1:]
    gates, keys = dense(gate_scale, gate_bias), key_rows(lk)
    gated_at_all = gate_scale is not None or gate_bias is not None
    surrogate = gate_grad == "straight_through" and gated_at_all and (need_query or need_key or need_gate)
    sharpness = float64_bits(lk / temperature) if surrogate else None
    grad_t = torch.empty_like(lse) if surrogate else torch.zeros_like(lse) if need_gate else None
    grad_q, grad_k, grad_v = (
        x.new_empty(x.shape if need else 0) for x, need in zip(tensors[:3], needs[:3], strict=True)
    )
    need_query, need_key = need_query and depth > 0, need_key and depth > 0
    need_ds = need_query or need_key
    work = samples_of(n, lq, lk, depth, width) if need_ds or need_value or surrogate else ()
    for samples, chunks in work:
        q, k, g = query[samples], key[samples], grad[samples]
        scores = Scores(q, k, alpha, cosine, eps)
        g_rows = row_factor(g) if need_ds or surrogate or need_value else None
        v_rows = row_factor(value[samples], second=True, rows=keys) if need_ds or surrogate else None
        k_factor = k_inverse = None
        if need_query:
            k_factor, k_inverse = column_factor((k * scores.k.power[:, :lk, None]).to(k) if cosine else k, keys)
        sum_k = Sum(q, scores.q.peak, keys) if need_key else None
        sum_v = Sum(g, g_rows.peak, keys) if need_value else None
        ds_weight, p_weight = lse.new_empty((2, len(q), lq))
        for rows in chunks:
            s, q_scale = scores.of(rows)
            gv = None if v_rows is None else product(g_rows.factor[:, rows], v_rows.factor.mT)
            ds = parts_of(q[:, rows], keys) if need_ds else None
            p = parts_of(q[:, rows], keys) if need_value else None
            count, options = s.shape[0] * s.shape[1], block(keys, s.dtype)
            of_all = (*gates, lse, mass if renormalize else None, grad_t if surrogate else None)
            *gates_of, lse_of, mass_of, grad_t_of = cut(of_all, samples, rows)
            g_scale, weight, ds_weight_of, p_weight_of = cut(
                (g_rows.scale, scores.q.weight, ds_weight, p_weight), slice(None), rows
            )
            with on_device_of(s):
                _cgm_attention_bwd_kernel[(ceil_div(count, options["BLOCK_Q"]),)](
                    s, gv, q_scale, scores.k.scale, g_scale, None if v_rows is None else v_rows.scale, weight,
                    scores.k.mantissa if cosine else None, *gates_of, lse_of, mass_of, ds, ds_weight_of, p, p_weight_of,
                    grad_t_of, sharpness, count, s.shape[1], lq, lk, keys,
                    PARTS=3 if q.dtype == torch.float32 else 1, ACC=accumulator(q), **options,
                )  # fmt: skip
            if k_factor is not None:
                rnorm = scores.q.rnorm[:, rows] if cosine else None
                finish(product(ds, k_factor), ds_weight_of, k_inverse, grad_q[samples, rows], q[:, rows], rnorm, eps)
            if sum_k is not None:
                sum_k.add(ds, ds_weight_of, rows)
            if sum_v is not None:
                sum_v.add(p, p_weight_of, rows)
        if sum_k is not None:
            power, rnorm = (scores.k.power, scores.k.rnorm) if cosine else (None, None)
            finish(sum_k.total, power, None, grad_k[samples], k, rnorm, eps)
        if sum_v is not None:
            finish(sum_v.total, None, None, grad_v[samples])
    full = (grad_q, grad_k, grad_v, None if grad_t is None else grad_t / lk, grad_t)
    return tuple(
        query.new_empty(0) if x is None or not need else y.to(x.dtype)
        for x, y, need in zip(tensors, full, needs, strict=True)
    )


class Sum:
    """weights^T x, in parts that are added up in order, a chunk of rows each."""

    def __init__(self, x: Tensor, peak: Tensor, keys: int) -> None:
        self.x, self.peak, self.keys, self.total = x, peak, keys, None

    def add(self, weights: Tensor, weight: Tensor, rows: slice) -> None:
        x, inverse = tied(self.x[:, rows], weight, self.peak[:, rows])
        part = product(weights.view(len(x), -1, self.keys).mT, x)[..., : self.x.shape[2]]
        if inverse is not None:
            part *= inverse.view(-1, 1, 1)
        self.total = part if self.total is None else self.total.add_(part)

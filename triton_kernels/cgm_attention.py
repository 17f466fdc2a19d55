"""cgm_attention: y(u) = sum over v with A(u,v) > T(u) of A(u,v) value(v), A = softmax over v of alpha q^(u) . k^(v).

A chunk of queries at a time: the library multiplies them by all keys; a pass over the rows of that finds the
log-sum-exp, then writes what lies above the threshold as a factor of the library's product with the values. A softmax
row sums to 1, so its mean is 1 / Lk and T needs no sum; A > T is S > lse + log T. No normalised copies are written: the
inverse norms, a number a row, scale the scores.
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
from ._common import accumulator, ceil_div, on_device_of, torch_accumulator
from ._products import column_factor, product
from .cgm_attention_backward import backward

__all__ = ["backward", "forward"]


@triton.jit
def _cgm_attention_fwd_kernel(
    s_ptr, q_scale_ptr, k_scale_ptr, gate_scale_ptr, gate_bias_ptr, lse_ptr, mass_ptr, p_ptr, row_ptr,
    count, rows, lq, lk, keys,
    RENORMALIZE: tl.constexpr, PARTS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    r, n, at = rows_of(count, rows, lq, BLOCK_Q)
    there = r < count
    q_scale = load_rows(q_scale_ptr, at, there, 0.0)
    most = tl.full([BLOCK_Q], float("-inf"), ACC)
    total = tl.zeros([BLOCK_Q], ACC)
    for start in range(0, keys, BLOCK_K):
        cols = start + tl.arange(0, BLOCK_K)
        s = load_scaled(s_ptr, q_scale, k_scale_ptr, r, n, cols, count, keys)
        s = tl.where((cols < lk)[None, :], s, float("-inf"))
        above = tl.maximum(most, tl.max(s, 1))
        base = tl.where(above == float("-inf"), 0.0, above)  # of a row of -inf only
        total = total * tl.exp(most - base) + tl.sum(tl.exp(s - base[:, None]), 1)
        most = above
    base = tl.where(most == float("-inf"), 0.0, most)
    lse = base + tl.log(total)
    tl.store(lse_ptr + at, lse, mask=there)
    least = least_kept(threshold(gate_scale_ptr, gate_bias_ptr, at, there, lk, ACC), lse)
    scale, inverse = factor_scale(tl.exp(most - lse), p_ptr.dtype.element_ty)
    mass = tl.zeros([BLOCK_Q], ACC)
    for start in range(0, keys, BLOCK_K):
        cols = start + tl.arange(0, BLOCK_K)
        s = load_scaled(s_ptr, q_scale, k_scale_ptr, r, n, cols, count, keys)
        p = gated(attention(s, lse, cols, lk), s, least)
        mass += tl.sum(p, 1)
        store_factor(p_ptr, r, cols, count, keys, p * scale[:, None], PARTS)
    tl.store(mass_ptr + at, mass, mask=there)
    if RENORMALIZE:
        inverse /= tl.where(mass > 0, mass, 1.0)
    tl.store(row_ptr + at, inverse, mask=there)


def forward(
    query: Tensor,  # [N, Lq, D]
    key: Tensor,  # [N, Lk, D]
    value: Tensor,  # [N, Lk, Dv]
    gate_scale: Tensor | None,  # [N, Lq]
    gate_bias: Tensor | None,  # [N, Lq]
    alpha: float,
    cosine: bool,
    gate_grad: str,
    temperature: float,
    renormalize: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output [N, Lq, Dv], the rows' log-sum-exp [N, Lq], and the mass that the gate keeps [N, Lq]."""
    (n, lq, depth), (lk, width) = query.shape, value.shape[1:]
    lse, mass, row = (query.new_empty((n, lq), dtype=torch_accumulator(query)) for _ in range(3))
    if 0 in (n, lq, lk):
        return query.new_zeros((n, lq, width)), lse.fill_(-torch.inf), mass.zero_()
    output = query.new_empty((n, lq, width))
    gates, keys = dense(gate_scale, gate_bias), key_rows(lk)
    for samples, chunks in samples_of(n, lq, lk, depth, width):
        scores = Scores(query[samples], key[samples], alpha, cosine, eps)
        v_factor, v_inverse = column_factor(value[samples], keys)
        for rows in chunks:
            s, q_scale = scores.of(rows)
            p = parts_of(query[samples, rows], keys)
            *gates_of, lse_of, mass_of, row_of = cut((*gates, lse, mass, row), samples, rows)
            options = block(keys, s.dtype)
            count = s.shape[0] * s.shape[1]
            with on_device_of(s):
                _cgm_attention_fwd_kernel[(ceil_div(count, options["BLOCK_Q"]),)](
                    s, q_scale, scores.k.scale, *gates_of, lse_of, mass_of, p, row_of, count, s.shape[1], lq, lk, keys,
                    RENORMALIZE=renormalize, PARTS=p.shape[2] // keys, ACC=accumulator(query), **options,
                )  # fmt: skip
            if lk > 1:
                finish(product(p, v_factor), row_of, v_inverse, output[samples, rows])
            else:  # times its weight, the only one; halves would round it
                weight = mass_of / torch.where(mass_of > 0, mass_of, 1) if renormalize else mass_of
                finish(value[samples].contiguous().expand(-1, s.shape[1], -1), weight, None, output[samples, rows])
    return output, lse, mass

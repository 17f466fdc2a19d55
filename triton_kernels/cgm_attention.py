"""cgm_attention: y(u) = sum over v with A(u,v) > T(u) of A(u,v) value(v), A = softmax over v of alpha q^(u) . k^(v).

A softmax row sums to 1, so its mean is 1 / Lk and T needs no sum; A > T is S > lse + log T. Two passes: the log-sum-exp
of every row, then the product of what lies above the threshold. Neither normalised copies nor the map are written: the
inverse norms, a number a row, scale the scores.

A program's part of the output is a block of queries by some columns of the values; the scores are made again for the
others. In the first pass the keys are cut, so that few queries fill a device, and the parts' log-sum-exps are added up.
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
    row_strides,
    scales,
    store_block,
    thresholds,
    whole_lines,
)
from ._common import on_device_of, torch_accumulator
from .cgm_attention_backward import backward

__all__ = ["backward", "forward"]

PART = 1024  # keys of a program in the first pass


@triton.jit
def _cgm_attention_lse_kernel(
    q_ptr, k_ptr, q_scale_ptr, k_scale_ptr, lse_ptr, lq, lk, depth, stride_qn, stride_ql, stride_kn, stride_kl,
    PART: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_W: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    n, start, first = block_of(lq, BLOCK_Q, lk, PART)
    rows = start + tl.arange(0, BLOCK_Q)
    q_ptr += n * stride_qn
    k_ptr += n * stride_kn
    q_scale = load_rows(q_scale_ptr, n, rows, lq, 0.0)
    most = tl.full([BLOCK_Q], float("-inf"), ACC)
    total = tl.zeros([BLOCK_Q], ACC)
    for at in range(first, tl.minimum(first + PART, lk), BLOCK_K):
        cols = at + tl.arange(0, BLOCK_K)
        s = products(q_ptr, k_ptr, rows, cols, lq, lk, depth, stride_ql, stride_kl, BLOCK_D, PRECISION, ACC)
        s = s * q_scale[:, None] * load_rows(k_scale_ptr, n, cols, lk, 1.0)[None, :]
        s = tl.where((cols < lk)[None, :], s, float("-inf"))
        above = tl.maximum(most, tl.max(s, 1))
        base = tl.where(above == float("-inf"), 0.0, above)  # of a row of -inf only
        total = total * tl.exp(most - base) + tl.sum(tl.exp(s - base[:, None]), 1)
        most = above
    base = tl.where(most == float("-inf"), 0.0, most)
    part = n * tl.cdiv(lk, PART) + first // PART
    tl.store(lse_ptr + part * lq + rows, base + tl.log(total), mask=rows < lq)


@triton.jit
def _cgm_attention_fwd_kernel(
    q_ptr, k_ptr, v_ptr, q_scale_ptr, k_scale_ptr, t_ptr, lse_ptr, y_ptr, mass_ptr, lq, lk, depth, width,
    stride_qn, stride_ql, stride_kn, stride_kl, stride_vn, stride_vl,
    RENORMALIZE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_W: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    n, start, column = block_of(lq, BLOCK_Q, width, BLOCK_W)
    rows = start + tl.arange(0, BLOCK_Q)
    w = column + tl.arange(0, BLOCK_W)
    q_ptr += n * stride_qn
    k_ptr += n * stride_kn
    v_ptr += n * stride_vn
    q_scale = load_rows(q_scale_ptr, n, rows, lq, 0.0)
    lse = load_rows(lse_ptr, n, rows, lq, float("inf"))
    least = least_kept(t_ptr, lse, n, rows, lq)
    y = tl.zeros([BLOCK_Q, BLOCK_W], ACC)
    peak = no_peak(v_ptr.dtype.element_ty, BLOCK_Q, ACC)
    mass = tl.zeros([BLOCK_Q], ACC)
    for at in range(0, lk, BLOCK_K):
        cols = at + tl.arange(0, BLOCK_K)
        s = products(q_ptr, k_ptr, rows, cols, lq, lk, depth, stride_ql, stride_kl, BLOCK_D, PRECISION, ACC)
        s = s * q_scale[:, None] * load_rows(k_scale_ptr, n, cols, lk, 1.0)[None, :]
        p = gated(attention(s, lse, cols, lk), s, least)
        mass += tl.sum(p, 1)
        y, peak = accumulate(y, peak, p, load_block(v_ptr, cols, w, lk, width, stride_vl), PRECISION, ACC)
    if RENORMALIZE:
        peak /= tl.where(mass > 0, mass, 1.0)
    store_block(y_ptr + n * lq * width, rows, w, lq, width, y * peak[:, None])
    if column == 0:
        tl.store(mass_ptr + n * lq + rows, mass, mask=rows < lq)


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
    (n, lq, _), lk, width = query.shape, *value.shape[1:]
    mass = query.new_empty((n, lq), dtype=torch_accumulator(query))
    if 0 in (n, lq, lk):
        return query.new_zeros((n, lq, width)), torch.full_like(mass, -torch.inf), mass.zero_()
    q, k, v = whole_lines(query), whole_lines(key), whole_lines(value)
    q_scale, k_scale, _ = scales(q, k, alpha, cosine, eps)
    options = blocks(q)
    lse = mass.new_empty((n, triton.cdiv(lk, PART), lq))
    y = v.new_empty((n, lq, v.shape[2]))
    with on_device_of(q):
        _cgm_attention_lse_kernel[grid(n, lq, options["BLOCK_Q"], lk, PART)](
            q, k, q_scale, k_scale, lse, lq, lk, q.shape[2], *row_strides(q), *row_strides(k), PART=PART, **options
        )
        lse = torch.logsumexp(lse, 1)
        _cgm_attention_fwd_kernel[grid(n, lq, options["BLOCK_Q"], v.shape[2], options["BLOCK_W"])](
            q, k, v, q_scale, k_scale, thresholds(gate_scale, gate_bias, lk, q), lse, y, mass,
            lq, lk, *(x.shape[2] for x in (q, v)), *row_strides(q), *row_strides(k), *row_strides(v),
            RENORMALIZE=renormalize, **options,
        )  # fmt: skip
    return y[..., :width].contiguous(), lse, mass

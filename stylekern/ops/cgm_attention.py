"""Content-based gating modulation: attention whose map is thresholded per query, and never written down."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stylekern import reference
from stylekern.ops._checks import check_option, check_tensors, is_number, shape, sums_dtype
from stylekern.ops._operator import Operator

GATE_GRADS = ("none", "straight_through")


def cgm_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate_scale: Tensor | None = None,
    gate_bias: Tensor | None = None,
    *,
    alpha: float,
    cosine: bool = True,
    gate_grad: str = "none",
    temperature: float = 1.0,
    renormalize: bool = False,
    eps: float = 1e-12,
) -> Tensor:
    r"""Cosine attention under content-based gating modulation ("Learning dynamic style kernels ...", eq. 1 to 5).

    With x^ = x / max(\|x\|, eps), and u over queries, v over keys::

        A(u, v) = softmax over v of alpha * q^(u) . k^(v)
        T(u)    = gate_scale(u) * mean_v A(u, v) + gate_bias(u) = gate_scale(u) / Lk + gate_bias(u)
        y(u)    = sum over v with A(u, v) > T(u) of A(u, v) * value(v)

    Of the map A a block of bounded size exists at a time, forward and backward. Saved are the inputs, the output, and
    two numbers a query.

    Args:
        query: [N, Lq, D], float32, float64, float16 or bfloat16.
        key: [N, Lk, D]. Without keys the output is zeros, as `scaled_dot_product_attention` has it.
        value: [N, Lk, Dv].
        gate_scale: [N, Lq] or None.
        gate_bias: [N, Lq] or None. Without both there is no gate; one alone leaves the other zero. A threshold T <= 0
            keeps every key, also one whose A underflows to zero; a NaN keeps none.
        alpha: The scale of the scores.
        cosine: Normalises queries and keys; without it the scores are alpha * q . k. A row of zeros attends evenly, as
            does one whose norm overflows: from 1.8e19 on where norms are float32, which those of the compiled CPU
            kernels are not.
        gate_grad: "none" gives the gates their exact gradient, which is zero. "straight_through" leaves the output as
            it is, and takes for the gate's derivative that of sigmoid((A - T) * Lk / temperature), through A and T.
        temperature: Of that sigmoid; A * Lk is 1 on average.
        renormalize: Divides by the mass that the gate keeps. A query that keeps nothing gives zeros with and without,
            and has the surrogate's gradients of the undivided sum.
        eps: The smallest norm to divide by.

    Returns:
        [N, Lq, Dv], contiguous, of the query's dtype. Scores and sums run in float32, or float64 for float64.

    Raises:
        ValueError: Shapes that do not fit, an unknown option, an alpha, a temperature or an eps out of range.
        TypeError: Not a tensor, or dtypes that differ or are not floating point; a tensor for a number.
        RuntimeError: Devices that differ; a backend asked for by name that cannot run; a forward-mode derivative.

    Deterministic, forward and backward (with another number of CPU threads, torch's products may round differently);
    rounding decides about a key whose A is T to the last digits. Gradients once, for all five tensors. Under autocast
    all take the autocast dtype.
    """
    gates = [(name, x) for name, x in (("gate_scale", gate_scale), ("gate_bias", gate_bias)) if x is not None]
    tensors = [
        ("query", query, 3, "[N, Lq, D]"),
        ("key", key, 3, "[N, Lk, D]"),
        ("value", value, 3, "[N, Lk, Dv]"),
        *((name, x, 2, "[N, Lq]") for name, x in gates),
    ]
    cast = check_tensors("cgm_attention", tensors)
    n, lq, d = query.shape
    if key.shape[0] != n or key.shape[2] != d:
        raise ValueError(
            f"cgm_attention: key must be [{n}, Lk, {d}], as query {shape(query)} is, got {shape(key)}; "
            "expand one that is for all"
        )
    if value.shape[:2] != key.shape[:2]:
        raise ValueError(
            f"cgm_attention: value must be [{n}, {key.shape[1]}, Dv], as key {shape(key)} is, got {shape(value)}"
        )
    for name, x in gates:
        if x.shape != query.shape[:2]:
            raise ValueError(
                f"cgm_attention: {name} must be [{n}, {lq}], one for each query, got {shape(x)}; "
                "expand one that is for all"
            )
    check_option("cgm_attention", "gate_grad", gate_grad, GATE_GRADS)
    for name, number in (("alpha", alpha), ("temperature", temperature), ("eps", eps)):
        if not is_number(number):
            hint = (
                "; multiply the query by one that is learned, with cosine=False"
                if name == "alpha" and isinstance(number, Tensor)
                else ""
            )
            raise TypeError(f"cgm_attention: {name} must be a number, got {type(number).__name__}{hint}")
    sums = sums_dtype(query)
    if not abs(alpha) <= torch.finfo(sums).max:
        raise ValueError(f"cgm_attention: alpha must be finite in {str(sums)[6:]}, got {alpha}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"cgm_attention: temperature must be positive and finite, got {temperature}")
    if not 1e-37 <= eps < math.inf:
        raise ValueError(f"cgm_attention: eps must be positive and finite, at least 1e-37, got {eps}")
    if cast is not None:
        query, key, value = query.to(cast), key.to(cast), value.to(cast)
        gate_scale, gate_bias = (None if x is None else x.to(cast) for x in (gate_scale, gate_bias))
    output: Tensor = OPERATOR(
        query, key, value, gate_scale, gate_bias, alpha, cosine, gate_grad, temperature, renormalize, eps
    )
    return output


def _fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate_scale: Tensor | None,
    gate_bias: Tensor | None,
    alpha: float,
    cosine: bool,
    gate_grad: str,
    temperature: float,
    renormalize: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = sums_dtype(query)
    lse, mass = (query.new_empty(query.shape[:2], dtype=dtype) for _ in range(2))
    return query.new_empty((*query.shape[:2], value.shape[2])), lse, mass


def _backward_fake(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate_scale: Tensor | None,
    gate_bias: Tensor | None,
    output: Tensor,
    lse: Tensor,
    mass: Tensor,
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
) -> tuple[Tensor, ...]:
    tensors = (query, key, value, gate_scale, gate_bias)
    needed = (need_query, need_key, need_value, need_gate, need_gate)
    sizes = (x.shape if x is not None and need else (0,) for x, need in zip(tensors, needed, strict=True))
    return tuple(query.new_empty(size) for size in sizes)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5], *output)
    ctx.options = inputs[5:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, run: Callable[..., Any], grad: Tensor | None, *_statistics: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 11
    needed = ctx.needs_input_grad[:5]
    computed = run(grad, *ctx.saved_tensors, *ctx.options, *needed[:3], needed[3] or needed[4])
    return *(x if need else None for x, need in zip(computed, needed, strict=True)), *(None,) * 6


OPERATOR = Operator(
    name="cgm_attention",
    schema="(Tensor query, Tensor key, Tensor value, Tensor? gate_scale, Tensor? gate_bias, float alpha, "
    "bool cosine, str gate_grad, float temperature, bool renormalize, float eps) -> (Tensor, Tensor, Tensor)",
    backward_schema="(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor? gate_scale, "
    "Tensor? gate_bias, Tensor output, Tensor lse, Tensor mass, float alpha, bool cosine, str gate_grad, "
    "float temperature, bool renormalize, float eps, bool need_query, bool need_key, bool need_value, "
    "bool need_gate) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
    backward_fake=_backward_fake,
    setup_context=_setup_context,
    backward=_backward,
    reference=reference.cgm_attention,
    cuda=False,
)

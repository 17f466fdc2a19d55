"""Per-pixel separable dynamic convolution, the "style kernel"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stylekern import reference
from stylekern.ops._checks import check_numbers, check_option, check_tensors, check_variance, shape, sums_dtype
from stylekern.ops._operator import Operator

PADDING_MODES = ("reflect", "replicate", "zeros", "none")
COMPOSITIONS = ("sequential", "outer")
MAX_TAPS = 51


def style_kernel_conv(
    input: Tensor,
    vertical: Tensor,
    horizontal: Tensor,
    bias: Tensor | None = None,
    *,
    padding_mode: str = "reflect",
    composition: str = "sequential",
    normalize: bool = False,
    eps: float = 1e-5,
    correction: int = 0,
) -> Tensor:
    r"""Convolves every pixel with its own vertical and horizontal filter ("Learning dynamic style kernels", eq. 6).

    With x the input (instance-normalised first when `normalize`), r = k // 2 and pad(.) the border rule::

        sequential:  t[i,j] = sum_a vertical[a,i,j] * x[pad(i+a-rv), j]
                     y[i,j] = sum_b horizontal[b,i,j] * t[i, pad(j+b-rh)] + bias[i,j]
        outer:       y[i,j] = sum_a sum_b vertical[a,i,j] * horizontal[b,i,j] * x[pad(i+a-rv), pad(j+b-rh)] + bias[i,j]

    In `sequential`, as the paper has it, a neighbour's t comes from the neighbour's own vertical filter; `outer` is the
    form of adaptive separable convolution (sepconv) and kernel prediction networks. It is a correlation: no flip.

    Args:
        input: [N, C, H, W], float32, float64, float16 or bfloat16; or [N, C, H+kv-1, W+kh-1] with padding "none".
        vertical: [N, G, kv, H, W]. G divides C, and channel c uses filter group c // (C // G): G = C is a filter a
            channel, G = 1 one for all. kv is odd, 1 to 51.
        horizontal: [N, G, kh, H, W]; kh is odd, 1 to 51, and may differ from kv. The filters may be views of one packed
            prediction [N, G, kv+kh+1, H, W]: they are read through their strides, without a copy, where W is dense.
        bias: [N, C, H, W], [N, G, H, W] or None.
        padding_mode: "reflect" (needs k // 2 < size; the mode of the paper's decoders), "replicate", "zeros" (pads the
            normalised x), or "none": the input is padded already; only with "outer", and without `normalize`.
        composition: "sequential" (the paper) or "outer". They differ: name the one that the filters were trained for.
        normalize: Instance normalisation of the input, as eq. 6 has it, fused: per sample and channel,
            (x - mean) / sqrt(var + eps).
        eps: Inside the root; 1e-5 is torch's own default.
        correction: The variance divides by H * W - correction; 0 is `F.instance_norm`'s, 1 `torch.var`'s.

    Returns:
        [N, C, H, W], contiguous, of the input's dtype. Sums run in float32, or float64 for float64.

    Raises:
        ValueError: Shapes that do not fit, taps that are even or above 51, an unknown option.
        TypeError: Not a tensor, or dtypes that differ or are not floating point.
        RuntimeError: Devices that differ; a backend asked for by name that cannot run; a forward-mode derivative.

    Deterministic, forward and backward. Gradients once, for input, vertical, horizontal and bias: saved are the inputs,
    mean and reciprocal deviation; the rest is computed again. Under autocast all tensors take the autocast dtype.
    """
    output: Tensor = OPERATOR(input, vertical, horizontal, bias, padding_mode, composition, normalize, eps, correction)
    return output


def _check(
    input: Tensor,
    vertical: Tensor,
    horizontal: Tensor,
    bias: Tensor | None,
    padding_mode: str,
    composition: str,
    normalize: bool,
    eps: float,
    correction: int,
) -> torch.dtype | None:
    tensors = (
        ("input", input, 4, "[N, C, H, W]"),
        ("vertical", vertical, 5, "[N, G, kv, H, W]"),
        ("horizontal", horizontal, 5, "[N, G, kh, H, W]"),
        ("bias", bias, 4, "[N, C, H, W] or [N, G, H, W]"),
    )
    cast = check_tensors("style_kernel_conv", tensors[:3] if bias is None else tensors)
    check_numbers("style_kernel_conv", eps, correction)
    _check_options(padding_mode, composition, normalize)
    _check_shapes(input, vertical, horizontal, bias, padding_mode, normalize, correction)
    return cast


def _check_options(padding_mode: str, composition: str, normalize: bool) -> None:
    check_option("style_kernel_conv", "padding_mode", padding_mode, PADDING_MODES)
    check_option("style_kernel_conv", "composition", composition, COMPOSITIONS)
    if padding_mode == "none" and (composition != "outer" or normalize):
        raise ValueError(
            "style_kernel_conv: padding_mode 'none' takes an input that is padded already, which is defined only with "
            f"composition='outer' and normalize=False, got composition={composition!r}, normalize={normalize}"
        )


def _check_shapes(
    input: Tensor,
    vertical: Tensor,
    horizontal: Tensor,
    bias: Tensor | None,
    padding_mode: str,
    normalize: bool,
    correction: int,
) -> None:
    n, c, in_h, in_w = input.shape
    vn, g, kv, h, w = vertical.shape
    hn, hg, kh, hh, hw = horizontal.shape
    for name, taps in (("vertical", kv), ("horizontal", kh)):
        if taps % 2 == 0 or taps > MAX_TAPS:
            raise ValueError(f"style_kernel_conv: {name} must have an odd number of taps, 1 to {MAX_TAPS}, got {taps}")
    if hn != vn or hg != g or hh != h or hw != w:
        raise ValueError(
            "style_kernel_conv: vertical [N, G, kv, H, W] and horizontal [N, G, kh, H, W] must agree but for their "
            f"taps, got {shape(vertical)} and {shape(horizontal)}"
        )
    grown_h, grown_w = (kv - 1, kh - 1) if padding_mode == "none" else (0, 0)
    if vn != n or in_h != h + grown_h or in_w != w + grown_w:
        raise ValueError(
            f"style_kernel_conv: with padding_mode {padding_mode!r} and filters {shape(vertical)}, {shape(horizontal)} "
            f"input must be [{vn}, C, {h + grown_h}, {w + grown_w}], got {shape(input)}"
        )
    if c % g if g else c:
        raise ValueError(f"style_kernel_conv: the filters' {g} groups must divide the input's {c} channels")
    if bias is not None and (bias.shape[0] != n or bias.shape[1] not in (c, g) or bias.shape[2:] != (h, w)):
        raise ValueError(
            f"style_kernel_conv: bias must be [{n}, {c}, {h}, {w}] or [{n}, {g}, {h}, {w}], got {shape(bias)}"
        )
    if n == 0 or c == 0 or h == 0 or w == 0:
        return
    if padding_mode == "reflect" and (kv // 2 >= h or kh // 2 >= w):
        raise ValueError(
            f"style_kernel_conv: reflect padding needs k // 2 < size, got {kv} x {kh} taps on {h} x {w} pixels; "
            "use padding_mode='replicate' or smaller filters"
        )
    if normalize:
        check_variance("style_kernel_conv", "input", input, correction)


def _fake(
    input: Tensor,
    vertical: Tensor,
    horizontal: Tensor,
    bias: Tensor | None,
    padding_mode: str,
    composition: str,
    normalize: bool,
    eps: float,
    correction: int,
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = input.shape[0], input.shape[1], vertical.shape[3], vertical.shape[4]
    dtype = sums_dtype(input)
    statistics = (n, c) if normalize else (0,)
    return (
        input.new_empty((n, c, h, w)),
        input.new_empty(statistics, dtype=dtype),
        input.new_empty(statistics, dtype=dtype),
    )


def _backward_fake(
    grad: Tensor,
    input: Tensor,
    vertical: Tensor,
    horizontal: Tensor,
    mean: Tensor,
    rstd: Tensor,
    padding_mode: str,
    composition: str,
    normalize: bool,
    correction: int,
    need_input: bool,
    need_vertical: bool,
    need_horizontal: bool,
) -> tuple[Tensor, ...]:
    needed = ((input, need_input), (vertical, need_vertical), (horizontal, need_horizontal))
    return tuple(x.new_empty(x.shape if need else (0,)) for x, need in needed)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    input, vertical, horizontal, bias, padding_mode, composition, normalize, _eps, correction = inputs
    _, mean, rstd = output
    ctx.save_for_backward(input, vertical, horizontal, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.options = padding_mode, composition, normalize, correction
    ctx.bias_planes = None if bias is None else bias.shape[1]


def _backward(
    ctx: Any, run: Callable[..., Any], grad: Tensor | None, *_statistics: Tensor | None
) -> tuple[Tensor | None, ...]:
    gradients: list[Tensor | None] = [None] * 9
    if grad is None:
        return tuple(gradients)
    input, vertical, horizontal, mean, rstd = ctx.saved_tensors
    needed = ctx.needs_input_grad[:3]
    if any(needed):
        computed = run(grad, input, vertical, horizontal, mean, rstd, *ctx.options, *needed)
        gradients[:3] = [x if need else None for x, need in zip(computed, needed, strict=True)]
    if ctx.needs_input_grad[3]:
        # y = ... + bias[i,j]: the gradient itself, summed over the channels that share a bias
        gradients[3] = grad
        if (planes := ctx.bias_planes) != input.shape[1]:
            n, c, h, w = grad.shape
            gradients[3] = grad.reshape(n, planes, c // planes, h, w).sum(2)
    return tuple(gradients)


OPERATOR = Operator(
    name="style_kernel_conv",
    schema="(Tensor input, Tensor vertical, Tensor horizontal, Tensor? bias, str padding_mode, str composition, "
    "bool normalize, float eps, int correction) -> (Tensor, Tensor, Tensor)",
    backward_schema="(Tensor grad, Tensor input, Tensor vertical, Tensor horizontal, Tensor mean, Tensor rstd, "
    "str padding_mode, str composition, bool normalize, int correction, bool need_input, bool need_vertical, "
    "bool need_horizontal) -> (Tensor, Tensor, Tensor)",
    fake=_fake,
    backward_fake=_backward_fake,
    setup_context=_setup_context,
    backward=_backward,
    reference=reference.style_kernel_conv,
    check=_check,
)

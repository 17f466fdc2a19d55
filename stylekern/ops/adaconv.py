"""Adaptive convolution: each sample by its own grouped kernels, normalisation and pointwise step included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stylekern import reference
from stylekern.ops._checks import (
    check_numbers,
    check_option,
    check_tensors,
    check_variance,
    shape,
    sums_dtype,
    without_autocast,
)
from stylekern.ops._operator import Operator

PADDING_MODES = ("reflect", "replicate", "zeros")


def adaconv(
    input: Tensor,
    spatial: Tensor,
    pointwise: Tensor,
    bias: Tensor | None = None,
    *,
    normalize: bool = True,
    padding_mode: str = "reflect",
    eps: float = 1e-5,
    correction: int = 0,
) -> Tensor:
    r"""Adaptive convolution (Chandran et al. 2021, "Adaptive Convolutions for Structure-Aware Style Transfer").

    A depthwise-separable convolution, grouped, with kernels and bias that were predicted for each sample. With x the
    input (instance-normalised first when `normalize`), s(c) the group of c, and pad(.) the border rule::

        t[c,i,j] = sum over m in s(c), a, b of spatial[c,m,a,b] * x[m, pad(i + a - kh // 2), pad(j + b - kw // 2)]
        y[o,i,j] = sum over m in s(o) of pointwise[o,m] * t[m,i,j] + bias[o]

    Both steps are linear, so they run as one convolution by sum_m pointwise[o,m] * spatial[m,:,a,b], and t is nowhere.
    Only where that would multiply more, with many channels a group and few pixels, or Co far above C, are they two: t
    is then kept, in float32 or better, and pointwise is torch's own matrix product.

    Args:
        input: [N, C, H, W], float32, float64, float16 or bfloat16.
        spatial: [N, C, C/G, kh, kw], a kernel for each sample. The number of groups G is read off its shape: C/G = 1 is
            depthwise. An even kernel pads one more on top and on the left.
        pointwise: [N, Co, C/G] or [N, Co, C/G, 1, 1]; G divides Co.
        bias: [N, Co] or None.
        normalize: Instance normalisation of the input, (x - mean) / sqrt(var + eps), as AdaConv has it, fused.
        padding_mode: "reflect" (AdaConv's; needs the padding below the size), "replicate" or "zeros" (pads the
            normalised x).
        eps: Inside the root; 1e-5 is torch's own default.
        correction: The variance divides by H * W less this; 0 is `F.instance_norm`'s.

    Returns:
        [N, Co, H, W], contiguous, of the input's dtype. Sums run in float32, or float64 for float64; on a GPU with C/G
        above 1, torch's products of pointwise follow its setting of TF32 for matrix products, which is off by default.

    Raises:
        ValueError: Shapes that do not fit, an unknown option, a variance of too few positions.
        TypeError: Not a tensor, or dtypes that differ or are not floating point.
        RuntimeError: Devices that differ; a backend asked for by name that cannot run; a forward-mode derivative.

    Deterministic, forward and backward (with another number of CPU threads, torch's product of pointwise and spatial
    may round differently). Gradients once, for input, spatial, pointwise and bias: saved are input, the composed kernel
    (on the CPU with C/G = 1 and Co = C its two factors), mean and reciprocal deviation. Under autocast all tensors take
    the autocast dtype.
    """
    if _has_five_sizes(pointwise) and pointwise.shape[3:] == (1, 1):
        pointwise = pointwise[:, :, :, 0, 0]
    arguments = input, spatial, pointwise, bias, normalize, padding_mode, eps, correction
    if pointwise is None or _has_wide_groups(spatial):  # None is refused there: of it, the operator makes t
        return _of_wide_groups(*arguments)
    output: Tensor = OPERATOR(*arguments)
    return output


def _check(
    input: Tensor,
    spatial: Tensor,
    pointwise: Tensor,
    bias: Tensor | None,
    normalize: bool,
    padding_mode: str,
    eps: float,
    correction: int,
) -> torch.dtype | None:
    tensors = (
        ("input", input, 4, "[N, C, H, W]"),
        ("spatial", spatial, 5, "[N, C, C/G, kh, kw]"),
        ("pointwise", pointwise, 3, "[N, Co, C/G] or [N, Co, C/G, 1, 1]"),
        ("bias", bias, 2, "[N, Co]"),
    )
    cast = check_tensors("adaconv", tensors[:3] if bias is None else tensors)
    check_numbers("adaconv", eps, correction)
    check_option("adaconv", "padding_mode", padding_mode, PADDING_MODES)
    _check_shapes(input, spatial, pointwise, bias, padding_mode)
    if normalize:
        check_variance("adaconv", "input", input, correction)
    return cast


def _has_wide_groups(spatial: Any) -> bool:
    """Whether two steps may cost less: below 16 channels a group, where a product waits for memory, they never do."""
    return _has_five_sizes(spatial) and spatial.shape[2] >= 16


def _has_five_sizes(x: Any) -> bool:
    return isinstance(x, Tensor) and not x.is_nested and x.dim() == 5  # nested ones have no sizes


def _of_wide_groups(input: Tensor, spatial: Tensor, pointwise: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    cast = _check(input, spatial, pointwise, bias, *options)
    if cast is not None:
        input, spatial, pointwise = input.to(cast), spatial.to(cast), pointwise.to(cast)
        bias = None if bias is None else bias.to(cast)
    if _two_steps_are_less(input, spatial, pointwise):
        return _in_two_steps(input, spatial, pointwise, bias, *options)
    output: Tensor = OPERATOR.run((input, spatial, pointwise, bias, *options))
    return output


def _two_steps_are_less(input: Tensor, spatial: Tensor, pointwise: Tensor) -> bool:
    """Whether the composed kernel costs more multiplications than a product with t."""
    (c, size, kh, kw), co, pixels = spatial.shape[1:], pointwise.shape[1], input.shape[2] * input.shape[3]
    composed = co * size * kh * kw * (size + pixels)
    two_steps = (c * size * kh * kw + co * size) * pixels
    return input.numel() > 0 and 1.1 * two_steps < composed


def _in_two_steps(input: Tensor, spatial: Tensor, pointwise: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    dtype = sums_dtype(input)
    (n, c, h, w), size, co = input.shape, spatial.shape[2], pointwise.shape[1]
    t: Tensor = OPERATOR.run((input.to(dtype), spatial.to(dtype), None, None, *options))
    groups = n * c // size
    with without_autocast(input.device.type):  # cast already
        weights = pointwise.to(dtype).reshape(groups, co * n // groups, size)
        y = weights @ t.reshape(groups, size, h * w)
        y = y.reshape(n, co, h, w)
        return (y if bias is None else y + bias.to(dtype)[:, :, None, None]).to(input.dtype)


def _check_shapes(input: Tensor, spatial: Tensor, pointwise: Tensor, bias: Tensor | None, padding_mode: str) -> None:
    (n, c, h, w), (sn, sc, size, kh, kw), (pn, co, psize) = input.shape, spatial.shape, pointwise.shape
    if sn != n or sc != c or (c % size if size else c) or (c and size == 0):
        raise ValueError(
            f"adaconv: spatial must be [{n}, {c}, C/G, kh, kw] with C/G a divisor of {c} for input {shape(input)}, "
            f"got {shape(spatial)}"
        )
    if kh == 0 or kw == 0:
        raise ValueError(f"adaconv: spatial must have at least one tap both ways, got {shape(spatial)}")
    groups = max(c // size, 1) if size else 1
    if pn != n or psize != size or co % groups:
        raise ValueError(
            f"adaconv: pointwise must be [{n}, Co, {size}] with Co a multiple of the {groups} groups, got "
            f"{shape(pointwise)}"
        )
    if bias is not None and bias.shape != (n, co):
        raise ValueError(f"adaconv: bias must be [{n}, {co}], got {shape(bias)}")
    if padding_mode == "reflect" and n * c * h * w and (kh // 2 >= h or kw // 2 >= w):
        raise ValueError(
            f"adaconv: reflect padding needs k // 2 < size, got a {kh} x {kw} kernel on {h} x {w} pixels; use "
            "padding_mode='replicate' or smaller kernels"
        )


def _compose(
    input: Tensor,
    spatial: Tensor,
    pointwise: Tensor | None,
    bias: Tensor | None,
    normalize: bool,
    padding_mode: str,
    eps: float,
    correction: int,
) -> tuple[Any, ...]:
    """kernel[o,i,a,b] = sum_m pointwise[o,m] * spatial[m,i,a,b], in float32 or better, and the bias in the same.

    Without pointwise the kernel is spatial itself, and the result t. One kernel a channel, on the CPU, is spatial too,
    and pointwise its scale: in the time of that product in plain torch, small planes are convolved.
    """
    options = normalize, padding_mode, eps, correction
    if pointwise is None:
        return input, spatial.contiguous(), None, bias, *options
    (n, c, size, kh, kw), co, dtype = spatial.shape, pointwise.shape[1], input.dtype
    groups = max(c // size, 1) if size else 1
    # What the kernel no longer shows.
    if input.shape[:2] != (n, c) or pointwise.shape != (n, co, size):
        raise ValueError(f"adaconv: {shape(input)}, {shape(spatial)} and {shape(pointwise)} do not fit")
    if not (spatial.dtype == pointwise.dtype == dtype == (dtype if bias is None else bias.dtype)):
        raise TypeError("adaconv: dtypes differ")
    if dtype in (torch.float16, torch.bfloat16):
        spatial, pointwise = spatial.float(), pointwise.float()
        bias = None if bias is None else bias.float()
    bias = None if bias is None else bias.contiguous()
    if size == 1 and co == c > 0 and input.device.type == "cpu":
        return input, spatial.contiguous(), pointwise.reshape(n, c), bias, *options
    if c == 0:
        size = 0
        kernel = pointwise[:, :, :0, None, None].expand(n, co, 0, kh, kw) * spatial.sum()  # empty, of both
    elif size == 1 and co == c:
        kernel = pointwise.reshape(n, c, 1, 1, 1) * spatial
    elif size == 1:
        kernel = pointwise.reshape(n, groups, co // groups, 1, 1) * spatial.reshape(n, groups, 1, kh, kw)
    else:
        split = pointwise.reshape(n * groups, co // groups, size), spatial.reshape(n * groups, size, size * kh * kw)
        kernel = split[0] @ split[1]
    if kernel.shape != (n, co, size, kh, kw):
        kernel = kernel.reshape(n, co, size, kh, kw)
    return input, kernel.contiguous(), None, bias, *options


def _fake(
    input: Tensor,
    kernel: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    normalize: bool,
    padding_mode: str,
    eps: float,
    correction: int,
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = input.shape
    statistics = (n, c) if normalize else (0,)
    mean, rstd = kernel.new_empty(statistics), kernel.new_empty(statistics)
    return input.new_empty((n, kernel.shape[1], h, w)), mean, rstd


def _backward_fake(
    grad: Tensor,
    input: Tensor,
    kernel: Tensor,
    mean: Tensor,
    rstd: Tensor,
    normalize: bool,
    padding_mode: str,
    correction: int,
    need_input: bool,
    need_kernel: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        input.new_empty(input.shape if need_input else (0,)),
        kernel.new_empty(kernel.shape if need_kernel else (0,)),
        kernel.new_empty(kernel.shape[:2] if need_bias else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    input, kernel, scale, _bias, normalize, padding_mode, _eps, correction = inputs
    _, mean, rstd = output
    ctx.save_for_backward(input, kernel, scale, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.options = normalize, padding_mode, correction


def _backward(
    ctx: Any, run: Callable[..., Any], grad: Tensor | None, *_statistics: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    input, kernel, scale, mean, rstd = ctx.saved_tensors
    need_input, need_kernel, need_scale, need_bias = ctx.needs_input_grad[:4]
    scaled = kernel
    if scale is not None:
        scale = scale.view(*scale.shape, 1, 1, 1)
        scaled = kernel * scale
    grad_input, grad_scaled, grad_bias = run(
        grad, input, scaled, mean, rstd, *ctx.options, need_input, need_kernel or need_scale, need_bias
    )
    grad_kernel = grad_scale = None
    if need_kernel:
        grad_kernel = grad_scaled if scale is None else grad_scaled * scale
    if need_scale:
        grad_scale = (grad_scaled * kernel).sum((2, 3, 4))
    return (
        grad_input if need_input else None,
        grad_kernel,
        grad_scale,
        grad_bias if need_bias else None,
        *(None,) * 4,
    )


OPERATOR = Operator(
    name="adaconv",
    schema="(Tensor input, Tensor kernel, Tensor? scale, Tensor? bias, bool normalize, str padding_mode, "
    "float eps, int correction) -> (Tensor, Tensor, Tensor)",
    backward_schema="(Tensor grad, Tensor input, Tensor kernel, Tensor mean, Tensor rstd, bool normalize, "
    "str padding_mode, int correction, bool need_input, bool need_kernel, bool need_bias) -> (Tensor, Tensor, Tensor)",
    fake=_fake,
    backward_fake=_backward_fake,
    setup_context=_setup_context,
    backward=_backward,
    reference=reference.adaconv,
    check=_check,
    prepare=_compose,
)

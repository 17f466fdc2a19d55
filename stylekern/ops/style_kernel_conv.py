"""Per-pixel separable dynamic convolution, the "style kernel"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from stylekern import reference
from stylekern.ops._checks import autocast, check_option, check_tensors, refuse_forward_mode, shape
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
    check_tensors(
        "style_kernel_conv",
        {
            "input": (input, 4, "[N, C, H, W]"),
            "vertical": (vertical, 5, "[N, G, kv, H, W]"),
            "horizontal": (horizontal, 5, "[N, G, kh, H, W]"),
        }
        | ({} if bias is None else {"bias": (bias, 4, "[N, C, H, W] or [N, G, H, W]")}),
    )
    _check_options(padding_mode, composition, normalize)
    _check_shapes(input, vertical, horizontal, bias, padding_mode, normalize, correction)
    refuse_forward_mode("style_kernel_conv", input, vertical, horizontal, bias)
    input, vertical, horizontal, bias = autocast(input, vertical, horizontal, bias)
    return OPERATOR(input, vertical, horizontal, bias, padding_mode, composition, normalize, eps, correction)

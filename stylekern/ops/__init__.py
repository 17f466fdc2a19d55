"""The operators. Each is a function of tensors, differentiable once, on CPU and GPU; its docstring is its contract."""

from stylekern.ops.style_kernel_conv import style_kernel_conv

__all__ = ["style_kernel_conv"]

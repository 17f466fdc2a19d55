"""The definition of each operator in plain torch: what every kernel is measured against."""

from stylekern.reference.style_kernel_conv import style_kernel_conv

__all__ = ["style_kernel_conv"]

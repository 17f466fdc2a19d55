"""The operators. Each is a function of tensors, differentiable once, on CPU and GPU; its docstring is its contract."""

from stylekern.ops._operator import Operator
from stylekern.ops.style_kernel_conv import OPERATOR as _style_kernel_conv
from stylekern.ops.style_kernel_conv import style_kernel_conv

#: The table of operators: name -> registration.
OPERATORS: dict[str, Operator] = {operator.name: operator for operator in (_style_kernel_conv,)}

__all__ = ["OPERATORS", "style_kernel_conv"]

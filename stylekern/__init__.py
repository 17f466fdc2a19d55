"""Fused operators for neural style transfer, as torch autograd ops. See :mod:`stylekern.ops`."""

from stylekern._backends import use_backend
from stylekern._version import __version__

__all__ = ["__version__", "use_backend"]

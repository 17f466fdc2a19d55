"""The operators. Each is a function of tensors, differentiable once, on CPU and GPU; its docstring is its contract."""

from stylekern.ops._operator import Operator
from stylekern.ops.adaconv import OPERATOR as _adaconv
from stylekern.ops.adaconv import adaconv
from stylekern.ops.adain import OPERATOR as _adain
from stylekern.ops.adain import adain
from stylekern.ops.cgm_attention import OPERATOR as _cgm_attention
from stylekern.ops.cgm_attention import cgm_attention
from stylekern.ops.factorized_instance_norm import OPERATOR as _factorized_instance_norm
from stylekern.ops.factorized_instance_norm import factorized_instance_norm
from stylekern.ops.min_distances import OPERATOR as _min_distances
from stylekern.ops.min_distances import MinDistances, min_distances
from stylekern.ops.remd import remd
from stylekern.ops.style_kernel_conv import OPERATOR as _style_kernel_conv
from stylekern.ops.style_kernel_conv import style_kernel_conv
from stylekern.ops.wavelet_pool import OPERATOR as _wavelet_pool
from stylekern.ops.wavelet_pool import WaveletBands, wavelet_pool
from stylekern.ops.wavelet_unpool import OPERATOR as _wavelet_unpool
from stylekern.ops.wavelet_unpool import wavelet_unpool

#: The table of registered operators: name -> registration. `remd` is plain torch over min_distances.
OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for operator in (
        _style_kernel_conv,
        _adaconv,
        _adain,
        _factorized_instance_norm,
        _wavelet_pool,
        _wavelet_unpool,
        _cgm_attention,
        _min_distances,
    )
}

__all__ = [
    "OPERATORS",
    "MinDistances",
    "WaveletBands",
    "adaconv",
    "adain",
    "cgm_attention",
    "factorized_instance_norm",
    "min_distances",
    "remd",
    "style_kernel_conv",
    "wavelet_pool",
    "wavelet_unpool",
]

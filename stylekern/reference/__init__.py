"""The definition of each operator in plain torch: what every kernel is measured against."""

from stylekern.reference.adaconv import adaconv
from stylekern.reference.adain import adain
from stylekern.reference.cgm_attention import cgm_attention
from stylekern.reference.factorized_instance_norm import factorized_instance_norm
from stylekern.reference.min_distances import min_distances
from stylekern.reference.remd import remd
from stylekern.reference.style_kernel_conv import style_kernel_conv
from stylekern.reference.wavelet_pool import wavelet_pool
from stylekern.reference.wavelet_unpool import wavelet_unpool

__all__ = [
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

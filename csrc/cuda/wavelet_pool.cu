// wavelet_pool on CUDA: the torch side. The kernels are in wavelet_pool.cuh and wavelet_unpool.cuh.
#include "wavelet_cuda.h"

namespace stylekern {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> wavelet_pool(Tensor input, StringHandle odd) {
  return as_tuple(pool_on_cuda(input, parse_odd(odd)));
}

Tensor wavelet_pool_backward(Tensor ll, Tensor lh, Tensor hl, Tensor hh, int64_t height, int64_t width,
                             StringHandle odd) {
  return unpool_on_cuda(ll, lh, hl, hh, height, width, parse_odd(odd));
}

}  // namespace
}  // namespace stylekern

STABLE_TORCH_LIBRARY_IMPL(stylekern, CUDA, m) {
  m.impl("wavelet_pool", TORCH_BOX(&stylekern::wavelet_pool));
  m.impl("wavelet_pool_backward", TORCH_BOX(&stylekern::wavelet_pool_backward));
}

// wavelet_unpool on CUDA: the torch side. The kernels are in wavelet_unpool.cuh and wavelet_pool.cuh.
#include "wavelet_cuda.h"

namespace stylekern {
namespace {

Tensor wavelet_unpool(Tensor ll, Tensor lh, Tensor hl, Tensor hh, int64_t height, int64_t width) {
  return unpool_on_cuda(ll, lh, hl, hh, height, width, OddRule::kZero);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> wavelet_unpool_backward(Tensor grad) {
  return as_tuple(pool_on_cuda(grad, OddRule::kZero));
}

}  // namespace
}  // namespace stylekern

STABLE_TORCH_LIBRARY_IMPL(stylekern, CUDA, m) {
  m.impl("wavelet_unpool", TORCH_BOX(&stylekern::wavelet_unpool));
  m.impl("wavelet_unpool_backward", TORCH_BOX(&stylekern::wavelet_unpool_backward));
}

// wavelet_unpool on the CPU: the torch side. The kernels are those of wavelet_pool.
#include "wavelet_pool_cpu.h"

namespace stylekern {
namespace {

Tensor wavelet_unpool(Tensor ll, Tensor lh, Tensor hl, Tensor hh, int64_t height, int64_t width) {
  return wavelet_unpool_cpu({ll, lh, hl, hh}, height, width, OddRule::kZero);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> wavelet_unpool_backward(Tensor grad) {
  return as_tuple(wavelet_pool_cpu(grad, OddRule::kZero));
}

}  // namespace
}  // namespace stylekern

STABLE_TORCH_LIBRARY_IMPL(stylekern, CPU, m) {
  m.impl("wavelet_unpool", TORCH_BOX(&stylekern::wavelet_unpool));
  m.impl("wavelet_unpool_backward", TORCH_BOX(&stylekern::wavelet_unpool_backward));
}

// Both directions of the Haar transform on tensors: each of the two operators is the other's gradient.
#pragma once
#include <torch/csrc/stable/accelerator.h>

#include "../common/wavelet_pool_torch.h"
#include "torch_cuda.h"
#include "wavelet_unpool.cuh"

namespace stylekern {

inline Bands pool_on_cuda(Tensor picture, OddRule odd) {
  const torch::stable::accelerator::DeviceGuard guard(picture.get_device_index());
  picture = with_dense_rows(picture);
  const WaveletPool p = make_pooling(picture, odd);
  const Bands bands = empty_bands(p, picture);
  with_cuda_dtype(picture, [&](auto type) {
    using T = typename decltype(type)::type;
    cuda::BandPointers<T> out;
    for (size_t k = 0; k < 4; ++k) out.band[k] = mutable_data<T>(bands[k]);
    check_launch(cuda::wavelet_pooling<T>(p, data<T>(picture), out, current_stream(picture)));
  });
  return bands;
}

inline Tensor unpool_on_cuda(const Tensor& ll, const Tensor& lh, const Tensor& hl, const Tensor& hh, int64_t height,
                             int64_t width, OddRule odd) {
  const torch::stable::accelerator::DeviceGuard guard(ll.get_device_index());
  check_device(ll, {&lh, &hl, &hh});
  const Bands bands = with_dense_rows(ll, lh, hl, hh);
  const WaveletPool p = make_unpooling(bands, height, width, odd);
  const Tensor picture = empty_of(ll, {p.n, p.c, p.h, p.w});
  with_cuda_dtype(ll, [&](auto type) {
    using T = typename decltype(type)::type;
    cuda::BandPointers<const T> in;
    for (size_t k = 0; k < 4; ++k) in.band[k] = data<T>(bands[k]);
    check_launch(cuda::wavelet_unpooling<T>(p, in, mutable_data<T>(picture), current_stream(ll)));
  });
  return picture;
}

}  // namespace stylekern

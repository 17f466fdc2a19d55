// Haar pooling and unpooling of torch tensors on the CPU: each operator is one forward, and the other backward.
#pragma once
#include "../common/wavelet_pool_torch.h"

namespace stylekern {

Bands wavelet_pool_cpu(const Tensor& picture, OddRule odd);
Tensor wavelet_unpool_cpu(const Bands& bands, int64_t height, int64_t width, OddRule odd);

}  // namespace stylekern

// What the torch side hands to the CPU kernels of style_kernel_conv.
#pragma once
#include "../common/style_kernel_conv.h"
#include "simd.h"

namespace stylekern {

// Values of one stream that a tile holds; a few streams of this length fit into a first-level cache.
inline constexpr int64_t kTileValues = 1024;

template <class T>
struct StyleKernelConvArgs {
  StyleKernelConv problem;
  const T *input, *vertical, *horizontal, *bias = nullptr;
  T* output = nullptr;
  Acc<T>*mean = nullptr, *rstd = nullptr;  // [N * C]; null: x is not normalised
  double eps = 0;
  int64_t correction = 0;
  bool streamed = false;  // the output bypasses the caches
  bool fetched = false;   // rows of filters are fetched ahead
};

template <class T>
struct StyleKernelConvBackwardArgs {
  StyleKernelConv problem;
  const T *grad, *input, *vertical, *horizontal;
  const Acc<T>*mean = nullptr, *rstd = nullptr;
  T *grad_input = nullptr, *grad_vertical = nullptr, *grad_horizontal = nullptr;  // null: not asked for
  int64_t correction = 0;
  bool streamed = false;  // the gradients of the filters bypass the caches
  bool fetched = false;   // rows of filters, and of their gradients, are fetched ahead
};

}  // namespace stylekern

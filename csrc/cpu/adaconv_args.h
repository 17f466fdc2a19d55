// What the torch side hands to the CPU kernels of adaconv.
#pragma once
#include "../common/adaconv.h"
#include "simd.h"

namespace stylekern {

template <class T>
struct AdaConvArgs {
  AdaConv problem;
  const T* input;
  const Acc<T>*kernel, *scale = nullptr, *bias = nullptr;  // scale: of each output's kernel, depthwise 3 x 3
  T* output = nullptr;
  Acc<T>*mean = nullptr, *rstd = nullptr;  // [N * C]; null: x is not normalised
  double eps = 0;
  int64_t correction = 0;
  bool streamed = false;  // the output bypasses the caches
  bool in_runs = false;   // it does where rows are wide enough, by way of a StreamedRun
};

template <class T>
struct AdaConvBackwardArgs {
  AdaConv problem;
  const T *grad, *input;
  const Acc<T>*kernel, *mean = nullptr, *rstd = nullptr;
  T* grad_input = nullptr;                             // null: not asked for
  Acc<T>*grad_kernel = nullptr, *grad_bias = nullptr;  // null: not asked for
  int64_t correction = 0;
  bool streamed = false;  // grad_input bypasses the caches: what it is computed from is elsewhere
};

}  // namespace stylekern

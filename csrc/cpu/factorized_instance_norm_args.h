// What the torch side hands to the CPU kernels of factorized_instance_norm.
#pragma once
#include "../common/factorized_instance_norm.h"
#include "simd.h"

namespace stylekern {

template <class T>
struct FactorizedInstanceNormArgs {
  FactorizedInstanceNorm problem;
  const T *content, *gamma_ind, *beta_ind, *gamma_style, *beta_style = nullptr, *grad = nullptr;
  T *output = nullptr, *grad_content = nullptr, *grad_gamma_style = nullptr;    // null: not asked for
  Acc<T>*mean = nullptr, *rstd = nullptr, *sum_gx = nullptr, *sum_g = nullptr;  // [N * C]
  double eps = 0;
  bool streamed = false;                // the results bypass the caches
  bool along = false, fetched = false;  // while a plane is written, the next one's statistics, or it itself

  const T* plane(const T* x, const PlaneStrides& s, int64_t i) const { return x + s.at_number(i, problem.c); }
};

}  // namespace stylekern

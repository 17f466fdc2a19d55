// factorized_instance_norm: the sizes and strides that the CPU and CUDA kernels share.
//
//   y = gamma_style * (gamma_ind * x + beta_ind) + beta_style        x = (content - mean) * rstd
//
// With g the gradient of y, and n the positions of a plane:
//   sum_g            = sum(g * gamma_style)                          which is the gradient of beta_ind, of one sample
//   sum_gx           = sum(g * gamma_style * x)                      and that of gamma_ind
//   grad_content     = rstd * gamma_ind * (g * gamma_style - sum_g / n - x * sum_gx / (n - correction))
//   grad_gamma_style = g * (gamma_ind * x + beta_ind)
#pragma once
#include <cstdint>

#include "planes.h"

namespace stylekern {

struct FactorizedInstanceNorm {
  int64_t n, c, h, w;
  int64_t correction;
  PlaneStrides content{}, gamma_style{}, beta_style{}, grad{};  // gamma_ind and beta_ind [C] and outputs are contiguous

  STYLEKERN_HD int64_t planes() const { return n * c; }
};

}  // namespace stylekern

// factorized_instance_norm: from torch tensors to the problem that the kernels read, for CPU and CUDA.
#pragma once
#include "factorized_instance_norm.h"
#include "torch_side.h"

namespace stylekern {

// gamma_ind and beta_ind must be contiguous, and the other tensors have dense rows.
inline FactorizedInstanceNorm make_factorized_instance_norm(const Tensor& content, const Tensor& gamma_ind,
                                                            const Tensor& beta_ind, const Tensor& gamma_style,
                                                            int64_t correction) {
  STD_TORCH_CHECK(content.dim() == 4, "factorized_instance_norm: content must be [N, C, H, W]");
  check_floating("content", content);
  check_variance("content", content, correction);
  FactorizedInstanceNorm p{content.size(0), content.size(1), content.size(2), content.size(3), correction};
  check_shape("gamma_ind", gamma_ind, {p.c});
  check_shape("beta_ind", beta_ind, {p.c});
  check_shape("gamma_style", gamma_style, {p.n, p.c, p.h, p.w});
  check_dtype("gamma_ind", gamma_ind, content.scalar_type());
  check_dtype("beta_ind", beta_ind, content.scalar_type());
  check_dtype("gamma_style", gamma_style, content.scalar_type());
  p.content = plane_strides(content), p.gamma_style = plane_strides(gamma_style);
  return p;
}

}  // namespace stylekern

// Matrix products on torch's own BLAS and threads.
#pragma once
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "../common/torch_side.h"

namespace stylekern {

// out = alpha a b, or out += alpha a b. Matrices of one dtype, float or double; any strides, so transposed views too.
inline void multiply(const Tensor& a, const Tensor& b, const Tensor& out, bool add = false, double alpha = 1) {
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), add ? 1 : 0, alpha));  // 0: out is not read
}

}  // namespace stylekern

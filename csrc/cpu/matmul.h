// Matrix products by torch's own libraries, on torch's own threads.
#pragma once
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "../common/torch_side.h"

// X W^T by oneDNN. Weak: null where torch was built without it.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_cpu__linear_pointwise(
    AtenTensorHandle x, AtenTensorHandle w, AtenTensorHandle* bias, const char* attribute, const double** scalars,
    int64_t scalar_count, const char** algorithm, AtenTensorHandle* result);

namespace stylekern {

// out = a b, or out += a b. Matrices of one dtype, float or double, or one of each sample, [N, ., .]; any strides, so
// transposed views too. Those of several samples are not added.
inline void multiply(const Tensor& a, const Tensor& b, const Tensor& out, bool add = false) {
  if (a.dim() == 3 && a.size(0) > 1) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_bmm_out(out.get(), a.get(), b.get()));
    return;
  }
  if (a.dim() == 3) {
    const auto only = [](const Tensor& x) { return torch::stable::select(x, 0, 0); };
    return multiply(only(a), only(b), only(out), add);
  }
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), add ? 1 : 0, 1));  // 0: out is not read
}

// A matrix that is dense one way or the other. Of any other, oneDNN takes hundreds of times as long, or none at all.
inline Tensor dense(const Tensor& x) {
  const bool by_columns = x.stride(0) == 1 && x.stride(1) == x.size(0);
  if (by_columns || (x.stride(1) == 1 && x.stride(0) == x.size(1))) return x;
  using namespace torch::stable;
  return x.stride(0) == 1 ? transpose(contiguous(transpose(x, 0, 1)), 0, 1) : contiguous(x);
}

// Whether oneDNN packs and multiplies blocks of a few hundred rows faster than torch's BLAS, which mostly is MKL: by a
// tenth to a fifth on AMD's processors; on Intel's own, MKL is faster by as much.
inline bool by_onednn() {
#if defined(__x86_64__)
  static const bool intel = (__builtin_cpu_init(), __builtin_cpu_is("intel"));
  if (intel) return false;
#endif
  return aoti_torch_cpu__linear_pointwise != nullptr;
}

// Multiply-adds of a product from which on oneDNN's speed outweighs the 15 us that it takes to start.
inline constexpr int64_t kWorthSettingUp = 1 << 25;

// a b, new and contiguous.
inline Tensor product(const Tensor& a, const Tensor& b) {
  using torch::stable::select;
  if (a.dim() == 3 && a.size(0) > 1) {
    const Tensor result = empty_of(a, {a.size(0), a.size(1), b.size(2)});
    multiply(a, b, result);
    return result;
  }
  if (a.dim() == 3) return torch::stable::unsqueeze(product(select(a, 0, 0), select(b, 0, 0)), 0);
  if (by_onednn() && a.scalar_type() == ScalarType::Float && a.size(0) * a.size(1) * b.size(1) >= kWorthSettingUp) {
    AtenTensorHandle result = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu__linear_pointwise(a.get(), torch::stable::transpose(dense(b), 0, 1).get(),
                                                            nullptr, "none", nullptr, 0, nullptr, &result));
    return Tensor(result);
  }
  const Tensor result = empty_of(a, {a.size(0), b.size(1)});
  multiply(a, b, result);
  return result;
}

}  // namespace stylekern

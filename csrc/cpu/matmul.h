// Matrix products by torch's own libraries, on torch's own threads.
#pragma once
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "../common/torch_side.h"

// X W^T by oneDNN. Weak: null where torch was built without it.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_cpu__linear_pointwise(
    AtenTensorHandle x, AtenTensorHandle w, AtenTensorHandle* bias, const char* attribute, const double** scalars,
    int64_t scalar_count, const char** algorithm, AtenTensorHandle* result);

namespace stylekern {

// A matrix of float or double where it lies; any strides.
template <class A>
struct Matrix {
  A* values = nullptr;
  int64_t rows = 0, columns = 0, row_stride = 0, column_stride = 1;

  Matrix transposed() const { return {values, columns, rows, column_stride, row_stride}; }
  // As torch takes it. (Views of tensors, which autograd would follow, take longer to make than short products.)
  Tensor tensor() const {
    const int64_t sizes[] = {rows, columns}, strides[] = {row_stride, column_stride};
    return torch::stable::from_blob(values, {sizes, 2}, {strides, 2},
                                    torch::stable::Device(torch::headeronly::DeviceType::CPU),
                                    std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float);
  }
};
// Of a contiguous tensor.
template <class A>
Matrix<A> matrix(const Tensor& x) {
  return {mutable_data<A>(x), x.size(0), x.size(1), x.size(1)};
}

// out = a b, or out += a b.
inline void multiply(const Tensor& a, const Tensor& b, const Tensor& out, bool add = false) {
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), add ? 1 : 0, 1));  // 0: out is not read
}
template <class A>
void multiply(const Matrix<A>& a, const Matrix<A>& b, const Matrix<A>& out, bool add) {
  multiply(a.tensor(), b.tensor(), out.tensor(), add);
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
template <class A>
Tensor product(const Matrix<A>& left, const Matrix<A>& right) {
  const Tensor a = left.tensor(), b = right.tensor();
  if (std::is_same_v<A, float> && by_onednn() && left.rows * left.columns * right.columns >= kWorthSettingUp) {
    AtenTensorHandle result = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu__linear_pointwise(a.get(), torch::stable::transpose(dense(b), 0, 1).get(),
                                                            nullptr, "none", nullptr, 0, nullptr, &result));
    return Tensor(result);
  }
  const Tensor result = empty_of(a, {left.rows, right.columns});
  multiply(a, b, result);
  return result;
}

}  // namespace stylekern

// What the torch side of every operator needs: LibTorch's stable ABI only, for CPU and CUDA alike.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "heap.h"
#include "planes.h"

namespace stylekern {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The tensor itself where its last dimension is dense, else a contiguous copy: kernels read rows.
inline Tensor with_dense_rows(const Tensor& x) {
  const int64_t last = x.dim() - 1;
  return x.size(last) <= 1 || x.stride(last) == 1 ? x : torch::stable::contiguous(x);
}

inline PlaneStrides plane_strides(const Tensor& x) {  // [N, P, H, W] or [N, P, K, H, W]
  const int64_t d = x.dim();
  return {x.stride(0), x.stride(1), d == 5 ? x.stride(2) : 0, x.stride(d - 2)};
}

// Checks of arguments: they keep a direct call of a registered operator from reading outside of its tensors. Those of
// operators with a `check` in Python refuse all that it refuses: it says why in better words, once they have.
inline void check_shape(const char* name, const Tensor& x, std::initializer_list<int64_t> sizes) {
  bool fits = x.dim() == int64_t(sizes.size());
  for (int64_t d = 0; fits && d < x.dim(); ++d) fits = x.size(d) == sizes.begin()[d];
  STD_TORCH_CHECK(fits, "stylekern: the shape of ", name, " does not fit the other arguments");
}
inline void check_dtype(const char* name, const Tensor& x, ScalarType dtype) {
  STD_TORCH_CHECK(x.scalar_type() == dtype, "stylekern: ", name, " must be of the dtype ",
                  torch::headeronly::toString(dtype));
}

inline void check_floating(const char* name, const Tensor& x) {
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
                      dtype == ScalarType::BFloat16,
                  "stylekern: ", name, " must be float32, float64, float16 or bfloat16, got ",
                  torch::headeronly::toString(dtype));
}
// Whether planes of x, [N, C, H, W], have enough positions for a variance with this correction.
inline void check_variance(const char* name, const Tensor& x, int64_t correction) {
  const int64_t positions = x.size(2) * x.size(3);
  STD_TORCH_CHECK(x.numel() == 0 || positions > correction, "stylekern: the variance of ", name, "'s ", positions,
                  " positions with correction ", correction, " is not defined");
}

// An uninitialised contiguous tensor on the device of another, of its dtype unless told otherwise.
inline Tensor empty_of(const Tensor& like, std::initializer_list<int64_t> sizes, std::optional<ScalarType> dtype = {}) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t d = sizes.size(); d-- > 0; step *= std::max<int64_t>(sizes.begin()[d], 1)) strides[d] = step;
  int32_t code = 0, device_type = 0, device_index = 0;
  if (dtype)
    code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(*dtype));
  else
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &code));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  const bool on_cpu = device_type == aoti_torch_device_type_cpu();
  if (on_cpu && step >= PiecesBeside::kWorthIt / int64_t(sizeof(double))) PiecesBeside::of_thread().give_back();
  AtenTensorHandle handle = nullptr;
  const auto error = aoti_torch_empty_strided(int64_t(sizes.size()), sizes.begin(), strides.data(), code, device_type,
                                              device_index, &handle);
  STD_TORCH_CHECK(error == AOTI_TORCH_SUCCESS, "stylekern: a result of ", step, " values could not be allocated");
  Tensor result(handle);
  if (on_cpu) {
    const int64_t bytes = result.numel() * int64_t(result.element_size());
    prefer_huge_pages(result.mutable_data_ptr(), bytes);
    if (bytes >= PiecesBeside::kWorthIt) PiecesBeside::of_thread().keep(result.mutable_data_ptr(), bytes);
    keep_on_heap(bytes);
  }
  return result;
}

// A str argument's value. Functions that torch calls take the handle: torch's own conversion to std::string (2.10
// to 2.13) never frees the string that it copies from.
inline std::string take_string(StringHandle handle) {
  const char* text = nullptr;
  size_t length = 0;
  TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &text));
  const std::string value(text, length);
  TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
  return value;
}

// The type that statistics are kept in: float, or double for double.
inline ScalarType accumulate_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// mean or rstd of the planes of x, [N, C, H, W], as a forward returned it.
inline void check_statistic(const char* name, const Tensor& x, const Tensor& statistic) {
  check_shape(name, statistic, {x.size(0), x.size(1)});
  check_dtype(name, statistic, accumulate_type(x));
  STD_TORCH_CHECK(statistic.is_contiguous(), "stylekern: ", name, " must be contiguous");
}
inline Tensor empty_statistic(const Tensor& x) { return empty_of(x, {x.size(0), x.size(1)}, accumulate_type(x)); }

inline Padding parse_padding(const std::string& name) {
  if (name == "reflect") return Padding::kReflect;
  if (name == "replicate") return Padding::kReplicate;
  if (name == "zeros") return Padding::kZeros;
  STD_TORCH_CHECK(name == "none", "padding_mode must be reflect, replicate, zeros or none, got ", name);
  return Padding::kNone;
}

}  // namespace stylekern

// What the torch side of every CUDA operator needs: the current stream, the element type, the launch check.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "../common/torch_side.h"

// Weak, so that a library with CUDA kernels loads beside a torch without CUDA, which does not define it.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                                   void** ret_stream);

namespace stylekern {

inline cudaStream_t current_stream(const Tensor& x) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "stylekern: this torch was built without CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_device(const Tensor& first, std::initializer_list<const Tensor*> others) {
  for (const Tensor* x : others)
    STD_TORCH_CHECK(x->is_cuda() && x->get_device_index() == first.get_device_index(),
                    "stylekern: all tensors must be on one CUDA device");
}

inline void check_launch(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "stylekern: CUDA launch failed: ", cudaGetErrorString(error));
}

// Not the typed accessors of torch, whose half types are not those that the kernels compute with.
template <class T>
const T* data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}
template <class T>
T* mutable_data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

template <class T>
struct Type {
  using type = T;
};

// Calls f with the Type of the elements.
template <class F>
void with_cuda_dtype(const Tensor& x, F f) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return f(Type<float>{});
    case ScalarType::Double:
      return f(Type<double>{});
    case ScalarType::Half:
      return f(Type<__half>{});
    case ScalarType::BFloat16:
      return f(Type<__nv_bfloat16>{});
    default:
      STD_TORCH_CHECK(false, "stylekern: dtype must be float32, float64, float16 or bfloat16");
  }
}

}  // namespace stylekern

// Kernels, some of them wrong on purpose, that show what the harness notices.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <utility>

// clang-format off: the harness stands in for nvcc, so it comes before the kernels
#include "cuda_host.h"
#include "../../csrc/cuda/common.cuh"
// clang-format on

namespace py = pybind11;

// Every thread reads its neighbour's value, after a barrier or too early.
__global__ void rotate_kernel(const float* x, float* y, bool barrier) {
  STYLEKERN_SHARED(float, shared);
  shared[threadIdx.x] = x[threadIdx.x];
  if (barrier) __syncthreads();
  y[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}

__global__ void write_at_kernel(float* y, int64_t index) { y[index] = 1; }

__global__ void write_shared_kernel(float* y, int64_t index) {
  STYLEKERN_SHARED(float, shared);
  shared[index] = 1;
  y[0] = shared[0];
}

__global__ void misaligned_kernel(float* y, int64_t index) {
  stylekern::cuda::store_global(y + index, stylekern::cuda::zeros<float, 4>());
}

__global__ void half_of_the_threads_wait_kernel() {
  if (threadIdx.x % 2) __syncthreads();
}

__global__ void two_barriers_kernel() {
  if (threadIdx.x % 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void warp_sum_kernel(const float* x, float* y) {
  float sum = x[threadIdx.x];
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffff, sum, lanes);
  y[threadIdx.x] = sum;
}

__global__ void shift_down_kernel(const float* x, float* y) {
  y[threadIdx.x] = __shfl_down_sync(0xffffffff, x[threadIdx.x], 1);
}

// The sum of x, then at once those of x, of its double, of that sum and of 1: their sum.
__global__ void block_sum_kernel(const float* x, float* y) {
  STYLEKERN_SHARED(float, shared);
  stylekern::cuda::BlockSums<float, 4> sum(shared);
  const float value = x[threadIdx.x], once = sum(value);
  const auto four = sum(stylekern::cuda::Vec<float, 4>{value, 2 * value, once, 1});
  y[threadIdx.x] = four[0] + four[1] + four[2] + four[3];
}

using Array = py::array_t<float, py::array::c_style>;

PYBIND11_MODULE(STYLEKERN_MODULE, m) {
  const auto on_array = [&](const char* name, auto kernel) {
    m.def(name, [kernel](Array x) {
      Array y(x.size());
      STYLEKERN_LAUNCH(kernel, 1, unsigned(x.size()), x.size() * sizeof(float), nullptr, x.data(), y.mutable_data());
      return y;
    });
  };
  on_array("warp_sum", warp_sum_kernel);
  on_array("shift_down", shift_down_kernel);
  on_array("block_sum", block_sum_kernel);
  m.def("rotate", [](Array x, bool barrier) {
    Array y(x.size());
    STYLEKERN_LAUNCH(rotate_kernel, 1, unsigned(x.size()), x.size() * sizeof(float), nullptr, x.data(),
                     y.mutable_data(), barrier);
    return y;
  });
  const auto at_index = [&](const char* name, auto kernel) {
    m.def(name, [kernel](int64_t size, int64_t index) {
      const std::unique_ptr<float[]> y(new float[size]);
      STYLEKERN_LAUNCH(kernel, 1, 1, size * sizeof(float), nullptr, y.get(), index);
    });
  };
  at_index("write_at", write_at_kernel);
  at_index("write_shared", write_shared_kernel);
  at_index("write_four_at", misaligned_kernel);
  m.def("half_of_the_threads_wait",
        [] { cuda_host::launch(half_of_the_threads_wait_kernel, dim3(1), dim3(64), 0, nullptr); });
  m.def("two_barriers", [] { cuda_host::launch(two_barriers_kernel, dim3(1), dim3(64), 0, nullptr); });
  m.def("divided", [](int64_t x, int64_t divisor) {
    const int64_t rest = stylekern::cuda::Divisor(divisor).split(x);
    return std::pair(x, rest);
  });
  m.def("launch", [](unsigned grid_y, unsigned threads, size_t shared_bytes) {
    STYLEKERN_LAUNCH(write_at_kernel, dim3(0, grid_y), threads, shared_bytes, nullptr, nullptr, int64_t(0));
  });
  m.def("set_order", [](const std::string& order, unsigned seed) {
    cuda_host::settings = {order == "ascending"    ? cuda_host::Order::kAscending
                           : order == "descending" ? cuda_host::Order::kDescending
                                                   : cuda_host::Order::kShuffled,
                           seed};
  });
}

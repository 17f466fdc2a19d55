// The CUDA kernels of style_kernel_conv, on NumPy arrays. bfloat16 travels as uint16, and `dtype` says so.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

// clang-format off: the harness stands in for nvcc, so it comes before the kernels
#include "cuda_host.h"
#include "../../csrc/cuda/style_kernel_conv_backward.cuh"
// clang-format on

namespace py = pybind11;
using namespace stylekern;

namespace {

// An allocation of exactly the bytes that an array spans, at the array's offset from 16 bytes: the address sanitizer
// sees what lies beyond. With `in_place` the array itself, for those that are too large to copy.
class Buffer {
 public:
  Buffer(const py::array& x, bool in_place) : array_(x) {
    extent_ = x.size() == 0 ? 0 : x.itemsize();
    for (int d = 0; d < x.ndim() && x.size(); ++d) extent_ += (x.shape(d) - 1) * x.strides(d);
    address_ = static_cast<char*>(const_cast<void*>(x.data()));
    if (in_place) return;
    const size_t offset = reinterpret_cast<uintptr_t>(address_) % 16;
    copy_.reset(new char[extent_ + offset]);
    std::memcpy(copy_.get() + offset, address_, extent_);
    address_ = copy_.get() + offset;
  }
  char* get() const { return address_; }
  void write_back() const { std::memcpy(const_cast<void*>(array_.data()), address_, extent_); }

 private:
  py::array array_;
  size_t extent_;
  char* address_;
  std::unique_ptr<char[]> copy_;
};

using Array = std::optional<py::array>;

PlaneStrides strides(const py::array& x) {  // [N, P, H, W] or [N, P, K, H, W]
  const int d = int(x.ndim());
  const auto s = [&](int i) { return int64_t(x.strides(i) / x.itemsize()); };
  return {s(0), s(1), d == 5 ? s(2) : 0, s(d - 2)};
}

StyleKernelConv make_problem(const py::array& input, const py::array& vertical, const py::array& horizontal,
                             const std::string& padding, const std::string& composition) {
  StyleKernelConv p{};
  p.n = input.shape(0), p.c = input.shape(1), p.in_h = input.shape(2), p.in_w = input.shape(3);
  p.groups = vertical.shape(1), p.h = vertical.shape(3), p.w = vertical.shape(4);
  p.kv = int(vertical.shape(2)), p.kh = int(horizontal.shape(2));
  p.padding = padding == "reflect"     ? Padding::kReflect
              : padding == "replicate" ? Padding::kReplicate
              : padding == "zeros"     ? Padding::kZeros
                                       : Padding::kNone;
  p.composition = composition == "outer" ? Composition::kOuter : Composition::kSequential;
  p.input = strides(input), p.vertical = strides(vertical), p.horizontal = strides(horizontal);
  return p;
}

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error("launch failed");
}

template <class F>
void with_dtype(const std::string& dtype, F f) {
  if (dtype == "float32") return f(float{});
  if (dtype == "float64") return f(double{});
  if (dtype == "float16") return f(__half{});
  if (dtype == "bfloat16") return f(__nv_bfloat16{});
  throw std::invalid_argument(dtype);
}

// The arrays of one call, by address; `null` for those that are not given.
class Buffers {
 public:
  explicit Buffers(bool in_place) : in_place_(in_place) {}
  template <class T>
  T* get(const Array& x, bool written = false) {
    if (!x) return nullptr;
    buffers_.push_back(std::make_unique<Buffer>(*x, in_place_));
    if (written && !in_place_) written_.push_back(buffers_.back().get());
    return reinterpret_cast<T*>(buffers_.back()->get());
  }
  void write_back() const {
    for (const Buffer* b : written_) b->write_back();
  }

 private:
  bool in_place_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::vector<const Buffer*> written_;
};

void forward(const std::string& dtype, py::array input, py::array vertical, py::array horizontal, Array bias,
             py::array output, Array mean, Array rstd, const std::string& padding, const std::string& composition,
             double eps, int64_t correction, bool in_place) {
  StyleKernelConv p = make_problem(input, vertical, horizontal, padding, composition);
  if (bias) p.bias_groups = bias->shape(1), p.bias = strides(*bias);
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = cuda::Acc<T>;
    Buffers b(in_place);
    check(cuda::style_kernel_conv_forward<T>(p, b.get<T>(input), b.get<T>(vertical), b.get<T>(horizontal),
                                             b.get<T>(bias), b.get<T>(output, true), b.get<A>(mean, true),
                                             b.get<A>(rstd, true), eps, correction, nullptr));
    b.write_back();
  });
}

void backward(const std::string& dtype, py::array grad, py::array input, py::array vertical, py::array horizontal,
              Array mean, Array rstd, Array grad_input, Array grad_vertical, Array grad_horizontal,
              const std::string& padding, const std::string& composition, int64_t correction, bool in_place) {
  StyleKernelConv p = make_problem(input, vertical, horizontal, padding, composition);
  p.grad = strides(grad);
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = cuda::Acc<T>;
    Buffers b(in_place);
    const size_t bytes = cuda::style_kernel_conv_backward_workspace<T>(
        p, mean.has_value(), grad_input.has_value(), grad_vertical.has_value(), grad_horizontal.has_value());
    const std::unique_ptr<char[]> workspace(new char[bytes]);
    std::memset(workspace.get(), 0xff, bytes);
    check(cuda::style_kernel_conv_backward<T>(p, b.get<T>(grad), b.get<T>(input), b.get<T>(vertical),
                                              b.get<T>(horizontal), b.get<A>(mean), b.get<A>(rstd),
                                              b.get<T>(grad_input, true), b.get<T>(grad_vertical, true),
                                              b.get<T>(grad_horizontal, true), workspace.get(), correction, nullptr));
    b.write_back();
  });
}

}  // namespace

PYBIND11_MODULE(STYLEKERN_MODULE, m) {
  m.def("forward", &forward);
  m.def("backward", &backward);
  m.def("set_order", [](const std::string& order, unsigned seed) {
    cuda_host::settings = {order == "ascending"    ? cuda_host::Order::kAscending
                           : order == "descending" ? cuda_host::Order::kDescending
                                                   : cuda_host::Order::kShuffled,
                           seed};
  });
  m.def("set_max_blocks", [](unsigned blocks) { cuda_host::settings.max_grid_x = blocks; });
}

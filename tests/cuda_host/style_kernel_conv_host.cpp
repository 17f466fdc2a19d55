// The CUDA kernels of style_kernel_conv, on NumPy arrays.
// clang-format off: the harness stands in for nvcc, so it comes before the kernels
#include "host_arrays.h"
#include "../../csrc/cuda/style_kernel_conv_backward.cuh"
// clang-format on

using namespace stylekern;
using namespace cuda_host;

namespace {

StyleKernelConv make_problem(const py::array& input, const py::array& vertical, const py::array& horizontal,
                             const std::string& padding, const std::string& composition) {
  StyleKernelConv p{};
  p.n = input.shape(0), p.c = input.shape(1), p.in_h = input.shape(2), p.in_w = input.shape(3);
  p.groups = vertical.shape(1), p.h = vertical.shape(3), p.w = vertical.shape(4);
  p.kv = int(vertical.shape(2)), p.kh = int(horizontal.shape(2));
  p.padding = padding_of(padding);
  p.composition = composition == "outer" ? Composition::kOuter : Composition::kSequential;
  p.input = strides(input), p.vertical = strides(vertical), p.horizontal = strides(horizontal);
  return p;
}

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
    const Workspace workspace(bytes);
    check(cuda::style_kernel_conv_backward<T>(
        p, b.get<T>(grad), b.get<T>(input), b.get<T>(vertical), b.get<T>(horizontal), b.get<A>(mean), b.get<A>(rstd),
        b.get<T>(grad_input, true), b.get<T>(grad_vertical, true), b.get<T>(grad_horizontal, true),
        workspace.get<void>(), correction, nullptr));
    b.write_back();
  });
}

}  // namespace

PYBIND11_MODULE(STYLEKERN_MODULE, m) {
  m.def("forward", &forward);
  m.def("backward", &backward);
  define_settings(m);
}

// The CUDA kernels of adaconv, on NumPy arrays.
// clang-format off: the harness stands in for nvcc, so it comes before the kernels
#include "host_arrays.h"
#include "../../csrc/cuda/adaconv_backward.cuh"
// clang-format on

using namespace stylekern;
using namespace cuda_host;

namespace {

AdaConv make_problem(const py::array& input, const py::array& kernel, const std::string& padding) {
  AdaConv p{};
  p.n = input.shape(0), p.c = input.shape(1), p.h = input.shape(2), p.w = input.shape(3);
  p.out_c = kernel.shape(1), p.kh = int(kernel.shape(3)), p.kw = int(kernel.shape(4));
  p.groups = kernel.shape(2) > 0 ? p.c / kernel.shape(2) : 1;
  p.padding = padding_of(padding);
  p.input = strides(input);
  return p;
}

void forward(const std::string& dtype, py::array input, py::array kernel, Array bias, py::array output, Array mean,
             Array rstd, const std::string& padding, double eps, int64_t correction, bool in_place) {
  const AdaConv p = make_problem(input, kernel, padding);
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = cuda::Acc<T>;
    Buffers b(in_place);
    check(cuda::adaconv_forward<T>(p, b.get<T>(input), b.get<A>(kernel), b.get<A>(bias), b.get<T>(output, true),
                                   b.get<A>(mean, true), b.get<A>(rstd, true), eps, correction, nullptr));
    b.write_back();
  });
}

void backward(const std::string& dtype, py::array grad, py::array input, py::array kernel, Array mean, Array rstd,
              Array grad_input, Array grad_kernel, Array grad_bias, const std::string& padding, int64_t correction,
              bool in_place) {
  AdaConv p = make_problem(input, kernel, padding);
  p.grad = strides(grad);
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = cuda::Acc<T>;
    Buffers b(in_place);
    const cuda::AdaConvWorkspace<T> plan(p, mean.has_value(), grad_input.has_value(), grad_kernel.has_value());
    const Workspace workspace(size_t(plan.values()) * sizeof(A));
    check(cuda::adaconv_backward<T>(p, b.get<T>(grad), b.get<T>(input), b.get<A>(kernel), b.get<A>(mean),
                                    b.get<A>(rstd), b.get<T>(grad_input, true), b.get<A>(grad_kernel, true),
                                    b.get<A>(grad_bias, true), workspace.get<A>(), correction, nullptr));
    b.write_back();
  });
}

}  // namespace

PYBIND11_MODULE(STYLEKERN_MODULE, m) {
  m.def("forward", &forward);
  m.def("backward", &backward);
  define_settings(m);
}

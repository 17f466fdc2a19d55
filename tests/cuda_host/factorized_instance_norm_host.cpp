// The CUDA kernels of factorized_instance_norm, on NumPy arrays.
// clang-format off: the harness stands in for nvcc, so it comes before the kernels
#include "host_arrays.h"
#include "../../csrc/cuda/factorized_instance_norm.cuh"
// clang-format on

using namespace stylekern;
using namespace cuda_host;

namespace {

FactorizedInstanceNorm make_problem(const py::array& content, const py::array& gamma_style, int64_t correction) {
  FactorizedInstanceNorm p{content.shape(0), content.shape(1), content.shape(2), content.shape(3), correction};
  p.content = strides(content), p.gamma_style = strides(gamma_style);
  return p;
}

void forward(const std::string& dtype, py::array content, py::array gamma_ind, py::array beta_ind,
             py::array gamma_style, py::array beta_style, py::array output, py::array mean, py::array rstd, double eps,
             int64_t correction, bool in_place) {
  FactorizedInstanceNorm p = make_problem(content, gamma_style, correction);
  p.beta_style = strides(beta_style);
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = cuda::Acc<T>;
    Buffers b(in_place);
    const Workspace workspace(cuda::factorized_instance_norm_workspace<T>(p) * sizeof(A));
    check(cuda::factorized_instance_norm_forward<T>(
        p, b.get<T>(content), b.get<T>(gamma_ind), b.get<T>(beta_ind), b.get<T>(gamma_style), b.get<T>(beta_style),
        b.get<T>(output, true), b.get<A>(mean, true), b.get<A>(rstd, true), workspace.get<A>(), eps, nullptr));
    b.write_back();
  });
}

void backward(const std::string& dtype, py::array grad, py::array content, py::array gamma_ind, py::array beta_ind,
              py::array gamma_style, py::array mean, py::array rstd, Array grad_content, Array grad_gamma_style,
              py::array sum_gx, py::array sum_g, int64_t correction, bool in_place) {
  FactorizedInstanceNorm p = make_problem(content, gamma_style, correction);
  p.grad = strides(grad);
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = cuda::Acc<T>;
    Buffers b(in_place);
    const Workspace workspace(cuda::factorized_instance_norm_workspace<T>(p) * sizeof(A));
    check(cuda::factorized_instance_norm_backward<T>(
        p, b.get<T>(grad), b.get<T>(content), b.get<T>(gamma_ind), b.get<T>(beta_ind), b.get<T>(gamma_style),
        b.get<A>(mean), b.get<A>(rstd), b.get<T>(grad_content, true), b.get<T>(grad_gamma_style, true),
        b.get<A>(sum_gx, true), b.get<A>(sum_g, true), workspace.get<A>(), nullptr));
    b.write_back();
  });
}

}  // namespace

PYBIND11_MODULE(STYLEKERN_MODULE, m) {
  m.def("forward", &forward);
  m.def("backward", &backward);
  define_settings(m);
}

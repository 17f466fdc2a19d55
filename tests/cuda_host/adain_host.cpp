// The CUDA kernels of adain, on NumPy arrays.
#include <array>

// clang-format off: the harness stands in for nvcc, so it comes before the kernels
#include "host_arrays.h"
#include "../../csrc/cuda/adain.cuh"
// clang-format on

using namespace stylekern;
using namespace cuda_host;

namespace {

using Statistics = std::array<py::array, 4>;  // mean and rstd of the content, then of the style

Adain make_problem(const py::array& content, const py::array& style, int64_t correction) {
  Adain p{content.shape(0), content.shape(1), content.shape(2), content.shape(3),
          style.shape(2),   style.shape(3),   correction};
  p.content = strides(content), p.style = strides(style);
  return p;
}

void forward(const std::string& dtype, py::array content, py::array style, py::array output, Statistics statistics,
             double eps, int64_t correction, bool in_place) {
  const Adain p = make_problem(content, style, correction);
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = cuda::Acc<T>;
    Buffers b(in_place);
    const auto statistic = [&](size_t k) { return b.get<A>(statistics[k], true); };
    const cuda::AdainStatistics<A> s{statistic(0), statistic(1), statistic(2), statistic(3)};
    const Workspace workspace(cuda::adain_workspace<T>(p) * sizeof(A));
    check(cuda::adain_forward<T>(p, b.get<T>(content), b.get<T>(style), b.get<T>(output, true), s, workspace.get<A>(),
                                 eps, nullptr));
    b.write_back();
  });
}

void backward(const std::string& dtype, py::array grad, py::array content, py::array style, Statistics statistics,
              Array grad_content, Array grad_style, int64_t correction, bool in_place) {
  Adain p = make_problem(content, style, correction);
  p.grad = strides(grad);
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = cuda::Acc<T>;
    Buffers b(in_place);
    const auto statistic = [&](size_t k) { return b.get<A>(statistics[k]); };
    const cuda::AdainStatistics<const A> s{statistic(0), statistic(1), statistic(2), statistic(3)};
    const Workspace workspace(cuda::adain_workspace<T>(p) * sizeof(A));
    check(cuda::adain_backward<T>(p, b.get<T>(grad), b.get<T>(content), b.get<T>(style), s,
                                  b.get<T>(grad_content, true), b.get<T>(grad_style, true), workspace.get<A>(),
                                  nullptr));
    b.write_back();
  });
}

}  // namespace

PYBIND11_MODULE(STYLEKERN_MODULE, m) {
  m.def("forward", &forward);
  m.def("backward", &backward);
  define_settings(m);
}

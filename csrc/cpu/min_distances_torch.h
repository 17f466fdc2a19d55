// min_distances on the CPU: from torch tensors to the problem that the kernels read.
#pragma once
#include "dtypes.h"
#include "min_distances_args.h"
#include "parallel.h"

namespace stylekern {

struct MinDistances {
  int64_t n, l, m, d;
  Metric metric;
  double eps;

  bool cosine() const { return metric == Metric::kCosine; }
  // Whether loops on all threads, and a product by torch, would take longer to start than a sample to be searched.
  bool short_samples() const { return l * m * (d + 16) < (1 << 23); }
};

inline MinDistances make_min_distances(const Tensor& x, const Tensor& y, StringHandle handle, double eps) {
  const std::string metric = take_string(handle);
  STD_TORCH_CHECK(metric == "cosine" || metric == "euclidean", "metric must be cosine or euclidean, got ", metric);
  STD_TORCH_CHECK(x.dim() == 3 && y.dim() == 3, "min_distances: x and y must be [N, L, D] and [N, M, D]");
  const MinDistances p{
      x.size(0), x.size(1), y.size(1), x.size(2), metric == "cosine" ? Metric::kCosine : Metric::kEuclidean, eps};
  check_shape("y", y, {p.n, p.m, p.d});
  check_dtype("y", y, x.scalar_type());
  STD_TORCH_CHECK(p.n == 0 || (p.l == 0) == (p.m == 0), "min_distances: a minimum over no rows");
  return p;
}

// Sample k's rows.
template <class T>
Features<T> features(const Tensor& x, int64_t k) {
  return {data<T>(x) + k * x.stride(0), x.size(1), x.stride(1)};
}

// Calls work(state, k) for every sample, with a state that make() returns: short samples on a thread each, others one
// after the other. (On threads, nothing is multiplied by torch: MKL rounds by how many threads it takes a thread to
// have, which may be another number for each.)
template <class Make, class Work>
void for_samples(const MinDistances& p, const Make& make, const Work& work) {
  if (p.short_samples())
    return for_steps(p.n, p.l * p.m * (p.d + 16), make, [&](auto& state, int64_t k, const Turn&) { work(state, k); });
  auto state = make();
  for (int64_t k = 0; k < p.n; ++k) work(state, k);
}

// A value of the storage type, and back.
template <class T>
T narrow(double x) {
  if constexpr (std::is_same_v<T, Half>)
    return to_half(float(x));
  else if constexpr (std::is_same_v<T, BFloat16>)
    return to_bfloat16(float(x));
  else
    return T(x);
}
template <class T>
double widened(T x) {
  if constexpr (sizeof(T) == 2)
    return double(to_float(x));
  else
    return double(x);
}

}  // namespace stylekern

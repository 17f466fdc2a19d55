// Instance normalisation on CUDA, for every operator that starts with it.
//
//   instance_norm_stats_kernel   mean and rstd of each plane. A block a plane, Welford's update a vector at a time:
//                                x is read once, and nothing cancels as in E[x^2] - E[x]^2.
//   instance_norm_bwd_kernel     from the gradient of the normalised x to that of the input. A block a plane: two
//                                sums, then the gradient; a plane's second read comes from the second-level cache.
//
// Fewest bytes, values a value of x: x for the statistics; x, its gradient twice (in and out) for the backward.
#pragma once
#include <cmath>

#include "common.cuh"

namespace stylekern::cuda {

// One plane of the input, read as (x - mean) * rstd. Row or column -1 is the zero border.
template <class T>
struct Plane {
  using A = Acc<T>;
  const T* x;
  int64_t stride;
  A mean, rstd;

  STYLEKERN_DEVICE A normalized(T value) const { return (to_acc(value) - mean) * rstd; }
  STYLEKERN_DEVICE A at(int64_t i, int64_t j) const { return i < 0 || j < 0 ? A(0) : normalized(x[i * stride + j]); }
  template <int V>
  STYLEKERN_DEVICE Vec<A, V> row(int64_t i, int64_t j) const {
    if (i < 0) return zeros<A, V>();
    const Vec<T, V> raw = load<V>(x + i * stride + j);
    Vec<A, V> y;
#pragma unroll
    for (int e = 0; e < V; ++e) y[e] = normalized(raw[e]);
    return y;
  }
};

// Plane [n, c] of a tensor of `channels` channels; without mean and rstd, read as it is.
template <class T>
STYLEKERN_DEVICE Plane<T> normalized_plane(const T* x, const PlaneStrides& s, int64_t channels, int64_t n, int64_t c,
                                           const Acc<T>* mean, const Acc<T>* rstd) {
  const int64_t plane = n * channels + c;
  return {x + n * s.n + c * s.p, s.row, mean ? mean[plane] : Acc<T>(0), rstd ? rstd[plane] : Acc<T>(1)};
}

// Count, mean and sum of squared deviations of some values.
template <class A>
struct Moments {
  A count, mean, m2;
};

template <class A>
STYLEKERN_DEVICE Moments<A> merge(const Moments<A>& a, const Moments<A>& b) {
  const A count = a.count + b.count;
  if (count == A(0)) return a;
  const A delta = b.mean - a.mean, share = b.count / count;
  return {count, a.mean + delta * share, a.m2 + b.m2 + delta * delta * a.count * share};
}

// What a variance of `count` values divides by. None are left: by zero, as torch does.
template <class A>
STYLEKERN_DEVICE A variance_divisor(int64_t count, int64_t correction) {
  return A(count > correction ? count - correction : 0);
}

template <class A>
struct Statistics {
  A mean, rstd;
};

// Of a plane, to every thread of the block. `shared` holds Moments a thread.
template <int V, class T>
STYLEKERN_DEVICE Statistics<Acc<T>> plane_statistics(const T* x, int64_t row, int64_t h, int64_t w, double eps,
                                                     int64_t correction, Moments<Acc<T>>* shared) {
  using A = Acc<T>;
  const A first = to_acc(x[0]);  // subtracted, so that a large mean costs no digits
  Moments<A> sum{A(0), A(0), A(0)};
  for_each_vector<V, 4>(h, w, [&](int64_t i, int64_t j) {
    const Vec<A, V> values = to_acc(load<V>(x + i * row + j));
    Moments<A> part{A(V), A(0), A(0)};
#pragma unroll
    for (int e = 0; e < V; ++e) part.mean += (values[e] - first) / A(V);
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const A d = values[e] - first - part.mean;
      part.m2 += d * d;
    }
    sum = merge(sum, part);
  });
  sum = reduce_block(sum, shared, [](const Moments<A>& a, const Moments<A>& b) { return merge(a, b); });
  return {first + sum.mean, A(1) / sqrt(sum.m2 / variance_divisor<A>(h * w, correction) + A(eps))};
}

// The two sums over a plane that a gradient through normalisation needs: of g, and of g * x.
template <class A>
using GradSums = Vec<A, 2>;

template <class A>
STYLEKERN_DEVICE GradSums<A> reduce_sums(const GradSums<A>& sums, GradSums<A>* shared) {
  return reduce_block(sums, shared,
                      [](const GradSums<A>& a, const GradSums<A>& b) { return GradSums<A>{a[0] + b[0], a[1] + b[1]}; });
}

// Planes [N, C, H, W] that are read through their strides.
struct Planes {
  int64_t n, c, h, w;
  PlaneStrides x;
};

// Threads of a block that works on a plane, at most, and how many such blocks a multiprocessor must hold at once.
// Operators' gradients read several tensors in a pass and need more registers a thread; doubles take two each.
inline constexpr int kPlaneThreads = 512, kGradThreads = 256;
template <class T>
inline constexpr int kPlaneBlocks = std::is_same_v<T, double> ? 1 : 2;
template <class T>
inline constexpr int kGradBlocks = std::is_same_v<T, double> ? 2 : 3;

template <class T, int V>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneBlocks<T>)
    instance_norm_stats_kernel(Planes p, const T* __restrict__ input, Acc<T>* __restrict__ mean,
                               Acc<T>* __restrict__ rstd, double eps, int64_t correction) {
  using A = Acc<T>;
  STYLEKERN_SHARED(Moments<A>, shared);
  for (int64_t plane = blockIdx.x; plane < p.n * p.c; plane += gridDim.x) {
    const T* x = input + plane / p.c * p.x.n + plane % p.c * p.x.p;
    const Statistics<A> s = plane_statistics<V>(x, p.x.row, p.h, p.w, eps, correction, shared);
    if (threadIdx.x == 0 && threadIdx.y == 0) mean[plane] = s.mean, rstd[plane] = s.rstd;
  }
}

// A vector of 8 halves comes with 8 floats of grad_x: fewer of those fit into the registers.
template <int V>
inline constexpr int kGradUnroll = V > 4 ? 2 : 4;

// grad_x may be grad_input itself: a thread reads a vector before it overwrites it.
template <class T, int V>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneBlocks<T>)
    instance_norm_bwd_kernel(Planes p, const Acc<T>* grad_x, const T* __restrict__ input,
                             const Acc<T>* __restrict__ mean, const Acc<T>* __restrict__ rstd, T* grad_input,
                             int64_t correction) {
  using A = Acc<T>;
  STYLEKERN_SHARED(GradSums<A>, shared);
  for (int64_t plane = blockIdx.x; plane < p.n * p.c; plane += gridDim.x) {
    const Plane<T> x = normalized_plane(input, p.x, p.c, plane / p.c, plane % p.c, mean, rstd);
    const int64_t start = plane * p.h * p.w;
    GradSums<A> sums = zeros<A, 2>();
    for_each_vector<V, kGradUnroll<V>>(p.h, p.w, [&](int64_t i, int64_t j) {
      const Vec<A, V> grad = load<V>(grad_x + start + i * p.w + j), values = x.template row<V>(i, j);
#pragma unroll
      for (int e = 0; e < V; ++e) sums[0] += grad[e], sums[1] += grad[e] * values[e];
    });
    sums = reduce_sums(sums, shared);
    const A mean_grad = sums[0] / A(p.h * p.w), slope = sums[1] / variance_divisor<A>(p.h * p.w, correction);
    // grad_input = rstd * (grad_x - sum(grad_x) / n - x * sum(grad_x * x) / (n - correction))
    for_each_vector<V, kGradUnroll<V>>(p.h, p.w, [&](int64_t i, int64_t j) {
      const Vec<A, V> grad = load<V>(grad_x + start + i * p.w + j), values = x.template row<V>(i, j);
      Vec<A, V> y;
#pragma unroll
      for (int e = 0; e < V; ++e) y[e] = x.rstd * (grad[e] - mean_grad - values[e] * slope);
      store_as(grad_input + start + i * p.w + j, y);
    });
  }
}

// Writes mean and rstd, [N * C].
template <class T>
cudaError_t instance_norm_stats(Planes p, const T* input, Acc<T>* mean, Acc<T>* rstd, double eps, int64_t correction,
                                cudaStream_t stream) {
  if (p.n * p.c * p.h * p.w == 0) return cudaSuccess;
  if (gapless(p.h, p.w, p.x)) p.w *= p.h, p.x.row = p.w, p.h = 1;
  return with_width<T>(p.w % kWide<T> == 0 && wide_rows(input, p.x), [&](auto width) {
    constexpr int V = decltype(width)::value;
    const dim3 block = plane_block(p.h, p.w, V, kPlaneThreads);
    const auto kernel = instance_norm_stats_kernel<T, V>;
    STYLEKERN_LAUNCH(kernel, grid_of(p.n * p.c), block, block.x * block.y * sizeof(Moments<Acc<T>>), stream, p, input,
                     mean, rstd, eps, correction);
    return cudaGetLastError();
  });
}

// From grad_x, contiguous, the gradient of the normalised x, to that of the input; they may be one tensor.
template <class T>
cudaError_t instance_norm_backward(Planes p, const Acc<T>* grad_x, const T* input, const Acc<T>* mean,
                                   const Acc<T>* rstd, T* grad_input, int64_t correction, cudaStream_t stream) {
  if (p.n * p.c * p.h * p.w == 0) return cudaSuccess;
  if (gapless(p.h, p.w, p.x)) p.w *= p.h, p.x.row = p.w, p.h = 1;
  const bool wide = p.w % kWide<T> == 0 && wide_rows(input, p.x) && wide_rows(grad_x, {}) && wide_rows(grad_input, {});
  return with_width<T>(wide, [&](auto width) {
    constexpr int V = decltype(width)::value;
    const dim3 block = plane_block(p.h, p.w, V, kPlaneThreads);
    const auto kernel = instance_norm_bwd_kernel<T, V>;
    STYLEKERN_LAUNCH(kernel, grid_of(p.n * p.c), block, block.x * block.y * sizeof(GradSums<Acc<T>>), stream, p, grad_x,
                     input, mean, rstd, grad_input, correction);
    return cudaGetLastError();
  });
}

}  // namespace stylekern::cuda

// adain on CUDA; csrc/common/adain.h has the formulas.
//
//   adain_fwd_kernel   A block a plane: statistics of the style, then of the content, then the output.
//   adain_bwd_kernel   A block a plane: sum(g) and sum(g * x), then the gradients of content and style.
//
// Each read after the first one of a plane comes from the second-level cache, or the first. V is 16 bytes of values, or
// 1 where a row does not start on 16 bytes.
//
// Fewest bytes, values a value of the content, with a style of the same size: forward reads content and style, and
// writes y: 3. Backward reads g, content and style, and writes two gradients: 5.
#pragma once
#include "../common/adain.h"
#include "instance_norm.cuh"

namespace stylekern::cuda {

// mean and rstd of content and style, [N, C].
template <class S>
struct AdainStatistics {
  S *content_mean, *content_rstd, *style_mean, *style_rstd;
};

template <class T, int V>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneBlocks<T>)
    adain_fwd_kernel(Adain p, const T* __restrict__ content, const T* __restrict__ style, T* __restrict__ output,
                     AdainStatistics<Acc<T>> statistics, double eps) {
  using A = Acc<T>;
  STYLEKERN_SHARED(Moments<A>, shared);
  for (int64_t plane = blockIdx.x; plane < p.planes(); plane += gridDim.x) {
    const int64_t n = plane / p.c, c = plane % p.c;
    const T* x = content + n * p.content.n + c * p.content.p;
    const Statistics<A> of_style = plane_statistics<V>(style + n * p.style.n + c * p.style.p, p.style.row, p.style_h,
                                                       p.style_w, eps, p.correction, shared);
    const Statistics<A> of_content = plane_statistics<V>(x, p.content.row, p.h, p.w, eps, p.correction, shared);
    if (threadIdx.x == 0 && threadIdx.y == 0) {
      statistics.content_mean[plane] = of_content.mean, statistics.content_rstd[plane] = of_content.rstd;
      statistics.style_mean[plane] = of_style.mean, statistics.style_rstd[plane] = of_style.rstd;
    }
    const A scale = of_content.rstd / of_style.rstd;
    T* y = output + plane * p.h * p.w;
    for_each_vector<V, 4>(p.h, p.w, [&](int64_t i, int64_t j) {
      Vec<A, V> values = to_acc(load<V>(x + i * p.content.row + j));
#pragma unroll
      for (int e = 0; e < V; ++e) values[e] = (values[e] - of_content.mean) * scale + of_style.mean;
      store_as(y + i * p.w + j, values);
    });
  }
}

// A gradient that is null is not asked for.
template <class T, int V>
__global__ void __launch_bounds__(kGradThreads, kGradBlocks<T>)
    adain_bwd_kernel(Adain p, const T* __restrict__ grad, const T* __restrict__ content, const T* __restrict__ style,
                     AdainStatistics<const Acc<T>> statistics, T* __restrict__ grad_content,
                     T* __restrict__ grad_style) {
  using A = Acc<T>;
  STYLEKERN_SHARED(GradSums<A>, shared);
  for (int64_t plane = blockIdx.x; plane < p.planes(); plane += gridDim.x) {
    const int64_t n = plane / p.c, c = plane % p.c;
    const Plane<T> x =
        normalized_plane(content, p.content, p.c, n, c, statistics.content_mean, statistics.content_rstd);
    const T* g = grad + n * p.grad.n + c * p.grad.p;
    GradSums<A> sums = zeros<A, 2>();
    for_each_vector<V, kGradUnroll<V>>(p.h, p.w, [&](int64_t i, int64_t j) {
      const Vec<A, V> values = x.template row<V>(i, j), gs = to_acc(load<V>(g + i * p.grad.row + j));
#pragma unroll
      for (int e = 0; e < V; ++e) sums[0] += gs[e], sums[1] += gs[e] * values[e];
    });
    sums = reduce_sums(sums, shared);

    if (grad_content) {
      // grad_content = content_rstd / style_rstd * (g - sum(g) / n - x * sum(g * x) / (n - correction))
      const A scale = x.rstd / statistics.style_rstd[plane], mean_grad = sums[0] / A(p.h * p.w),
              slope = sums[1] / variance_divisor<A>(p.h * p.w, p.correction);
      T* y = grad_content + plane * p.h * p.w;
      for_each_vector<V, kGradUnroll<V>>(p.h, p.w, [&](int64_t i, int64_t j) {
        Vec<A, V> values = x.template row<V>(i, j);
        const Vec<A, V> gs = to_acc(load<V>(g + i * p.grad.row + j));
#pragma unroll
        for (int e = 0; e < V; ++e) values[e] = scale * (gs[e] - mean_grad - values[e] * slope);
        store_as(y + i * p.w + j, values);
      });
    }
    if (grad_style) {
      // grad_style = sum(g) / m + (style - style_mean) * style_rstd * sum(g * x) / (m - correction)
      const Plane<T> s = normalized_plane(style, p.style, p.c, n, c, statistics.style_mean, statistics.style_rstd);
      const A mean_grad = sums[0] / A(p.style_h * p.style_w),
              slope = sums[1] / variance_divisor<A>(p.style_h * p.style_w, p.correction);
      T* y = grad_style + plane * p.style_h * p.style_w;
      for_each_vector<V, kGradUnroll<V>>(p.style_h, p.style_w, [&](int64_t i, int64_t j) {
        Vec<A, V> values = s.template row<V>(i, j);
#pragma unroll
        for (int e = 0; e < V; ++e) values[e] = mean_grad + values[e] * slope;
        store_as(y + i * p.style_w + j, values);
      });
    }
  }
}

// Planes as long rows where nothing lies between their rows; `grad` where there is one.
inline Adain flatten(Adain p, bool grad) {
  if (gapless(p.h, p.w, p.content) && (!grad || gapless(p.h, p.w, p.grad))) p.w *= p.h, p.h = 1;
  if (gapless(p.style_h, p.style_w, p.style)) p.style_w *= p.style_h, p.style_h = 1;
  // of one row no stride is read; zeros keep it out of the question of 16 bytes
  if (p.h == 1) p.content.row = p.grad.row = 0;
  if (p.style_h == 1) p.style.row = 0;
  return p;
}

// Threads that suit the larger of the two planes.
inline dim3 adain_block(const Adain& p, int v, int threads) {
  const dim3 a = plane_block(p.h, p.w, v, threads), b = plane_block(p.style_h, p.style_w, v, threads);
  return a.x * a.y < b.x * b.y ? b : a;
}

// Writes output and the statistics, contiguous.
template <class T>
cudaError_t adain_forward(const Adain& problem, const T* content, const T* style, T* output,
                          const AdainStatistics<Acc<T>>& statistics, double eps, cudaStream_t stream) {
  const Adain p = flatten(problem, false);
  if (p.planes() * p.h * p.w == 0) return cudaSuccess;
  const bool wide = (p.w | p.style_w) % kWide<T> == 0 && wide_rows(content, p.content) && wide_rows(style, p.style) &&
                    wide_rows(output, {});
  return with_width<T>(wide, [&](auto width) {
    constexpr int V = decltype(width)::value;
    const dim3 block = adain_block(p, V, kPlaneThreads);
    const auto kernel = adain_fwd_kernel<T, V>;
    STYLEKERN_LAUNCH(kernel, grid_of(p.planes()), block, block.x * block.y * sizeof(Moments<Acc<T>>), stream, p,
                     content, style, output, statistics, eps);
    return cudaGetLastError();
  });
}

// Writes the gradients, contiguous, that are not null. The content must not be empty: without it there are no sums.
template <class T>
cudaError_t adain_backward(const Adain& problem, const T* grad, const T* content, const T* style,
                           const AdainStatistics<const Acc<T>>& statistics, T* grad_content, T* grad_style,
                           cudaStream_t stream) {
  const Adain p = flatten(problem, true);
  if (p.planes() * p.h * p.w == 0 || !(grad_content || grad_style)) return cudaSuccess;
  const bool wide = (p.w | p.style_w) % kWide<T> == 0 && wide_rows(grad, p.grad) && wide_rows(content, p.content) &&
                    wide_rows(style, p.style) && wide_rows(grad_content, {}) && wide_rows(grad_style, {});
  return with_width<T>(wide, [&](auto width) {
    constexpr int V = decltype(width)::value;
    const dim3 block = adain_block(p, V, kGradThreads);
    const auto kernel = adain_bwd_kernel<T, V>;
    STYLEKERN_LAUNCH(kernel, grid_of(p.planes()), block, block.x * block.y * sizeof(GradSums<Acc<T>>), stream, p, grad,
                     content, style, statistics, grad_content, grad_style);
    return cudaGetLastError();
  });
}

}  // namespace stylekern::cuda

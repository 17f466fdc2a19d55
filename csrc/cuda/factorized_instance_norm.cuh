// factorized_instance_norm on CUDA; csrc/common/factorized_instance_norm.h has the formulas.
//
//   factorized_instance_norm_fwd_kernel   A block a plane: statistics, then the output.
//   factorized_instance_norm_bwd_kernel   A block a plane: sum_g and sum_gx, then the gradients of content and
//                                         gamma_style, where one is asked for.
//
// Each read after the first one of a plane comes from the second-level cache, or the first. V is 16 bytes of values, or
// 1 where a row does not start on 16 bytes.
//
// Fewest bytes, values a value of the content: forward reads content, gamma_style and beta_style, writes y: 4. Backward
// reads g, content and gamma_style, writes two gradients: 5.
#pragma once
#include "../common/factorized_instance_norm.h"
#include "instance_norm.cuh"

namespace stylekern::cuda {

template <class T, int V>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneBlocks<T>)
    factorized_instance_norm_fwd_kernel(FactorizedInstanceNorm p, const T* __restrict__ content,
                                        const T* __restrict__ gamma_ind, const T* __restrict__ beta_ind,
                                        const T* __restrict__ gamma_style, const T* __restrict__ beta_style,
                                        T* __restrict__ output, Acc<T>* __restrict__ mean, Acc<T>* __restrict__ rstd,
                                        double eps) {
  using A = Acc<T>;
  STYLEKERN_SHARED(Moments<A>, shared);
  for (int64_t plane = blockIdx.x; plane < p.planes(); plane += gridDim.x) {
    const int64_t n = plane / p.c, c = plane % p.c;
    const T* x = content + n * p.content.n + c * p.content.p;
    const T* gamma = gamma_style + n * p.gamma_style.n + c * p.gamma_style.p;
    const T* beta = beta_style + n * p.beta_style.n + c * p.beta_style.p;
    const Statistics<A> s = plane_statistics<V>(x, p.content.row, p.h, p.w, eps, p.correction, shared);
    if (threadIdx.x == 0 && threadIdx.y == 0) mean[plane] = s.mean, rstd[plane] = s.rstd;
    const A scale = to_acc(gamma_ind[c]) * s.rstd, shift = to_acc(beta_ind[c]);
    T* y = output + plane * p.h * p.w;
    for_each_vector<V, 2>(p.h, p.w, [&](int64_t i, int64_t j) {
      Vec<A, V> values = to_acc(load<V>(x + i * p.content.row + j));
      const Vec<A, V> gammas = to_acc(load<V>(gamma + i * p.gamma_style.row + j)),
                      betas = to_acc(load<V>(beta + i * p.beta_style.row + j));
#pragma unroll
      for (int e = 0; e < V; ++e) values[e] = gammas[e] * ((values[e] - s.mean) * scale + shift) + betas[e];
      store_as(y + i * p.w + j, values);
    });
  }
}

// A gradient that is null is not asked for; the sums always are.
template <class T, int V>
__global__ void __launch_bounds__(kGradThreads, kGradBlocks<T>)
    factorized_instance_norm_bwd_kernel(FactorizedInstanceNorm p, const T* __restrict__ grad,
                                        const T* __restrict__ content, const T* __restrict__ gamma_ind,
                                        const T* __restrict__ beta_ind, const T* __restrict__ gamma_style,
                                        const Acc<T>* __restrict__ mean, const Acc<T>* __restrict__ rstd,
                                        T* __restrict__ grad_content, T* __restrict__ grad_gamma_style,
                                        Acc<T>* __restrict__ sum_gx, Acc<T>* __restrict__ sum_g) {
  using A = Acc<T>;
  STYLEKERN_SHARED(GradSums<A>, shared);
  for (int64_t plane = blockIdx.x; plane < p.planes(); plane += gridDim.x) {
    const int64_t n = plane / p.c, c = plane % p.c;
    const Plane<T> x = normalized_plane(content, p.content, p.c, n, c, mean, rstd);
    const T* g = grad + n * p.grad.n + c * p.grad.p;
    const T* gamma = gamma_style + n * p.gamma_style.n + c * p.gamma_style.p;
    // sum_g = sum(g * gamma_style), sum_gx = sum(g * gamma_style * x)
    GradSums<A> sums = zeros<A, 2>();
    for_each_vector<V, 2>(p.h, p.w, [&](int64_t i, int64_t j) {
      const Vec<A, V> values = x.template row<V>(i, j), gs = to_acc(load<V>(g + i * p.grad.row + j)),
                      gammas = to_acc(load<V>(gamma + i * p.gamma_style.row + j));
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const A scaled = gs[e] * gammas[e];
        sums[0] += scaled, sums[1] += scaled * values[e];
      }
    });
    sums = reduce_sums(sums, shared);
    if (threadIdx.x == 0 && threadIdx.y == 0) sum_g[plane] = sums[0], sum_gx[plane] = sums[1];
    if (!grad_content && !grad_gamma_style) continue;

    const A factor = to_acc(gamma_ind[c]), shift = to_acc(beta_ind[c]);
    const A scale = x.rstd * factor, mean_grad = sums[0] / A(p.h * p.w),
            slope = sums[1] / variance_divisor<A>(p.h * p.w, p.correction);
    const int64_t start = plane * p.h * p.w;
    for_each_vector<V, 2>(p.h, p.w, [&](int64_t i, int64_t j) {
      const Vec<A, V> values = x.template row<V>(i, j), gs = to_acc(load<V>(g + i * p.grad.row + j));
      if (grad_content) {
        // grad_content = rstd * gamma_ind * (g * gamma_style - sum_g / n - x * sum_gx / (n - correction))
        const Vec<A, V> gammas = to_acc(load<V>(gamma + i * p.gamma_style.row + j));
        Vec<A, V> y;
#pragma unroll
        for (int e = 0; e < V; ++e) y[e] = scale * (gs[e] * gammas[e] - mean_grad - values[e] * slope);
        store_as(grad_content + start + i * p.w + j, y);
      }
      if (grad_gamma_style) {
        // grad_gamma_style = g * (gamma_ind * x + beta_ind)
        Vec<A, V> y;
#pragma unroll
        for (int e = 0; e < V; ++e) y[e] = gs[e] * (factor * values[e] + shift);
        store_as(grad_gamma_style + start + i * p.w + j, y);
      }
    });
  }
}

// Writes output, and mean and rstd, [N * C], contiguous.
template <class T>
cudaError_t factorized_instance_norm_forward(FactorizedInstanceNorm p, const T* content, const T* gamma_ind,
                                             const T* beta_ind, const T* gamma_style, const T* beta_style, T* output,
                                             Acc<T>* mean, Acc<T>* rstd, double eps, cudaStream_t stream) {
  if (p.planes() * p.h * p.w == 0) return cudaSuccess;
  if (gapless(p.h, p.w, p.content) && gapless(p.h, p.w, p.gamma_style) && gapless(p.h, p.w, p.beta_style))
    p.w *= p.h, p.h = 1, p.content.row = p.gamma_style.row = p.beta_style.row = 0;
  const bool wide = p.w % kWide<T> == 0 && wide_rows(content, p.content) && wide_rows(gamma_style, p.gamma_style) &&
                    wide_rows(beta_style, p.beta_style) && wide_rows(output, {});
  return with_width<T>(wide, [&](auto width) {
    constexpr int V = decltype(width)::value;
    const dim3 block = plane_block(p.h, p.w, V, kPlaneThreads);
    const auto kernel = factorized_instance_norm_fwd_kernel<T, V>;
    STYLEKERN_LAUNCH(kernel, grid_of(p.planes()), block, block.x * block.y * sizeof(Moments<Acc<T>>), stream, p,
                     content, gamma_ind, beta_ind, gamma_style, beta_style, output, mean, rstd, eps);
    return cudaGetLastError();
  });
}

// Writes the gradients, contiguous, that are not null, and sum_gx and sum_g, [N * C]. The content must not be empty.
template <class T>
cudaError_t factorized_instance_norm_backward(FactorizedInstanceNorm p, const T* grad, const T* content,
                                              const T* gamma_ind, const T* beta_ind, const T* gamma_style,
                                              const Acc<T>* mean, const Acc<T>* rstd, T* grad_content,
                                              T* grad_gamma_style, Acc<T>* sum_gx, Acc<T>* sum_g, cudaStream_t stream) {
  if (p.planes() * p.h * p.w == 0) return cudaSuccess;
  if (gapless(p.h, p.w, p.content) && gapless(p.h, p.w, p.gamma_style) && gapless(p.h, p.w, p.grad))
    p.w *= p.h, p.h = 1, p.content.row = p.gamma_style.row = p.grad.row = 0;
  const bool wide = p.w % kWide<T> == 0 && wide_rows(grad, p.grad) && wide_rows(content, p.content) &&
                    wide_rows(gamma_style, p.gamma_style) && wide_rows(grad_content, {}) &&
                    wide_rows(grad_gamma_style, {});
  return with_width<T>(wide, [&](auto width) {
    constexpr int V = decltype(width)::value;
    const dim3 block = plane_block(p.h, p.w, V, kGradThreads);
    const auto kernel = factorized_instance_norm_bwd_kernel<T, V>;
    STYLEKERN_LAUNCH(kernel, grid_of(p.planes()), block, block.x * block.y * sizeof(GradSums<Acc<T>>), stream, p, grad,
                     content, gamma_ind, beta_ind, gamma_style, mean, rstd, grad_content, grad_gamma_style, sum_gx,
                     sum_g);
    return cudaGetLastError();
  });
}

}  // namespace stylekern::cuda

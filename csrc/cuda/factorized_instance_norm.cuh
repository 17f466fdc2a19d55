// factorized_instance_norm on CUDA; csrc/common/factorized_instance_norm.h has the formulas.
//
//   factorized_instance_norm_fwd_kernel   A block a plane: statistics, then the output.
//   factorized_instance_norm_bwd_kernel   A block a plane: sum_g and sum_gx, then the gradients of content and
//                                         gamma_style, where one is asked for.
//
// A block holds up to 5,120 values of each tensor in registers, or 6,144 backward: what fits is read once, and of
// larger planes the rest once more. Where larger planes are few, several blocks share one, and part_moments_kernel or
// part_sums_kernel comes first. V is 16 bytes of values, or 1 where a plane does not start on 16 bytes or has gaps
// between its rows.
//
// Fewest bytes, values a value of the content: forward reads content, gamma_style and beta_style, writes y: 4. Backward
// reads g, content and gamma_style, writes two gradients: 5.
#pragma once
#include "../common/factorized_instance_norm.h"
#include "instance_norm.cuh"

namespace stylekern::cuda {

// Threads of a forward's block, at most: its output needs a few registers more than the gradients do.
inline constexpr int kFactorizedForwardThreads = 320;

template <class T, int V, bool Dense>
__global__ void __launch_bounds__(kFactorizedForwardThreads, kTileBlocks<T, V>)
    factorized_instance_norm_fwd_kernel(FactorizedInstanceNorm p, const T* __restrict__ content,
                                        const T* __restrict__ gamma_ind, const T* __restrict__ beta_ind,
                                        const T* __restrict__ gamma_style, const T* __restrict__ beta_style,
                                        T* __restrict__ output, Acc<T>* __restrict__ mean, Acc<T>* __restrict__ rstd,
                                        double eps, Parts parts, Cut cut, const Moments<Acc<T>>* __restrict__ moments) {
  using A = Acc<T>;
  constexpr int R = kHeld<T, V, Dense>;
  STYLEKERN_SHARED(A, shared);
  BlockSums<A, 2> sum(shared);
  for (int64_t piece = blockIdx.x; piece < parts.count(); piece += gridDim.x) {
    const auto [plane, n, c, part] = Part(parts, piece);
    const TileRange range(cut, part);
    const T* x = content + n * p.content.n + c * p.content.p;
    const T* gamma = gamma_style + n * p.gamma_style.n + c * p.gamma_style.p;
    const T* beta = beta_style + n * p.beta_style.n + c * p.beta_style.p;
    const A from = to_acc(x[0]), factor = to_acc(gamma_ind[c]), shift = to_acc(beta_ind[c]);
    Vec<T, V> xs[R], gammas[R], betas[R];
    const auto load_style = [&](const Tile<V, R, Dense>& tile) {
      tile.load(gammas, gamma, p.gamma_style.row), tile.load(betas, beta, p.beta_style.row);
    };
    // The last tile stays in registers; gamma and beta come while the statistics are reduced.
    A centre = from;
    Vec<A, 2> sums = zeros<A, 2>();
    for (int k = parts.each > 1 ? range.last : 0; k <= range.last; ++k) {
      const Tile<V, R, Dense> tile(cut, p.w, k);
      tile.load(xs, x, p.content.row);
      if (k == range.last) load_style(tile);
      if (parts.each > 1) break;
      if (k == 0) centre += sum(tile.sum(xs, from)) / A(tile.count());
      tile.add_deviations(xs, centre, sums);
    }
    Moments<A> of_plane[1];
    if (parts.each > 1)
      merge_parts(of_plane, {moments + plane * parts.each}, parts.each, {p.h * p.w}, sum);
    else
      of_plane[0] = moments_around(centre, sum(sums), p.h * p.w);
    const Statistics<A> s = statistics_of(of_plane[0], p.h * p.w, p.correction, eps);
    if (part == 0 && threadIdx.x == 0) mean[plane] = s.mean, rstd[plane] = s.rstd;
    const A scale = factor * s.rstd;
    for (int k = range.last; k >= range.first; --k) {
      const Tile<V, R, Dense> tile(cut, p.w, k);
      if (k != range.last) tile.load(xs, x, p.content.row), load_style(tile);
      tile.store(output + plane * p.h * p.w, [&](int r) {
        Vec<A, V> y;
#pragma unroll
        for (int e = 0; e < V; ++e)
          y[e] = to_acc(gammas[r][e]) * ((to_acc(xs[r][e]) - s.mean) * scale + shift) + to_acc(betas[r][e]);
        return y;
      });
    }
  }
}

// A gradient that is null is not asked for; the sums always are.
template <class T, int V, bool Dense>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks<T, V>)
    factorized_instance_norm_bwd_kernel(FactorizedInstanceNorm p, const T* __restrict__ grad,
                                        const T* __restrict__ content, const T* __restrict__ gamma_ind,
                                        const T* __restrict__ beta_ind, const T* __restrict__ gamma_style,
                                        const Acc<T>* __restrict__ mean, const Acc<T>* __restrict__ rstd,
                                        T* __restrict__ grad_content, T* __restrict__ grad_gamma_style,
                                        Acc<T>* __restrict__ sum_gx, Acc<T>* __restrict__ sum_g, Parts parts, Cut cut,
                                        const GradSums<Acc<T>>* __restrict__ sums_of_parts) {
  using A = Acc<T>;
  constexpr int R = kHeld<T, V, Dense>;
  STYLEKERN_SHARED(A, shared);
  BlockSums<A, 2> sum(shared);
  for (int64_t piece = blockIdx.x; piece < parts.count(); piece += gridDim.x) {
    const auto [plane, n, c, part] = Part(parts, piece);
    const TileRange range(cut, part);
    const Plane<T> x = normalized_plane(content, p.content, p.c, n, c, mean, rstd);
    const T* g = grad + n * p.grad.n + c * p.grad.p;
    const T* gamma = gamma_style + n * p.gamma_style.n + c * p.gamma_style.p;
    const A factor = to_acc(gamma_ind[c]), shift = to_acc(beta_ind[c]);
    Vec<T, V> gs[R], xs[R], gammas[R];
    const auto load_tile = [&](const Tile<V, R, Dense>& tile) {
      tile.load(gs, g, p.grad.row), tile.load(xs, x.x, x.stride), tile.load(gammas, gamma, p.gamma_style.row);
    };
    // sum_g = sum(g * gamma_style), sum_gx = sum(g * gamma_style * x)
    GradSums<A> sums = zeros<A, 2>();
    for (int k = parts.each > 1 ? range.last : 0; k <= range.last; ++k) {
      const Tile<V, R, Dense> tile(cut, p.w, k);
      load_tile(tile);
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int e = 0; e < V; ++e) {
          const A scaled = product_rounded(to_acc(gs[r][e]), to_acc(gammas[r][e]));
          sums[0] += scaled, sums[1] += scaled * (tile.has(r) ? x.normalized(xs[r][e]) : A(0));
        }
    }
    // of parts the tile above only stays in registers
    if (parts.each > 1) sums = entry_of_part(sums_of_parts + plane * parts.each, parts.each);
    sums = sum(sums);
    if (part == 0 && threadIdx.x == 0) sum_g[plane] = sums[0], sum_gx[plane] = sums[1];
    if (!grad_content && !grad_gamma_style) continue;

    const A scale = x.rstd * factor, mean_grad = sums[0] / A(p.h * p.w),
            slope = sums[1] / variance_divisor<A>(p.h * p.w, p.correction);
    const int64_t start = plane * p.h * p.w;
    for (int k = range.last; k >= range.first; --k) {
      const Tile<V, R, Dense> tile(cut, p.w, k);
      if (k != range.last) load_tile(tile);
      if (grad_content) {
        // grad_content = rstd * gamma_ind * (g * gamma_style - sum_g / n - x * sum_gx / (n - correction))
        tile.store(grad_content + start, [&](int r) {
          Vec<A, V> y;
#pragma unroll
          for (int e = 0; e < V; ++e) {
            const A scaled = product_rounded(to_acc(gs[r][e]), to_acc(gammas[r][e]));
            y[e] = scale * (scaled - mean_grad - x.normalized(xs[r][e]) * slope);
          }
          return y;
        });
      }
      if (grad_gamma_style) {
        // grad_gamma_style = g * (gamma_ind * x + beta_ind)
        tile.store(grad_gamma_style + start, [&](int r) {
          Vec<A, V> y;
#pragma unroll
          for (int e = 0; e < V; ++e) y[e] = to_acc(gs[r][e]) * (factor * x.normalized(xs[r][e]) + shift);
          return y;
        });
      }
    }
  }
}

// Values of the accumulation type that the forward and the backward need beside their outputs, at most: the moments of
// the parts; their two sums take less.
template <class T>
int64_t factorized_instance_norm_workspace(const FactorizedInstanceNorm& p) {
  const int64_t parts = most_parts(p.planes(), p.h * p.w);
  return parts > 1 ? p.planes() * parts * int64_t(sizeof(Moments<Acc<T>>) / sizeof(Acc<T>)) : 0;
}

// Writes output, and mean and rstd, [N * C], contiguous.
template <class T>
cudaError_t factorized_instance_norm_forward(FactorizedInstanceNorm p, const T* content, const T* gamma_ind,
                                             const T* beta_ind, const T* gamma_style, const T* beta_style, T* output,
                                             Acc<T>* mean, Acc<T>* rstd, Acc<T>* workspace, double eps,
                                             cudaStream_t stream) {
  using A = Acc<T>;
  if (p.planes() * p.h * p.w == 0) return cudaSuccess;
  if (gapless(p.h, p.w, p.content) && gapless(p.h, p.w, p.gamma_style) && gapless(p.h, p.w, p.beta_style))
    p.w *= p.h, p.h = 1, p.content.row = p.gamma_style.row = p.beta_style.row = 0;
  const bool wide = p.w % kWide<T> == 0 && wide_rows(content, p.content) && wide_rows(gamma_style, p.gamma_style) &&
                    wide_rows(beta_style, p.beta_style) && wide_rows(output, {});
  return with_layout<T>(p.h == 1, wide, [&](auto width, auto dense) {
    constexpr int V = decltype(width)::value;
    constexpr bool Dense = decltype(dense)::value;
    const Parts parts(p.n, p.c, plane_parts(p.planes(), p.h, p.w, V, kHeld<T, V, Dense>));
    const unsigned threads =
        parts.each > 1 ? kPartThreads : tile_threads(p.h, p.w, V, kHeld<T, V, Dense>, kFactorizedForwardThreads);
    const unsigned blocks = grid_of(parts.count());
    const Cut cut(p.h, p.w, V, kHeld<T, V, Dense>, threads, parts.each);
    const size_t shared = BlockSums<A, 2>::bytes(threads);
    Moments<A>* const moments = reinterpret_cast<Moments<A>*>(workspace);
    if (parts.each > 1) {
      const CutPlanes<T> planes{content, p.content, p.w, cut}, none{nullptr, {}, p.w, cut};
      const auto kernel = part_moments_kernel<T, V, Dense>;
      STYLEKERN_LAUNCH(kernel, blocks, threads, shared, stream, parts, planes, none, moments);
    }
    const auto kernel = factorized_instance_norm_fwd_kernel<T, V, Dense>;
    STYLEKERN_LAUNCH(kernel, blocks, threads, shared, stream, p, content, gamma_ind, beta_ind, gamma_style, beta_style,
                     output, mean, rstd, eps, parts, cut, moments);
    return cudaGetLastError();
  });
}

// Writes the gradients, contiguous, that are not null, and sum_gx and sum_g, [N * C]. The content must not be empty.
template <class T>
cudaError_t factorized_instance_norm_backward(FactorizedInstanceNorm p, const T* grad, const T* content,
                                              const T* gamma_ind, const T* beta_ind, const T* gamma_style,
                                              const Acc<T>* mean, const Acc<T>* rstd, T* grad_content,
                                              T* grad_gamma_style, Acc<T>* sum_gx, Acc<T>* sum_g, Acc<T>* workspace,
                                              cudaStream_t stream) {
  using Sums = GradSums<Acc<T>>;
  if (p.planes() * p.h * p.w == 0) return cudaSuccess;
  if (gapless(p.h, p.w, p.content) && gapless(p.h, p.w, p.gamma_style) && gapless(p.h, p.w, p.grad))
    p.w *= p.h, p.h = 1, p.content.row = p.gamma_style.row = p.grad.row = 0;
  const bool wide = p.w % kWide<T> == 0 && wide_rows(grad, p.grad) && wide_rows(content, p.content) &&
                    wide_rows(gamma_style, p.gamma_style) && wide_rows(grad_content, {}) &&
                    wide_rows(grad_gamma_style, {});
  return with_layout<T>(p.h == 1, wide, [&](auto width, auto dense) {
    constexpr int V = decltype(width)::value;
    constexpr bool Dense = decltype(dense)::value;
    const Parts parts(p.n, p.c, plane_parts(p.planes(), p.h, p.w, V, kHeld<T, V, Dense>));
    const unsigned threads =
        parts.each > 1 ? kPartThreads : tile_threads(p.h, p.w, V, kHeld<T, V, Dense>, kTileThreads);
    const unsigned blocks = grid_of(parts.count());
    const Cut cut(p.h, p.w, V, kHeld<T, V, Dense>, threads, parts.each);
    const size_t shared = BlockSums<Acc<T>, 2>::bytes(threads);
    Sums* const sums = reinterpret_cast<Sums*>(workspace);
    if (parts.each > 1) {
      const auto kernel = part_sums_kernel<T, V, Dense>;
      STYLEKERN_LAUNCH(kernel, blocks, threads, shared, stream, Planes{p.n, p.c, p.h, p.w, p.content}, parts, cut,
                       p.grad, p.gamma_style, grad, gamma_style, content, mean, rstd, sums);
    }
    const auto kernel = factorized_instance_norm_bwd_kernel<T, V, Dense>;
    STYLEKERN_LAUNCH(kernel, blocks, threads, shared, stream, p, grad, content, gamma_ind, beta_ind, gamma_style, mean,
                     rstd, grad_content, grad_gamma_style, sum_gx, sum_g, parts, cut, sums);
    return cudaGetLastError();
  });
}

}  // namespace stylekern::cuda

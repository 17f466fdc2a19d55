// adain on CUDA; csrc/common/adain.h has the formulas.
//
//   adain_fwd_kernel   A block a plane: statistics of content and style, then the output.
//   adain_bwd_kernel   A block a plane: sum(g) and sum(g * x), then the gradients of content and style.
//
// A block holds up to 6,144 values of each tensor in registers: what fits is read once, and of larger planes the rest
// once more. Where larger planes are few, several blocks share one, and part_moments_kernel or part_sums_kernel comes
// first. V is 16 bytes of values, or 1 where a plane does not start on 16 bytes or has gaps between its rows.
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

template <class T, int V, bool Dense>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks<T, V>)
    adain_fwd_kernel(Adain p, const T* __restrict__ content, const T* __restrict__ style, T* __restrict__ output,
                     AdainStatistics<Acc<T>> statistics, double eps, Parts parts, Cut cut, Cut style_cut,
                     const Moments<Acc<T>>* __restrict__ moments) {
  using A = Acc<T>;
  using Pair = Vec<A, 2>;
  constexpr int R = kHeld<T, V, Dense>;
  STYLEKERN_SHARED(A, shared);
  BlockSums<A, 4> sum(shared);  // of content and style together
  const int64_t counts[2] = {p.h * p.w, p.style_h * p.style_w};
  for (int64_t piece = blockIdx.x; piece < parts.count(); piece += gridDim.x) {
    const auto [plane, n, c, part] = Part(parts, piece);
    const TileRange range(cut, part);
    const T* x = content + n * p.content.n + c * p.content.p;
    const T* s = style + n * p.style.n + c * p.style.p;
    Vec<T, V> xs[R], ss[R];
    Moments<A> of_planes[2];
    int held = range.last;  // the tile of the content that is in registers, once the statistics are there
    if (parts.each > 1) {
      Tile<V, R, Dense>(cut, p.w, held).load(xs, x, p.content.row);
      merge_parts(of_planes, {moments + plane * parts.each, moments + (parts.planes + plane) * parts.each}, parts.each,
                  counts, sum);
    } else {
      held = cut.tiles > style_cut.tiles ? held : style_cut.tiles - 1;
      const A x_from = to_acc(x[0]), s_from = to_acc(s[0]);
      A x_centre = x_from, s_centre = s_from;
      Pair x_sums = zeros<A, 2>(), s_sums = zeros<A, 2>();
      for (int k = 0; k <= held; ++k) {
        const Tile<V, R, Dense> x_tile(cut, p.w, k), s_tile(style_cut, p.style_w, k);
        x_tile.load(xs, x, p.content.row), s_tile.load(ss, s, p.style.row);
        if (k == 0) {
          const Pair sums = sum(Pair{x_tile.sum(xs, x_from), s_tile.sum(ss, s_from)});
          x_centre += sums[0] / A(x_tile.count()), s_centre += sums[1] / A(s_tile.count());
        }
        // beyond the smaller plane's end its tile is empty
        x_tile.add_deviations(xs, x_centre, x_sums), s_tile.add_deviations(ss, s_centre, s_sums);
      }
      const Vec<A, 4> sums = sum(Vec<A, 4>{x_sums[0], x_sums[1], s_sums[0], s_sums[1]});
      of_planes[0] = moments_around(x_centre, Pair{sums[0], sums[1]}, counts[0]);
      of_planes[1] = moments_around(s_centre, Pair{sums[2], sums[3]}, counts[1]);
    }
    const Statistics<A> of_content = statistics_of(of_planes[0], counts[0], p.correction, eps);
    const Statistics<A> of_style = statistics_of(of_planes[1], counts[1], p.correction, eps);
    if (part == 0 && threadIdx.x == 0) {
      statistics.content_mean[plane] = of_content.mean, statistics.content_rstd[plane] = of_content.rstd;
      statistics.style_mean[plane] = of_style.mean, statistics.style_rstd[plane] = of_style.rstd;
    }
    const A scale = of_content.rstd / of_style.rstd;
    for (int k = range.last; k >= range.first; --k) {
      const Tile<V, R, Dense> tile(cut, p.w, k);
      if (k != held) tile.load(xs, x, p.content.row);
      tile.store(output + plane * p.h * p.w, [&](int r) {
        Vec<A, V> y;
#pragma unroll
        for (int e = 0; e < V; ++e) y[e] = (to_acc(xs[r][e]) - of_content.mean) * scale + of_style.mean;
        return y;
      });
    }
  }
}

// A gradient that is null is not asked for.
template <class T, int V, bool Dense>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks<T, V>)
    adain_bwd_kernel(Adain p, const T* __restrict__ grad, const T* __restrict__ content, const T* __restrict__ style,
                     AdainStatistics<const Acc<T>> statistics, T* __restrict__ grad_content, T* __restrict__ grad_style,
                     Parts parts, Cut cut, Cut style_cut, const GradSums<Acc<T>>* __restrict__ sums_of_parts) {
  using A = Acc<T>;
  constexpr int R = kHeld<T, V, Dense>;
  STYLEKERN_SHARED(A, shared);
  BlockSums<A, 2> sum(shared);
  for (int64_t piece = blockIdx.x; piece < parts.count(); piece += gridDim.x) {
    const auto [plane, n, c, part] = Part(parts, piece);
    const TileRange range(cut, part);
    const TileRange style_range(style_cut, part);
    const Plane<T> x =
        normalized_plane(content, p.content, p.c, n, c, statistics.content_mean, statistics.content_rstd);
    const Plane<T> s = normalized_plane(style, p.style, p.c, n, c, statistics.style_mean, statistics.style_rstd);
    const T* g = grad + n * p.grad.n + c * p.grad.p;
    Vec<T, V> gs[R], xs[R], ss[R];
    const auto load_content = [&](const Tile<V, R, Dense>& tile) {
      tile.load(gs, g, p.grad.row), tile.load(xs, x.x, x.stride);
    };
    // the style's last tile on the way too, so that the sums hide what it takes
    if (grad_style) Tile<V, R, Dense>(style_cut, p.style_w, style_range.last).load(ss, s.x, s.stride);
    GradSums<A> sums = zeros<A, 2>();
    for (int k = parts.each > 1 ? range.last : 0; k <= range.last; ++k) {
      const Tile<V, R, Dense> tile(cut, p.w, k);
      load_content(tile);
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int e = 0; e < V; ++e) {
          const A value = to_acc(gs[r][e]);
          sums[0] += value, sums[1] += value * (tile.has(r) ? x.normalized(xs[r][e]) : A(0));
        }
    }
    // of parts the tile above only stays in registers
    if (parts.each > 1) sums = entry_of_part(sums_of_parts + plane * parts.each, parts.each);
    sums = sum(sums);

    if (grad_content) {
      // grad_content = content_rstd / style_rstd * (g - sum(g) / n - x * sum(g * x) / (n - correction))
      const A scale = x.rstd / s.rstd, mean_grad = sums[0] / A(p.h * p.w),
              slope = sums[1] / variance_divisor<A>(p.h * p.w, p.correction);
      for (int k = range.last; k >= range.first; --k) {
        const Tile<V, R, Dense> tile(cut, p.w, k);
        if (k != range.last) load_content(tile);
        tile.store(grad_content + plane * p.h * p.w, [&](int r) {
          Vec<A, V> y;
#pragma unroll
          for (int e = 0; e < V; ++e) y[e] = scale * (to_acc(gs[r][e]) - mean_grad - x.normalized(xs[r][e]) * slope);
          return y;
        });
      }
    }
    if (grad_style) {
      // grad_style = sum(g) / m + (style - style_mean) * style_rstd * sum(g * x) / (m - correction)
      const A mean_grad = sums[0] / A(p.style_h * p.style_w),
              slope = sums[1] / variance_divisor<A>(p.style_h * p.style_w, p.correction);
      for (int k = style_range.last; k >= style_range.first; --k) {
        const Tile<V, R, Dense> tile(style_cut, p.style_w, k);
        if (k != style_range.last) tile.load(ss, s.x, s.stride);
        tile.store(grad_style + plane * p.style_h * p.style_w, [&](int r) {
          Vec<A, V> y;
#pragma unroll
          for (int e = 0; e < V; ++e) y[e] = mean_grad + s.normalized(ss[r][e]) * slope;
          return y;
        });
      }
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

// Threads that suit the larger of the two planes, and parts.
inline unsigned adain_threads(const Adain& p, int v, int r) {
  const unsigned a = tile_threads(p.h, p.w, v, r, kTileThreads),
                 b = tile_threads(p.style_h, p.style_w, v, r, kTileThreads);
  return a < b ? b : a;
}
inline int adain_parts(const Adain& p, int v, int r) {
  const int a = plane_parts(p.planes(), p.h, p.w, v, r), b = plane_parts(p.planes(), p.style_h, p.style_w, v, r);
  return a < b ? b : a;
}

// Values of the accumulation type that the forward and the backward need beside their outputs, at most: the moments of
// the parts of two planes; two sums of those of one take less.
template <class T>
int64_t adain_workspace(const Adain& p) {
  const int64_t a = most_parts(p.planes(), p.h * p.w), b = most_parts(p.planes(), p.style_h * p.style_w);
  const int64_t parts = a < b ? b : a;
  return parts > 1 ? 2 * p.planes() * parts * int64_t(sizeof(Moments<Acc<T>>) / sizeof(Acc<T>)) : 0;
}

// Writes output and the statistics, contiguous.
template <class T>
cudaError_t adain_forward(const Adain& problem, const T* content, const T* style, T* output,
                          const AdainStatistics<Acc<T>>& statistics, Acc<T>* workspace, double eps,
                          cudaStream_t stream) {
  using A = Acc<T>;
  const Adain p = flatten(problem, false);
  if (p.planes() * p.h * p.w == 0) return cudaSuccess;
  const bool wide = (p.w | p.style_w) % kWide<T> == 0 && wide_rows(content, p.content) && wide_rows(style, p.style) &&
                    wide_rows(output, {});
  return with_layout<T>(p.h == 1 && p.style_h == 1, wide, [&](auto width, auto dense) {
    constexpr int V = decltype(width)::value;
    constexpr bool Dense = decltype(dense)::value;
    const Parts parts(p.n, p.c, adain_parts(p, V, kHeld<T, V, Dense>));
    const unsigned threads = parts.each > 1 ? kPartThreads : adain_threads(p, V, kHeld<T, V, Dense>);
    const Cut cut(p.h, p.w, V, kHeld<T, V, Dense>, threads, parts.each),
        style_cut(p.style_h, p.style_w, V, kHeld<T, V, Dense>, threads, parts.each);
    Moments<A>* const moments = reinterpret_cast<Moments<A>*>(workspace);
    if (parts.each > 1) {
      const CutPlanes<T> of_content{content, p.content, p.w, cut}, of_style{style, p.style, p.style_w, style_cut};
      const auto kernel = part_moments_kernel<T, V, Dense>;
      STYLEKERN_LAUNCH(kernel, grid_of(2 * parts.count()), threads, (BlockSums<A, 2>::bytes(threads)), stream, parts,
                       of_content, of_style, moments);
    }
    const auto kernel = adain_fwd_kernel<T, V, Dense>;
    STYLEKERN_LAUNCH(kernel, grid_of(parts.count()), threads, (BlockSums<A, 4>::bytes(threads)), stream, p, content,
                     style, output, statistics, eps, parts, cut, style_cut, moments);
    return cudaGetLastError();
  });
}

// Writes the gradients, contiguous, that are not null. The content must not be empty: without it there are no sums.
template <class T>
cudaError_t adain_backward(const Adain& problem, const T* grad, const T* content, const T* style,
                           const AdainStatistics<const Acc<T>>& statistics, T* grad_content, T* grad_style,
                           Acc<T>* workspace, cudaStream_t stream) {
  using Sums = GradSums<Acc<T>>;
  const Adain p = flatten(problem, true);
  if (p.planes() * p.h * p.w == 0 || !(grad_content || grad_style)) return cudaSuccess;
  const bool wide = (p.w | p.style_w) % kWide<T> == 0 && wide_rows(grad, p.grad) && wide_rows(content, p.content) &&
                    wide_rows(style, p.style) && wide_rows(grad_content, {}) && wide_rows(grad_style, {});
  return with_layout<T>(p.h == 1 && p.style_h == 1, wide, [&](auto width, auto dense) {
    constexpr int V = decltype(width)::value;
    constexpr bool Dense = decltype(dense)::value;
    const Parts parts(p.n, p.c, adain_parts(p, V, kHeld<T, V, Dense>));
    const unsigned threads = parts.each > 1 ? kPartThreads : adain_threads(p, V, kHeld<T, V, Dense>);
    const unsigned blocks = grid_of(parts.count());
    const Cut cut(p.h, p.w, V, kHeld<T, V, Dense>, threads, parts.each),
        style_cut(p.style_h, p.style_w, V, kHeld<T, V, Dense>, threads, parts.each);
    const size_t shared = BlockSums<Acc<T>, 2>::bytes(threads);
    Sums* const sums = reinterpret_cast<Sums*>(workspace);
    if (parts.each > 1) {
      const Planes planes{p.n, p.c, p.h, p.w, p.content};
      const auto kernel = part_sums_kernel<T, V, Dense>;
      STYLEKERN_LAUNCH(kernel, blocks, threads, shared, stream, planes, parts, cut, p.grad, PlaneStrides{}, grad,
                       static_cast<const T*>(nullptr), content, statistics.content_mean, statistics.content_rstd, sums);
    }
    const auto kernel = adain_bwd_kernel<T, V, Dense>;
    STYLEKERN_LAUNCH(kernel, blocks, threads, shared, stream, p, grad, content, style, statistics, grad_content,
                     grad_style, parts, cut, style_cut, sums);
    return cudaGetLastError();
  });
}

}  // namespace stylekern::cuda

// Instance normalisation on CUDA, for every operator that starts with it.
//
//   instance_norm_stats_kernel   mean and rstd of each plane. A block a plane.
//   instance_norm_bwd_kernel     from the gradient of the normalised x to that of the input. A block a plane: two
//                                sums, then the gradient.
//   part_moments_kernel          For operators that cut few large planes into parts: the moments of the parts,
//   part_sums_kernel             and the two sums.
//
// A block holds a tile of a plane in registers: of the first one's values first the mean, then of all values the
// deviations from it and their squares, so that nothing cancels as in E[x^2] - E[x]^2. The backward reads a plane of
// one tile once, and of larger ones all but the last tile a second time.
//
// Fewest bytes, values a value of x: x for the statistics; x, its gradient twice (in and out) for the backward.
#pragma once
#include "plane_tile.cuh"

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
  // The same, from row 0 where there is none, so that the load waits for no branch.
  template <int V>
  STYLEKERN_DEVICE Vec<A, V> row_or_zeros(int64_t i, int64_t j) const {
    Vec<A, V> y = row<V>(i < 0 ? 0 : i, j);
#pragma unroll
    for (int e = 0; e < V; ++e) y[e] = i < 0 ? A(0) : y[e];
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

// Planes [N, C, H, W] that are read through their strides.
struct Planes {
  int64_t n, c, h, w;
  PlaneStrides x;
};

template <class T, int V, bool Dense>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneBlocks<T>)
    instance_norm_stats_kernel(Planes p, const T* __restrict__ input, Acc<T>* __restrict__ mean,
                               Acc<T>* __restrict__ rstd, double eps, int64_t correction, Parts planes, Cut cut) {
  using A = Acc<T>;
  constexpr int R = kHeld<T, V, Dense>;
  STYLEKERN_SHARED(A, shared);
  BlockSums<A, 2> sum(shared);
  const TileRange all(cut, 0);
  for (int64_t piece = blockIdx.x; piece < planes.count(); piece += gridDim.x) {
    const auto [plane, n, c, part] = Part(planes, piece);
    const Moments<A> moments = moments_of<V, R, Dense>(input + n * p.x.n + c * p.x.p, p.x.row, cut, p.w, all, sum);
    const Statistics<A> s = statistics_of(moments, p.h * p.w, correction, eps);
    if (threadIdx.x == 0) mean[plane] = s.mean, rstd[plane] = s.rstd;
  }
}

// The planes of a tensor, which are cut into tiles.
template <class T>
struct CutPlanes {
  const T* data;
  PlaneStrides strides;
  int64_t w;
  Cut cut;
};

// Moments of the parts of one tensor's planes, and, where there is another one with as many, then of that one's:
// [planes, parts] each.
template <class T, int V, bool Dense>
__global__ void __launch_bounds__(kPartThreads, 3)
    part_moments_kernel(Parts parts, CutPlanes<T> first, CutPlanes<T> second, Moments<Acc<T>>* __restrict__ moments) {
  using A = Acc<T>;
  constexpr int R = kHeld<T, V, Dense>;
  STYLEKERN_SHARED(A, shared);
  BlockSums<A, 2> sum(shared);
  const int64_t count = second.data ? 2 * parts.count() : parts.count();
  for (int64_t piece = blockIdx.x; piece < count; piece += gridDim.x) {
    const bool other = piece >= parts.count();
    const auto [plane, n, c, part] = Part(parts, other ? piece - parts.count() : piece);
    // each member apart, since of parameters an address is a copy in memory
    const T* x = other ? second.data + n * second.strides.n + c * second.strides.p
                       : first.data + n * first.strides.n + c * first.strides.p;
    const int64_t row = other ? second.strides.row : first.strides.row, w = other ? second.w : first.w;
    const Cut cut{other ? second.cut.tiles : first.cut.tiles, other ? second.cut.each : first.cut.each,
                  other ? second.cut.last : first.cut.last};
    const Moments<A> of_part = moments_of<V, R, Dense>(x, row, cut, w, TileRange(cut, part), sum);
    if (threadIdx.x == 0) moments[piece] = of_part;
  }
}

// sum(g) and sum(g * x) of parts of planes, [planes, parts]; g is grad, times `factor` where there is one.
template <class T, int V, bool Dense>
__global__ void __launch_bounds__(kPartThreads, 3)
    part_sums_kernel(Planes p, Parts parts, Cut cut, PlaneStrides grad_strides, PlaneStrides factor_strides,
                     const T* __restrict__ grad, const T* __restrict__ factor, const T* __restrict__ input,
                     const Acc<T>* __restrict__ mean, const Acc<T>* __restrict__ rstd,
                     GradSums<Acc<T>>* __restrict__ sums_of_parts) {
  using A = Acc<T>;
  constexpr int R = kHeld<T, V, Dense>;
  STYLEKERN_SHARED(A, shared);
  BlockSums<A, 2> sum(shared);
  for (int64_t piece = blockIdx.x; piece < parts.count(); piece += gridDim.x) {
    const auto [plane, n, c, part] = Part(parts, piece);
    const Plane<T> x = normalized_plane(input, p.x, p.c, n, c, mean, rstd);
    const T* g = grad + n * grad_strides.n + c * grad_strides.p;
    const TileRange range(cut, part);
    GradSums<A> sums = zeros<A, 2>();
    for (int k = range.first; k <= range.last; ++k) {
      const Tile<V, R, Dense> tile(cut, p.w, k);
      Vec<T, V> gs[R], xs[R], fs[R];
      tile.load(gs, g, grad_strides.row), tile.load(xs, x.x, x.stride);
      if (factor) tile.load(fs, factor + n * factor_strides.n + c * factor_strides.p, factor_strides.row);
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int e = 0; e < V; ++e) {
          A value = to_acc(gs[r][e]);
          if (factor) value = product_rounded(value, to_acc(fs[r][e]));
          sums[0] += value, sums[1] += value * (tile.has(r) ? x.normalized(xs[r][e]) : A(0));
        }
    }
    sums = sum(sums);
    if (threadIdx.x == 0) sums_of_parts[piece] = sums;
  }
}

// grad_x may be grad_input itself: a thread reads a vector before it overwrites it.
template <class T, int V, bool Dense>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneBlocks<T>)
    instance_norm_bwd_kernel(Planes p, const Acc<T>* grad_x, const T* __restrict__ input,
                             const Acc<T>* __restrict__ mean, const Acc<T>* __restrict__ rstd, T* grad_input,
                             int64_t correction, Parts planes, Cut cut) {
  using A = Acc<T>;
  constexpr int R = kHeld<T, V, Dense>;
  STYLEKERN_SHARED(A, shared);
  BlockSums<A, 2> sum(shared);
  const int last = cut.tiles - 1;
  for (int64_t piece = blockIdx.x; piece < planes.count(); piece += gridDim.x) {
    const auto [plane, n, c, part] = Part(planes, piece);
    const Plane<T> x = normalized_plane(input, p.x, p.c, n, c, mean, rstd);
    const int64_t start = plane * p.h * p.w;
    Vec<A, V> grads[R];
    Vec<T, V> values[R];
    const auto load_tile = [&](const Tile<V, R, Dense>& tile) {
      tile.load(grads, grad_x + start, p.w);
      tile.load(values, x.x, x.stride);
    };
    GradSums<A> sums = zeros<A, 2>();
    for (int k = 0; k <= last; ++k) {
      const Tile<V, R, Dense> tile(cut, p.w, k);
      load_tile(tile);
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int e = 0; e < V; ++e)
          sums[0] += grads[r][e], sums[1] += grads[r][e] * (tile.has(r) ? x.normalized(values[r][e]) : A(0));
    }
    sums = sum(sums);
    const A mean_grad = sums[0] / A(p.h * p.w), slope = sums[1] / variance_divisor<A>(p.h * p.w, correction);
    // grad_input = rstd * (grad_x - sum(grad_x) / n - x * sum(grad_x * x) / (n - correction))
    for (int k = last; k >= 0; --k) {
      const Tile<V, R, Dense> tile(cut, p.w, k);
      if (k != last) load_tile(tile);
      tile.store(grad_input + start, [&](int r) {
        Vec<A, V> y;
#pragma unroll
        for (int e = 0; e < V; ++e) y[e] = x.rstd * (grads[r][e] - mean_grad - x.normalized(values[r][e]) * slope);
        return y;
      });
    }
  }
}

// Writes mean and rstd, [N * C].
template <class T>
cudaError_t instance_norm_stats(Planes p, const T* input, Acc<T>* mean, Acc<T>* rstd, double eps, int64_t correction,
                                cudaStream_t stream) {
  if (p.n * p.c * p.h * p.w == 0) return cudaSuccess;
  if (gapless(p.h, p.w, p.x)) p.w *= p.h, p.x.row = 0, p.h = 1;
  return with_layout<T>(p.h == 1, p.w % kWide<T> == 0 && wide_rows(input, p.x), [&](auto width, auto dense) {
    constexpr int V = decltype(width)::value;
    constexpr bool Dense = decltype(dense)::value;
    const unsigned threads = tile_threads(p.h, p.w, V, kHeld<T, V, Dense>, kPlaneThreads);
    const auto kernel = instance_norm_stats_kernel<T, V, Dense>;
    STYLEKERN_LAUNCH(kernel, grid_of(p.n * p.c), threads, (BlockSums<Acc<T>, 2>::bytes(threads)), stream, p, input,
                     mean, rstd, eps, correction, Parts(p.n, p.c, 1), Cut(p.h, p.w, V, kHeld<T, V, Dense>, threads, 1));
    return cudaGetLastError();
  });
}

// From grad_x, contiguous, the gradient of the normalised x, to that of the input; they may be one tensor.
template <class T>
cudaError_t instance_norm_backward(Planes p, const Acc<T>* grad_x, const T* input, const Acc<T>* mean,
                                   const Acc<T>* rstd, T* grad_input, int64_t correction, cudaStream_t stream) {
  if (p.n * p.c * p.h * p.w == 0) return cudaSuccess;
  if (gapless(p.h, p.w, p.x)) p.w *= p.h, p.x.row = 0, p.h = 1;
  const bool wide = p.w % kWide<T> == 0 && wide_rows(input, p.x) && wide_rows(grad_x, {}) && wide_rows(grad_input, {});
  return with_layout<T>(p.h == 1, wide, [&](auto width, auto dense) {
    constexpr int V = decltype(width)::value;
    constexpr bool Dense = decltype(dense)::value;
    const unsigned threads = tile_threads(p.h, p.w, V, kHeld<T, V, Dense>, kPlaneThreads);
    const auto kernel = instance_norm_bwd_kernel<T, V, Dense>;
    STYLEKERN_LAUNCH(kernel, grid_of(p.n * p.c), threads, (BlockSums<Acc<T>, 2>::bytes(threads)), stream, p, grad_x,
                     input, mean, rstd, grad_input, correction, Parts(p.n, p.c, 1),
                     Cut(p.h, p.w, V, kHeld<T, V, Dense>, threads, 1));
    return cudaGetLastError();
  });
}

}  // namespace stylekern::cuda

// Instance normalisation on CUDA, for every operator that starts with it.
//
//   instance_norm_stats_kernel   mean and rstd of each plane. A block a plane.
//   instance_norm_bwd_kernel     from the gradient of the normalised x to that of the input. A block a plane: two
//                                sums, then the gradient.
//
// A block holds a tile of the plane in registers, with all its loads in flight at once: of the tile first the mean, then
// the squared deviations from it, so that nothing cancels as in E[x^2] - E[x]^2. What fits into one tile is read once;
// the moments of several are merged, and only the last is still there for the application.
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

// The two sums over a plane that a gradient through normalisation needs: of g, and of g * x.
template <class A>
using GradSums = Vec<A, 2>;

template <class A>
STYLEKERN_DEVICE A reduce_sums(A sum, A* shared) {
  return reduce_block(sum, shared, [](A a, A b) { return a + b; });
}
template <class A>
STYLEKERN_DEVICE Vec<A, 2> reduce_sums(const Vec<A, 2>& sums, Vec<A, 2>* shared) {
  return reduce_block(sums, shared,
                      [](const Vec<A, 2>& a, const Vec<A, 2>& b) { return Vec<A, 2>{a[0] + b[0], a[1] + b[1]}; });
}

// Vectors of each tensor that a thread holds in registers, whose loads are in flight at once: 16 values. Fewer where
// doubles, conversions of single values, or the positions in rows with gaps need the registers.
template <class T, int V, bool Dense>
inline constexpr int kHeld = !Dense                    ? 4
                             : sizeof(T) > 4           ? 8 / V
                             : sizeof(T) < 4 && V == 1 ? 12
                                                       : 16 / V;

// A piece of a plane that a block holds in registers. Of the warp's 32 * R neighbouring vectors each thread has vector
// `first` of the plane, and R - 1 more at distances of 32, which are known at compile time. Most planes are one tile.
// `Dense`: all tensors' rows follow each other without a gap, and h is 1.
template <int V, int R, bool Dense>
struct Tile {
  int64_t w, first;
  int left;  // vectors from `first` to the end of the plane, or a few more than are the thread's

  STYLEKERN_DEVICE Tile(int64_t h, int64_t w, int tile) : w(w) {
    first = int64_t(tile) * R * blockDim.x + threadIdx.x / 32 * 32 * R + threadIdx.x % 32;
    const int64_t rest = h * (w / V) - first;
    left = rest < 0 ? 0 : int(rest < 32 * R ? rest : 32 * R);
  }
  STYLEKERN_DEVICE bool has(int k) const { return 32 * k < left; }

  // This thread's vectors of a tensor's plane; zeros where the plane has ended.
  template <class T>
  STYLEKERN_DEVICE void load(Vec<T, V> (&x)[R], const T* plane, int64_t row) const {
    if constexpr (Dense) {
      const T* const start = plane + first * V;
#pragma unroll
      for (int k = 0; k < R; ++k) x[k] = has(k) ? cuda::load<V>(start + 32 * V * k) : Vec<T, V>{};
    } else {
      const int64_t vectors = w / V, step_j = 32 % vectors, step = 32 / vectors * row + step_j * V;
      int64_t j = first % vectors;
      const T* at = plane + first / vectors * row + j * V;
#pragma unroll
      for (int k = 0; k < R; ++k) {
        x[k] = has(k) ? cuda::load<V>(at) : Vec<T, V>{};
        j += step_j, at += step;
        if (j >= vectors) j -= vectors, at += row - w;
      }
    }
  }
  // Calls f(k), which returns this thread's k-th vector, and writes that to the plane of a contiguous tensor.
  template <class T, class F>
  STYLEKERN_DEVICE void store(T* plane, F f) const {
#pragma unroll
    for (int k = 0; k < R; ++k)
      if (has(k)) store_as(plane + first * V + 32 * V * k, f(k));
  }

  // This thread's part of the sum of x - from.
  template <class T>
  STYLEKERN_DEVICE Acc<T> sum(const Vec<T, V> (&x)[R], Acc<T> from) const {
    Acc<T> sum = 0;
#pragma unroll
    for (int k = 0; k < R; ++k)
#pragma unroll
      for (int e = 0; e < V; ++e) sum += has(k) ? to_acc(x[k][e]) - from : Acc<T>(0);
    return sum;
  }
  // And of the sum of (x - mean)^2.
  template <class T>
  STYLEKERN_DEVICE Acc<T> squares(const Vec<T, V> (&x)[R], Acc<T> mean) const {
    Acc<T> sum = 0;
#pragma unroll
    for (int k = 0; k < R; ++k)
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const Acc<T> d = has(k) ? to_acc(x[k][e]) - mean : Acc<T>(0);
        sum += d * d;
      }
    return sum;
  }
};

template <int V, int R>
STYLEKERN_DEVICE int tiles_of(int64_t h, int64_t w) {
  const int64_t size = int64_t(R) * blockDim.x;
  return int((h * (w / V) + size - 1) / size);
}

// Values of a plane in a tile; none beyond its end.
template <int V, int R>
STYLEKERN_DEVICE int values_of_tile(int64_t h, int64_t w, int tile) {
  const int64_t size = int64_t(R) * V * blockDim.x, rest = h * w - tile * size;
  return rest < 0 ? 0 : int(rest < size ? rest : size);
}

// Calls f with the width of an access, as with_width, and whether the planes are dense. Rows with gaps between them are
// rare enough to be read value by value.
template <class T, class F>
cudaError_t with_layout(bool dense, bool wide, F f) {
  if (!dense) return f(std::integral_constant<int, 1>{}, std::false_type{});
  return with_width<T>(wide, [&](auto width) { return f(width, std::true_type{}); });
}

// Threads of a block whose tiles, of r vectors a thread, cover a plane: one tile if `most` threads suffice.
inline unsigned tile_threads(int64_t h, int64_t w, int v, int r, int most) {
  const int64_t warps = (h * (w / v) + 32 * r - 1) / (32 * r);
  return unsigned(warps < most / 32 ? (warps > 0 ? warps : 1) * 32 : most);
}

template <class A>
STYLEKERN_DEVICE Statistics<A> statistics_of(const Moments<A>& sum, A from, int64_t count, int64_t correction,
                                             double eps) {
  return {from + sum.mean, A(1) / sqrt(sum.m2 / variance_divisor<A>(count, correction) + A(eps))};
}

// Planes [N, C, H, W] that are read through their strides.
struct Planes {
  int64_t n, c, h, w;
  PlaneStrides x;
};

// Threads of a block that works on a plane, at most, and how many such blocks a multiprocessor must hold at once:
// doubles take two registers each. Operators that hold two or three tensors have fewer threads, and so more registers.
inline constexpr int kPlaneThreads = 512, kTileThreads = 384;
template <class T>
inline constexpr int kPlaneBlocks = std::is_same_v<T, double> ? 1 : 2;

template <class T, int V, bool Dense>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneBlocks<T>)
    instance_norm_stats_kernel(Planes p, const T* __restrict__ input, Acc<T>* __restrict__ mean,
                               Acc<T>* __restrict__ rstd, double eps, int64_t correction) {
  using A = Acc<T>;
  constexpr int R = kHeld<T, V, Dense>;
  STYLEKERN_SHARED(A, shared);
  const int tiles = tiles_of<V, R>(p.h, p.w);
  for (int64_t plane = blockIdx.x; plane < p.n * p.c; plane += gridDim.x) {
    const T* x = input + plane / p.c * p.x.n + plane % p.c * p.x.p;
    const A from = to_acc(x[0]);
    Moments<A> sum{};
    for (int k = 0; k < tiles; ++k) {
      const Tile<V, R, Dense> tile(p.h, p.w, k);
      Vec<T, V> values[R];
      tile.load(values, x, p.x.row);
      const A count(values_of_tile<V, R>(p.h, p.w, k)), tile_mean = reduce_sums(tile.sum(values, from), shared) / count;
      sum = merge(sum, {count, tile_mean, reduce_sums(tile.squares(values, from + tile_mean), shared)});
    }
    const Statistics<A> s = statistics_of(sum, from, p.h * p.w, correction, eps);
    if (threadIdx.x == 0) mean[plane] = s.mean, rstd[plane] = s.rstd;
  }
}

// grad_x may be grad_input itself: a thread reads a vector before it overwrites it.
template <class T, int V, bool Dense>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneBlocks<T>)
    instance_norm_bwd_kernel(Planes p, const Acc<T>* grad_x, const T* __restrict__ input,
                             const Acc<T>* __restrict__ mean, const Acc<T>* __restrict__ rstd, T* grad_input,
                             int64_t correction) {
  using A = Acc<T>;
  constexpr int R = kHeld<T, V, Dense>;
  STYLEKERN_SHARED(GradSums<A>, shared);
  const int last = tiles_of<V, R>(p.h, p.w) - 1;
  for (int64_t plane = blockIdx.x; plane < p.n * p.c; plane += gridDim.x) {
    const Plane<T> x = normalized_plane(input, p.x, p.c, plane / p.c, plane % p.c, mean, rstd);
    const int64_t start = plane * p.h * p.w;
    Vec<A, V> grads[R];
    Vec<T, V> values[R];
    const auto load_tile = [&](const Tile<V, R, Dense>& tile) {
      tile.load(grads, grad_x + start, p.w);
      tile.load(values, x.x, x.stride);
    };
    GradSums<A> sums = zeros<A, 2>();
    for (int k = 0; k <= last; ++k) {
      load_tile({p.h, p.w, k});
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int e = 0; e < V; ++e) sums[0] += grads[r][e], sums[1] += grads[r][e] * x.normalized(values[r][e]);
    }
    sums = reduce_sums(sums, shared);
    const A mean_grad = sums[0] / A(p.h * p.w), slope = sums[1] / variance_divisor<A>(p.h * p.w, correction);
    // grad_input = rstd * (grad_x - sum(grad_x) / n - x * sum(grad_x * x) / (n - correction))
    for (int k = last; k >= 0; --k) {
      const Tile<V, R, Dense> tile(p.h, p.w, k);
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
    STYLEKERN_LAUNCH(kernel, grid_of(p.n * p.c), threads, threads / 32 * sizeof(Acc<T>), stream, p, input, mean, rstd,
                     eps, correction);
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
    STYLEKERN_LAUNCH(kernel, grid_of(p.n * p.c), threads, threads / 32 * sizeof(GradSums<Acc<T>>), stream, p, grad_x,
                     input, mean, rstd, grad_input, correction);
    return cudaGetLastError();
  });
}

}  // namespace stylekern::cuda

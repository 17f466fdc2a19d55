// style_kernel_conv forward on CUDA; csrc/common/style_kernel_conv.h has the formulas.
//
//   style_kernel_conv_plane_fwd_kernel  Sequential, normalised, many planes: a block takes the statistics of a plane,
//                                       then goes through its tiles, while the caches have it.
//   style_kernel_conv_fwd_kernel        Sequential: a block a tile. Statistics come from instance_norm.cuh.
//   style_kernel_conv_outer_fwd_kernel  Outer: a thread owns V columns of a row, a window of x slides along the row,
//                                       through the first-level cache.
//
// V is 16 bytes of values, or 1 where a row does not start on 16 bytes. K is the number of taps at compile time, or 0.
//
// Fewest bytes, values a value of x: x, kv + kh taps and the bias once a filter group, y: 9 at k = 3, one filter a
// channel. The vertical taps read x rows that neighbouring threads read too: these come from the caches.
#pragma once
#include "style_kernel_conv_tile.cuh"

namespace stylekern::cuda {

// Of the sequential kernels: the registers of a thread, as few as its loads leave room for, of which sm_100 needs some
// more; the threads of a block; and how many of those a multiprocessor has at least.
template <class T, int V, int K>
inline constexpr int kForwardRegisters = (V > 4 || (V > 1 && K > 3) ? 80 : 64) * (std::is_same_v<T, double> ? 2 : 1);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
template <int V>
inline constexpr int kMoreRegisters = V > 4 ? 48 : 16;
#else
template <int V>
inline constexpr int kMoreRegisters = 0;
#endif
template <int V>
inline constexpr int kForwardThreads = V > 1 ? 128 : 256;
template <class T, int V, int K>
inline constexpr int kForwardBlocks = 65536 / ((kForwardRegisters<T, V, K> + kMoreRegisters<V>)*kForwardThreads<V>);

// Of whole planes, beside whose statistics eight values and five taps need more registers: so many threads that a
// multiprocessor has four blocks, of sm_100 two or three.
template <class T, int V, int K>
inline constexpr int kPlaneForwardRegisters = kForwardRegisters<T, V, K> + (V > 4 && K > 3 ? 16 : 0);
template <class T, int V, int K>
inline constexpr int kPlaneForwardThreads = 65536 / 4 / kPlaneForwardRegisters<T, V, K> / 32 * 32;
template <class T, int V, int K>
inline constexpr int kPlaneForwardBlocks =
    65536 / ((kPlaneForwardRegisters<T, V, K> + kMoreRegisters<V>)*kPlaneForwardThreads<T, V, K>);
// Values of a plane, at most: the largest that gained where it was measured.
template <int K>
inline constexpr int kPlaneForwardValues = K > 3 ? 64 * 64 : 128 * 128;

inline constexpr int kOuterThreads = 256;

// How the sequential forward cuts planes: rows of the tiling are kForwardRows of theirs.
template <int V, int K>
Tiling forward_tiling(const StyleKernelConv& p, int threads) {
  constexpr int R = kForwardRows<V, K>;
  return make_tiling(p.n * p.c, (p.h + R - 1) / R, p.w, V, V > 1 ? 64 : 128, threads, 0, p.rh());
}

template <class T, int V, int K>
__global__ void __launch_bounds__(kForwardThreads<V>, kForwardBlocks<T, V, K>)
    style_kernel_conv_fwd_kernel(StyleKernelConv p, Tiling tiling, Channels by, Forward<T> d, const Acc<T>* mean,
                                 const Acc<T>* rstd) {
  using A = Acc<T>;
  constexpr int R = kForwardRows<V, K>;
  STYLEKERN_SHARED(A, t);  // [threads_y * R, threads_x * V]
  const int t_row = int(blockDim.x) * V;
  A* const t_own = t + int(threadIdx.y) * R * t_row + int(threadIdx.x) * V;
  for (int64_t tile = blockIdx.x; tile < tiling.tiles(); tile += gridDim.x) {
    const Place at = place<V>(tiling, tile, (p.h + R - 1) / R, p.w);
    int64_t n = at.plane;
    const int64_t c = by.channels.split(n);
    convolve_tile<T, V, K>(p, by, d, at, n, c, input_plane(p, d.input, mean, rstd, n, c), t_own, t_row);
    __syncthreads();  // the next tile writes t
  }
}

template <class T, int V, int K>
__global__ void __launch_bounds__(kPlaneForwardThreads<T, V, K>, kPlaneForwardBlocks<T, V, K>)
    style_kernel_conv_plane_fwd_kernel(StyleKernelConv p, Tiling tiling, Channels by, Cut cut, Forward<T> d,
                                       Acc<T>* mean, Acc<T>* rstd, double eps, int64_t correction) {
  using A = Acc<T>;
  constexpr int R = kForwardRows<V, K>;
  STYLEKERN_SHARED(A, shared);  // sums, then t of two tiles, which take turns
  BlockSums<A, 2> sum(shared);
  const int y = int(threadIdx.x) / tiling.threads_x, x = int(threadIdx.x) - y * tiling.threads_x;
  const int t_row = tiling.threads_x * V, t_size = tiling.threads() * R * V;
  A* t_own = shared + BlockSums<A, 2>::bytes(blockDim.x) / sizeof(A) + y * R * t_row + x * V;
  A* t_other = t_own + t_size;
  const int64_t tiles = tiling.tiles_x * tiling.tiles_y;
  const TileRange all(cut, 0);
  for (int64_t plane = blockIdx.x; plane < tiling.planes; plane += gridDim.x) {
    int64_t n = plane;
    const int64_t c = by.channels.split(n);
    const T* const start = d.input + n * p.input.n + c * p.input.p;
    const Moments<A> moments = moments_of<V, kHeld<T, V, true>, true>(start, 0, cut, p.h * p.w, all, sum);
    const Statistics<A> s = statistics_of(moments, p.h * p.w, correction, eps);
    if (threadIdx.x == 0) mean[plane] = s.mean, rstd[plane] = s.rstd;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      Place at = place<V>(tiling, plane * tiles + tile, (p.h + R - 1) / R, p.w, x, y);
      at.inside = at.inside && y < tiling.threads_y, at.owns = at.owns && at.inside;  // the last warp may not be full
      convolve_tile<T, V, K>(p, by, d, at, n, c, Plane<T>{start, p.input.row, s.mean, s.rstd}, t_own, t_row);
      A* const last = t_own;
      t_own = t_other, t_other = last;
    }
  }
}

// With Padding::kNone the input starts r rows and columns before the output; otherwise they start together.
STYLEKERN_HD int origin(const StyleKernelConv& p, int r) { return p.padding == Padding::kNone ? 0 : r; }

template <class T, int V, int K>
__global__ void __launch_bounds__(kOuterThreads, 2)
    style_kernel_conv_outer_fwd_kernel(StyleKernelConv p, Tiling tiling, Channels by, Forward<T> d, const Acc<T>* mean,
                                       const Acc<T>* rstd) {
  using A = Acc<T>;
  const int kv = K > 0 ? K : p.kv, kh = K > 0 ? K : p.kh;
  const int shift = kh / 2 - origin(p, kh / 2);  // from an output column to the input column at its centre
  for (int64_t tile = blockIdx.x; tile < tiling.tiles(); tile += gridDim.x) {
    const Place at = place<V>(tiling, tile, p.h, p.w);
    if (!at.owns) continue;
    int64_t n = at.plane;
    const int64_t c = by.channels.split(n), g = by.per_group.quotient(c);
    const T* v = filter_at(d.vertical, p.vertical, n, g, at.i, at.j);
    const Plane<T> x = input_plane(p, d.input, mean, rstd, n, c);
    Taps<T, V, K> h;
    h.request(filter_at(d.horizontal, p.horizontal, n, g, at.i, at.j), p.horizontal.tap);
    Vec<A, V> y = zeros<A, V>();
    if (d.bias) {
      y = to_acc(load<V>(filter_at(d.bias, p.bias, n, by.per_part.quotient(c), at.i, at.j)));
    }
    // y[i,j] = sum_a vertical[a,i,j] * (sum_b horizontal[b,i,j] * x[pad(i+a-rv), pad(j+b-rh)]) + bias[i,j]
#pragma unroll(K > 0 ? K : 1)
    for (int a = 0; a < kv; ++a) {
      const int64_t i = border_index(at.i + a - origin(p, kv / 2), p.in_h, p.padding);
      const Vec<A, V> tap = to_acc(load<V>(v + a * p.vertical.tap));
      const auto sample = [&](int64_t q) { return x.at(i, border_index(q, p.in_w, p.padding)); };
      Vec<A, V> own = zeros<A, V>(), sum = zeros<A, V>();
      if constexpr (K > 0) {
        if (shift == 0) {
          own = x.template row<V>(i, at.j);
        } else {  // rows of an already padded input start anywhere
#pragma unroll
          for (int e = 0; e < V; ++e) own[e] = sample(at.j + e + shift);
        }
      }
      correlate<K>(sum, kh, at.j + shift, own, h, sample);
      add_product(y, tap, sum);
    }
    store_as(d.output + (at.plane * p.h + at.i) * p.w + at.j, y);
  }
}

template <class T>
bool wide_filters(const StyleKernelConv& p, const T* vertical, const T* horizontal) {
  return p.w % kWide<T> == 0 && wide_rows(vertical, p.vertical) && wide_rows(horizontal, p.horizontal);
}

// With one tap the two compositions agree and no tap leaves the picture.
inline StyleKernelConv simplify(StyleKernelConv p) {
  if (p.kv == 1 && p.kh == 1) p.composition = Composition::kSequential, p.padding = Padding::kZeros;
  return p;
}

// Writes output [N, C, H, W], contiguous, and where `mean` is given also mean and rstd, [N * C].
template <class T>
cudaError_t style_kernel_conv_forward(const StyleKernelConv& problem, const T* input, const T* vertical,
                                      const T* horizontal, const T* bias, T* output, Acc<T>* mean, Acc<T>* rstd,
                                      double eps, int64_t correction, cudaStream_t stream) {
  const StyleKernelConv p = simplify(problem);
  if (p.n * p.c * p.h * p.w == 0) return cudaSuccess;

  const Forward<T> d{input, vertical, horizontal, bias, output};
  const bool wide_input = p.in_w % kWide<T> == 0 && wide_rows(input, p.input);
  const bool wide = (wide_input || p.padding == Padding::kNone) && wide_filters(p, vertical, horizontal) &&
                    (!bias || wide_rows(bias, p.bias)) && wide_rows(output, {});
  return with_width<T>(wide, [&](auto width) {
    constexpr int V = decltype(width)::value;
    const auto take_statistics = [&] {
      return mean ? instance_norm_stats<T>({p.n, p.c, p.h, p.w, p.input}, input, mean, rstd, eps, correction, stream)
                  : cudaSuccess;
    };
    const auto sequential = [&](auto taps) {
      constexpr int K = decltype(taps)::value;
      const size_t row = sizeof(Acc<T>) * V * kForwardRows<V, K>;
      if constexpr (K == 3 || (K == 5 && V > 1)) {
        if (mean && gapless(p.h, p.w, p.input) && p.n * p.c >= kFewPlanes && p.h * p.w <= kPlaneForwardValues<K>) {
          const Tiling tiling = forward_tiling<V, K>(p, kPlaneForwardThreads<T, V, K>);
          const unsigned threads = unsigned(tiling.threads() + 31) / 32 * 32;
          const size_t shared = BlockSums<Acc<T>, 2>::bytes(threads) + 2 * row * tiling.threads();
          const auto kernel = style_kernel_conv_plane_fwd_kernel<T, V, K>;
          STYLEKERN_LAUNCH(kernel, grid_of(tiling.planes), threads, shared, stream, p, tiling, Channels(p),
                           Cut(1, p.h * p.w, V, kHeld<T, V, true>, threads, 1), d, mean, rstd, eps, correction);
          return cudaGetLastError();
        }
      }
      if (const cudaError_t error = take_statistics(); error != cudaSuccess) return error;
      const Tiling tiling = forward_tiling<V, K>(p, kForwardThreads<V>);
      const auto kernel = style_kernel_conv_fwd_kernel<T, V, K>;
      STYLEKERN_LAUNCH(kernel, tiling.blocks(), dim3(tiling.threads_x, tiling.threads_y), row * tiling.threads(),
                       stream, p, tiling, Channels(p), d, mean, rstd);
      return cudaGetLastError();
    };
    const int taps = p.kv == p.kh ? p.kv : 0;
    if (p.composition == Composition::kOuter) {
      if (const cudaError_t error = take_statistics(); error != cudaSuccess) return error;
      const Tiling tiling = make_tiling(p.n * p.c, p.h, p.w, V, 64, kOuterThreads, 0, 0);
      const auto kernel =
          taps == 3 ? style_kernel_conv_outer_fwd_kernel<T, V, 3> : style_kernel_conv_outer_fwd_kernel<T, V, 0>;
      STYLEKERN_LAUNCH(kernel, tiling.blocks(), dim3(tiling.threads_x, tiling.threads_y), 0, stream, p, tiling,
                       Channels(p), d, mean, rstd);
      return cudaGetLastError();
    }
    if (taps == 1) return sequential(std::integral_constant<int, 1>{});
    if (taps == 3) return sequential(std::integral_constant<int, 3>{});
    if (taps == 5) return sequential(std::integral_constant<int, 5>{});
    return sequential(std::integral_constant<int, 0>{});
  });
}

}  // namespace stylekern::cuda

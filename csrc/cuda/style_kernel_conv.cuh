// style_kernel_conv forward on CUDA; csrc/common/style_kernel_conv.h has the formulas.
//
//   style_kernel_conv_fwd_kernel        sequential. A thread owns V columns of R rows: it computes t there, puts it
//   into
//                                       shared memory for its neighbours, then reads their t. So each filter tap is
//                                       read once. The taps of the second step are requested before the first one
//                                       starts.
//   style_kernel_conv_outer_fwd_kernel  outer. The same mapping without shared memory: a window of x slides along the
//                                       row, through the first-level cache.
//
// V is 16 bytes of values and R is 1; where a row does not start on 16 bytes V is 1, and R up to 4. K is the number of
// taps at compile time, or 0.
//
// Statistics come from instance_norm.cuh.
//
// Fewest bytes, values a value of x: x, kv + kh taps and the bias once a filter group, y: 9 at k = 3, one filter a
// channel. The vertical taps read x rows that neighbouring threads read too: these come from the caches.
#pragma once
#include "../common/style_kernel_conv.h"
#include "instance_norm.cuh"

namespace stylekern::cuda {

template <class T>
STYLEKERN_DEVICE Plane<T> input_plane(const StyleKernelConv& p, const T* input, const Acc<T>* mean, const Acc<T>* rstd,
                                      int64_t n, int64_t c) {
  return normalized_plane(input, p.input, p.c, n, c, mean, rstd);
}

// From a plane of all samples to its sample and channel, and from the channel to its filter group and part of the bias.
struct Channels {
  Divisor channels, groups, per_group, per_part;

  explicit Channels(const StyleKernelConv& p)
      : channels(p.c),
        groups(p.groups),
        per_group(p.groups > 0 ? p.channels_per_group() : 1),
        per_part(p.bias_groups > 0 ? p.c / p.bias_groups : 1) {}
};

// First tap of a filter at row i, column j.
template <class T>
STYLEKERN_DEVICE const T* filter_at(const T* filter, const PlaneStrides& s, int64_t n, int64_t g, int64_t i,
                                    int64_t j) {
  return filter + n * s.n + g * s.p + i * s.row + j;
}

// The taps of V columns: with K taps all are requested at once, else each when it is asked for.
template <class T, int V, int K>
struct Taps {
  Vec<T, V> taps[K];
  STYLEKERN_DEVICE void request(const T* first, int64_t stride) {
#pragma unroll
    for (int b = 0; b < K; ++b) taps[b] = load<V>(first + b * stride);
  }
  STYLEKERN_DEVICE Vec<Acc<T>, V> operator()(int b) const { return to_acc(taps[b]); }
};
template <class T, int V>
struct Taps<T, V, 0> {
  const T* first;
  int64_t stride;
  STYLEKERN_DEVICE void request(const T* first_tap, int64_t tap_stride) { first = first_tap, stride = tap_stride; }
  STYLEKERN_DEVICE Vec<Acc<T>, V> operator()(int b) const { return to_acc(load<V>(first + b * stride)); }
};

// y[e] += sum_b tap(b)[e] * sample(j + e + b - r) for the V columns from j on; `own` has the samples of these columns.
// With K taps the window is in registers and only its two ends are sampled; else it slides, a sample a tap.
template <int K, class A, int V, class Tap, class Sample>
STYLEKERN_DEVICE void correlate(Vec<A, V>& y, int taps, int64_t j, const Vec<A, V>& own, const Tap& tap,
                                Sample sample) {
  if constexpr (K > 0) {
    constexpr int r = K / 2;
    A window[V + 2 * r];
#pragma unroll
    for (int e = 0; e < V + 2 * r; ++e) window[e] = e >= r && e < V + r ? own[e - r] : sample(j + e - r);
#pragma unroll
    for (int b = 0; b < K; ++b) {
      const Vec<A, V> h = tap(b);
#pragma unroll
      for (int e = 0; e < V; ++e) y[e] += h[e] * window[b + e];
    }
  } else {
    const int r = taps / 2;
    Vec<A, V> window;  // samples of the columns from j + b - r on
#pragma unroll
    for (int e = 1; e < V; ++e) window[e] = sample(j + e - 1 - r);
#pragma unroll 4
    for (int b = 0; b < taps; ++b) {
#pragma unroll
      for (int e = 0; e + 1 < V; ++e) window[e] = window[e + 1];
      window[V - 1] = sample(j + V - 1 + b - r);
      const Vec<A, V> h = tap(b);
      add_product(y, h, window);
    }
  }
}

// Of the sequential kernel the rows of a thread, with as many loads in flight where an access is of one value; the
// threads of a block; and the registers of each, as few as the loads leave room for. sm_100 needs some more.
template <int V, int K>
inline constexpr int kForwardRows = V > 1   ? 1
                                    : K > 3 ? 2
                                            : 4;
template <int V>
inline constexpr int kForwardThreads = V > 1 ? 128 : 256;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
template <int V>
inline constexpr int kMoreRegisters = V > 4 ? 48 : 16;
#else
template <int V>
inline constexpr int kMoreRegisters = 0;
#endif
template <class T, int V, int K>
inline constexpr int kForwardRegisters =
    ((V > 4 || (V > 1 && K > 3) ? 80 : 64) + kMoreRegisters<V>)*(std::is_same_v<T, double> ? 2 : 1);
template <class T, int V, int K>
inline constexpr int kForwardBlocks = 65536 / (kForwardRegisters<T, V, K> * kForwardThreads<V>);

inline constexpr int kOuterThreads = 256;

template <class T, int V, int K>
__global__ void __launch_bounds__(kForwardThreads<V>, kForwardBlocks<T, V, K>)
    style_kernel_conv_fwd_kernel(StyleKernelConv p, Tiling tiling, Channels by, const T* input, const T* vertical,
                                 const T* horizontal, const T* bias, const Acc<T>* mean, const Acc<T>* rstd,
                                 T* output) {
  using A = Acc<T>;
  constexpr int R = kForwardRows<V, K>;
  STYLEKERN_SHARED(A, t);  // [threads_y * R, threads_x * V]
  const int kv = K > 0 ? K : p.kv, kh = K > 0 ? K : p.kh, rv = kv / 2, t_row = int(blockDim.x) * V;
  A* const t_own = t + int(threadIdx.y) * R * t_row + int(threadIdx.x) * V;
  for (int64_t tile = blockIdx.x; tile < tiling.tiles(); tile += gridDim.x) {
    const Place at = place<V>(tiling, tile, (p.h + R - 1) / R, p.w);
    const int64_t i = at.i * R;
    int64_t n = at.plane;
    const int64_t c = by.channels.split(n), g = by.per_group.quotient(c);
    Taps<T, V, K> h[R];
    Vec<A, V> y[R], own[R];
#pragma unroll
    for (int r = 0; r < R; ++r) y[r] = own[r] = zeros<A, V>();
    // Rows beyond the last one repeat it, so that loads wait for no comparison; they are not stored.
    const auto row = [&](int64_t q, int64_t last) { return R == 1 || q < last ? q : last; };
    if (at.inside) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const int64_t own_row = row(i + r, p.h - 1);
        h[r].request(filter_at(horizontal, p.horizontal, n, g, own_row, at.j), p.horizontal.tap);
        if (bias) y[r] = to_acc(load<V>(filter_at(bias, p.bias, n, by.per_part.quotient(c), own_row, at.j)));
      }
      // t[i,j] = sum_a vertical[a,i,j] * x[pad(i+a-rv), j]
      const Plane<T> x = input_plane(p, input, mean, rstd, n, c);
      if constexpr (K > 0) {
        Taps<T, V, K> v[R];
#pragma unroll
        for (int r = 0; r < R; ++r)
          v[r].request(filter_at(vertical, p.vertical, n, g, row(i + r, p.h - 1), at.j), p.vertical.tap);
#pragma unroll
        for (int q = 0; q < R + K - 1; ++q) {
          const Vec<A, V> values =
              x.template row_or_zeros<V>(border_index(row(i + q - rv, p.h - 1 + rv), p.h, p.padding), at.j);
#pragma unroll
          for (int r = 0; r < R; ++r)
            if (q - r >= 0 && q - r < K) add_product(own[r], v[r](q - r), values);
        }
      } else {
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const int64_t own_row = row(i + r, p.h - 1);
          const T* v = filter_at(vertical, p.vertical, n, g, own_row, at.j);
#pragma unroll 4
          for (int a = 0; a < kv; ++a)
            add_product(own[r], to_acc(load<V>(v + a * p.vertical.tap)),
                        x.template row<V>(border_index(own_row + a - rv, p.h, p.padding), at.j));
        }
      }
#pragma unroll
      for (int r = 0; r < R; ++r) store(t_own + r * t_row, own[r]);
    }
    __syncthreads();
    if (at.owns) {
      // y[i,j] = sum_b horizontal[b,i,j] * t[i, pad(j+b-rh)] + bias[i,j]
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (i + r >= p.h) break;
        correlate<K>(y[r], kh, at.j, own[r], h[r], [&](int64_t q) {
          q = border_index(q, p.w, p.padding);
          return q < 0 ? A(0) : t_own[r * t_row + q - at.j];
        });
        store_as(output + (at.plane * p.h + i + r) * p.w + at.j, y[r]);
      }
    }
    __syncthreads();  // the next tile writes t
  }
}

// With Padding::kNone the input starts r rows and columns before the output; otherwise they start together.
STYLEKERN_HD int origin(const StyleKernelConv& p, int r) { return p.padding == Padding::kNone ? 0 : r; }

template <class T, int V, int K>
__global__ void __launch_bounds__(kOuterThreads, 2)
    style_kernel_conv_outer_fwd_kernel(StyleKernelConv p, Tiling tiling, Channels by, const T* input, const T* vertical,
                                       const T* horizontal, const T* bias, const Acc<T>* mean, const Acc<T>* rstd,
                                       T* output) {
  using A = Acc<T>;
  const int kv = K > 0 ? K : p.kv, kh = K > 0 ? K : p.kh;
  const int shift = kh / 2 - origin(p, kh / 2);  // from an output column to the input column at its centre
  for (int64_t tile = blockIdx.x; tile < tiling.tiles(); tile += gridDim.x) {
    const Place at = place<V>(tiling, tile, p.h, p.w);
    if (!at.owns) continue;
    int64_t n = at.plane;
    const int64_t c = by.channels.split(n), g = by.per_group.quotient(c);
    const T* v = filter_at(vertical, p.vertical, n, g, at.i, at.j);
    const Plane<T> x = input_plane(p, input, mean, rstd, n, c);
    Taps<T, V, K> h;
    h.request(filter_at(horizontal, p.horizontal, n, g, at.i, at.j), p.horizontal.tap);
    Vec<A, V> y = zeros<A, V>();
    if (bias) {
      y = to_acc(load<V>(filter_at(bias, p.bias, n, by.per_part.quotient(c), at.i, at.j)));
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
    store_as(output + (at.plane * p.h + at.i) * p.w + at.j, y);
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

  const bool wide_input = p.in_w % kWide<T> == 0 && wide_rows(input, p.input);
  if (mean) {
    const cudaError_t error =
        instance_norm_stats<T>({p.n, p.c, p.h, p.w, p.input}, input, mean, rstd, eps, correction, stream);
    if (error != cudaSuccess) return error;
  }

  const bool wide = (wide_input || p.padding == Padding::kNone) && wide_filters(p, vertical, horizontal) &&
                    (!bias || wide_rows(bias, p.bias)) && wide_rows(output, {});
  return with_width<T>(wide, [&](auto width) {
    constexpr int V = decltype(width)::value;
    const auto launch = [&](auto kernel, int rows, int threads, bool shares) {
      const Tiling tiling =
          make_tiling(p.n * p.c, (p.h + rows - 1) / rows, p.w, V, V > 1 ? 64 : 128, threads, 0, shares ? p.rh() : 0);
      const size_t shared = shares ? sizeof(Acc<T>) * V * rows * tiling.threads() : 0;
      STYLEKERN_LAUNCH(kernel, tiling.blocks(), dim3(tiling.threads_x, tiling.threads_y), shared, stream, p, tiling,
                       Channels(p), input, vertical, horizontal, bias, mean, rstd, output);
      return cudaGetLastError();
    };
    const auto sequential = [&](auto taps) {
      constexpr int K = decltype(taps)::value;
      return launch(style_kernel_conv_fwd_kernel<T, V, K>, kForwardRows<V, K>, kForwardThreads<V>, true);
    };
    const int taps = p.kv == p.kh ? p.kv : 0;
    if (p.composition == Composition::kOuter)
      return launch(
          taps == 3 ? style_kernel_conv_outer_fwd_kernel<T, V, 3> : style_kernel_conv_outer_fwd_kernel<T, V, 0>, 1,
          kOuterThreads, false);
    if (taps == 1) return sequential(std::integral_constant<int, 1>{});
    if (taps == 3) return sequential(std::integral_constant<int, 3>{});
    if (taps == 5) return sequential(std::integral_constant<int, 5>{});
    return sequential(std::integral_constant<int, 0>{});
  });
}

}  // namespace stylekern::cuda

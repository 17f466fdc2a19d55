// A tile of style_kernel_conv forward on CUDA, sequential; style_kernel_conv.cuh has the kernels.
#pragma once
#include "../common/style_kernel_conv.h"
#include "instance_norm.cuh"

namespace stylekern::cuda {

// What the forward kernels read and write. Null: not given.
template <class T>
struct Forward {
  const T *input, *vertical, *horizontal, *bias;
  T* output;
};

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

// The rows of a thread, with as many loads in flight where an access is of one value.
template <int V, int K>
inline constexpr int kForwardRows = V > 1 ? 1 : (K > 3 ? 2 : 4);

// The sequential forward of one tile. A thread owns V columns of kForwardRows rows: it computes t there, puts it into
// shared memory, `t_own`, whose rows are `t_row` apart, for its neighbours, then reads their t. The taps of the second
// step are requested before the first one starts. There is one barrier, in the middle.
template <class T, int V, int K>
STYLEKERN_DEVICE void convolve_tile(const StyleKernelConv& p, const Channels& by, const Forward<T>& d, const Place& at,
                                    int64_t n, int64_t c, const Plane<T>& x, Acc<T>* t_own, int t_row) {
  using A = Acc<T>;
  constexpr int R = kForwardRows<V, K>;
  const int kv = K > 0 ? K : p.kv, kh = K > 0 ? K : p.kh, rv = kv / 2;
  const int64_t i = at.i * R, g = by.per_group.quotient(c);
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
      h[r].request(filter_at(d.horizontal, p.horizontal, n, g, own_row, at.j), p.horizontal.tap);
      if (d.bias) y[r] = to_acc(load<V>(filter_at(d.bias, p.bias, n, by.per_part.quotient(c), own_row, at.j)));
    }
    // t[i,j] = sum_a vertical[a,i,j] * x[pad(i+a-rv), j]
    if constexpr (K > 0) {
      Taps<T, V, K> v[R];
#pragma unroll
      for (int r = 0; r < R; ++r)
        v[r].request(filter_at(d.vertical, p.vertical, n, g, row(i + r, p.h - 1), at.j), p.vertical.tap);
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
        const T* v = filter_at(d.vertical, p.vertical, n, g, own_row, at.j);
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
      store_as(d.output + (at.plane * p.h + i + r) * p.w + at.j, y[r]);
    }
  }
}

}  // namespace stylekern::cuda

// Depthwise adaconv with 3 x 3 taps on CUDA, a plane of input for a plane of output: a block holds a plane.
//
//   adaconv_depthwise_fwd_kernel   Statistics and convolution in one: x is read once, y written once.
//   adaconv_depthwise_bwd_kernel   All gradients, through the border rule and the normalisation: x and g are read once.
//
// A thread has a strip of the plane in registers, R rows of V columns. Shared memory holds the whole plane, from which
// threads read the rows and columns beside their strips: what the border rule maps them to is found once a thread, not
// once a value. V is 16 bytes of values, or 1 where a row does not start on 16 bytes; R makes 16 values a thread of it,
// or 4 doubles, all in flight at once. Within a plane, indices are int: it fits into shared memory.
//
// Fewest bytes, values a value of x: x and y, 2; x, g and grad_input, 3. They are what these kernels move.
#pragma once
#include "../common/adaconv.h"
#include "instance_norm.cuh"

namespace stylekern::cuda {

inline constexpr int kSharedBytes = 48 << 10;  // of a block, without asking for more

// Threads of a block, at most: these leave each 64 registers, 128 for doubles.
template <class T>
inline constexpr int kDepthwiseThreads = std::is_same_v<T, double> ? 512 : 1024;

template <class T, int V>
inline constexpr int kStripRows = (std::is_same_v<T, double> ? 4 : 16) / V;

// A plane in shared memory, its rows without gaps, read less its mean. Row or column -1 is the zero border.
template <class T>
struct SharedPlane {
  using A = Acc<T>;
  T* x;
  int h, w;
  A mean;

  STYLEKERN_DEVICE A at(int i, int j) const { return i < 0 || j < 0 ? A(0) : to_acc(x[i * w + j]) - mean; }
};

// V columns of a row, with the one before and the one behind.
template <class A, int V>
struct Window {
  A value[V + 2];
  STYLEKERN_DEVICE A& operator[](int e) { return value[e]; }
  STYLEKERN_DEVICE const A& operator[](int e) const { return value[e]; }
};

// The rows [i, i + R) and columns [j, j + V) of a plane, as far as there are rows.
template <class T, int V>
struct Strip {
  using A = Acc<T>;
  static constexpr int R = kStripRows<T, V>;
  int i, j, h;

  STYLEKERN_DEVICE Strip(int h, int w) : i(int(threadIdx.x) / (w / V) * R), j(int(threadIdx.x) % (w / V) * V), h(h) {}
  STYLEKERN_DEVICE bool has(int r) const { return i + r < h; }

  STYLEKERN_DEVICE void load_rows(Vec<T, V> (&raw)[R], const T* x, int64_t stride) const {
    x += i * stride + j;
#pragma unroll
    for (int r = 0; r < R; ++r, x += stride)
      if (has(r)) raw[r] = load<V>(x);
  }

  // To shared memory, and to the accumulation type; rows that are not there are zeros.
  STYLEKERN_DEVICE void keep(const Vec<T, V> (&raw)[R], const SharedPlane<T>& plane, Vec<A, V> (&values)[R]) const {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      values[r] = zeros<A, V>();
      if (!has(r)) continue;
      store(plane.x + (i + r) * plane.w + j, raw[r]);
      values[r] = to_acc(raw[r]);
    }
  }

  // Calls f(q, row) for the rows q in [-1, R] from i on, each with the column before and the one behind it. `values`
  // are those of the strip, less the mean.
  template <class F>
  STYLEKERN_DEVICE void for_each_row(const Vec<A, V> (&values)[R], const SharedPlane<T>& plane, Padding padding,
                                     F f) const {
    const int left = int(border_index(j - 1, plane.w, padding)), right = int(border_index(j + V, plane.w, padding));
    const int above = i > 0 ? i - 1 : int(border_index(-1, plane.h, padding));
    const int below = int(border_index(plane.h, plane.h, padding));
#pragma unroll
    for (int q = -1; q <= R; ++q) {
      const int row = q < 0 ? above : i + q < plane.h ? i + q : below;
      Window<A, V> window;
      window[0] = plane.at(row, left), window[V + 1] = plane.at(row, right);
      Vec<A, V> own;
      if (q >= 0 && q < R && has(q)) {
        own = values[q < 0 || q >= R ? 0 : q];
      } else if (row < 0) {
        own = zeros<A, V>();
      } else {
        own = to_acc(load<V>(plane.x + row * plane.w + j));
#pragma unroll
        for (int e = 0; e < V; ++e) own[e] -= plane.mean;
      }
#pragma unroll
      for (int e = 0; e < V; ++e) window[e + 1] = own[e];
      f(q, window);
    }
  }
};

// In shared memory before the plane: what BlockSums takes of two sums over at most 32 warps.
inline constexpr int kForwardSums = 128;

template <class T>
struct DepthwiseForward {
  unsigned planes, c;
  int h, w;
  Padding padding;
  PlaneStrides x;
  const T* input;
  const Acc<T>*kernel, *bias;  // [N, C, 9], and [N, C] or null
  T* output;
  Acc<T>*mean, *rstd;  // [N, C], or null: no normalisation
  double eps;
  int64_t correction;
};

template <class T, int V>
__global__ void __launch_bounds__(kDepthwiseThreads<T>) adaconv_depthwise_fwd_kernel(DepthwiseForward<T> p) {
  using A = Acc<T>;
  constexpr int R = kStripRows<T, V>;
  STYLEKERN_SHARED(A, sums);
  BlockSums<A, 2> sum_block(sums);
  const Strip<T, V> strip(p.h, p.w);
  const int size = p.h * p.w;
  const unsigned plane = blockIdx.x;
  const T* __restrict__ x = p.input + plane / p.c * p.x.n + plane % p.c * p.x.p;
  Vec<T, V> raw[R];
  strip.load_rows(raw, x, p.x.row);
  const A first = p.mean ? to_acc(x[0]) : A(0);
  A taps[9];
#pragma unroll
  for (int tap = 0; tap < 9; ++tap) taps[tap] = p.kernel[int64_t(plane) * 9 + tap];

  SharedPlane<T> shared{reinterpret_cast<T*>(sums + kForwardSums), p.h, p.w, A(0)};
  Vec<A, V> values[R];
  strip.keep(raw, shared, values);
  if (p.mean) {
    // as moments_of has it, of a plane that is in registers whole
    A sum = 0;
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int e = 0; e < V; ++e) sum += strip.has(r) ? values[r][e] - first : A(0);
    const A centre = first + sum_block(sum) / A(size);
    Vec<A, 2> deviations = zeros<A, 2>();
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const A d = strip.has(r) ? values[r][e] - centre : A(0);
        deviations[0] += d, deviations[1] += d * d;
      }
    const Moments<A> moments = moments_around(centre, sum_block(deviations), size);
    const Statistics<A> s = statistics_of(moments, size, p.correction, p.eps);
    if (threadIdx.x == 0) p.mean[plane] = s.mean, p.rstd[plane] = s.rstd;
    shared.mean = s.mean;
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int e = 0; e < V; ++e) values[r][e] -= s.mean;
#pragma unroll
    for (int tap = 0; tap < 9; ++tap) taps[tap] *= s.rstd;
  } else {
    __syncthreads();
  }

  if (strip.has(0)) {
    const A bias = p.bias ? p.bias[plane] : A(0);
    T* const y = p.output + int64_t(plane) * size + strip.i * p.w + strip.j;
    Vec<A, V> out[R];
    strip.for_each_row(values, shared, p.padding, [&](int q, const Window<A, V>& window) {
#pragma unroll
      for (int a = 0; a < 3; ++a) {
        const int r = q + 1 - a;
        if (r < 0 || r >= R) continue;
#pragma unroll
        for (int e = 0; e < V; ++e) {
          A sum = a == 0 ? bias : out[r][e];
#pragma unroll
          for (int b = 0; b < 3; ++b) sum += taps[a * 3 + b] * window[e + b];
          out[r][e] = sum;
        }
      }
      if (q > 0 && strip.has(q - 1)) store_as(y + (q - 1) * p.w, out[q > 0 ? q - 1 : 0]);
    });
  }
}

// Threads for a plane whose rows do not start on 16 bytes; no more are needed where they do.
template <class T>
int64_t depthwise_threads(const AdaConv& p) {
  constexpr int64_t R = kStripRows<T, 1>;
  return ((p.h + R - 1) / R * p.w + 31) / 32 * 32;
}

template <class T>
int64_t depthwise_bytes(const AdaConv& p) {
  return (p.h * p.w * int64_t(sizeof(T)) + 15) / 16 * 16;
}

// Whether a block holds a plane, and an int the number of planes.
template <class T>
bool depthwise_forward_fits(const AdaConv& p) {
  return p.depthwise_3x3() && p.out_c == p.c && p.n * p.c < int64_t(1) << 31 &&
         depthwise_threads<T>(p) <= kDepthwiseThreads<T> &&
         depthwise_bytes<T>(p) + kForwardSums * int64_t(sizeof(Acc<T>)) <= kSharedBytes;
}

template <class T, int V>
unsigned depthwise_block(int h, int w) {
  constexpr int R = kStripRows<T, V>;
  return unsigned(((h + R - 1) / R * (w / V) + 31) / 32 * 32);
}

template <class T>
cudaError_t depthwise_forward(const AdaConv& p, const DepthwiseForward<T>& d, cudaStream_t stream) {
  if (d.planes * p.h * p.w == 0) return cudaSuccess;
  return with_width<T>(p.w % kWide<T> == 0 && wide_rows(d.input, d.x) && wide_rows(d.output, {}), [&](auto width) {
    constexpr int V = decltype(width)::value;
    const unsigned threads = depthwise_block<T, V>(d.h, d.w);
    const auto kernel = adaconv_depthwise_fwd_kernel<T, V>;
    STYLEKERN_LAUNCH(kernel, d.planes, threads, depthwise_bytes<T>(p) + kForwardSums * sizeof(Acc<T>), stream, d);
    return cudaGetLastError();
  });
}

}  // namespace stylekern::cuda

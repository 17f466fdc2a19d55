// The gradients of depthwise adaconv with 3 x 3 taps on CUDA: adaconv_depthwise.cuh says how planes lie in threads.
//
//   adaconv_depthwise_bwd_kernel   All of them, through the border rule and the normalisation: x and g are read once.
//
// Fewest bytes, values a value of x: x, g and grad_input, 3. They are what it moves.
#pragma once
#include "adaconv_depthwise.cuh"

namespace stylekern::cuda {

inline constexpr int kDepthwiseGradThreads = 512;  // leave each 128 registers

template <class T>
struct DepthwiseBackward {
  unsigned planes, c;
  int h, w;
  Padding padding;
  PlaneStrides x, g;
  const T *grad, *input;
  const Acc<T>*kernel, *mean, *rstd;  // mean and rstd: [N, C], or null
  T* grad_input;                      // and the other gradients: or null
  Acc<T>*grad_kernel, *grad_bias;
  int64_t correction;
};

// grad_x[i',j'] = sum over (i,a) with pad(i + a - 1) = i', (j,b) with pad(j + b - 1) = j' of kernel[a,b] * g[i,j]
//
// Tap 0 of row 0 and tap 2 of the last one fall on the border, and on what it maps to; so for columns. `taps`: of one
// plane; `g`: its mean is 0.
template <class T, int V, int R>
STYLEKERN_DEVICE void depthwise_grad_x(Vec<Acc<T>, V> (&grad_x)[R], const Strip<T, V>& strip,
                                       const Vec<Acc<T>, V> (&values)[R], const SharedPlane<T>& g,
                                       const Acc<T> (&taps)[9], Padding padding) {
  using A = Acc<T>;
#pragma unroll
  for (int r = 0; r < R; ++r) grad_x[r] = zeros<A, V>();
  strip.for_each_row(values, g, Padding::kZeros, [&](int q, const Window<A, V>& window) {
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      const int r = q - 1 + a;
      if (r < 0 || r >= R) continue;
#pragma unroll
      for (int b = 0; b < 3; ++b)
#pragma unroll
        for (int e = 0; e < V; ++e) grad_x[r][e] += taps[a * 3 + b] * window[e + 2 - b];
    }
  });
  if (padding == Padding::kZeros) return;
  const int rows[2] = {int(border_index(-1, g.h, padding)), int(border_index(g.h, g.h, padding))};
  const int columns[2] = {int(border_index(-1, g.w, padding)), int(border_index(g.w, g.w, padding))};
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    const int source = side ? g.h - 1 : 0;
    if (rows[side] < strip.i || rows[side] >= strip.i + R) continue;
    Window<A, V> window;
#pragma unroll
    for (int e = 0; e < V + 2; ++e) {
      const int j = strip.j + e - 1;
      window[e] = g.at(source, j < g.w ? j : -1);
    }
#pragma unroll
    for (int e = 0; e < V; ++e) {
      A sum = 0;
#pragma unroll
      for (int b = 0; b < 3; ++b) sum += taps[side * 6 + b] * window[e + 2 - b];
#pragma unroll
      for (int r = 0; r < R; ++r) grad_x[r][e] += strip.i + r == rows[side] ? sum : A(0);
    }
  }
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    const int source = side ? g.w - 1 : 0, column = columns[side] - strip.j;
    if (column < 0 || column >= V) continue;
    const A first = g.at(0, source), last = g.at(g.h - 1, source);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int i = strip.i + r;
      if (!strip.has(r)) break;
      const A before = g.at(i - 1, source) + (i == rows[1] ? last : A(0));
      const A after = g.at(i + 1 < g.h ? i + 1 : -1, source) + (i == rows[0] ? first : A(0));
      const A sum = taps[side * 2] * after + taps[3 + side * 2] * g.at(i, source) + taps[6 + side * 2] * before;
#pragma unroll
      for (int e = 0; e < V; ++e) grad_x[r][e] += e == column ? sum : A(0);
    }
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kDepthwiseGradThreads, 1) adaconv_depthwise_bwd_kernel(DepthwiseBackward<T> p) {
  using A = Acc<T>;
  constexpr int R = kStripRows<T, V>;
  constexpr int kBias = 9, kGradX = 10, kSlope = 11;  // of the sums; before them, the taps
  STYLEKERN_SHARED(A, sums);                          // 16 of each warp, then g, then x
  const int warps = blockDim.x / 32, size = p.h * p.w;
  const Strip<T, V> strip(p.h, p.w);
  T* const tiles = reinterpret_cast<T*>(sums + warps * 16);
  const int tile = (size + kWide<T> - 1) / kWide<T> * kWide<T>;
  const unsigned plane = blockIdx.x;
  Vec<T, V> raw_g[R], raw_x[R];
  strip.load_rows(raw_g, p.grad + plane / p.c * p.g.n + plane % p.c * p.g.p, p.g.row);
  strip.load_rows(raw_x, p.input + plane / p.c * p.x.n + plane % p.c * p.x.p, p.x.row);
  A taps[9];
#pragma unroll
  for (int tap = 0; tap < 9; ++tap) taps[tap] = p.kernel[int64_t(plane) * 9 + tap];
  const SharedPlane<T> g{tiles, p.h, p.w, A(0)};
  const SharedPlane<T> x{tiles + tile, p.h, p.w, p.mean ? p.mean[plane] : A(0)};
  Vec<A, V> gs[R], xs[R], grad_x[R];
  strip.keep(raw_g, g, gs);
  strip.keep(raw_x, x, xs);
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int e = 0; e < V; ++e) xs[r][e] -= x.mean;
  __syncthreads();

  Vec<A, 16> sum = zeros<A, 16>();
  if (strip.has(0)) {
    // grad_kernel[a,b] = sum over i, j of g[i,j] * x[pad(i + a - 1), pad(j + b - 1)]; rstd comes last
    if (p.grad_kernel)
      strip.for_each_row(xs, x, p.padding, [&](int q, const Window<A, V>& window) {
#pragma unroll
        for (int a = 0; a < 3; ++a) {
          const int r = q + 1 - a;
          if (r < 0 || r >= R) continue;
#pragma unroll
          for (int b = 0; b < 3; ++b)
#pragma unroll
            for (int e = 0; e < V; ++e) sum[a * 3 + b] += gs[r][e] * window[e + b];
        }
      });
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int e = 0; e < V; ++e) sum[kBias] += gs[r][e];
    if (p.grad_input) {
      depthwise_grad_x(grad_x, strip, gs, g, taps, p.padding);
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int e = 0; e < V; ++e) {
          const A value = strip.has(r) ? grad_x[r][e] : A(0);
          sum[kGradX] += value, sum[kSlope] += value * xs[r][e];
        }
    }
  }
  const A rstd = p.rstd ? p.rstd[plane] : A(1);  // here, because before it registers are few
  const A of_warp = sum_warp(sum, threadIdx.x);
  if (threadIdx.x % 2 == 0) sums[threadIdx.x / 2] = of_warp;
  __syncthreads();
  const auto total = [&](int k) {
    A all = 0;
    for (int warp = 0; warp < warps; ++warp) all += sums[warp * 16 + k];
    return all;
  };
  if (p.grad_kernel && threadIdx.x < 9) p.grad_kernel[int64_t(plane) * 9 + threadIdx.x] = rstd * total(threadIdx.x);
  if (p.grad_bias && threadIdx.x == 9) p.grad_bias[plane] = total(kBias);
  if (p.grad_input && strip.has(0)) {
    // grad_input = rstd * (grad_x - sum(grad_x) / n - x * sum(grad_x * x) / (n - correction)), x with its rstd
    const A mean_grad = p.mean ? total(kGradX) / A(size) : A(0);
    const A slope = p.mean ? rstd * rstd * total(kSlope) / variance_divisor<A>(size, p.correction) : A(0);
    T* const y = p.grad_input + int64_t(plane) * size + strip.i * p.w + strip.j;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (!strip.has(r)) break;
      Vec<A, V> value;
#pragma unroll
      for (int e = 0; e < V; ++e) value[e] = rstd * (grad_x[r][e] - mean_grad - xs[r][e] * slope);
      store_as(y + r * p.w, value);
    }
  }
}

// Whether a block holds a plane of x and one of g.
template <class T>
bool depthwise_backward_fits(const AdaConv& p) {
  return p.depthwise_3x3() && p.out_c == p.c && p.n * p.c < int64_t(1) << 31 &&
         depthwise_threads<T>(p) <= kDepthwiseGradThreads &&
         2 * depthwise_bytes<T>(p) + depthwise_threads<T>(p) / 2 * int64_t(sizeof(Acc<T>)) <= kSharedBytes;
}

template <class T>
cudaError_t depthwise_backward(const AdaConv& p, const DepthwiseBackward<T>& d, cudaStream_t stream) {
  if (d.planes * p.h * p.w == 0) return cudaSuccess;
  const bool wide =
      p.w % kWide<T> == 0 && wide_rows(d.grad, d.g) && wide_rows(d.input, d.x) && wide_rows(d.grad_input, {});
  return with_width<T>(wide, [&](auto width) {
    constexpr int V = decltype(width)::value;
    const unsigned threads = depthwise_block<T, V>(d.h, d.w);
    const auto kernel = adaconv_depthwise_bwd_kernel<T, V>;
    STYLEKERN_LAUNCH(kernel, d.planes, threads, 2 * depthwise_bytes<T>(p) + threads / 2 * sizeof(Acc<T>), stream, d);
    return cudaGetLastError();
  });
}

}  // namespace stylekern::cuda

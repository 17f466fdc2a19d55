// adaconv forward on CUDA; csrc/common/adaconv.h has the formulas. Depthwise planes that a block holds go to
// adaconv_depthwise.cuh; of all others the statistics come from instance_norm.cuh.
//
//   adaconv_fwd_kernel      A correlation of the channels of a group, each sample with its own kernel. A block owns a
//                           tile of up to OC output channels. It puts the normalised, padded rows of some input
//                           channels and their taps into shared memory; a thread computes V columns of R rows of all OC
//                           channels in registers, so that each value it fetches serves OC * R multiplications a tap
//                           or more.
//   adaconv_direct_kernel   The same, a value a thread and straight from the caches: for kernels too large for shared
//                           memory, and in the backward for the positions that the border rule mirrors.
//
// The gradient of the input is such a correlation too (adaconv_backward.cuh). V is 16 bytes of values, or 1 where a row
// does not start on 16 bytes. K is the size of the kernel at compile time, or 0.
//
// Fewest bytes, values a value of x, with as many channels out as in: x for the statistics, x and y: 3. The kernels are
// small. With C/G input channels a group a value takes kh * kw * C/G multiplications.
#pragma once
#include "adaconv_depthwise.cuh"
#include "adaconv_direct.cuh"

namespace stylekern::cuda {

// Rows of a thread: as many as leave registers for 8 output channels.
template <class A, int V>
inline constexpr int kRows = (V == 1   ? 4
                              : V == 8 ? 1
                                       : 2) /
                             (std::is_same_v<A, double> ? 2 : 1);

// Shared memory of a block: [channels, rows, pitch] of x, then the taps, [channels, kh * kw, OC].
struct Stage {
  int channels, rows, pitch;
  int lead;  // values before the first column of the tile: those that its first taps read, and some that align it

  STYLEKERN_HD int plane() const { return rows * pitch; }
};

// The rows of some channels, from `first` of sample n on, that a tile from (i, j) on reads. Positions that only outputs
// beyond the picture read hold whatever the border rule makes of them, or nothing.
template <int K, int V, class T>
STYLEKERN_DEVICE void stage_channels(const Correlation& p, const Stage& s, const CorrelationData<T>& d, int64_t n,
                                     int64_t first, int channels, int64_t i, int64_t j, Acc<T>* tile) {
  const int columns = blockDim.x * V, halo = (K > 0 ? K : p.kw) - 1;
  const int64_t own = j + int64_t(threadIdx.x) * V;
  const auto channel = [&](int m) { return normalized_plane(d.x, p.x, p.groups * p.in, n, first + m, d.mean, d.rstd); };
  const auto source_row = [&](int r) { return border_index(i + r - p.top, p.h, p.padding); };
  // A thread's rows run on from channel to channel, so that the loads of several are in flight. A block has no more
  // rows of threads than a tile has rows.
  if (own < p.w + halo) {
    int m = 0, r = threadIdx.y;
#pragma unroll(V > 4 ? 2 : 4)
    for (int row = threadIdx.y; row < channels * s.rows; row += blockDim.y) {
      Acc<T>* const to = tile + row * s.pitch + s.lead + threadIdx.x * V;
      const Plane<T> x = channel(m);
      if (own < p.w) {
        store(to, x.template row<V>(source_row(r), own));
      } else {
#pragma unroll 1
        for (int e = 0; e < V; ++e) to[e] = x.at(source_row(r), border_index(own + e, p.w, p.padding));
      }
      r += blockDim.y;
      if (r >= s.rows) r -= s.rows, ++m;
    }
  }
  for (int k = threadIdx.y * blockDim.x + threadIdx.x; k < channels * s.rows * halo; k += blockDim.x * blockDim.y) {
    const int row = k / halo, b = k % halo, column = b < p.left ? b - p.left : columns + b - p.left;
    tile[row * s.pitch + s.lead + column] =
        channel(row / s.rows).at(source_row(row % s.rows), border_index(j + column, p.w, p.padding));
  }
}

// sums[o][r][e] += sum over a, b of taps[a,b,o] * rows[r + a, e + b - left], one input channel. `rows` is at the
// thread's first row and column.
template <int K, class A, int V, int R, int OC>
STYLEKERN_DEVICE void correlate_channel(Vec<A, V> (&sums)[OC][R], const Correlation& p, const A* rows, int pitch,
                                        const A* taps) {
  if constexpr (K > 0) {
    constexpr int left = K / 2;
    A window[R + K - 1][V + K - 1];
    const auto fetch = [&](int r) {
      const Vec<A, V> own = load<V>(rows + r * pitch);
#pragma unroll
      for (int e = 0; e < V + K - 1; ++e)
        window[r][e] = e >= left && e < V + left ? own[e - left] : rows[r * pitch + e - left];
    };
#pragma unroll
    for (int r = 0; r < R - 1; ++r) fetch(r);
#pragma unroll
    for (int a = 0; a < K; ++a) {
      fetch(R - 1 + a);
#pragma unroll
      for (int b = 0; b < K; ++b) {
        const Vec<A, OC> tap = load<OC>(taps + (a * K + b) * OC);
#pragma unroll
        for (int o = 0; o < OC; ++o)
#pragma unroll
          for (int r = 0; r < R; ++r)
#pragma unroll
            for (int e = 0; e < V; ++e) sums[o][r][e] += tap[o] * window[r + a][e + b];
      }
    }
  } else {
    for (int a = 0; a < p.kh; ++a)
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const A* row = rows + (r + a) * pitch - p.left;
        Vec<A, V> window;  // the columns from b on
#pragma unroll
        for (int e = 1; e < V; ++e) window[e] = row[e - 1];
        for (int b = 0; b < p.kw; ++b) {
#pragma unroll
          for (int e = 0; e + 1 < V; ++e) window[e] = window[e + 1];
          window[V - 1] = row[V - 1 + b];
          const Vec<A, OC> tap = load<OC>(taps + (a * p.kw + b) * OC);
#pragma unroll
          for (int o = 0; o < OC; ++o)
#pragma unroll
            for (int e = 0; e < V; ++e) sums[o][r][e] += tap[o] * window[e];
        }
      }
  }
}

template <class T, int V, int OC, int K>
__global__ void __launch_bounds__(kAdaConvThreads, OC > 2 ? 2 : 3)
    adaconv_fwd_kernel(Correlation p, Tiling tiling, Stage stage, CorrelationData<T> d) {
  using A = Acc<T>;
  constexpr int R = kRows<A, V>;
  const int taps = K > 0 ? K * K : p.taps();
  STYLEKERN_SHARED(A, shared);
  A* const shared_taps = shared + stage.channels * stage.plane();
  const int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
  const int64_t chunks = (p.out + OC - 1) / OC;
  for (int64_t tile = blockIdx.x; tile < tiling.tiles(); tile += gridDim.x) {
    const int64_t tile_x = tile % tiling.tiles_x, rest = tile / tiling.tiles_x;
    const int64_t plane = rest / tiling.tiles_y, ng = plane / chunks, n = ng / p.groups, g = ng % p.groups;
    const int64_t first_out = plane % chunks * OC;
    const int64_t i = rest % tiling.tiles_y * blockDim.y * R, j = tile_x * blockDim.x * V;
    Vec<A, V> sums[OC][R];
#pragma unroll
    for (int o = 0; o < OC; ++o)
#pragma unroll
      for (int r = 0; r < R; ++r) sums[o][r] = zeros<A, V>();

    for (int64_t first = 0; first < p.in; first += stage.channels) {
      const int channels = int(p.in - first < stage.channels ? p.in - first : stage.channels);
      const int count = channels * taps * OC;
      const auto tap_of = [&](int k) {
        const int o = k % OC, tap = k / OC % taps, m = k / OC / taps;
        return first_out + o < p.out ? d.kernel[p.kernel_offset(ng, first_out + o, first + m, tap)] : A(0);
      };
      constexpr bool ahead = OC <= 4;  // with registers to spare, a tap is on its way together with x
      const A first_tap = ahead && thread < count ? tap_of(thread) : A(0);
      stage_channels<K, V>(p, stage, d, n, g * p.in + first, channels, i, j, shared);
      if (ahead && thread < count) shared_taps[thread] = first_tap;
      for (int k = ahead ? thread + threads : thread; k < count; k += threads) shared_taps[k] = tap_of(k);
      __syncthreads();
      for (int m = 0; m < channels; ++m)
        correlate_channel<K>(sums, p,
                             shared + m * stage.plane() + threadIdx.y * R * stage.pitch + stage.lead + threadIdx.x * V,
                             stage.pitch, shared_taps + m * taps * OC);
      __syncthreads();  // the next channels overwrite these
    }

    const int64_t column = j + int64_t(threadIdx.x) * V, row = i + int64_t(threadIdx.y) * R;
    if (column >= p.w) continue;
#pragma unroll
    for (int o = 0; o < OC; ++o) {
      if (first_out + o >= p.out) break;
      const int64_t channel = ng * p.out + first_out + o;  // of all samples
      const A bias = d.bias ? d.bias[channel] : A(0);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (row + r >= p.h) break;
#pragma unroll
        for (int e = 0; e < V; ++e) sums[o][r][e] += bias;
        d.write((channel * p.h + row + r) * p.w + column, sums[o][r]);
      }
    }
  }
}

template <class T, int V, int OC, int K>
cudaError_t correlate_in_tiles(const Correlation& p, const CorrelationData<T>& d, cudaStream_t stream) {
  using A = Acc<T>;
  constexpr int R = kRows<A, V>;
  const auto round_up = [](int64_t x) { return (x + 3) / 4 * 4; };  // to 16 bytes
  for (int threads = kAdaConvThreads; threads >= 32; threads /= 2) {
    const int64_t chunks = (p.out + OC - 1) / OC;
    // tiles of one size, as far as it goes
    const auto even = [](int64_t size, int64_t most) {
      const int64_t tiles = (size + most - 1) / most;
      return int((size + tiles - 1) / tiles);
    };
    const int64_t strips = (p.h + R - 1) / R;
    const int threads_x = even((p.w + V - 1) / V, V > 1 ? 16 : threads < 64 ? 32 : 64);
    const int threads_y = even(strips, threads / threads_x);
    const Tiling tiling = make_tiling(p.n * p.groups * chunks, strips, p.w, V, threads_x, threads_x * threads_y, 0, 0);
    const int64_t lead = round_up(p.left), pitch = lead + round_up(tiling.threads_x * V + p.kw - 1 - p.left);
    const int64_t rows = tiling.threads_y * R + p.kh - 1;
    const int64_t channel_bytes = (rows * pitch + int64_t(p.taps()) * OC) * int64_t(sizeof(A));
    if (channel_bytes > kSharedBytes) continue;
    // as many channels at a time as fit, in rounds of one size
    const int64_t most = kSharedBytes / channel_bytes, in = p.in > 0 ? p.in : 1, rounds = (in + most - 1) / most;
    const Stage stage{int((in + rounds - 1) / rounds), int(rows), int(pitch), int(lead)};
    const auto kernel = adaconv_fwd_kernel<T, V, OC, K>;
    STYLEKERN_LAUNCH(kernel, tiling.blocks(), dim3(tiling.threads_x, tiling.threads_y), stage.channels * channel_bytes,
                     stream, p, tiling, stage, d);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess || p.fold == Padding::kZeros) return error;
    return correlate_directly<T, K>(p, mirrored(p.h, p.kh / 2, (p.kh - 1) / 2, p.fold),
                                    mirrored(p.w, p.kw / 2, (p.kw - 1) / 2, p.fold), d, stream);
  }
  return correlate_directly<T, K>(p, whole(p.h), whole(p.w), d, stream);
}

template <class T>
cudaError_t correlate_planes(const Correlation& p, const CorrelationData<T>& d, cudaStream_t stream) {
  if (p.n * p.groups * p.out * p.h * p.w == 0) return cudaSuccess;
  const bool wide = p.w % kWide<T> == 0 && wide_rows(d.x, p.x) && wide_rows(d.y, {}) && wide_rows(d.y_acc, {});
  return with_width<T>(wide, [&](auto width) {
    constexpr int V = decltype(width)::value;
    if (p.kh != 3 || p.kw != 3)
      return p.out > 1 ? correlate_in_tiles<T, V, 4, 0>(p, d, stream) : correlate_in_tiles<T, V, 1, 0>(p, d, stream);
    if (p.out > 4) return correlate_in_tiles<T, V, 8, 3>(p, d, stream);
    if (p.out == 2) return correlate_in_tiles<T, V, 2, 3>(p, d, stream);
    return p.out > 1 ? correlate_in_tiles<T, V, 4, 3>(p, d, stream) : correlate_in_tiles<T, V, 1, 3>(p, d, stream);
  });
}

// Without input channels all output channels make one group.
STYLEKERN_HD int64_t adaconv_groups(const AdaConv& p) { return p.c > 0 ? p.groups : 1; }

// Writes output [N, Co, H, W], contiguous, and where `mean` is given also mean and rstd, [N * C].
template <class T>
cudaError_t adaconv_forward(const AdaConv& p, const T* input, const Acc<T>* kernel, const Acc<T>* bias, T* output,
                            Acc<T>* mean, Acc<T>* rstd, double eps, int64_t correction, cudaStream_t stream) {
  if (depthwise_forward_fits<T>(p))
    return depthwise_forward<T>(p,
                                {unsigned(p.n * p.c), unsigned(p.c), int(p.h), int(p.w), p.padding, p.input, input,
                                 kernel, bias, output, mean, rstd, eps, correction},
                                stream);
  if (mean) {
    const cudaError_t error =
        instance_norm_stats<T>({p.n, p.c, p.h, p.w, p.input}, input, mean, rstd, eps, correction, stream);
    if (error != cudaSuccess) return error;
  }
  const int64_t groups = adaconv_groups(p), taps = int64_t(p.kh) * p.kw;
  const Correlation y{
      p.n,       groups,          p.c / groups, p.out_c / groups,    p.h,  p.w,  p.kh, p.kw, p.top(), p.left(),
      p.padding, Padding::kZeros, p.input,      p.c / groups * taps, taps, false};
  return correlate_planes<T>(y, {input, mean, rstd, kernel, bias, output, nullptr}, stream);
}

}  // namespace stylekern::cuda

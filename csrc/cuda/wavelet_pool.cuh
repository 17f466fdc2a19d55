// wavelet_pool forward and wavelet_unpool backward on CUDA: a picture into four bands; csrc/common/wavelet_pool.h has
// the formulas and the rules for an odd last row or column.
//
//   wavelet_pool_fwd_kernel   A thread owns V columns of one row of the bands: it reads two rows of 2V values and
//                             writes V values to each band, all 16 bytes at a time. No value is read or written twice.
//
// V is 16 bytes of values, or 1 where a row does not start on 16 bytes or does not end with a thread's values.
//
// Fewest bytes, values a value of the picture: the picture and the bands, 2.
#pragma once
#include "../common/wavelet_pool.h"
#include "common.cuh"

namespace stylekern::cuda {

inline constexpr int kWaveletThreads = 256;

template <class T>
struct BandPointers {
  T* band[4];  // ll, lh, hl, hh
};

// The 2 x 2 blocks that a thread works on, as pairs of neighbouring values: value[r][2 * e + s] is row r, column s of
// block e.
template <class A, int V>
struct Blocks {
  A value[2][2 * V];
};

// By rows, then over the rows: what a band cancels is exactly zero.
template <class A>
STYLEKERN_DEVICE void haar_pool(A a, A b, A c, A d, A& ll, A& lh, A& hl, A& hh) {
  const A top = a + b, bottom = c + d, top_step = b - a, bottom_step = d - c;
  ll = A(0.5) * (top + bottom);
  lh = A(0.5) * (top_step + bottom_step);
  hl = A(0.5) * (bottom - top);
  hh = A(0.5) * (bottom_step - top_step);
}

template <class T, int V>
__global__ void __launch_bounds__(kWaveletThreads, 4)
    wavelet_pool_fwd_kernel(WaveletPool p, Tiling tiling, Divisor channels, const T* __restrict__ picture,
                            BandPointers<T> bands) {
  using A = Acc<T>;
  for (int64_t tile = blockIdx.x; tile < tiling.tiles(); tile += gridDim.x) {
    const Place at = place<V>(tiling, tile, p.band_h, p.band_w);
    if (!at.owns) continue;
    int64_t n = at.plane;
    const int64_t c = channels.split(n);
    const T* x = picture + n * p.picture.n + c * p.picture.p + 2 * at.i * p.picture.row + 2 * at.j;
    const bool has_row = 2 * at.i + 1 < p.h, has_column = V > 1 || 2 * at.j + 1 < p.w;
    Blocks<A, V> blocks;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // beyond an odd last row: that row again, or zeros
      const T* row = r == 1 && has_row ? x + p.picture.row : x;
      const bool zero_row = r == 1 && !has_row && p.odd == OddRule::kZero;
      if constexpr (V > 1) {
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          const Vec<A, V> values = to_acc(load<V>(row + part * V));
#pragma unroll
          for (int e = 0; e < V; ++e) blocks.value[r][part * V + e] = zero_row ? A(0) : values[e];
        }
      } else {
        const bool zero_column = !has_column && p.odd == OddRule::kZero;
        blocks.value[r][0] = zero_row ? A(0) : to_acc(row[0]);
        blocks.value[r][1] = zero_row || zero_column ? A(0) : to_acc(row[has_column ? 1 : 0]);
      }
    }
    Vec<A, V> y[4];
#pragma unroll
    for (int e = 0; e < V; ++e)
      haar_pool(blocks.value[0][2 * e], blocks.value[0][2 * e + 1], blocks.value[1][2 * e], blocks.value[1][2 * e + 1],
                y[0][e], y[1][e], y[2][e], y[3][e]);
    const int64_t offset = (at.plane * p.band_h + at.i) * p.band_w + at.j;
#pragma unroll
    for (int k = 0; k < 4; ++k) store_as(bands.band[k] + offset, y[k]);
  }
}

// Writes the four bands, contiguous.
template <class T>
cudaError_t wavelet_pooling(const WaveletPool& p, const T* picture, const BandPointers<T>& bands, cudaStream_t stream) {
  if (p.planes() * p.band_h * p.band_w == 0) return cudaSuccess;
  bool wide = p.w % (2 * kWide<T>) == 0 && wide_rows(picture, p.picture);
  for (const T* band : bands.band) wide = wide && wide_rows(band, {});
  return with_width<T>(wide, [&](auto width) {
    constexpr int V = decltype(width)::value;
    const Tiling tiling = make_tiling(p.planes(), p.band_h, p.band_w, V, 64, kWaveletThreads, 0, 0);
    const auto kernel = wavelet_pool_fwd_kernel<T, V>;
    STYLEKERN_LAUNCH(kernel, tiling.blocks(), dim3(tiling.threads_x, tiling.threads_y), 0, stream, p, tiling,
                     Divisor(p.c), picture, bands);
    return cudaGetLastError();
  });
}

}  // namespace stylekern::cuda

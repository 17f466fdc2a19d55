// wavelet_pool forward and wavelet_unpool backward on CUDA: a picture into four bands; csrc/common/wavelet_pool.h has
// the formulas and the rules for an odd last row or column.
//
//   wavelet_pool_fwd_kernel   A thread owns V columns of one row of the bands: it reads two rows of 2V values and
//                             writes V values to each band, all 16 bytes at a time. No value is read or written twice.
//
// V is 16 bytes of values, or 1 where a row does not start on 16 bytes or does not end with a thread's values: there a
// thread owns several rows, so that as much is on its way at once.
//
// Fewest bytes, values a value of the picture: the picture and the bands, 2.
#pragma once
#include "../common/wavelet_pool.h"
#include "common.cuh"

namespace stylekern::cuda {

inline constexpr int kWaveletThreads = 256;
// Rows of the bands that a thread owns.
template <class T, int V>
inline constexpr int kWaveletRows = V > 1           ? 1
                                    : sizeof(T) < 8 ? 4
                                                    : 2;

template <class T>
struct BandPointers {
  T* band[4];  // ll, lh, hl, hh
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
__global__ void __launch_bounds__(kWaveletThreads, V == 1 && sizeof(T) == 2 ? 3 : 4)
    wavelet_pool_fwd_kernel(WaveletPool p, Tiling tiling, Divisor channels, const T* __restrict__ picture,
                            BandPointers<T> bands) {
  using A = Acc<T>;
  constexpr int R = kWaveletRows<T, V>;
  for (int64_t tile = blockIdx.x; tile < tiling.tiles(); tile += gridDim.x) {
    const Place at = place<V>(tiling, tile, (p.band_h + R - 1) / R, p.band_w);
    if (!at.owns) continue;
    int64_t n = at.plane;
    const int64_t c = channels.split(n);
    const T* plane = picture + n * p.picture.n + c * p.picture.p + 2 * at.j;
    const int64_t first = at.i * R;
    const int rows = int(p.band_h - first < R ? p.band_h - first : R);
    const bool has_column = V > 1 || 2 * at.j + 1 < p.w;
    // All loads before what is made of them: of rows that are not there the last one's, which nothing uses.
    Vec<T, V> raw[R][2][2];
#pragma unroll
    for (int k = 0; k < R; ++k) {
      const int64_t i = 2 * (first + (k < rows ? k : rows - 1));
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const T* row = plane + (i + (r == 1 && i + 1 < p.h)) * p.picture.row;
#pragma unroll
        for (int part = 0; part < 2; ++part)
          raw[k][r][part] = load<V>(row + (V > 1 ? part * V : part == 1 && has_column));
      }
    }
#pragma unroll
    for (int k = 0; k < R; ++k) {
      if (k >= rows) break;
      // beyond an odd last row or column: that one again, or zeros
      const bool zero_row = 2 * (first + k) + 1 >= p.h && p.odd == OddRule::kZero;
      const bool zero_column = !has_column && p.odd == OddRule::kZero;
      A value[2][2 * V];
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int e = 0; e < 2 * V; ++e) {
          const bool zero = (r == 1 && zero_row) || (V == 1 && e == 1 && zero_column);
          value[r][e] = zero ? A(0) : to_acc(raw[k][r][e / V][e % V]);
        }
      Vec<A, V> y[4];
#pragma unroll
      for (int e = 0; e < V; ++e)
        haar_pool(value[0][2 * e], value[0][2 * e + 1], value[1][2 * e], value[1][2 * e + 1], y[0][e], y[1][e], y[2][e],
                  y[3][e]);
      const int64_t offset = (at.plane * p.band_h + first + k) * p.band_w + at.j;
#pragma unroll
      for (int band = 0; band < 4; ++band) store_as(bands.band[band] + offset, y[band]);
    }
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
    constexpr int R = kWaveletRows<T, V>;
    const Tiling tiling = make_tiling(p.planes(), (p.band_h + R - 1) / R, p.band_w, V, 64, kWaveletThreads, 0, 0);
    const auto kernel = wavelet_pool_fwd_kernel<T, V>;
    STYLEKERN_LAUNCH(kernel, tiling.blocks(), dim3(tiling.threads_x, tiling.threads_y), 0, stream, p, tiling,
                     Divisor(p.c), picture, bands);
    return cudaGetLastError();
  });
}

}  // namespace stylekern::cuda

// wavelet_pool forward and wavelet_unpool backward on CUDA: a picture into four bands; csrc/common/wavelet_pool.h has
// the formulas and the rules for an odd last row or column.
//
//   wavelet_pool_fwd_kernel        A thread owns V columns of one row of the bands: it reads two rows of 2V values and
//                                  writes V values to each band, all 16 bytes at a time.
//   wavelet_pool_narrow_fwd_kernel Where a row does not start on 16 bytes or does not end with a thread's values: a
//                                  block owns a stretch of the bands, over the ends of rows and planes, so that what a
//                                  warp writes is one piece; a thread has several of its places on their way at once.
//
// No value is read or written twice.
//
// Fewest bytes, values a value of the picture: the picture and the bands, 2.
#pragma once
#include "../common/wavelet_pool.h"
#include "common.cuh"

namespace stylekern::cuda {

inline constexpr int kWaveletThreads = 256;
// Places of the bands that a thread has on their way at once where it moves single values.
template <class T>
inline constexpr int kWaveletPlaces = sizeof(T) < 8 ? 4 : 2;

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
__global__ void __launch_bounds__(kWaveletThreads, 4)
    wavelet_pool_fwd_kernel(WaveletPool p, Tiling tiling, Divisor channels, const T* __restrict__ picture,
                            BandPointers<T> bands) {
  using A = Acc<T>;
  for (int64_t tile = blockIdx.x; tile < tiling.tiles(); tile += gridDim.x) {
    const Place at = place<V>(tiling, tile, p.band_h, p.band_w);
    if (!at.owns) continue;
    int64_t n = at.plane;
    const int64_t c = channels.split(n);
    const bool has_row = 2 * at.i + 1 < p.h;
    const T* row = picture + n * p.picture.n + c * p.picture.p + 2 * at.i * p.picture.row + 2 * at.j;
    Vec<T, V> raw[2][2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int part = 0; part < 2; ++part) raw[r][part] = load<V>(row + part * V);
      row += has_row ? p.picture.row : 0;
    }
    // beyond an odd last row: that one again, or zeros
    const bool zero_row = !has_row && p.odd == OddRule::kZero;
    A value[2][2 * V];
#pragma unroll
    for (int e = 0; e < 2 * V; ++e) {
      value[0][e] = to_acc(raw[0][e / V][e % V]);
      value[1][e] = zero_row ? A(0) : to_acc(raw[1][e / V][e % V]);
    }
    Vec<A, V> y[4];
#pragma unroll
    for (int e = 0; e < V; ++e)
      haar_pool(value[0][2 * e], value[0][2 * e + 1], value[1][2 * e], value[1][2 * e + 1], y[0][e], y[1][e], y[2][e],
                y[3][e]);
    const int64_t offset = (at.plane * p.band_h + at.i) * p.band_w + at.j;
#pragma unroll
    for (int band = 0; band < 4; ++band) store_as(bands.band[band] + offset, y[band]);
  }
}

// A place of the bands. Going on by a known number of places takes no division. I counts it, and what lies before it in
// memory: of 64 bits that takes as long as the memory does.
template <class I>
struct BandPlace {
  I n, c, i, j;

  STYLEKERN_HD BandPlace(int64_t place, const Divisor& columns, const Divisor& rows, const Divisor& channels) {
    j = I(columns.split(place)), i = I(rows.split(place)), c = I(channels.split(place)), n = I(place);
  }
  STYLEKERN_DEVICE void advance(const WaveletPool& p, const BandPlace& by) {
    n += by.n, c += by.c, i += by.i, j += by.j;
    if (j >= I(p.band_w)) j -= I(p.band_w), ++i;
    if (i >= I(p.band_h)) i -= I(p.band_h), ++c;
    if (c >= I(p.c)) c -= I(p.c), ++n;
  }
};

template <class T, class I>
__global__ void __launch_bounds__(kWaveletThreads, sizeof(I) > 4 ? 3 : 4)
    wavelet_pool_narrow_fwd_kernel(WaveletPool p, Divisor columns, Divisor rows, Divisor channels, BandPlace<I> step,
                                   const T* __restrict__ picture, BandPointers<T> bands) {
  using A = Acc<T>;
  constexpr int K = kWaveletPlaces<T>;
  const int64_t count = p.planes() * p.band_h * p.band_w;
  for (int64_t start = int64_t(blockIdx.x) * K * kWaveletThreads; start < count;
       start += int64_t(gridDim.x) * K * kWaveletThreads) {
    const int left = int(count - start < K * kWaveletThreads ? count - start : K * kWaveletThreads);
    const int64_t first = start + threadIdx.x;
    BandPlace<I> at(first, columns, rows, channels);
    // All loads before what is made of them.
    T raw[K][2][2];
    bool has_row[K], has_column[K];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      has_row[k] = 2 * at.i + 1 < I(p.h), has_column[k] = 2 * at.j + 1 < I(p.w);
      if (int(threadIdx.x) + k * kWaveletThreads < left) {
        const I corner = at.n * I(p.picture.n) + at.c * I(p.picture.p) + 2 * at.i * I(p.picture.row) + 2 * at.j;
        const T* row = picture + corner;
        raw[k][0][0] = row[0], raw[k][0][1] = row[has_column[k]];
        row += has_row[k] ? p.picture.row : 0;
        raw[k][1][0] = row[0], raw[k][1][1] = row[has_column[k]];
      }
      at.advance(p, step);
    }
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (int(threadIdx.x) + k * kWaveletThreads >= left) break;
      A value[2][2];
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          // beyond an odd last row or column: that one again, or zeros
          const bool outside = (r == 1 && !has_row[k]) || (e == 1 && !has_column[k]);
          value[r][e] = outside && p.odd == OddRule::kZero ? A(0) : to_acc(raw[k][r][e]);
        }
      Vec<A, 1> y[4];
      haar_pool(value[0][0], value[0][1], value[1][0], value[1][1], y[0][0], y[1][0], y[2][0], y[3][0]);
#pragma unroll
      for (int band = 0; band < 4; ++band) store_as(bands.band[band] + first + k * kWaveletThreads, y[band]);
    }
  }
}

// Writes the four bands, contiguous.
template <class T>
cudaError_t wavelet_pooling(const WaveletPool& p, const T* picture, const BandPointers<T>& bands, cudaStream_t stream) {
  if (p.planes() * p.band_h * p.band_w == 0) return cudaSuccess;
  bool wide = p.w % (2 * kWide<T>) == 0 && wide_rows(picture, p.picture);
  for (const T* band : bands.band) wide = wide && wide_rows(band, {});
  if (!wide) {
    const int64_t places = p.planes() * p.band_h * p.band_w, of_block = kWaveletPlaces<T> * kWaveletThreads;
    const Divisor columns(p.band_w), rows(p.band_h), channels(p.c);
    const auto launch = [&](auto index) {
      using I = decltype(index);
      const BandPlace<I> step(kWaveletThreads, columns, rows, channels);
      const auto kernel = wavelet_pool_narrow_fwd_kernel<T, I>;
      STYLEKERN_LAUNCH(kernel, grid_of((places + of_block - 1) / of_block), kWaveletThreads, 0, stream, p, columns,
                       rows, channels, step, picture, bands);
      return cudaGetLastError();
    };
    const int64_t end = (p.n - 1) * p.picture.n + (p.c - 1) * p.picture.p + p.h * p.picture.row + p.w;
    const bool small = (end | places | p.picture.n | p.picture.p) < (int64_t(1) << 30);
    return small ? launch(int32_t{}) : launch(int64_t{});
  }
  constexpr int V = kWide<T>;
  const Tiling tiling = make_tiling(p.planes(), p.band_h, p.band_w, V, 64, kWaveletThreads, 0, 0);
  const auto kernel = wavelet_pool_fwd_kernel<T, V>;
  STYLEKERN_LAUNCH(kernel, tiling.blocks(), dim3(tiling.threads_x, tiling.threads_y), 0, stream, p, tiling,
                   Divisor(p.c), picture, bands);
  return cudaGetLastError();
}

}  // namespace stylekern::cuda

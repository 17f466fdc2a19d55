// wavelet_unpool forward and wavelet_pool backward on CUDA: four bands into a picture; csrc/common/wavelet_pool.h has
// the formulas and the rules for an odd last row or column.
//
//   wavelet_unpool_fwd_kernel   The mapping of wavelet_pool_fwd_kernel, the other way: a thread reads V values of each
//                               band and writes two rows of 2V values, all 16 bytes at a time. Blocks that pooling
//                               dropped have threads too, which write their zeros.
//
// V is 16 bytes of values, or 1 where a row does not start on 16 bytes or does not end with a thread's values: there a
// thread owns several rows, so that as much is on its way at once.
//
// Fewest bytes, values a value of the picture: the bands and the picture, 2.
#pragma once
#include "wavelet_pool.cuh"

namespace stylekern::cuda {

template <class T, int V>
__global__ void __launch_bounds__(kWaveletThreads, V > 4 ? 3 : 4)
    wavelet_unpool_fwd_kernel(WaveletPool p, Tiling tiling, Divisor channels, BandPointers<const T> bands,
                              T* __restrict__ picture) {
  using A = Acc<T>;
  constexpr int R = V > 1 ? 1 : kWaveletPlaces<T>;  // rows of the bands that a thread owns
  for (int64_t tile = blockIdx.x; tile < tiling.tiles(); tile += gridDim.x) {
    const Place at = place<V>(tiling, tile, ((p.h + 1) / 2 + R - 1) / R, (p.w + 1) / 2);
    if (!at.owns) continue;
    int64_t n = at.plane;
    const int64_t c = channels.split(n), first = at.i * R;
    const bool has_column = V > 1 || 2 * at.j + 1 < p.w;
    // All loads before what is made of them: of rows that are not there the last one's, which nothing uses.
    Vec<T, V> in[R][4];
    if (at.j < p.band_w && p.band_h > 0) {
#pragma unroll
      for (int k = 0; k < R; ++k) {
        const int64_t i = first + k < p.band_h ? first + k : p.band_h - 1;
#pragma unroll
        for (int band = 0; band < 4; ++band) {
          const PlaneStrides& s = p.bands[band];
          in[k][band] = load<V>(bands.band[band] + n * s.n + c * s.p + i * s.row + at.j);
        }
      }
    }
#pragma unroll
    for (int k = 0; k < R; ++k) {
      const int64_t i = first + k;
      if (2 * i >= p.h) break;
      const bool has_row = 2 * i + 1 < p.h;
      A value[2][2 * V];
      if (i < p.band_h && at.j < p.band_w) {
#pragma unroll
        for (int e = 0; e < V; ++e) {
          const A ll = to_acc(in[k][0][e]), lh = to_acc(in[k][1][e]), hl = to_acc(in[k][2][e]),
                  hh = to_acc(in[k][3][e]);
          // a = (ll - lh - hl + hh) / 2   b = (ll + lh - hl - hh) / 2
          // c = (ll - lh + hl - hh) / 2   d = (ll + lh + hl + hh) / 2
          const A left = ll - lh, right = ll + lh, left_step = hl - hh, right_step = hl + hh;
          value[0][2 * e] = A(0.5) * (left - left_step);
          value[0][2 * e + 1] = A(0.5) * (right - right_step);
          value[1][2 * e] = A(0.5) * (left + left_step);
          value[1][2 * e + 1] = A(0.5) * (right + right_step);
        }
      } else {
#pragma unroll
        for (int e = 0; e < 2 * V; ++e) value[0][e] = value[1][e] = A(0);
      }
      if (p.odd == OddRule::kRepeat) {  // pooling read the last row or column twice
#pragma unroll
        for (int e = 0; e < 2 * V; ++e) value[0][e] += has_row ? A(0) : value[1][e];
        if constexpr (V == 1) {
          value[0][0] += has_column ? A(0) : value[0][1];
          value[1][0] += has_column ? A(0) : value[1][1];
        }
      }
      T* y = picture + (at.plane * p.h + 2 * i) * p.w + 2 * at.j;
#pragma unroll
      for (int r = 0; r < 2; ++r, y += p.w) {
        if (r == 1 && !has_row) continue;
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          if (part == 1 && !has_column) continue;
          Vec<A, V> values;
#pragma unroll
          for (int e = 0; e < V; ++e) values[e] = value[r][part * V + e];
          store_as(y + part * V, values);
        }
      }
    }
  }
}

// Writes the picture, contiguous.
template <class T>
cudaError_t wavelet_unpooling(const WaveletPool& p, const BandPointers<const T>& bands, T* picture,
                              cudaStream_t stream) {
  if (p.planes() * p.h * p.w == 0) return cudaSuccess;
  bool wide = p.w % (2 * kWide<T>) == 0 && wide_rows(picture, {});
  for (int k = 0; k < 4; ++k) wide = wide && wide_rows(bands.band[k], p.bands[k]);
  return with_width<T>(wide, [&](auto width) {
    constexpr int V = decltype(width)::value;
    constexpr int R = V > 1 ? 1 : kWaveletPlaces<T>;
    const int64_t rows = ((p.h + 1) / 2 + R - 1) / R;
    const Tiling tiling = make_tiling(p.planes(), rows, (p.w + 1) / 2, V, 64, kWaveletThreads, 0, 0);
    const auto kernel = wavelet_unpool_fwd_kernel<T, V>;
    STYLEKERN_LAUNCH(kernel, tiling.blocks(), dim3(tiling.threads_x, tiling.threads_y), 0, stream, p, tiling,
                     Divisor(p.c), bands, picture);
    return cudaGetLastError();
  });
}

}  // namespace stylekern::cuda

// wavelet_unpool forward and wavelet_pool backward on CUDA: four bands into a picture; csrc/common/wavelet_pool.h has
// the formulas and the rules for an odd last row or column.
//
//   wavelet_unpool_fwd_kernel   The mapping of wavelet_pool_fwd_kernel, the other way: a thread reads V values of each
//                               band and writes two rows of 2V values, all 16 bytes at a time. Blocks that pooling
//                               dropped have threads too, which write their zeros.
//
// Fewest bytes, values a value of the picture: the bands and the picture, 2.
#pragma once
#include "wavelet_pool.cuh"

namespace stylekern::cuda {

template <class T, int V>
__global__ void __launch_bounds__(kWaveletThreads, 4)
    wavelet_unpool_fwd_kernel(WaveletPool p, Tiling tiling, Divisor channels, BandPointers<const T> bands,
                              T* __restrict__ picture) {
  using A = Acc<T>;
  for (int64_t tile = blockIdx.x; tile < tiling.tiles(); tile += gridDim.x) {
    const Place at = place<V>(tiling, tile, (p.h + 1) / 2, (p.w + 1) / 2);
    if (!at.owns) continue;
    const bool has_row = 2 * at.i + 1 < p.h, has_column = V > 1 || 2 * at.j + 1 < p.w;
    Blocks<A, V> blocks;
    if (at.i < p.band_h && at.j < p.band_w) {
      int64_t n = at.plane;
      const int64_t c = channels.split(n);
      Vec<T, V> in[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const PlaneStrides& s = p.bands[k];
        in[k] = load<V>(bands.band[k] + n * s.n + c * s.p + at.i * s.row + at.j);
      }
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const A ll = to_acc(in[0][e]), lh = to_acc(in[1][e]), hl = to_acc(in[2][e]), hh = to_acc(in[3][e]);
        // a = (ll - lh - hl + hh) / 2   b = (ll + lh - hl - hh) / 2
        // c = (ll - lh + hl - hh) / 2   d = (ll + lh + hl + hh) / 2
        const A left = ll - lh, right = ll + lh, left_step = hl - hh, right_step = hl + hh;
        blocks.value[0][2 * e] = A(0.5) * (left - left_step);
        blocks.value[0][2 * e + 1] = A(0.5) * (right - right_step);
        blocks.value[1][2 * e] = A(0.5) * (left + left_step);
        blocks.value[1][2 * e + 1] = A(0.5) * (right + right_step);
      }
    } else {
#pragma unroll
      for (int k = 0; k < 2 * V; ++k) blocks.value[0][k] = blocks.value[1][k] = A(0);
    }
    if (p.odd == OddRule::kRepeat) {  // pooling read the last row or column twice
#pragma unroll
      for (int k = 0; k < 2 * V; ++k) blocks.value[0][k] += has_row ? A(0) : blocks.value[1][k];
      if constexpr (V == 1) {
        blocks.value[0][0] += has_column ? A(0) : blocks.value[0][1];
        blocks.value[1][0] += has_column ? A(0) : blocks.value[1][1];
      }
    }
    T* y = picture + (at.plane * p.h + 2 * at.i) * p.w + 2 * at.j;
#pragma unroll
    for (int r = 0; r < 2; ++r, y += p.w) {
      if (r == 1 && !has_row) continue;
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        if (part == 1 && !has_column) continue;
        Vec<A, V> values;
#pragma unroll
        for (int e = 0; e < V; ++e) values[e] = blocks.value[r][part * V + e];
        store_as(y + part * V, values);
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
    const Tiling tiling = make_tiling(p.planes(), (p.h + 1) / 2, (p.w + 1) / 2, V, 64, kWaveletThreads, 0, 0);
    const auto kernel = wavelet_unpool_fwd_kernel<T, V>;
    STYLEKERN_LAUNCH(kernel, tiling.blocks(), dim3(tiling.threads_x, tiling.threads_y), 0, stream, p, tiling,
                     Divisor(p.c), bands, picture);
    return cudaGetLastError();
  });
}

}  // namespace stylekern::cuda

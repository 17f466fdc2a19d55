// wavelet_pool and wavelet_unpool: the sizes and strides that the CPU and CUDA kernels share.
//
//   with a b / c d the 2 x 2 blocks of the picture
//   ll = ( a + b + c + d) / 2       lh = (-a + b - c + d) / 2
//   hl = (-a - b + c + d) / 2       hh = ( a - b - c + d) / 2
//   and back
//   a = (ll - lh - hl + hh) / 2     b = (ll + lh - hl - hh) / 2
//   c = (ll - lh + hl - hh) / 2     d = (ll + lh + hl + hh) / 2
#pragma once
#include <cstdint>

#include "planes.h"

namespace stylekern {

// What the blocks of an odd last row or column hold. With each rule, unpooling is the adjoint of pooling:
//              pooling                                   unpooling
//   kDrop      has no such blocks                        writes zeros there
//   kRepeat    takes the last row or column twice        adds the two that it would write
//   kZero      takes zeros beyond the picture            leaves out what lies beyond the picture
// wavelet_pool is kDrop ("floor") or kRepeat ("pad"); wavelet_unpool is kZero.
enum class OddRule : int { kDrop = 0, kRepeat = 1, kZero = 2 };

struct WaveletPool {
  int64_t n, c;
  int64_t h, w;                    // of the picture
  int64_t band_h = 0, band_w = 0;  // of the bands: halves, rounded down with kDrop, else up
  OddRule odd{};
  PlaneStrides picture{}, bands[4]{};  // of inputs; outputs are contiguous

  STYLEKERN_HD int64_t planes() const { return n * c; }
};

}  // namespace stylekern

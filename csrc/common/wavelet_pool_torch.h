// wavelet_pool and wavelet_unpool: from torch tensors to the problem that the kernels read, for CPU and CUDA.
#pragma once
#include <array>
#include <tuple>

#include "torch_side.h"
#include "wavelet_pool.h"

namespace stylekern {

using Bands = std::array<Tensor, 4>;  // ll, lh, hl, hh

inline OddRule parse_odd(StringHandle handle) {
  const std::string odd = take_string(handle);
  STD_TORCH_CHECK(odd == "floor" || odd == "pad", "odd must be floor or pad, got ", odd);
  return odd == "pad" ? OddRule::kRepeat : OddRule::kDrop;
}

// Picture to bands; the bands are new.
inline WaveletPool make_pooling(const Tensor& picture, OddRule odd) {
  STD_TORCH_CHECK(picture.dim() == 4, "stylekern: the picture must be [N, C, H, W]");
  check_floating("the picture", picture);
  const int64_t up = odd == OddRule::kDrop ? 0 : 1;
  WaveletPool p{picture.size(0), picture.size(1), picture.size(2), picture.size(3)};
  p.band_h = (p.h + up) / 2, p.band_w = (p.w + up) / 2, p.odd = odd;
  p.picture = plane_strides(picture);
  return p;
}

// Bands to a picture of height x width, which is new.
inline WaveletPool make_unpooling(const Bands& bands, int64_t height, int64_t width, OddRule odd) {
  const Tensor& ll = bands[0];
  STD_TORCH_CHECK(ll.dim() == 4, "stylekern: bands must be [N, C, h, w]");
  check_floating("bands", ll);
  const int64_t up = odd == OddRule::kDrop ? 0 : 1;
  WaveletPool p{ll.size(0), ll.size(1), height, width, ll.size(2), ll.size(3), odd};
  STD_TORCH_CHECK(height >= 0 && width >= 0 && p.band_h == (height + up) / 2 && p.band_w == (width + up) / 2,
                  "stylekern: bands of ", p.band_h, " x ", p.band_w, " do not make a picture of ", height, " x ",
                  width);
  for (int k = 0; k < 4; ++k) {
    check_shape("the bands", bands[size_t(k)], {p.n, p.c, p.band_h, p.band_w});
    check_dtype("the bands", bands[size_t(k)], ll.scalar_type());
    p.bands[k] = plane_strides(bands[size_t(k)]);
  }
  return p;
}

inline Bands empty_bands(const WaveletPool& p, const Tensor& like) {
  const PiecesBeside::Together together;
  const auto empty = [&] { return empty_of(like, {p.n, p.c, p.band_h, p.band_w}); };
  return {empty(), empty(), empty(), empty()};
}

inline Bands with_dense_rows(const Tensor& ll, const Tensor& lh, const Tensor& hl, const Tensor& hh) {
  return {with_dense_rows(ll), with_dense_rows(lh), with_dense_rows(hl), with_dense_rows(hh)};
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor> as_tuple(const Bands& b) { return {b[0], b[1], b[2], b[3]}; }

}  // namespace stylekern

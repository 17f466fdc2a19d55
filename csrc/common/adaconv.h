// adaconv: the sizes and strides that the CPU and CUDA kernels share.
//
//   y[o,i,j] = bias[o] + sum over the input channels m of o's group, a, b of
//                        kernel[o,m,a,b] * x[m, pad(i + a - kh / 2), pad(j + b - kw / 2)]
//
// x is the input, or (input - mean) * rstd where statistics are given. The kernel, a sample's own, is the pointwise
// times the spatial one of the public function; on the CPU it may have that as a scale.
#pragma once
#include <cstdint>

#include "planes.h"

namespace stylekern {

struct AdaConv {
  int64_t n, c, out_c, groups;  // samples, channels in and out, groups
  int64_t h, w;
  int kh, kw;
  Padding padding;
  PlaneStrides input, grad;  // kernel [N, Co, C/G, kh, kw], bias [N, Co] and outputs are contiguous

  STYLEKERN_HD int64_t group_in() const { return c / groups; }
  STYLEKERN_HD int64_t group_out() const { return out_c / groups; }
  STYLEKERN_HD int top() const { return kh / 2; }
  STYLEKERN_HD int left() const { return kw / 2; }
  bool depthwise_3x3() const { return groups == c && kh == 3 && kw == 3; }
};

}  // namespace stylekern

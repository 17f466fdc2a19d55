// style_kernel_conv: the sizes and strides that the CPU and CUDA kernels share.
//
//   sequential  t[i,j] = sum_a vertical[a,i,j] * x[pad(i+a-rv), j]
//               y[i,j] = sum_b horizontal[b,i,j] * t[i, pad(j+b-rh)] + bias[i,j]
//   outer       y[i,j] = sum_a sum_b vertical[a,i,j] * horizontal[b,i,j] * x[pad(i+a-rv), pad(j+b-rh)] + bias[i,j]
//
// x is the input, or (input - mean) * rstd where statistics are given. Channel c reads filter group c / (c_count /
// groups).
#pragma once
#include <cstdint>

#include "planes.h"

namespace stylekern {

inline constexpr int kMostTaps = 51;  // either way

enum class Composition : int { kSequential = 0, kOuter = 1 };

struct StyleKernelConv {
  int64_t n, c, groups;  // samples, channels, filter groups
  int64_t h, w;          // output and filters
  int64_t in_h, in_w;    // input: h, w, or h+kv-1, w+kh-1 with Padding::kNone
  int kv, kh;            // taps
  Padding padding;
  Composition composition;
  PlaneStrides input, vertical, horizontal, bias, grad;  // outputs are contiguous
  int64_t bias_groups;                                   // 0: none; c: a bias a channel; groups: a bias a filter group

  STYLEKERN_HD int64_t channels_per_group() const { return c / groups; }
  STYLEKERN_HD int rv() const { return kv / 2; }
  STYLEKERN_HD int rh() const { return kh / 2; }
};

}  // namespace stylekern

// adain: the sizes and strides that the CPU and CUDA kernels share.
//
//   y = (content - content_mean) * content_rstd / style_rstd + style_mean        rstd = 1 / sqrt(var + eps)
//
// With g the gradient of y, x the normalised content, n and m the positions of content and style:
//   grad_content = content_rstd / style_rstd * (g - sum(g) / n - x * sum(g * x) / (n - correction))
//   grad_style   = sum(g) / m + (style - style_mean) * style_rstd * sum(g * x) / (m - correction)
#pragma once
#include <cstdint>

#include "planes.h"

namespace stylekern {

struct Adain {
  int64_t n, c;
  int64_t h, w;              // of content
  int64_t style_h, style_w;  // of style
  int64_t correction;
  PlaneStrides content{}, style{}, grad{};  // outputs are contiguous

  STYLEKERN_HD int64_t planes() const { return n * c; }
};

}  // namespace stylekern

// adain: from torch tensors to the problem that the kernels read, for CPU and CUDA.
#pragma once
#include "adain.h"
#include "torch_side.h"

namespace stylekern {

inline Adain make_adain(const Tensor& content, const Tensor& style, int64_t correction) {
  STD_TORCH_CHECK(content.dim() == 4 && style.dim() == 4, "adain: content and style must be [N, C, H, W]");
  check_floating("content", content);
  Adain p{content.size(0), content.size(1), content.size(2), content.size(3), style.size(2), style.size(3), correction};
  check_shape("style", style, {p.n, p.c, p.style_h, p.style_w});
  check_dtype("style", style, content.scalar_type());
  STD_TORCH_CHECK(content.numel() == 0 || style.numel() > 0, "adain: style has no positions");
  check_variance("content", content, correction);
  if (content.numel() > 0) check_variance("style", style, correction);
  p.content = plane_strides(content), p.style = plane_strides(style);
  return p;
}

}  // namespace stylekern

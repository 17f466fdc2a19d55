// What the torch side hands to the CPU kernels of adain.
#pragma once
#include "../common/adain.h"
#include "simd.h"

namespace stylekern {

template <class T>
struct AdainArgs {
  Adain problem;
  const T *content, *style, *grad = nullptr;
  T *output = nullptr, *grad_content = nullptr, *grad_style = nullptr;  // null: not asked for
  Acc<T>*content_mean = nullptr, *content_rstd = nullptr, *style_mean = nullptr, *style_rstd = nullptr;  // [N * C]
  double eps = 0;
  bool streamed = false, style_streamed = false;  // output or grad_content, and grad_style, bypass the caches
  bool along = false, fetched = false;            // while a plane is written, the next one's statistics, or it itself

  const T* content_plane(int64_t i) const { return content + problem.content.at_number(i, problem.c); }
  const T* style_plane(int64_t i) const { return style + problem.style.at_number(i, problem.c); }
  const T* grad_plane(int64_t i) const { return grad + problem.grad.at_number(i, problem.c); }
};

}  // namespace stylekern

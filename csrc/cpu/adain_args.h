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

  const T* content_plane(int64_t i) const {
    return content + i / problem.c * problem.content.n + i % problem.c * problem.content.p;
  }
  const T* style_plane(int64_t i) const {
    return style + i / problem.c * problem.style.n + i % problem.c * problem.style.p;
  }
  const T* grad_plane(int64_t i) const {
    return grad + i / problem.c * problem.grad.n + i % problem.c * problem.grad.p;
  }
};

}  // namespace stylekern

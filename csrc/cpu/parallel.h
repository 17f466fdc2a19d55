// Loops on torch's own threads.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace stylekern {

// Calls f(begin, end) on chunks of [0, count). `operations` is about what one step costs; below kWorthAThread of them
// for the whole loop, the caller's thread does it alone.
template <class F>
void parallel_for(int64_t count, int64_t operations, const F& f) {
  constexpr int64_t kWorthAThread = 1 << 16;
  const int64_t grain = std::max<int64_t>(kWorthAThread / std::max<int64_t>(operations, 1), 1);
  if (count <= grain) {
    if (count > 0) f(0, count);
    return;
  }
  torch::stable::parallel_for(0, count, grain, f);
}

}  // namespace stylekern

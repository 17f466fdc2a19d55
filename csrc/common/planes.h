// How a tensor's planes lie in memory.
#pragma once
#include <cstdint>

#include "border.h"

namespace stylekern {

// A tensor [N, P, (K,) H, W] whose W is dense; strides in elements. P is the channel or the filter group.
struct PlaneStrides {
  int64_t n = 0;    // from sample to sample
  int64_t p = 0;    // from channel or group to the next
  int64_t tap = 0;  // from tap to tap; filters only
  int64_t row = 0;  // from row to row
};

}  // namespace stylekern

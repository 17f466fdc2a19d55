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

  // Where plane c of sample i is.
  STYLEKERN_HD int64_t at(int64_t i, int64_t c) const { return i * n + c * p; }
  // Where number `plane` of all planes is, of which a sample has `planes`. Mostly without a division, which takes as
  // long as some rows of a small plane.
  STYLEKERN_HD int64_t at_number(int64_t plane, int64_t planes) const {
    return n == planes * p || plane < planes ? plane * p : at(plane / planes, plane % planes);
  }
};

}  // namespace stylekern

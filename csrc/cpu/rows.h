// A row extended by the border rule, and the adjoint of that.
#pragma once
#include <cstdint>

#include "../common/border.h"

namespace stylekern {

// Fills row[-halo .. -1] and row[w .. w+halo-1] from row[0 .. w-1].
template <class A>
inline void extend_row(A* row, int64_t w, int64_t halo, Padding padding) {
  for (int64_t m = 1; m <= halo; ++m) {
    const int64_t left = border_index(-m, w, padding), right = border_index(w - 1 + m, w, padding);
    row[-m] = left < 0 ? A(0) : row[left];
    row[w - 1 + m] = right < 0 ? A(0) : row[right];
  }
}

// Adds what lies in row[-halo .. -1] and row[w .. w+halo-1] to the samples that extend_row copies there.
template <class A>
inline void fold_row(A* row, int64_t w, int64_t halo, Padding padding) {
  for (int64_t m = 1; m <= halo; ++m) {
    const int64_t left = border_index(-m, w, padding), right = border_index(w - 1 + m, w, padding);
    if (left >= 0) row[left] += row[-m];
    if (right >= 0) row[right] += row[w - 1 + m];
  }
}

}  // namespace stylekern

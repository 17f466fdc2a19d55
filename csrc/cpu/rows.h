// A row extended by the border rule, and the adjoint of that.
#pragma once
#include <cstdint>
#include <vector>

#include "../common/border.h"
#include "simd.h"

namespace stylekern {

// The columns that a row's extension reads, looked up once: the rule costs more than the copy.
class RowBorder {
 public:
  STYLEKERN_NOINLINE RowBorder(int64_t w, int64_t left, int64_t right, Padding padding)
      : w_(w), left_(size_t(left)), right_(size_t(right)) {
    for (int64_t m = 0; m < left; ++m) left_[size_t(m)] = border_index(-1 - m, w, padding);
    for (int64_t m = 0; m < right; ++m) right_[size_t(m)] = border_index(w + m, w, padding);
  }
  RowBorder(int64_t w, int64_t halo, Padding padding) : RowBorder(w, halo, halo, padding) {}

  // Fills row[-left .. -1] and row[w .. w+right-1] from row[0 .. w-1].
  template <class A>
  void extend(A* row) const {
    for (size_t m = 0; m < left_.size(); ++m) row[-1 - int64_t(m)] = left_[m] < 0 ? A(0) : row[left_[m]];
    for (size_t m = 0; m < right_.size(); ++m) row[w_ + int64_t(m)] = right_[m] < 0 ? A(0) : row[right_[m]];
  }

  // The adjoint: adds what lies outside of row[0 .. w-1] to the samples that extend copies there.
  template <class A>
  void fold(A* row) const {
    for (size_t m = 0; m < left_.size(); ++m)
      if (left_[m] >= 0) row[left_[m]] += row[-1 - int64_t(m)];
    for (size_t m = 0; m < right_.size(); ++m)
      if (right_[m] >= 0) row[right_[m]] += row[w_ + int64_t(m)];
  }

 private:
  int64_t w_;
  std::vector<int64_t> left_, right_;
};

// Rows of w values with room for a halo on both sides and a vector beyond; the first value of each is aligned to a
// cache line, so that stores and the middle tap's loads never straddle two.
template <class A>
class PaddedRows {
 public:
  PaddedRows(int64_t w, int64_t halo) : before_(round_up(halo)), stride_(before_ + round_up(w + halo) + kLine) {}

  STYLEKERN_NOINLINE void resize(int64_t rows) {
    const size_t needed = size_t(rows * stride_ + kLine);
    if (values_.size() < needed) values_.resize(needed);
    const uintptr_t address = reinterpret_cast<uintptr_t>(values_.data()), line = kLine * sizeof(A);
    first_ = values_.data() + (line - address % line) % line / sizeof(A) + before_;
  }
  A* row(int64_t i) const { return first_ + i * stride_; }
  int64_t stride() const { return stride_; }

 private:
  static constexpr int64_t kLine = 64 / sizeof(A);
  static int64_t round_up(int64_t x) { return (x + kLine - 1) / kLine * kLine; }

  int64_t before_, stride_;
  std::vector<A> values_;
  A* first_ = nullptr;
};

}  // namespace stylekern

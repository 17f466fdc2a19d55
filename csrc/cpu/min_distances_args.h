// What the torch side hands to the CPU kernels of min_distances.
//
//   cosine      D[i,j] = 1 - x[i] . y[j] / (max(|x[i]|, eps) max(|y[j]|, eps))
//   euclidean   D[i,j] = sqrt(clamp(|x[i] - y[j]|^2, 1e-5, 1e5) / d)
//   row_min[i] = min over j,  col_min[j] = min over i
//
// A pair (i, j) that a minimum has found, with the gradient g of that minimum, gives x[i] the gradient
//   cosine      g / |x[i]| * (cos * x[i] / |x[i]| - y[j] / |y[j]|)     the first term only where |x[i]| >= eps
//   euclidean   g / (d * D[i,j]) * (x[i] - y[j])                       nothing where the clamp holds
// that is, a multiple of x[i] less `weight` times y[j], and y[j] the same with the roles exchanged.
#pragma once
#include <array>

#include "simd.h"

namespace stylekern {

enum class Metric { kCosine, kEuclidean };

inline constexpr double kLeastSquare = 1e-5, kLargestSquare = 1e5;  // the clamp of the euclidean metric

// One of the two sets of features of a sample: rows of d values.
template <class T>
struct Features {
  const T* data = nullptr;
  int64_t count = 0, stride = 0;                  // rows, and elements from row to row
  double *square = nullptr, *checksum = nullptr;  // of each row: its sum of squares; equal rows have equal checksums

  const T* row(int64_t i) const { return data + i * stride; }
};

// A row of matrix products, or the rows themselves, from which a row of the tile's distances is made. Comparisons need
// no more than an order: for cosine -x.y / (|x| |y|) or, with few values a row, |x / |x| - y / |y||^2; for euclidean
// the clamped |x - y|^2.
template <class A>
struct Tile {
  // products [rows, count]; or rows [rows, d] and columns [d, stride]
  const A *values = nullptr, *rows = nullptr, *columns = nullptr;
  int64_t stride = 0, d = 0, count = 0;
  const A *row_scale = nullptr, *row_add = nullptr;  // per row; then per column, inf beyond the last
  const A *column_scale = nullptr, *column_add = nullptr;
};

// One pair's part of a row's gradient: `weight` times the other row, subtracted.
template <class T>
struct Term {
  const T* row;
  double weight;
};

}  // namespace stylekern

// min_distances on the CPU: the torch side of the forward. The kernels are in min_distances.h.
//
// Tiles of the matrix of distances come from torch's own matrix products; one sweep over a tile updates the minima
// of its rows and of its columns. That decides the pairs; their distances are then computed again, in double. So how
// a product rounds, which may depend on the number of threads, only counts where two distances agree within rounding.
#define STYLEKERN_KERNELS "min_distances_target.h"
#include "min_distances_torch.h"
// after the header that the kernels need
#include "foreach_target.h"
#include "matmul.h"
#include "parallel.h"

namespace stylekern {
namespace {

// Rows and columns of a tile: its products cost a hundred times its sweep.
constexpr int64_t kTile = 1024;
// Rows of a tile that one thread sweeps at a time.
constexpr int64_t kBand = 64;
// Up to so many values a row, (x - y)^2 costs no more than a product, and is exact.
constexpr int64_t kDifferences = 16;
// From so many values a row on, the products read the input itself where they can.
constexpr int64_t kWorthAView = 64;

// A range cut into blocks of at most kTile, of equal size but for the last.
struct Blocks {
  int64_t total, size, count;
  explicit Blocks(int64_t total) : total(total) {
    const int64_t wanted = (total + kTile - 1) / kTile;
    size = (total + wanted - 1) / wanted;
    size = (size + 15) / 16 * 16;
    count = (total + size - 1) / size;
  }
  int64_t begin(int64_t b) const { return b * size; }
  int64_t length(int64_t b) const { return std::min(size, total - b * size); }
};

template <class A>
Tensor matrix(A* values, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride) {
  const int64_t sizes[] = {rows, columns}, strides[] = {row_stride, column_stride};
  return torch::stable::from_blob(values, {sizes, 2}, {strides, 2},
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU),
                                  std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float);
}

// Less than, equal to or above zero as row a comes before b, in the order of their first values that differ.
template <class T>
int compare_rows(const T* a, const T* b, int64_t d) {
  for (int64_t k = 0; k < d; ++k)
    if (const double u = widened(a[k]), v = widened(b[k]); u != v) return u < v ? -1 : 1;
  return 0;
}

// Replaces each of the indices by that of the first equal row: a matrix product may round equal rows differently.
template <class T>
void to_first_equal(const Features<T>& side, int64_t d, int64_t* index, int64_t count) {
  std::vector<std::pair<double, int64_t>> sorted;
  for (int64_t i = 0; i < side.count; ++i)
    if (std::isfinite(side.checksum[i])) sorted.emplace_back(side.checksum[i], i);
  std::sort(sorted.begin(), sorted.end());
  std::vector<int64_t> first;  // empty: each row is its own
  for (size_t begin = 0, end = 0; begin < sorted.size(); begin = end) {
    for (end = begin + 1; end < sorted.size() && sorted[end].first == sorted[begin].first;) ++end;
    if (end == begin + 1) continue;
    std::sort(sorted.begin() + int64_t(begin), sorted.begin() + int64_t(end), [&](const auto& a, const auto& b) {
      const int order = compare_rows(side.row(a.second), side.row(b.second), d);
      return order != 0 ? order < 0 : a.second < b.second;
    });
    if (first.empty())
      for (int64_t k = 0; k < side.count; ++k) first.push_back(k);
    for (size_t k = begin + 1; k < end; ++k) {
      const int64_t row = sorted[k].second, before = first[size_t(sorted[k - 1].second)];
      if (compare_rows(side.row(before), side.row(row), d) == 0) first[size_t(row)] = before;
    }
  }
  if (!first.empty())
    for (int64_t k = 0; k < count; ++k) index[k] = first[size_t(index[k])];
}

// What one thread keeps from sample to sample: scratch of a size that does not depend on L x M.
template <class T>
struct Scratch {
  using A = Acc<T>;
  static constexpr int64_t kPadding = 64 / sizeof(A);  // columns are padded to whole vectors of any target

  Blocks rows, columns;
  int64_t stride, bands;
  std::vector<double> scans, weights;                     // squares and checksums of x and of y; the checksum's weights
  std::vector<A> row_best, col_best;                      // minima so far
  std::vector<A> row_scale, row_add, col_scale, col_add;  // of a tile
  std::vector<A> band_best, products;
  std::vector<std::conditional_t<sizeof(A) == 8, int64_t, int32_t>> band_index;
  Tensor x_block, y_block;

  Scratch(const MinDistances& p, const Tensor& like)
      : rows(p.l),
        columns(p.m),
        stride((columns.size + kPadding - 1) / kPadding * kPadding),
        bands((rows.size + kBand - 1) / kBand),
        scans(size_t(2 * (p.l + p.m))),
        weights(size_t(p.d)),
        row_best(size_t(p.l)),
        col_best(size_t(p.m)),
        row_scale(size_t(rows.size), A(1)),
        row_add(size_t(rows.size)),
        col_scale(size_t(stride)),
        col_add(size_t(stride)),
        band_best(size_t(bands * stride)),
        band_index(size_t(bands * stride)),
        x_block(empty_of(like, {0}, accumulate_type(like))),
        y_block(x_block) {
    uint64_t state = 1;
    for (double& weight : weights) {  // between 0.5 and 1.5
      state = state * 6364136223846793005u + 1442695040888963407u;
      weight = 0.5 + double(state >> 40) / double(1 << 24);
    }
  }
  void need_blocks(const MinDistances& p) {
    if (x_block.numel() || p.d == 0) return;
    x_block = empty_of(x_block, {rows.size, p.d}), y_block = empty_of(x_block, {std::max(columns.size, stride), p.d});
  }
};

// The search in one sample.
template <class K, class T>
class Search {
  using A = Acc<T>;

 public:
  Search(const MinDistances& p, Features<T> x, Features<T> y, Scratch<T>& scratch, int64_t* row_index,
         int64_t* col_index)
      : p_(p), x_(x), y_(y), s_(scratch), row_index_(row_index), col_index_(col_index) {
    x_.square = s_.scans.data(), x_.checksum = x_.square + p.l;
    y_.square = x_.checksum + p.l, y_.checksum = y_.square + p.m;
  }

  void run() {
    for (const Features<T>* side : {&x_, &y_})
      parallel_for(side->count, 4 * p_.d,
                   [&](int64_t first, int64_t last) { K::scan(*side, s_.weights.data(), p_.d, first, last); });
    std::fill(s_.row_best.begin(), s_.row_best.end(), std::numeric_limits<A>::infinity());
    std::fill(s_.col_best.begin(), s_.col_best.end(), std::numeric_limits<A>::infinity());
    std::fill(row_index_, row_index_ + p_.l, 0), std::fill(col_index_, col_index_ + p_.m, 0);
    const bool by_differences = p_.d <= kDifferences && !(p_.cosine() && (shortened(x_) || shortened(y_)));
    if (p_.d > 0) sweep_tiles(by_differences);
    if (!by_differences) {
      to_first_equal(y_, p_.d, row_index_, p_.l);
      to_first_equal(x_, p_.d, col_index_, p_.m);
    }
    prefer_bad(x_, y_, row_index_), prefer_bad(y_, x_, col_index_);
  }

  // The distances of the pairs that were found, and what the gradient needs.
  void measure(T* row_min, double* row_match, T* col_min, double* col_match, double* x_norm, double* y_norm) const {
    measure(x_, y_, row_index_, row_min, row_match, x_norm);
    measure(y_, x_, col_index_, col_min, col_match, y_norm);
  }

 private:
  bool bad(const Features<T>& side, int64_t i) const {
    return !std::isfinite(side.checksum[i]) || (p_.cosine() && !std::isfinite(side.square[i]));
  }

  // A row with NaN is NaN away from all others, and a minimum with NaN among them is the first of those.
  STYLEKERN_NOINLINE void prefer_bad(const Features<T>& side, const Features<T>& other, int64_t* index) const {
    int64_t first = 0;
    while (first < other.count && !bad(other, first)) ++first;
    for (int64_t i = 0; i < side.count; ++i) {
      if (bad(side, i))
        index[i] = 0;
      else if (first < other.count)
        index[i] = first;
    }
  }

  // Of all rows the one of middle length. Squares of rows far from where the others are would cost the digits of all.
  STYLEKERN_NOINLINE const T* middle_row() const {
    std::vector<std::pair<double, int64_t>> rows;
    for (int64_t k = 0; k < p_.l + p_.m; ++k) {
      const Features<T>& side = k < p_.l ? x_ : y_;
      const int64_t i = k < p_.l ? k : k - p_.l;
      if (!bad(side, i)) rows.emplace_back(side.square[i], k);
    }
    const auto middle = rows.begin() + int64_t(rows.size() - 1) / 2;
    std::nth_element(rows.begin(), middle, rows.end());
    return middle->second < p_.l ? x_.row(middle->second) : y_.row(middle->second - p_.l);
  }

  // Whether products of the rows as they are stay far from the ends of float's range.
  static bool tame(const Features<T>& side) {
    return std::all_of(side.square, side.square + side.count,
                       [](double s) { return s == 0 || (s >= 1e-30 && s <= 1e30); });
  }
  // Whether some row has a norm between 0 and eps, so that dividing by eps makes it no unit vector.
  STYLEKERN_NOINLINE bool shortened(const Features<T>& side) const {
    return std::any_of(side.square, side.square + side.count, [&](double s) { return s > 0 && std::sqrt(s) < p_.eps; });
  }
  double norm(const Features<T>& side, int64_t i) const { return std::max(std::sqrt(side.square[i]), p_.eps); }

  // A block of rows as the products need them, in scratch; and what is added to their products.
  STYLEKERN_NOINLINE void pack(const Features<T>& side, int64_t first, int64_t count, Tensor& block, A* add) const {
    A* const to = mutable_data<A>(block);
    parallel_for(count, 4 * p_.d, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* const row = side.row(first + i);
        if (p_.cosine())
          K::normalize(row, norm(side, first + i), p_.d, to + i * p_.d);
        else
          add[i] = K::centre(row, centre_, p_.d, to + i * p_.d);
      }
    });
  }

  void sweep_tiles(bool by_differences) {
    const bool direct = p_.cosine() && std::is_same_v<T, A> && p_.d >= kWorthAView && tame(x_) && tame(y_);
    if (!direct) s_.need_blocks(p_);
    int64_t good = 0;
    while (good < p_.m && bad(y_, good)) ++good;
    if (good == p_.m) return;  // every distance is NaN
    if (!p_.cosine()) centre_ = middle_row();
    int64_t packed = -1;
    for (int64_t b = 0; b < s_.columns.count; ++b) {
      const int64_t j0 = s_.columns.begin(b), columns = s_.columns.length(b);
      prepare(y_, j0, columns, direct, by_differences, s_.y_block, s_.col_scale.data(), s_.col_add.data());
      // Beyond the last column nothing is a minimum.
      std::fill(s_.col_scale.begin() + columns, s_.col_scale.end(), A(0));
      std::fill(s_.col_add.begin() + columns, s_.col_add.end(), std::numeric_limits<A>::infinity());
      for (int64_t a = 0; a < s_.rows.count; ++a) {
        const int64_t i0 = s_.rows.begin(a), rows = s_.rows.length(a);
        if (packed != a) {
          prepare(x_, i0, rows, direct, by_differences, s_.x_block, s_.row_scale.data(), s_.row_add.data());
          packed = a;
        }
        std::optional<Tensor> by_torch;
        if (!by_differences) by_torch = multiplied(i0, rows, j0, columns, direct);
        const A* const products = by_torch ? data<A>(*by_torch) : by_differences ? nullptr : s_.products.data();
        Tile<A> tile{products, nullptr, nullptr, s_.stride, p_.d, columns};
        tile.row_scale = s_.row_scale.data(), tile.row_add = s_.row_add.data();
        tile.column_scale = s_.col_scale.data(), tile.column_add = s_.col_add.data();
        if (by_differences) tile.rows = data<A>(s_.x_block), tile.columns = data<A>(s_.y_block);
        if (by_differences && p_.cosine())
          sweep(typename K::template DifferenceOrder<Metric::kCosine>{tile}, i0, rows, j0, columns);
        else if (by_differences)
          sweep(typename K::template DifferenceOrder<Metric::kEuclidean>{tile}, i0, rows, j0, columns);
        else if (p_.cosine())
          sweep(typename K::CosineOrder{tile}, i0, rows, j0, columns);
        else
          sweep(typename K::ExpandedOrder{tile}, i0, rows, j0, columns);
      }
    }
  }

  STYLEKERN_NOINLINE void prepare(const Features<T>& side, int64_t first, int64_t count, bool direct,
                                  bool by_differences, Tensor& block, A* scale, A* add) const {
    for (int64_t i = 0; i < count; ++i) scale[i] = 1, add[i] = 0;
    if (direct) {
      for (int64_t i = 0; i < count; ++i) scale[i] = A(1 / norm(side, first + i));
    } else if (by_differences) {
      A* const to = mutable_data<A>(block);
      // rows of x as they are, columns as rows of d
      const int64_t from_row = &side == &x_ ? p_.d : 1, from_value = &side == &x_ ? 1 : s_.stride;
      parallel_for(count, 16 * p_.d, [&](int64_t begin, int64_t end) {
        A values[kDifferences];
        for (int64_t i = begin; i < end; ++i) {
          if (p_.cosine())
            K::normalize(side.row(first + i), norm(side, first + i), p_.d, values);
          else
            K::widen(side.row(first + i), p_.d, values);
          if (p_.cosine() && side.square[first + i] == 0) scale[i] = 0, add[i] = 2;
          for (int64_t k = 0; k < p_.d; ++k) to[i * from_row + k * from_value] = values[k];
        }
      });
    } else {
      pack(side, first, count, block, add);
    }
  }

  // The products of a tile, by torch, or, of short samples, in scratch.
  std::optional<Tensor> multiplied(int64_t i0, int64_t rows, int64_t j0, int64_t columns, bool direct) const {
    A *x = mutable_data<A>(s_.x_block), *y = mutable_data<A>(s_.y_block);
    int64_t x_stride = p_.d, y_stride = p_.d;
    if constexpr (std::is_same_v<T, A>)
      if (direct) {
        x = const_cast<A*>(x_.row(i0)), y = const_cast<A*>(y_.row(j0));
        x_stride = x_.stride, y_stride = y_.stride;
      }
    if (!p_.short_samples()) return product(matrix(x, rows, p_.d, x_stride, 1), matrix(y, p_.d, columns, 1, y_stride));
    s_.products.resize(size_t(rows * columns));
    parallel_for(rows, columns * p_.d, [&](int64_t begin, int64_t end) {
      K::multiply(x + begin * x_stride, x_stride, end - begin, y, y_stride, columns, p_.d,
                  s_.products.data() + begin * columns);
    });
    return {};
  }

  template <class Order>
  void sweep(const Order& order, int64_t i0, int64_t rows, int64_t j0, int64_t columns) {
    const int64_t bands = (rows + kBand - 1) / kBand;
    parallel_for(bands, kBand * columns * 2, [&](int64_t first, int64_t last) {
      for (int64_t band = first; band < last; ++band)
        K::sweep(order, band * kBand, std::min(rows, (band + 1) * kBand), s_.row_best.data() + i0, row_index_ + i0, j0,
                 s_.band_best.data() + band * s_.stride, s_.band_index.data() + band * s_.stride);
    });
    take_bands(bands, i0, j0, columns);
  }

  // The minima of columns that the bands of a tile have.
  STYLEKERN_NOINLINE void take_bands(int64_t bands, int64_t i0, int64_t j0, int64_t columns) {
    for (int64_t band = 0; band < bands; ++band)
      for (int64_t j = 0; j < columns; ++j) {
        const A best = s_.band_best[size_t(band * s_.stride + j)];
        if (best < s_.col_best[size_t(j0 + j)]) {
          s_.col_best[size_t(j0 + j)] = best;
          col_index_[j0 + j] = i0 + s_.band_index[size_t(band * s_.stride + j)];
        }
      }
  }

  STYLEKERN_NOINLINE void measure(const Features<T>& side, const Features<T>& other, const int64_t* index, T* minimum,
                                  double* match, double* norms) const {
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    parallel_for(side.count, 4 * p_.d, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t j = index[i];
        const bool is_nan = bad(side, i) || bad(other, j);
        double found = 0, distance = 0;
        if (p_.cosine()) {
          const double square = side.square[i] * other.square[j], least = p_.eps;
          // The root of the product: of two equal rows exactly their product, so that they are 0 apart.
          const bool plain = std::sqrt(side.square[i]) >= least && std::sqrt(other.square[j]) >= least &&
                             square > 1e-290 && square < 1e290;
          const double product = K::dot(side.row(i), other.row(j), p_.d);
          found = plain ? product / std::sqrt(square) : product / norm(side, i) / norm(other, j);
          distance = std::clamp(1 - found, 0.0, 2.0);
        } else {
          found = K::squared_distance(side.row(i), other.row(j), p_.d);
          distance = std::sqrt(std::clamp(found, kLeastSquare, kLargestSquare) / double(p_.d));
        }
        minimum[i] = narrow<T>(is_nan ? nan : distance), match[i] = is_nan ? nan : found;
        norms[i] = std::sqrt(side.square[i]);
      }
    });
  }

  const MinDistances& p_;
  Features<T> x_, y_;
  Scratch<T>& s_;
  int64_t *row_index_, *col_index_;
  const T* centre_ = nullptr;  // which rows are moved by, euclidean
};

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Results min_distances(Tensor x, Tensor y, StringHandle metric, double eps) {
  x = with_dense_rows(x), y = with_dense_rows(y);
  MinDistances p = make_min_distances(x, y, metric, eps);
  // A block of y meets all blocks of x before the next: the longer one shall stream past.
  const bool swapped = p.l < p.m;
  if (swapped) std::swap(x, y), std::swap(p.l, p.m);
  const ScalarType type = ScalarType::Double;  // their rounding would not cancel where two rows are close
  Tensor row_min = empty_of(x, {p.n, p.l}), row_argmin = empty_of(x, {p.n, p.l}, ScalarType::Long);
  Tensor col_min = empty_of(x, {p.n, p.m}), col_argmin = empty_of(x, {p.n, p.m}, ScalarType::Long);
  Tensor row_match = empty_of(x, {p.n, p.l}, type), col_match = empty_of(x, {p.n, p.m}, type);
  Tensor x_norm = empty_of(x, {p.n, p.l}, type), y_norm = empty_of(x, {p.n, p.m}, type);
  const Results results = swapped
                              ? Results{col_min, col_argmin, row_min, row_argmin, col_match, row_match, y_norm, x_norm}
                              : Results{row_min, row_argmin, col_min, col_argmin, row_match, col_match, x_norm, y_norm};
  if (row_min.numel() == 0) return results;
  with_dtype(x, [&](auto value) {
    using T = decltype(value);
    const auto search = [&](Scratch<T>& scratch, int64_t k) {
      const auto find = [&](auto kernels) {
        Search<decltype(kernels), T> search(p, features<T>(x, k), features<T>(y, k), scratch,
                                            mutable_data<int64_t>(row_argmin) + k * p.l,
                                            mutable_data<int64_t>(col_argmin) + k * p.m);
        search.run();
        search.measure(mutable_data<T>(row_min) + k * p.l, mutable_data<double>(row_match) + k * p.l,
                       mutable_data<T>(col_min) + k * p.m, mutable_data<double>(col_match) + k * p.m,
                       mutable_data<double>(x_norm) + k * p.l, mutable_data<double>(y_norm) + k * p.m);
      };
#define STYLEKERN_CALL(target) find(target::MinDistancesKernels<T>{})
      [&] { STYLEKERN_FOR_TARGET(STYLEKERN_CALL); }();
#undef STYLEKERN_CALL
    };
    for_samples(p, [&] { return Scratch<T>(p, x); }, search);
  });
  return results;
}

}  // namespace
}  // namespace stylekern

STABLE_TORCH_LIBRARY_IMPL(stylekern, CPU, m) { m.impl("min_distances", TORCH_BOX(&stylekern::min_distances)); }

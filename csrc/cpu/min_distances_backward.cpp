// min_distances on the CPU: the torch side of the backward. A row of a gradient is made in one pass over the rows that
// are paired with it, which a stable counting sort of the argmins lists: no atomics, and no order that could differ.
#define STYLEKERN_KERNELS "min_distances_target.h"
#include "min_distances_torch.h"
// after the header that the kernels need
#include "foreach_target.h"
#include "parallel.h"

namespace stylekern {
namespace {

// The minima of one direction in one sample: which pairs they found, and what these contribute.
struct Pairs {
  const int64_t* index;              // of the other side, for each row of this one
  std::vector<double> weight;        // of the other row, in this row's gradient, and the reverse
  std::vector<double> own;           // of the row itself, before `own_factor`
  std::vector<int64_t> begin, rows;  // rows[begin[j] .. begin[j + 1] - 1] are those whose minimum is with row j
};

template <class T>
struct Direction {
  const T* grad;  // null: zeros
  const int64_t* index;
  const double *match, *norm, *other_norm;
  int64_t count, others;
};

template <class T>
Pairs make_pairs(const MinDistances& p, const Direction<T>& to) {
  Pairs pairs{to.index, std::vector<double>(size_t(to.count)), std::vector<double>(size_t(to.count)),
              std::vector<int64_t>(size_t(to.others + 1)), std::vector<int64_t>(size_t(to.count))};
  for (int64_t i = 0; i < to.count; ++i) {
    const int64_t j = to.index[i];
    ++pairs.begin[size_t(j + 1)];
    const double grad = to.grad ? widened(to.grad[i]) : 0;
    if (grad == 0) continue;  // not even times infinity
    double &weight = pairs.weight[size_t(i)], &own = pairs.own[size_t(i)];
    const double match = to.match[i];
    if (p.cosine()) {
      // g / (|x| |y|), and g cos, which own_factor divides by |x|^2
      weight = grad / std::max(to.norm[i], p.eps) / std::max(to.other_norm[j], p.eps);
      own = grad * match;
    } else if (!(match < kLeastSquare || match > kLargestSquare)) {
      // g / (d sqrt(square / d))
      own = weight = grad / std::sqrt(match * double(p.d));
    }
  }
  for (size_t j = 0; j + 1 < pairs.begin.size(); ++j) pairs.begin[j + 1] += pairs.begin[j];
  std::vector<int64_t> next(pairs.begin.begin(), pairs.begin.end() - 1);
  for (int64_t i = 0; i < to.count; ++i) pairs.rows[size_t(next[size_t(to.index[i])]++)] = i;
  return pairs;
}

// The gradient of one side: x with the minima of its own rows first, or y with those of its columns.
template <class K, class T>
void side_gradient(const MinDistances& p, const Features<T>& side, const Features<T>& other, const double* norms,
                   const Pairs& mine, const Pairs& theirs, T* to) {
  // Shares of about as many pairs for each thread: a row that is nearest to many costs as much as all of those.
  const int64_t shares = 4 * int64_t(torch::stable::get_num_threads()), total = side.count + other.count;
  const auto share_begin = [&](int64_t share) {
    int64_t low = 0, high = side.count;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (middle + theirs.begin[size_t(middle)] < total * share / shares)
        low = middle + 1;
      else
        high = middle;
    }
    return share == shares ? side.count : low;
  };
  parallel_for(shares, 4 * p.d * (total / shares + 1), [&](int64_t first, int64_t last) {
    std::vector<Term<T>> terms;
    for (int64_t i = share_begin(first); i < share_begin(last); ++i) {
      terms.clear();
      double own = 0;
      const auto add = [&](int64_t row, double weight, double part) {
        own += part;
        if (weight != 0) terms.push_back({other.row(row), weight});
      };
      add(mine.index[i], mine.weight[size_t(i)], mine.own[size_t(i)]);
      for (int64_t k = theirs.begin[size_t(i)]; k < theirs.begin[size_t(i) + 1]; ++k) {
        const int64_t j = theirs.rows[size_t(k)];
        add(j, theirs.weight[size_t(j)], theirs.own[size_t(j)]);
      }
      if (p.cosine()) {
        own = norms[i] < p.eps ? 0 : own / norms[i] / norms[i];  // a norm below eps is a constant
      }
      K::gather(side.row(i), own, terms.data(), int64_t(terms.size()), p.d, to + i * p.d);
    }
  });
}

std::tuple<Tensor, Tensor> min_distances_backward(std::optional<Tensor> grad_row, std::optional<Tensor> grad_col,
                                                  Tensor x, Tensor y, Tensor row_argmin, Tensor col_argmin,
                                                  Tensor row_match, Tensor col_match, Tensor x_norm, Tensor y_norm,
                                                  StringHandle metric, double eps, bool need_x, bool need_y) {
  x = with_dense_rows(x), y = with_dense_rows(y);
  const MinDistances p = make_min_distances(x, y, metric, eps);
  const auto check = [&](const char* name, const Tensor& values, int64_t count, ScalarType type) {
    check_shape(name, values, {p.n, count});
    check_dtype(name, values, type);
    STD_TORCH_CHECK(values.is_contiguous(), "stylekern: ", name, " must be contiguous");
  };
  const ScalarType type = ScalarType::Double;
  if (grad_row) check("grad_row", grad_row.emplace(torch::stable::contiguous(*grad_row)), p.l, x.scalar_type());
  if (grad_col) check("grad_col", grad_col.emplace(torch::stable::contiguous(*grad_col)), p.m, x.scalar_type());
  check("row_argmin", row_argmin, p.l, ScalarType::Long), check("col_argmin", col_argmin, p.m, ScalarType::Long);
  check("row_match", row_match, p.l, type), check("col_match", col_match, p.m, type);
  check("x_norm", x_norm, p.l, type), check("y_norm", y_norm, p.m, type);
  const auto check_rows = [](const Tensor& index, int64_t rows) {
    const int64_t* const first = data<int64_t>(index);
    STD_TORCH_CHECK(std::all_of(first, first + index.numel(), [&](int64_t j) { return j >= 0 && j < rows; }),
                    "stylekern: an argmin is no row of the other side");
  };
  check_rows(row_argmin, p.m), check_rows(col_argmin, p.l);
  Tensor grad_x = need_x ? empty_of(x, {p.n, p.l, p.d}) : empty_of(x, {0});
  Tensor grad_y = need_y ? empty_of(y, {p.n, p.m, p.d}) : empty_of(y, {0});
  if (x.numel() == 0) return {grad_x, grad_y};
  with_dtype(x, [&](auto value) {
    using T = decltype(value);
    const auto differentiate_sample = [&](auto&, int64_t k) {
      const double *of_x = data<double>(x_norm) + k * p.l, *of_y = data<double>(y_norm) + k * p.m;
      const Pairs rows =
          make_pairs<T>(p, {grad_row ? data<T>(*grad_row) + k * p.l : nullptr, data<int64_t>(row_argmin) + k * p.l,
                            data<double>(row_match) + k * p.l, of_x, of_y, p.l, p.m});
      const Pairs columns =
          make_pairs<T>(p, {grad_col ? data<T>(*grad_col) + k * p.m : nullptr, data<int64_t>(col_argmin) + k * p.m,
                            data<double>(col_match) + k * p.m, of_y, of_x, p.m, p.l});
      const Features<T> of[] = {features<T>(x, k), features<T>(y, k)};
      const auto differentiate = [&](auto kernels) {
        using K = decltype(kernels);
        if (need_x) side_gradient<K, T>(p, of[0], of[1], of_x, rows, columns, mutable_data<T>(grad_x) + k * p.l * p.d);
        if (need_y) side_gradient<K, T>(p, of[1], of[0], of_y, columns, rows, mutable_data<T>(grad_y) + k * p.m * p.d);
      };
#define STYLEKERN_CALL(target) differentiate(target::MinDistancesKernels<T>{})
      [&] { STYLEKERN_FOR_TARGET(STYLEKERN_CALL); }();
#undef STYLEKERN_CALL
    };
    for_samples(p, [] { return 0; }, differentiate_sample);
  });
  return {grad_x, grad_y};
}

}  // namespace
}  // namespace stylekern

STABLE_TORCH_LIBRARY_IMPL(stylekern, CPU, m) {
  m.impl("min_distances_backward", TORCH_BOX(&stylekern::min_distances_backward));
}

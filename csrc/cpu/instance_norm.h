// Instance normalisation of one plane: statistics and the adjoint. Included by foreach_target.h.
namespace stylekern::STYLEKERN_TARGET {

// A sum in double over the lanes of vectors of float or double.
class LaneSum {
 public:
  void add(Vec<float> v) {
    typedef float HalfVector __attribute__((vector_size(STYLEKERN_VECTOR_BYTES / 2)));
    HalfVector halves[2];
    std::memcpy(halves, &v, sizeof v);
    low_ += __builtin_convertvector(halves[0], Vec<double>);
    high_ += __builtin_convertvector(halves[1], Vec<double>);
  }
  void add(Vec<double> v) { low_ += v; }
  double total() const {
    const Vec<double> both = low_ + high_;
    double sum = 0;
    for (int l = 0; l < kLanes<double>; ++l) sum += both[l];
    return sum;
  }

 private:
  Vec<double> low_{}, high_{};
};

// Sums term(j), a vector, over the whole vectors of [0, length). Four are added in float before they widen: that costs
// no digit that the terms have, and saves most of the conversions.
template <class A, class F>
inline __attribute__((always_inline)) void add_terms(LaneSum& sum, int64_t length, F&& term) {
  constexpr int64_t lanes = kLanes<A>;
  int64_t j = 0;
  for (; j + 4 * lanes <= length; j += 4 * lanes)
    sum.add((term(j) + term(j + lanes)) + (term(j + 2 * lanes) + term(j + 3 * lanes)));
  for (; j + lanes <= length; j += lanes) sum.add(term(j));
}

// Rows of a plane; a dense plane is one long row, so that narrow pictures have no tails.
template <class T, class F>
inline __attribute__((always_inline)) void for_runs(int64_t h, int64_t w, int64_t row, F&& f) {
  constexpr int64_t kRun = 2048;  // values that stay in the first-level cache between two looks
  const int64_t lines = row == w ? 1 : h, length = row == w ? h * w : w;
  for (int64_t i = 0; i < lines; ++i)
    for (int64_t j = 0; j < length; j += kRun) f(i * row + j, std::min(kRun, length - j));
}

// mean and 1 / sqrt(var + eps) of a plane. One read: each run of values takes two passes while it is in cache, and runs
// are merged by the parallel form of Welford's update, so a large mean costs no digits.
template <class T>
void instance_statistics(const T* plane, int64_t h, int64_t w, int64_t row, double eps, int64_t correction,
                         Acc<T>* mean_out, Acc<T>* rstd_out) {
  using A = Acc<T>;
  double count = 0, mean = 0, m2 = 0;
  for_runs<T>(h, w, row, [&](int64_t offset, int64_t length) {
    const T* x = plane + offset;
    const int64_t whole = length / kLanes<A> * kLanes<A>;
    LaneSum sum;
    add_terms<A>(sum, length, [&](int64_t j) { return load(x + j); });
    if (whole < length) sum.add(load(x + whole, length - whole));
    const double run_mean = sum.total() / double(length);
    // The squares around a rounded centre, and what the rounding left out.
    const A centre = A(run_mean);
    LaneSum squares;
    add_terms<A>(squares, length, [&](int64_t j) {
      const Vec<A> d = load(x + j) - centre;
      return d * d;
    });
    double run_m2 = squares.total();
    if (whole < length) {
      const Vec<A> d = load(x + whole, length - whole) - centre;
      for (int64_t l = 0; l < length - whole; ++l) run_m2 += double(d[l]) * double(d[l]);
    }
    run_m2 -= double(length) * (run_mean - centre) * (run_mean - centre);
    const double total = count + double(length), delta = run_mean - mean;
    m2 += run_m2 + delta * delta * count * double(length) / total;
    mean += delta * double(length) / total;
    count = total;
  });
  *mean_out = A(mean);
  *rstd_out = A(1 / std::sqrt(m2 / (count - double(correction)) + eps));
}

// With y = (x - mean) * rstd and g the gradient of y:
//   grad_x = rstd * (g - sum(g) / n - y * sum(g * y) / (n - correction))
// g is dense; it may be grad_x itself.
template <class T>
void instance_norm_backward(const Acc<T>* g, const T* x, int64_t h, int64_t w, int64_t row, Acc<T> mean, Acc<T> rstd,
                            int64_t correction, T* grad_x) {
  using A = Acc<T>;
  const double n = double(h) * double(w);
  if (row == w) w *= std::exchange(h, 1);  // a dense plane is one long row
  LaneSum sum_g, sum_gy;
  for (int64_t i = 0; i < h; ++i) {
    const A* const gi = g + i * w;
    const T* const xi = x + i * row;
    const int64_t whole = w / kLanes<A> * kLanes<A>;
    add_terms<A>(sum_g, w, [&](int64_t j) { return load(gi + j); });
    add_terms<A>(sum_gy, w, [&](int64_t j) { return load(gi + j) * ((load(xi + j) - mean) * rstd); });
    if (whole < w) {
      const Vec<A> rest = load(gi + whole, w - whole);  // zero beyond the row
      sum_g.add(rest);
      sum_gy.add(rest * ((load(xi + whole, w - whole) - mean) * rstd));
    }
  }
  const A mean_g = A(sum_g.total() / n), mean_gy = A(sum_gy.total() / (n - double(correction)));
  for (int64_t i = 0; i < h; ++i)
    for_vectors<A>(w, [&](int64_t j, auto count) {
      const Vec<A> y = (load(x + i * row + j, count) - mean) * rstd;
      store(grad_x + i * w + j, (load(g + i * w + j, count) - mean_g - y * mean_gy) * rstd, count);
    });
}

}  // namespace stylekern::STYLEKERN_TARGET

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

// Sums term(j), a vector, over the whole vectors of [0, length). Eight are added before they widen: that costs no digit
// that the terms have, and saves most of the conversions.
template <class A, class F>
STYLEKERN_INLINE void add_terms(LaneSum& sum, int64_t length, F&& term) {
  constexpr int64_t lanes = kLanes<A>;
  int64_t j = 0;
  for (; j + 8 * lanes <= length; j += 8 * lanes) {
    Vec<A> part[4];
    for (int64_t k = 0; k < 4; ++k) part[k] = term(j + 2 * k * lanes) + term(j + (2 * k + 1) * lanes);
    sum.add((part[0] + part[1]) + (part[2] + part[3]));
  }
  for (; j + lanes <= length; j += lanes) sum.add(term(j));
}

// Moments of values that arrive in runs, about a centre that the values before them gave.
template <class A>
class Moments {
 public:
  // The sum of the squares about the centre c, less the square of their mean, loses digits only by as much as that mean
  // lies off c. Those before weigh at least a third of the run, so such a distance is variance of the whole as well,
  // and what is lost stays below a few roundings of it.
  template <class T>
  void add(const T* x, int64_t length) {
    while (length > 0) {
      const int64_t open = (count_ > 0 ? 3 * count_ : std::min(length, kFirst)) - run_count_;
      const int64_t taken = std::min(open, length);
      if (count_ == 0) centre_ = mean_of(x, taken);  // a first look at the first run
      add_to_run(x, taken);
      x += taken, length -= taken;
      if (taken == open) close_run();
    }
  }
  void close_run() {
    if (run_count_ == 0) return;
    const double n = double(run_count_), d = sum_.total() / n, total = double(count_) + n;
    const double run_mean = double(centre_) + d, delta = run_mean - mean_;
    m2_ += squares_.total() - n * d * d + delta * delta * double(count_) * n / total;
    mean_ += delta * n / total;
    count_ += run_count_, run_count_ = 0;
    sum_ = squares_ = LaneSum();
    centre_ = A(mean_);
  }
  double mean() const { return mean_; }
  double variance(int64_t correction) const { return std::max(m2_, 0.0) / double(count_ - correction); }

 private:
  static constexpr int64_t kFirst = 256;

  template <class T>
  static A mean_of(const T* x, int64_t length) {
    LaneSum sum;
    add_terms<A>(sum, length, [&](int64_t j) { return load(x + j); });
    const int64_t whole = length / kLanes<A> * kLanes<A>;
    if (whole < length) sum.add(load(x + whole, length - whole));
    return A(sum.total() / double(length));
  }
  template <class T>
  void add_to_run(const T* x, int64_t length) {
    constexpr int64_t lanes = kLanes<A>;
    const A centre = centre_;
    LaneSum sum = sum_, squares = squares_;
    int64_t j = 0;
    for (; j + 8 * lanes <= length; j += 8 * lanes) {
      Vec<A> d = load(x + j) - centre, part = d, part_squares = d * d;
      for (int64_t k = 1; k < 8; ++k) {
        d = load(x + j + k * lanes) - centre;
        part += d, part_squares += d * d;
      }
      sum.add(part), squares.add(part_squares);
    }
    for (; j < length; j += lanes) {
      const int64_t rest = std::min(lanes, length - j);
      const Vec<A> d = first_lanes<A>(rest == lanes ? load(x + j) - centre : load(x + j, rest) - centre, rest);
      sum.add(d), squares.add(d * d);
    }
    sum_ = sum, squares_ = squares;
    run_count_ += length;
  }

  int64_t count_ = 0, run_count_ = 0;
  double mean_ = 0, m2_ = 0;
  A centre_ = 0;
  LaneSum sum_, squares_;
};

// mean and 1 / sqrt(var + eps) of a plane, in one read.
template <class T>
void instance_statistics(const T* plane, int64_t h, int64_t w, int64_t row, double eps, int64_t correction,
                         Acc<T>* mean, Acc<T>* rstd) {
  Moments<Acc<T>> moments;
  if (row == w) w *= std::exchange(h, 1);  // a dense plane is one long row
  for (int64_t i = 0; i < h; ++i) moments.add(plane + i * row, w);
  moments.close_run();
  *mean = Acc<T>(moments.mean());
  *rstd = Acc<T>(1 / std::sqrt(moments.variance(correction) + eps));
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
    for_vectors<A>(w, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
      const Vec<A> y = (load(x + i * row + j, count) - mean) * rstd;
      store(grad_x + i * w + j, (load(g + i * w + j, count) - mean_g - y * mean_gy) * rstd, count);
    });
}

}  // namespace stylekern::STYLEKERN_TARGET

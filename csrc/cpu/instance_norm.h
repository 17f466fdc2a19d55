// Instance normalisation of one plane: statistics and the adjoint. Included by foreach_target.h.
namespace stylekern::STYLEKERN_TARGET {

// A sum in double over the lanes of vectors of float or double.
class LaneSum {
 public:
  STYLEKERN_ALWAYS_INLINE void add(Vec<float> v) {
    typedef float HalfVector __attribute__((vector_size(STYLEKERN_VECTOR_BYTES / 2)));
    HalfVector halves[2];
    std::memcpy(halves, &v, sizeof v);
    low_ += __builtin_convertvector(halves[0], Vec<double>);
    high_ += __builtin_convertvector(halves[1], Vec<double>);
  }
  STYLEKERN_ALWAYS_INLINE void add(Vec<double> v) { low_ += v; }
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

// Sums of what arrives a vector at a time, about a centre. A plain value, so that a loop keeps it in registers.
template <class A>
struct RunningMoments {
  Vec<A> centre, sum, squares;

  STYLEKERN_INLINE void add(Vec<A> x) {
    const Vec<A> d = x - centre;
    sum += d, squares = fma(d, d, squares);
  }
  STYLEKERN_INLINE void add(Vec<A> x, int64_t count) {
    const Vec<A> d = first_lanes<A>(x - centre, count);
    sum += d, squares = fma(d, d, squares);
  }
};

// Mean and variance of a plane in one read, about the mean of its first values.
//
// The squares about a centre, less n times the squared distance to it, lose as many digits as that distance squared has
// over the variance. Where that is much, the plane is read again about the mean that was found. The order of additions
// depends on h, w and row alone: whoever walks the rows, the result has the same bits.
template <class T>
class PlaneMoments {
 public:
  using A = Acc<T>;

  PlaneMoments(const T* plane, int64_t h, int64_t w, int64_t row) : plane_(plane), h_(h), w_(w), row_(row) {
    if (row == w && w % kLanes<A>) w_ *= std::exchange(h_, 1);  // narrow rows that touch are one long row
    const int64_t first = std::min<int64_t>(row == w ? h * w : w, 256);
    LaneSum sum;
    for_vectors<A>(first, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE { sum.add(load(plane + j, count)); });
    restart(A(sum.total() / double(first)));
  }

  // Whether rows can be walked by someone else, whole vectors at a time, with end_row() after each.
  static bool can_share(int64_t w) { return w % kLanes<A> == 0 && w <= kPending; }

  const T* row(int64_t i) const { return plane_ + i * row_; }
  RunningMoments<A> running() const { return {broadcast(centre_), Vec<A>{}, Vec<A>{}}; }

  // After each row, with what add() has summed since the last call: sums in A stay short.
  STYLEKERN_INLINE void end_row(RunningMoments<A>& running) {
    if ((pending_ += w_) < kPending) return;
    collect(running);
  }
  STYLEKERN_INLINE void collect(RunningMoments<A>& running) {
    sum_.add(running.sum), squares_.add(running.squares);
    running.sum = running.squares = Vec<A>{};
    pending_ = 0;
  }

  void add_all() {
    RunningMoments<A> running = this->running();
    for (int64_t i = 0; i < h_; ++i) {
      for (int64_t j0 = 0; j0 < w_; j0 += kPending) {  // a long row is several
        const T* x = row(i) + j0;
        for_vectors<A>(std::min(w_ - j0, kPending),
                       [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE { add(running, load(x + j, count), count); });
        if (w_ > kPending) collect(running);
      }
      if (w_ <= kPending) end_row(running);
    }
    collect(running);
  }

  void result(double eps, int64_t correction, A* mean, A* rstd) {
    const double n = double(h_) * double(w_);
    double d = sum_.total() / n, m2 = squares_.total() - n * d * d;
    if (n * d * d > 4 * m2) {
      restart(A(double(centre_) + d));
      add_all();
      d = sum_.total() / n, m2 = squares_.total() - n * d * d;
    }
    double found = double(centre_) + d;
    if (!std::isfinite(m2)) std::tie(found, m2) = in_double();
    *mean = A(found);
    *rstd = A(1 / std::sqrt(std::max(m2, 0.0) / (n - double(correction)) + eps));
  }

 private:
  static constexpr int64_t kPending = 1024;

  // The mean, and the sum of squares about it. Squares of floats beyond 1e18 overflow a float.
  std::pair<double, double> in_double() const {
    double mean = 0, m2 = 0;
    const auto each = [&](auto f) {
      for (int64_t i = 0; i < h_; ++i)
        for (int64_t j = 0; j < w_; ++j) f(double(load_first(row(i) + j, 1)[0]));
    };
    each([&](double x) { mean += x; });
    mean /= double(h_) * double(w_);
    each([&](double x) { m2 += (x - mean) * (x - mean); });
    return {mean, m2};
  }

  template <int lanes>
  STYLEKERN_INLINE static void add(RunningMoments<A>& to, Vec<A> x, std::integral_constant<int, lanes>) {
    to.add(x);
  }
  STYLEKERN_INLINE static void add(RunningMoments<A>& to, Vec<A> x, int64_t count) { to.add(x, count); }
  void restart(A centre) {
    centre_ = centre, pending_ = 0;
    sum_ = squares_ = LaneSum();
  }

  const T* plane_;
  int64_t h_, w_, row_, pending_ = 0;
  A centre_ = 0;
  LaneSum sum_, squares_;
};

// mean and 1 / sqrt(var + eps) of a plane.
template <class T>
void instance_statistics(const T* plane, int64_t h, int64_t w, int64_t row, double eps, int64_t correction,
                         Acc<T>* mean, Acc<T>* rstd) {
  PlaneMoments<T> moments(plane, h, w, row);
  moments.add_all();
  moments.result(eps, correction, mean, rstd);
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
    add_terms<A>(sum_g, w, [&](int64_t j) STYLEKERN_ALWAYS_INLINE { return load(gi + j); });
    add_terms<A>(sum_gy, w,
                 [&](int64_t j) STYLEKERN_ALWAYS_INLINE { return load(gi + j) * ((load(xi + j) - mean) * rstd); });
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
      const Vec<A> centred = load(g + i * w + j, count) - mean_g;
      store(grad_x + i * w + j, fma(y, broadcast(-mean_gy), centred) * rstd, count);
    });
}

}  // namespace stylekern::STYLEKERN_TARGET

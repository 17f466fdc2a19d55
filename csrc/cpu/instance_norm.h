// Instance normalisation of one plane: statistics and the adjoint. Included by foreach_target.h.
namespace stylekern::STYLEKERN_TARGET {

// Sums of what arrives a vector at a time, about a centre. A plain value, so that a loop keeps it in registers.
template <class A>
struct RunningMoments {
  Vec<A> centre, sum, squares, other_sum{}, other_squares{};

  STYLEKERN_INLINE void add(Vec<A> x) {
    const Vec<A> d = x - centre;
    sum += d, squares = fma(d, d, squares);
  }
  STYLEKERN_INLINE void add(Vec<A> x, int64_t count) {
    const Vec<A> d = first_lanes<A>(x - centre, count);
    sum += d, squares = fma(d, d, squares);
  }
  // Adds to the other sums from here on: an addition waits for the one before it to the same sum.
  STYLEKERN_INLINE void alternate() { std::swap(sum, other_sum), std::swap(squares, other_squares); }
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
    if (row == w && w % kLanes<A>) w_ *= std::exchange(h_, 1);  // rows that touch are one long row
    const int64_t first = std::min<int64_t>(row == w ? h * w : w, 64);
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
    if ((pending_ += w_) < kPending) return running.alternate();
    collect(running);
  }
  STYLEKERN_INLINE void collect(RunningMoments<A>& running) {
    sum_.add(running.sum + running.other_sum), squares_.add(running.squares + running.other_squares);
    running.sum = running.squares = running.other_sum = running.other_squares = Vec<A>{};
    pending_ = 0;
  }

  void add_all() {
    RunningMoments<A> running = this->running();
    for (int64_t i = 0; i < h_; ++i) {
      if (w_ > kPending) {
        for (int64_t j0 = 0; j0 < w_; j0 += kPending) {  // a long row is several
          add_long(running, row(i) + j0, std::min(w_ - j0, kPending));
          collect(running);
        }
      } else if (i + 1 < h_ && w_ % kLanes<A> == 0 && w_ <= 2 * kLanes<A> && pending_ + w_ < kPending) {
        add_two_rows(running, i++);
      } else {
        for_vectors<A>(
            w_, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE { add(running, load(row(i) + j, count), count); });
        end_row(running);
      }
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

  // Vectors alternate between the two sums.
  STYLEKERN_INLINE static void add_long(RunningMoments<A>& to, const T* x, int64_t length) {
    constexpr int64_t lanes = kLanes<A>;
    RunningMoments<A> even = to, odd = to;
    odd.alternate();
    int64_t j = 0;
    for (; j + 2 * lanes <= length; j += 2 * lanes) even.add(load(x + j)), odd.add(load(x + j + lanes));
    to = even, to.other_sum = odd.sum, to.other_squares = odd.squares;
    for_vectors<A>(length - j,
                   [&](int64_t k, auto count) STYLEKERN_ALWAYS_INLINE { add(to, load(x + j + k, count), count); });
  }

  // Rows i and i + 1 at once, with the sums that they would have one after the other. For short rows: two longer ones
  // are two streams, which halves the speed of a plane that comes from memory.
  STYLEKERN_INLINE void add_two_rows(RunningMoments<A>& to, int64_t i) {
    RunningMoments<A> even = to, odd = to;
    odd.alternate();
    for (int64_t j = 0; j < w_; j += kLanes<A>) even.add(load(row(i) + j)), odd.add(load(row(i + 1) + j));
    to = even, to.other_sum = odd.sum, to.other_squares = odd.squares;
    if ((pending_ += 2 * w_) >= kPending) collect(to);
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

// A plane whose rows touch, in every tensor that has it, is one long row.
inline void flatten(int64_t& h, int64_t& w, std::initializer_list<int64_t> rows) {
  for (int64_t row : rows)
    if (row != w) return;
  w *= std::exchange(h, 1);
}

struct GradientSums {
  double g = 0, gx = 0;
};

// sum(g) and sum(g * x) of a plane, a vector at a time. The order of additions depends on the order of vectors and on
// where end() is called.
template <class A>
class RunningGradientSums {
 public:
  STYLEKERN_INLINE void add(Vec<A> g, Vec<A> x) { g_ += g, gx_ = fma(g, x, gx_); }
  // After `count` values: sums in A stay short.
  STYLEKERN_INLINE void end(int64_t count) {
    if ((pending_ += count) >= kPending) collect();
  }
  GradientSums total() {
    collect();
    return {sum_g_.total(), sum_gx_.total()};
  }

  static constexpr int64_t kPending = 1024;  // values that are summed in A before their sum joins one in double

 private:
  STYLEKERN_INLINE void collect() {
    sum_g_.add(g_), sum_gx_.add(gx_);
    g_ = gx_ = Vec<A>{}, pending_ = 0;
  }

  Vec<A> g_{}, gx_{};
  int64_t pending_ = 0;
  LaneSum sum_g_, sum_gx_;
};

// sum(g) and sum(g * x) over a plane, with x = (input - mean) * rstd and g what load_g(i, j, count) returns: lanes j to
// j + count - 1 of row i, and zeros.
template <class T, class LoadG>
STYLEKERN_INLINE GradientSums gradient_sums(int64_t h, int64_t w, const T* input, int64_t row, Acc<T> mean, Acc<T> rstd,
                                            LoadG&& load_g) {
  using A = Acc<T>;
  RunningGradientSums<A> sums;
  for (int64_t i = 0; i < h; ++i)
    for (int64_t j0 = 0; j0 < w; j0 += sums.kPending) {
      const int64_t length = std::min(w - j0, sums.kPending);
      for_vectors<A>(length, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
        sums.add(load_g(i, j0 + j, count), (load(input + i * row + j0 + j, count) - mean) * rstd);
      });
      sums.end(length);
    }
  return sums.total();
}

// With x = (input - mean) * rstd and g the gradient of x:
//   grad_input = rstd * (g - sum(g) / n - x * sum(g * x) / (n - correction))
template <class A>
struct NormalizeBackward {
  A mean, rstd, mean_g, mean_gx, scale;

  // `more` multiplies the result.
  NormalizeBackward(A mean, A rstd, const GradientSums& sums, double n, int64_t correction, double more = 1)
      : mean(mean),
        rstd(rstd),
        mean_g(A(sums.g / n)),
        mean_gx(A(sums.gx / (n - double(correction)))),
        scale(A(double(rstd) * more)) {}
  STYLEKERN_ALWAYS_INLINE Vec<A> normalized(Vec<A> input) const { return (input - mean) * rstd; }
  STYLEKERN_ALWAYS_INLINE Vec<A> operator()(Vec<A> g, Vec<A> x) const {
    return fma(x, broadcast(-mean_gx), g - mean_g) * scale;
  }
};

// g is dense; it may be grad_x itself. `sums`: where they are known already, added
// up in the order of gradient_sums().
template <class T>
void instance_norm_backward(const Acc<T>* g, const T* x, int64_t h, int64_t w, int64_t row, Acc<T> mean, Acc<T> rstd,
                            int64_t correction, T* grad_x, std::optional<GradientSums> sums = {}) {
  using A = Acc<T>;
  const double n = double(h) * double(w);
  flatten(h, w, {row});
  if (!sums)
    sums = gradient_sums(h, w, x, row, mean, rstd, [&](int64_t i, int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
      return load(g + i * w + j, count);
    });
  const NormalizeBackward<A> backward(mean, rstd, *sums, n, correction);
  for (int64_t i = 0; i < h; ++i)
    for_vectors<A>(w, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
      const Vec<A> xj = backward.normalized(load(x + i * row + j, count));
      store(grad_x + i * w + j, backward(load(g + i * w + j, count), xj), count);
    });
}

}  // namespace stylekern::STYLEKERN_TARGET

// Instance normalisation of one plane: statistics and the adjoint. Included by foreach_target.h.
namespace stylekern::STYLEKERN_TARGET {

// x - mean, the same value as an addition: that takes an x from memory as it is, a subtraction has to load it first.
template <class A>
class Centre {
 public:
  explicit Centre(A mean) : minus_(in_register(broadcast(-mean))) {}
  STYLEKERN_ALWAYS_INLINE Vec<A> operator()(Vec<A> x) const { return x + minus_; }

 private:
  Vec<A> minus_;
};

// Mean and variance of a plane in one read, about the mean of its first values.
//
// The squares about a centre, less n times the squared distance to it, lose as many digits as that distance squared has
// over the variance. Where that is much, the plane is read again about the mean that was found. The order of additions
// depends on h, w and row alone: whoever takes the plane in pieces, the result has the same bits.
template <class T>
class PlaneMoments {
 public:
  using A = Acc<T>;

  // A pair of vectors at a time, in registers.
  struct Piece {
    const T* x;
    Centre<A> centre;
    Vec<A> sums[2], squares[2];

    STYLEKERN_INLINE void add(int k, Vec<A> d) { sums[k] += d, squares[k] = fma(d, d, squares[k]); }
    STYLEKERN_INLINE void add_pair(int64_t j) { add(0, centre(load(x + j))), add(1, centre(load(x + j + kLanes<A>))); }
  };

  PlaneMoments(const T* plane, int64_t h, int64_t w, int64_t row) : at{h, w}, plane_(plane), row_(row) {
    flatten(at.h, at.w, {row});
    Vec<A> sum{};
    const int64_t first = std::min<int64_t>(at.w, 64);
    for_vectors<A>(first, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE { sum += load(plane + j, count); });
    restart(lane_total<A>(sum) / A(first));
  }

  // `count` of its values from `first` on, where its rows touch.
  STYLEKERN_ALWAYS_INLINE void fetch(int64_t first, int64_t count) const { fetch_row(plane_ + first, count); }
  // How long the next piece can be.
  int64_t room() const { return at.room(); }
  STYLEKERN_INLINE Piece begin_piece() const {
    return {plane_ + at.i * row_ + at.j, Centre(centre_), {sums_[0], sums_[1]}, {squares_[0], squares_[1]}};
  }
  STYLEKERN_INLINE void end_piece(const Piece& piece, int64_t length) {
    for (int k = 0; k < 2; ++k) sums_[k] = piece.sums[k], squares_[k] = piece.squares[k];
    if (at.pass(length)) collect();
  }
  // Goes on for `values` more of the plane's values, or to its end, once a piece has come together.
  STYLEKERN_INLINE void advance(int64_t values) {
    if (!at.done() && (at.owed += values) >= at.kPiece) pay();
  }

  void result(double eps, int64_t correction, A* mean, A* rstd) {
    const double n = double(at.h) * double(at.w);
    finish();
    double d = total_.total() / n, m2 = total_squares_.total() - n * d * d;
    if (n * d * d > 4 * m2) {
      restart(A(double(centre_) + d));
      finish();
      d = total_.total() / n, m2 = total_squares_.total() - n * d * d;
    }
    double found = double(centre_) + d;
    if (!std::isfinite(m2)) std::tie(found, m2) = in_double();
    *mean = A(found);
    *rstd = A(1 / std::sqrt(std::max(m2, 0.0) / (n - double(correction)) + eps));
  }

  PiecesOf at;

 private:
  STYLEKERN_NOINLINE void pay() {
    constexpr int64_t lanes = kLanes<A>;
    while (const int64_t length = at.next(2 * lanes)) {
      Piece piece = begin_piece();
      int64_t j = 0;
      for (; j + 2 * lanes <= length; j += 2 * lanes) piece.add_pair(j);
      const auto rest = [&](int64_t count) STYLEKERN_ALWAYS_INLINE {
        return first_lanes<A>(piece.centre(load_first(piece.x + j, count)), count);
      };
      if (j < length) piece.add(0, rest(std::min(length - j, lanes))), j += lanes;
      if (j < length) piece.add(1, rest(length - j));
      end_piece(piece, length);
    }
  }
  void finish() {
    at.owed = at.h * at.w;
    if (!at.done()) pay();
    if (at.pending) collect();
  }
  STYLEKERN_ALWAYS_INLINE void collect() {
    total_.add(sums_[0] + sums_[1]), total_squares_.add(squares_[0] + squares_[1]);
    clear();
  }
  void clear() {
    for (int k = 0; k < 2; ++k) sums_[k] = squares_[k] = Vec<A>{};
    at.pending = 0;
  }
  void restart(A centre) {
    centre_ = centre;
    at = {at.h, at.w};
    total_ = total_squares_ = LaneSum();
    clear();
  }

  // The mean, and the sum of squares about it. Squares of floats beyond 1e18 overflow a float.
  std::pair<double, double> in_double() const {
    double mean = 0, m2 = 0;
    const auto each = [&](auto f) {
      for (int64_t i = 0; i < at.h; ++i)
        for (int64_t j = 0; j < at.w; ++j) f(double(load_first(plane_ + i * row_ + j, 1)[0]));
    };
    each([&](double x) { mean += x; });
    mean /= double(at.h) * double(at.w);
    each([&](double x) { m2 += (x - mean) * (x - mean); });
    return {mean, m2};
  }

  const T* plane_;
  int64_t row_;
  A centre_;
  Vec<A> sums_[2], squares_[2];
  LaneSum total_, total_squares_;
};

// mean and 1 / sqrt(var + eps) of a plane.
template <class T>
STYLEKERN_NOINLINE void instance_statistics(const T* plane, int64_t h, int64_t w, int64_t row, double eps,
                                            int64_t correction, Acc<T>* mean, Acc<T>* rstd) {
  PlaneMoments<T>(plane, h, w, row).result(eps, correction, mean, rstd);
}

// The same of P planes of so few values, in rows that touch, that each is summed in float as a whole: by itself, a
// plane would wait for its chains of additions, and then for its divisions and its root. The same bits as alone.
template <int P, class T>
STYLEKERN_NOINLINE void small_statistics(const T* const (&planes)[P], int64_t values, double eps, int64_t correction,
                                         Acc<T>* mean, Acc<T>* rstd) {
  static_assert(kSmallPlane <= PiecesOf::kPending);
  using A = Acc<T>;
  constexpr int64_t lanes = kLanes<A>;
  const auto each = [](auto f) STYLEKERN_ALWAYS_INLINE {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) f(p);
  };
  const int64_t first = std::min<int64_t>(values, 64);
  Vec<A> start[P]{}, sums[P][2]{}, squares[P][2]{};
  for_vectors<A>(first, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
    each([&](int p) STYLEKERN_ALWAYS_INLINE { start[p] += load(planes[p] + j, count); });
  });
  A centres[P];
  each([&](int p) STYLEKERN_ALWAYS_INLINE { centres[p] = lane_total<A>(start[p]) / A(first); });
  Vec<A> minus[P];
  each([&](int p) STYLEKERN_ALWAYS_INLINE { minus[p] = broadcast(-centres[p]); });
  const auto add = [&](int p, int k, Vec<A> d)
                       STYLEKERN_ALWAYS_INLINE { sums[p][k] += d, squares[p][k] = fma(d, d, squares[p][k]); };
  int64_t j = 0;
  for (; j + 2 * lanes <= values; j += 2 * lanes)
    each([&](int p) STYLEKERN_ALWAYS_INLINE {
      add(p, 0, load(planes[p] + j) + minus[p]), add(p, 1, load(planes[p] + j + lanes) + minus[p]);
    });
  const auto rest = [&](int k) STYLEKERN_ALWAYS_INLINE {
    const int64_t count = std::min(values - j, lanes);
    each([&](int p) STYLEKERN_ALWAYS_INLINE {
      add(p, k, first_lanes<A>(load_first(planes[p] + j, count) + minus[p], count));
    });
  };
  // Each with its number: by a variable one, sums would lie in memory.
  if (j < values) rest(0), j += lanes;
  if (j < values) rest(1);
  double total[P], total_squares[P];
  each([&](int p) STYLEKERN_ALWAYS_INLINE {
    LaneSum of_sums, of_squares;
    of_sums.add(sums[p][0] + sums[p][1]), of_squares.add(squares[p][0] + squares[p][1]);
    total[p] = of_sums.total(), total_squares[p] = of_squares.total();
  });
  const double n = double(values);
  bool again[P];
  each([&](int p) STYLEKERN_ALWAYS_INLINE {
    const double d = total[p] / n, m2 = total_squares[p] - n * d * d;
    again[p] = n * d * d > 4 * m2 || !std::isfinite(m2);
    mean[p] = A(double(centres[p]) + d);
    rstd[p] = A(1 / std::sqrt(std::max(m2, 0.0) / (n - double(correction)) + eps));
  });
  for (int p = 0; p < P; ++p)
    if (again[p]) instance_statistics(planes[p], 1, values, values, eps, correction, mean + p, rstd + p);
}

// mean and 1 / sqrt(var + eps) of the planes [first, last), which are at plane(first) and so on.
template <class T, class Plane>
void instance_statistics(int64_t first, int64_t last, const Plane& plane, int64_t h, int64_t w, int64_t row, double eps,
                         int64_t correction, Acc<T>* mean, Acc<T>* rstd) {
  constexpr int together = STYLEKERN_VECTOR_BYTES == 64 ? 4 : 2;  // all that there are registers for
  int64_t flat_h = h, flat_w = w;
  flatten(flat_h, flat_w, {row});
  if (flat_h == 1 && flat_w <= kSmallPlane)
    for (; first + together <= last; first += together) {
      const T* planes[together];
      for (int p = 0; p < together; ++p) planes[p] = plane(first + p);
      small_statistics(planes, flat_w, eps, correction, mean + first, rstd + first);
    }
  for (; first < last; ++first)
    instance_statistics(plane(first), h, w, row, eps, correction, mean + first, rstd + first);
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
  // After `count` values.
  STYLEKERN_INLINE void end(int64_t count) {
    if ((pending_ += count) >= PiecesOf::kPending) collect();
  }
  GradientSums total() {
    collect();
    return {sum_g_.total(), sum_gx_.total()};
  }

 private:
  STYLEKERN_INLINE void collect() {
    sum_g_.add(g_), sum_gx_.add(gx_);
    g_ = gx_ = Vec<A>{}, pending_ = 0;
  }

  Vec<A> g_{}, gx_{};
  int64_t pending_ = 0;
  LaneSum sum_g_, sum_gx_;
};

// sum(g) and sum(g * x) over a plane, in the order of its vectors, with x = (input - mean) * rstd and g what
// load_g(i, j, count) returns: lanes j to j + count - 1 of row i, and zeros. Rows that touch in all tensors are one.
template <class T, class LoadG>
class PlaneGradientSums {
 public:
  using A = Acc<T>;

  struct Piece {
    const T* input;
    LoadG load_g;
    int64_t i, first;
    Centre<A> centre;
    A rstd;
    Vec<A> g, gx;

    template <class N>
    STYLEKERN_INLINE void add(int64_t j, N count) {
      const Vec<A> gj = load_g(i, first + j, count);
      const Vec<A> x = centre(load(input + j, count)) * rstd;  // beyond the row's end it can be infinite
      g += gj, gx = fma(gj, first_lanes<A>(x, count), gx);
    }
    STYLEKERN_INLINE void add_pair(int64_t j) {
      constexpr std::integral_constant<int, kLanes<A>> whole;
      add(j, whole), add(j + kLanes<A>, whole);
    }
  };

  // Of no plane, null, there is nothing to take.
  PlaneGradientSums(int64_t h, int64_t w, const T* input, int64_t row, A mean, A rstd, LoadG load_g)
      : at{input ? h : 0, w}, input_(input), row_(row), mean_(mean), rstd_(rstd), load_g_(load_g) {}

  STYLEKERN_INLINE Piece begin_piece() const {
    return {input_ + at.i * row_ + at.j, load_g_, at.i, at.j, Centre(mean_), rstd_, g_, gx_};
  }
  STYLEKERN_INLINE void end_piece(const Piece& piece, int64_t length) {
    g_ = piece.g, gx_ = piece.gx;
    if (at.pass(length)) collect();
  }
  STYLEKERN_INLINE void advance(int64_t values) {
    if (!at.done() && (at.owed += values) >= at.kPiece) pay();
  }
  GradientSums total() {
    at.owed = at.h * at.w;
    pay();
    collect();
    return {sum_g_.total(), sum_gx_.total()};
  }

  PiecesOf at;

 private:
  STYLEKERN_NOINLINE void pay() {
    while (const int64_t length = at.next(kLanes<A>)) {
      Piece piece = begin_piece();
      for_vectors<A>(length, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE { piece.add(j, count); });
      end_piece(piece, length);
    }
  }
  void collect() {
    sum_g_.add(g_), sum_gx_.add(gx_);
    g_ = gx_ = Vec<A>{}, at.pending = 0;
  }

  const T* input_;
  int64_t row_;
  A mean_, rstd_;
  LoadG load_g_;
  Vec<A> g_{}, gx_{};
  LaneSum sum_g_, sum_gx_;
};

// With x = (input - mean) * rstd and g the gradient of x:
//   grad_input = rstd * (g - sum(g) / n - x * sum(g * x) / (n - correction))
template <class A>
struct NormalizeBackward {
  Centre<A> centre;
  A rstd, mean_g, mean_gx, scale;

  // `more` multiplies the result.
  NormalizeBackward(A mean, A rstd, const GradientSums& sums, double n, int64_t correction, double more = 1)
      : centre(mean),
        rstd(rstd),
        mean_g(A(sums.g / n)),
        mean_gx(A(sums.gx / (n - double(correction)))),
        scale(A(double(rstd) * more)) {}
  STYLEKERN_ALWAYS_INLINE Vec<A> normalized(Vec<A> input) const { return centre(input) * rstd; }
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
    sums = PlaneGradientSums(h, w, x, row, mean, rstd, [=](int64_t i, int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
             return load(g + i * w + j, count);
           }).total();
  const NormalizeBackward<A> backward(mean, rstd, *sums, n, correction);
  for (int64_t i = 0; i < h; ++i)
    for_vectors<A>(w, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
      const Vec<A> xj = backward.normalized(load(x + i * row + j, count));
      store(grad_x + i * w + j, backward(load(g + i * w + j, count), xj), count);
    });
}

}  // namespace stylekern::STYLEKERN_TARGET

// Instance normalisation of one plane: statistics and the adjoint. Included by foreach_target.h.
namespace stylekern::STYLEKERN_TARGET {

// A plane whose rows touch, in every tensor that has it, is one long row.
inline void flatten(int64_t& h, int64_t& w, std::initializer_list<int64_t> rows) {
  for (int64_t row : rows)
    if (row != w) return;
  w *= std::exchange(h, 1);
}

// Mean and variance of a plane in one read, about the mean of its first values.
//
// The squares about a centre, less n times the squared distance to it, lose as many digits as that distance squared has
// over the variance. Where that is much, the plane is read again about the mean that was found. The order of additions
// depends on h, w and row alone: whoever takes the plane in pieces, the result has the same bits.
template <class T>
class PlaneMoments {
 public:
  using A = Acc<T>;

  // Of no plane, null, there is nothing to take.
  PlaneMoments(const T* plane, int64_t h, int64_t w, int64_t row) : plane_(plane), h_(plane ? h : 0), w_(w), row_(row) {
    flatten(h_, w_, {row});
    Vec<A> sum{};
    const int64_t first = plane ? std::min<int64_t>(w_, 64) : 0;
    for_vectors<A>(first, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE { sum += load(plane + j, count); });
    restart(lane_total(sum) / A(first));
  }

  static constexpr int64_t kPiece = 256;  // values that are taken at once

  // Goes on for about `values` more of the plane's values, or to its end.
  STYLEKERN_INLINE void advance(int64_t values) {
    if ((owed_ += values) >= kPiece) pay();
  }

  // The next kPiece values, a pair of vectors at a time, by who has a loop of its own: in registers.
  struct Piece {
    const T* x;
    Vec<A> centre, sums[2], squares[2];

    STYLEKERN_INLINE void add(int k, Vec<A> d) { sums[k] += d, squares[k] = fma(d, d, squares[k]); }
    STYLEKERN_INLINE void add_pair(int64_t j) {
      add(0, load(x + j) - centre), add(1, load(x + j + kLanes<A>) - centre);
    }
  };
  bool has_piece() const { return row_at_ < h_ && w_ - at_ >= kPiece && at_ % kPiece == 0; }
  STYLEKERN_INLINE Piece begin_piece() const {
    return {plane_ + row_at_ * row_ + at_,
            centre_,
            {pending_sums_[0], pending_sums_[1]},
            {pending_squares_[0], pending_squares_[1]}};
  }
  STYLEKERN_INLINE void end_piece(const Piece& piece) {
    keep(piece);
    passed(kPiece);
  }

  void result(double eps, int64_t correction, A* mean, A* rstd) {
    const double n = double(h_) * double(w_);
    advance(h_ * w_ + kPiece), collect();
    double d = sum_.total() / n, m2 = squares_.total() - n * d * d;
    if (n * d * d > 4 * m2) {
      restart(A(double(centre_[0]) + d));
      advance(h_ * w_ + kPiece), collect();
      d = sum_.total() / n, m2 = squares_.total() - n * d * d;
    }
    double found = double(centre_[0]) + d;
    if (!std::isfinite(m2)) std::tie(found, m2) = in_double();
    *mean = A(found);
    *rstd = A(1 / std::sqrt(std::max(m2, 0.0) / (n - double(correction)) + eps));
  }

 private:
  static constexpr int64_t kPair = 2 * kLanes<A>, kPending = 1024;  // values until a sum in A joins one in double

  static A lane_total(Vec<A> v) {
    A total = 0;
    for (int l = 0; l < kLanes<A>; ++l) total += v[l];
    return total;
  }

  STYLEKERN_NOINLINE void pay() {
    while (owed_ > 0 && row_at_ < h_) {
      const int64_t left = std::min(w_ - at_, kPending - at_ % kPending);
      const int64_t length = std::min(left, (owed_ + kPair - 1) / kPair * kPair);
      Piece piece = begin_piece();
      int64_t j = 0;
      for (; j + kPair <= length; j += kPair) piece.add_pair(j);
      for (int k = 0; j < length; ++k, j += kLanes<A>) {
        const int64_t count = std::min<int64_t>(length - j, kLanes<A>);
        const Vec<A> d = first_lanes<A>(load_first(piece.x + j, count) - centre_, count);
        if (k == 0)
          piece.add(0, d);
        else
          piece.add(1, d);
      }
      owed_ -= length;
      keep(piece);
      passed(length);
    }
  }
  STYLEKERN_INLINE void keep(const Piece& piece) {
    for (int k = 0; k < 2; ++k) pending_sums_[k] = piece.sums[k], pending_squares_[k] = piece.squares[k];
  }
  STYLEKERN_INLINE void passed(int64_t length) {
    pending_ += length;
    if ((at_ += length) == w_) at_ = 0, ++row_at_;
    if (at_ % kPending == 0 && pending_ >= kPending) collect();
  }
  STYLEKERN_NOINLINE void collect() {
    sum_.add(pending_sums_[0] + pending_sums_[1]), squares_.add(pending_squares_[0] + pending_squares_[1]);
    clear();
  }
  void clear() {
    for (int k = 0; k < 2; ++k) pending_sums_[k] = pending_squares_[k] = Vec<A>{};
    pending_ = 0;
  }
  void restart(A centre) {
    centre_ = broadcast(centre);
    owed_ = row_at_ = at_ = 0;
    sum_ = squares_ = LaneSum();
    clear();
  }

  // The mean, and the sum of squares about it. Squares of floats beyond 1e18 overflow a float.
  std::pair<double, double> in_double() const {
    double mean = 0, m2 = 0;
    const auto each = [&](auto f) {
      for (int64_t i = 0; i < h_; ++i)
        for (int64_t j = 0; j < w_; ++j) f(double(load_first(plane_ + i * row_ + j, 1)[0]));
    };
    each([&](double x) { mean += x; });
    mean /= double(h_) * double(w_);
    each([&](double x) { m2 += (x - mean) * (x - mean); });
    return {mean, m2};
  }

  const T* plane_;
  int64_t h_, w_, row_, owed_, row_at_, at_, pending_;
  Vec<A> centre_, pending_sums_[2], pending_squares_[2];
  LaneSum sum_, squares_;
};

// map_vectors() of f over a row of results, with the sums of other planes on the way: memory is read and written at the
// same time, which takes less than one after the other, and additions wait for each other beside other work.
template <class T, class F, class... Moments>
STYLEKERN_INLINE void map_vectors_beside(const T* row, int64_t w, F&& f, Moments&... moments) {
  using A = Acc<T>;
  constexpr int64_t piece = PlaneMoments<T>::kPiece, lanes = kLanes<A>;
  constexpr std::integral_constant<int, int(lanes)> whole;
  int64_t j = int64_t(reinterpret_cast<uintptr_t>(row) / sizeof(T) % lanes);
  if (j > 0) j = lanes - j;  // where the row is aligned from
  if (j > 0 && w >= lanes) f(0, whole);
  for (; j + piece <= w; j += piece) {
    if ((moments.has_piece() && ...)) {
      [&](auto... pieces) STYLEKERN_ALWAYS_INLINE {
        for (int64_t k = 0; k < piece; k += 2 * lanes) {
          (pieces.add_pair(k), ...);
          f(j + k, whole), f(j + k + lanes, whole);
        }
        (moments.end_piece(pieces), ...);
      }(moments.begin_piece()...);
    } else {
      (moments.advance(piece), ...);
      map_vectors<A>(row + j, piece, [&](int64_t k, auto count) STYLEKERN_ALWAYS_INLINE { f(j + k, count); });
    }
  }
  if (w < lanes) j = 0;
  map_vectors<A>(row + j, w - j, [&](int64_t k, auto count) STYLEKERN_ALWAYS_INLINE { f(j + k, count); });
}

// mean and 1 / sqrt(var + eps) of a plane.
template <class T>
void instance_statistics(const T* plane, int64_t h, int64_t w, int64_t row, double eps, int64_t correction,
                         Acc<T>* mean, Acc<T>* rstd) {
  PlaneMoments<T>(plane, h, w, row).result(eps, correction, mean, rstd);
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

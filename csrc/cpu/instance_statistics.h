// Mean and deviation of planes, for instance normalisation. Included by foreach_target.h.
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

// A plane of h rows of w values, `row` apart; rows that touch are one.
template <class T>
struct Plane {
  const T* x;
  int64_t h, w, row;

  Plane(const T* plane, int64_t height, int64_t width, int64_t row_stride)
      : x(plane), h(height), w(width), row(row_stride) {
    flatten(h, w, {row});
  }
};

// Sums of values less a centre, and of their squares: a pair of vectors at a time, in registers.
template <class T>
struct PairSums {
  using A = Acc<T>;
  static constexpr int64_t lanes = kLanes<A>;
  Vec<A> sums[2]{}, squares[2]{};

  STYLEKERN_INLINE void add(int k, Vec<A> d) { sums[k] += d, squares[k] = fma(d, d, squares[k]); }
  STYLEKERN_INLINE void add_pair(const T* x, const Centre<A>& centre) {
    add(0, centre(load(x))), add(1, centre(load(x + lanes)));
  }
  STYLEKERN_INLINE void add_values(const T* x, int64_t count, const Centre<A>& centre) {
    const T* const end = x + count / (2 * lanes) * (2 * lanes);
#pragma GCC unroll 4
    for (; x != end; x += 2 * lanes) add_pair(x, centre);
    count %= 2 * lanes;
    const auto rest = [&](int64_t left)
                          STYLEKERN_ALWAYS_INLINE { return first_lanes<A>(centre(load_first(x, left)), left); };
    if (count > 0) add(0, rest(std::min(count, lanes)));
    x += lanes;
    if (count > lanes) add(1, rest(count - lanes));
  }
};

// The same of a whole plane, in double.
struct PlaneSums {
  LaneSum of_values, of_squares;

  template <class T>
  STYLEKERN_INLINE void collect(PairSums<T>& pending) {
    of_values.add(pending.sums[0] + pending.sums[1]), of_squares.add(pending.squares[0] + pending.squares[1]);
    pending = {};
  }
};

// The sums of a plane in one go, added up in the order of PlaneMoments, which takes them in pieces.
template <class T>
STYLEKERN_INLINE PlaneSums sums_about(Acc<T> mean, const Plane<T>& plane) {
  constexpr int64_t kPending = PiecesOf::kPending;
  const Centre<Acc<T>> centre(mean);
  PairSums<T> pending;
  PlaneSums sums;
  int64_t count = 0;
  for (int64_t i = 0; i < plane.h; ++i)
    for (int64_t j = 0; j < plane.w; j += kPending) {
      const int64_t length = std::min(plane.w - j, kPending);
      pending.add_values(plane.x + i * plane.row + j, length, centre);
      if ((count += length) >= kPending) sums.collect(pending), count = 0;
    }
  if (count) sums.collect(pending);
  return sums;
}

// About where a plane's mean is: the mean of its first values.
template <class T>
STYLEKERN_INLINE Acc<T> first_centre(const Plane<T>& plane) {
  using A = Acc<T>;
  Vec<A> sum{};
  const int64_t first = std::min<int64_t>(plane.w, 64);
  for_vectors<A>(first, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE { sum += load(plane.x + j, count); });
  return lane_total<A>(sum) / A(first);
}

// The mean, and the sum of squares about it. Squares of floats beyond 1e18 overflow a float.
template <class T>
STYLEKERN_NOINLINE std::pair<double, double> moments_in_double(const Plane<T>& plane) {
  double mean = 0, m2 = 0;
  const auto each = [&](auto f) {
    for (int64_t i = 0; i < plane.h; ++i)
      for (int64_t j = 0; j < plane.w; ++j) f(double(load_first(plane.x + i * plane.row + j, 1)[0]));
  };
  each([&](double x) { mean += x; });
  mean /= double(plane.h) * double(plane.w);
  each([&](double x) { m2 += (x - mean) * (x - mean); });
  return {mean, m2};
}

// A plane's mean and 1 / sqrt(var + eps), from its sums about a centre.
//
// The squares about a centre, less n times the squared distance to it, lose as many digits as that distance squared has
// over the variance. Where that is much, the plane is read again about the mean that was found.
template <class T>
STYLEKERN_INLINE void statistics_from(const Plane<T>& plane, Acc<T> centre, const PlaneSums& sums, double eps,
                                      int64_t correction, Acc<T>* mean, Acc<T>* rstd) {
  using A = Acc<T>;
  const double n = double(plane.h) * double(plane.w);
  double d = sums.of_values.total() / n, m2 = sums.of_squares.total() - n * d * d;
  if (n * d * d > 4 * m2) {
    centre = A(double(centre) + d);
    const PlaneSums again = sums_about(centre, plane);
    d = again.of_values.total() / n, m2 = again.of_squares.total() - n * d * d;
  }
  double found = double(centre) + d;
  if (!std::isfinite(m2)) {
    const auto moments = moments_in_double(plane);
    found = moments.first, m2 = moments.second;
  }
  *mean = A(found);
  *rstd = A(1 / std::sqrt(std::max(m2, 0.0) / (n - double(correction)) + eps));
}

// Mean and variance of a plane whose values are taken in pieces. The order of additions depends on h, w and row alone:
// the result has the bits of the plane in one go.
template <class T>
class PlaneMoments {
 public:
  using A = Acc<T>;

  struct Piece {
    const T* x;
    Centre<A> centre;
    PairSums<T> sums;

    STYLEKERN_INLINE void take_pair(int64_t j) { sums.add_pair(x + j, centre); }
  };

  PlaneMoments(const T* plane, int64_t h, int64_t w, int64_t row)
      : plane_(plane, h, w, row), centre_(first_centre(plane_)) {
    at = {plane_.h, plane_.w};
  }

  STYLEKERN_INLINE Piece begin_piece() const {
    return {plane_.x + at.i * plane_.row + at.j, Centre(centre_), pending_};
  }
  STYLEKERN_INLINE void end_piece(const Piece& piece, int64_t length) {
    pending_ = piece.sums;
    if (at.pass(length)) collect();
  }
  // Goes on for `values` more of the plane's values, or to its end, once a piece has come together.
  STYLEKERN_INLINE void advance(int64_t values) {
    if (!at.done() && (at.owed += values) >= at.kPiece) pay();
  }

  void result(double eps, int64_t correction, A* mean, A* rstd) {
    at.owed = at.h * at.w;
    if (!at.done()) pay();
    if (at.pending) collect();
    statistics_from(plane_, centre_, sums_, eps, correction, mean, rstd);
  }

  PiecesOf at;

 private:
  STYLEKERN_NOINLINE void pay() {
    while (const int64_t length = at.next(2 * kLanes<A>)) {
      Piece piece = begin_piece();
      piece.sums.add_values(piece.x, length, piece.centre);
      end_piece(piece, length);
    }
  }
  STYLEKERN_ALWAYS_INLINE void collect() { sums_.collect(pending_), at.pending = 0; }

  Plane<T> plane_;
  A centre_;
  PairSums<T> pending_;
  PlaneSums sums_;
};

// mean and 1 / sqrt(var + eps) of a plane.
template <class T>
STYLEKERN_NOINLINE void instance_statistics(const T* x, int64_t h, int64_t w, int64_t row, double eps,
                                            int64_t correction, Acc<T>* mean, Acc<T>* rstd) {
  const Plane<T> plane(x, h, w, row);
  const Acc<T> centre = first_centre(plane);
  statistics_from(plane, centre, sums_about(centre, plane), eps, correction, mean, rstd);
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
template <class T, class At>
void instance_statistics(int64_t first, int64_t last, const At& plane, int64_t h, int64_t w, int64_t row, double eps,
                         int64_t correction, Acc<T>* mean, Acc<T>* rstd) {
  int64_t flat_h = h, flat_w = w;
  flatten(flat_h, flat_w, {row});
  const auto several = [&](auto count) {
    constexpr int together = count;
    for (; first + together <= last; first += together) {
      const T* planes[together];
      for (int p = 0; p < together; ++p) planes[p] = plane(first + p);
      small_statistics(planes, flat_w, eps, correction, mean + first, rstd + first);
    }
  };
  if (flat_h == 1 && flat_w <= kSmallPlane) {
    if constexpr (STYLEKERN_VECTOR_BYTES == 64) several(std::integral_constant<int, 4>{});  // others lack registers
    several(std::integral_constant<int, 2>{});
  }
  for (; first < last; ++first)
    instance_statistics(plane(first), h, w, row, eps, correction, mean + first, rstd + first);
}

}  // namespace stylekern::STYLEKERN_TARGET

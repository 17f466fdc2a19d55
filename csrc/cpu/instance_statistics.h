// Mean and deviation of planes, for instance normalisation. Included by *_target.h.
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

// Sums of values less a centre, and of their squares, in registers. An addition waits for the one before it to the same
// sum: with four of each, there are enough to wait for nothing.
//
// (By their numbers: in a loop over them, or cleared as a whole, compilers keep them in memory.)
template <class T>
struct RunningSums {
  using A = Acc<T>;
  static constexpr int64_t lanes = kLanes<A>;
  Vec<A> values[kStepVectors], squares[kStepVectors];

  STYLEKERN_ALWAYS_INLINE RunningSums() { clear(); }
  STYLEKERN_ALWAYS_INLINE void clear() {
    values[0] = values[1] = values[2] = values[3] = Vec<A>{};
    squares[0] = squares[1] = squares[2] = squares[3] = Vec<A>{};
  }
  template <int k>
  STYLEKERN_ALWAYS_INLINE void add(Vec<A> d) {
    values[k] += d, squares[k] = fma(d, d, squares[k]);
  }
  // For who adds half a step at a time, after each half. To the total it does not matter which half is which.
  STYLEKERN_ALWAYS_INLINE void swap_halves() {
    std::swap(values[0], values[2]), std::swap(values[1], values[3]);
    std::swap(squares[0], squares[2]), std::swap(squares[1], squares[3]);
  }
  STYLEKERN_ALWAYS_INLINE void add_step(const T* x, const Centre<A>& centre) {
    add<0>(centre(load(x))), add<1>(centre(load(x + lanes)));
    add<2>(centre(load(x + 2 * lanes))), add<3>(centre(load(x + 3 * lanes)));
  }
  STYLEKERN_INLINE void add_values(const T* x, int64_t count, const Centre<A>& centre) {
    const T* const end = x + count / kStep<A> * kStep<A>;
    for (; x != end; x += kStep<A>) add_step(x, centre);
    count %= kStep<A>;
    if (count > 0) add<0>(part(x, count, centre));
    if (count > lanes) add<1>(part(x + lanes, count - lanes, centre));
    if (count > 2 * lanes) add<2>(part(x + 2 * lanes, count - 2 * lanes, centre));
    if (count > 3 * lanes) add<3>(part(x + 3 * lanes, count - 3 * lanes, centre));
  }

 private:
  static STYLEKERN_ALWAYS_INLINE Vec<A> part(const T* x, int64_t count, const Centre<A>& centre) {
    count = std::min(count, lanes);
    return first_lanes<A>(centre(load_first(x, count)), count);
  }
};

// The same of a whole plane, in double.
struct PlaneSums {
  LaneSum of_values, of_squares;

  template <class T>
  STYLEKERN_INLINE void collect(const RunningSums<T>& pending) {
    const auto& [values, squares] = pending;
    of_values.add((values[0] + values[1]) + (values[2] + values[3]));
    of_squares.add((squares[0] + squares[1]) + (squares[2] + squares[3]));
  }
};

// The sums of a plane in one go, added up in the order of PlaneMoments, which takes them in pieces.
template <class T>
STYLEKERN_INLINE PlaneSums sums_about(Acc<T> mean, const Plane<T>& plane) {
  constexpr int64_t kPending = PiecesOf::kPending;
  const Centre<Acc<T>> centre(mean);
  RunningSums<T> pending;
  PlaneSums sums;
  int64_t count = 0;
  for (int64_t i = 0; i < plane.h; ++i)
    for (int64_t j = 0; j < plane.w; j += kPending) {
      const int64_t length = std::min(plane.w - j, kPending);
      pending.add_values(plane.x + i * plane.row + j, length, centre);
      if ((count += length) >= kPending) sums.collect(pending), pending.clear(), count = 0;
    }
  if (count) sums.collect(pending);
  return sums;
}

// The mean of four values from all over a plane: about where its own is. (In pairs: that of equal values is theirs.)
template <class T>
STYLEKERN_INLINE Acc<T> rough_mean(const Plane<T>& plane) {
  const auto value = [&](uint64_t k) STYLEKERN_ALWAYS_INLINE {
    return to_acc(plane.x[int64_t(k * uint64_t(plane.h) / 4) * plane.row + int64_t(k * uint64_t(plane.w) / 4)]);
  };
  return ((value(0) + value(1)) + (value(2) + value(3))) / 4;
}

// Mean and 1 / sqrt(var + eps) of planes of so many values, from their sums about a centre.
//
// The squares about a centre, less n times the squared distance to it, lose as many digits as that distance squared has
// over the variance. Where that is much, the plane is read again about the mean that was found; and where squares are
// no floats, those of floats beyond 1e18, in double.
template <class T>
class InstanceStatistics {
 public:
  using A = Acc<T>;

  InstanceStatistics(int64_t values, double eps, int64_t correction)
      : one_nth_(1 / double(values)), scale_(1 / (double(values) - double(correction))), eps_(eps) {}

  // Whether they are good: else they are to be taken again().
  STYLEKERN_INLINE bool from_sums(A centre, const PlaneSums& sums, A* mean, A* rstd) const {
    const double of_values = sums.of_values.total(), d = of_values * one_nth_;
    const double m2 = sums.of_squares.total() - of_values * d;
    set(double(centre) + d, m2, mean, rstd);
    return of_values * d <= 4 * m2 && std::isfinite(m2);
  }
  // About the mean that was found.
  STYLEKERN_NOINLINE void again(const Plane<T>& plane, A* mean, A* rstd) const {
    const PlaneSums sums = sums_about(*mean, plane);
    const double of_values = sums.of_values.total(), d = of_values * one_nth_;
    const double m2 = sums.of_squares.total() - of_values * d;
    if (std::isfinite(m2)) return set(double(*mean) + d, m2, mean, rstd);
    double total = 0, squares = 0;
    const auto each = [&](auto f) {
      for (int64_t i = 0; i < plane.h; ++i)
        for (int64_t j = 0; j < plane.w; ++j) f(double(to_acc(plane.x[i * plane.row + j])));
    };
    each([&](double x) { total += x; });
    const double found = total * one_nth_;
    each([&](double x) { squares += (x - found) * (x - found); });
    set(found, squares, mean, rstd);
  }

 private:
  STYLEKERN_ALWAYS_INLINE void set(double found, double m2, A* mean, A* rstd) const {
    *mean = A(found);
    *rstd = A(1 / std::sqrt(std::max(m2, 0.0) * scale_ + eps_));
  }

  double one_nth_, scale_, eps_;  // a product with one over a count does not wait for a sum as long as a division
};

// Whether a plane's values are summed as a whole before they join sums in double.
inline bool is_small_plane(int64_t h, int64_t w, int64_t row) {
  return (row == w || h == 1) && h * w <= PiecesOf::kPending;
}

// A small plane (see above), whose sums are taken a step at a time, in registers.
template <class T>
class SmallPlane {
 public:
  using A = Acc<T>;

  struct Steps {
    const T* x;
    int64_t left;
    Centre<A> centre;
    RunningSums<T> sums;

    // The next two vectors, as long as there are whole ones.
    STYLEKERN_INLINE void take() {
      if (left < 2 * kLanes<A>) return;
      sums.template add<0>(centre(load(x))), sums.template add<1>(centre(load(x + kLanes<A>)));
      sums.swap_halves();
      x += 2 * kLanes<A>, left -= 2 * kLanes<A>;
    }
  };

  SmallPlane(const T* x, int64_t values)
      : x_(x), values_(values), centre_(rough_mean(Plane<T>(x, 1, values, values))) {}

  STYLEKERN_INLINE Steps begin() const { return {x_, values_, Centre<A>(centre_), {}}; }
  STYLEKERN_INLINE void end(Steps& steps) {
    steps.sums.add_values(steps.x, steps.left, steps.centre);
    sums_.collect(steps.sums);
  }
  STYLEKERN_INLINE void result(const InstanceStatistics<T>& statistics, A* mean, A* rstd) const {
    if (!statistics.from_sums(centre_, sums_, mean, rstd)) statistics.again({x_, 1, values_, values_}, mean, rstd);
  }

 private:
  const T* x_;
  int64_t values_;
  A centre_;
  PlaneSums sums_;
};

// Apart from instance_statistics(), for what it takes on the stack and in registers to be small as well.
template <class T>
STYLEKERN_NOINLINE void small_statistics(const InstanceStatistics<T>& statistics, const T* x, int64_t values,
                                         Acc<T>* mean, Acc<T>* rstd) {
  SmallPlane<T> plane(x, values);
  auto steps = plane.begin();
  plane.end(steps);
  plane.result(statistics, mean, rstd);
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
    RunningSums<T> sums;

    STYLEKERN_INLINE void take_step(int64_t j) { sums.add_step(x + j, centre); }
  };

  PlaneMoments(const T* plane, int64_t h, int64_t w, int64_t row)
      : plane_(plane, h, w, row), centre_(rough_mean(plane_)) {
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
    const InstanceStatistics<T> statistics(plane_.h * plane_.w, eps, correction);
    if (!statistics.from_sums(centre_, sums_, mean, rstd)) statistics.again(plane_, mean, rstd);
  }

  PiecesOf at;

 private:
  STYLEKERN_NOINLINE void pay() {
    while (const int64_t length = at.next(kStep<A>)) {
      Piece piece = begin_piece();
      piece.sums.add_values(piece.x, length, piece.centre);
      end_piece(piece, length);
    }
  }
  STYLEKERN_ALWAYS_INLINE void collect() { sums_.collect(pending_), pending_.clear(), at.pending = 0; }

  Plane<T> plane_;
  A centre_;
  RunningSums<T> pending_;
  PlaneSums sums_;
};

template <class T>
STYLEKERN_NOINLINE void large_statistics(const InstanceStatistics<T>& statistics, const Plane<T>& plane, Acc<T>* mean,
                                         Acc<T>* rstd) {
  const Acc<T> centre = rough_mean(plane);
  if (!statistics.from_sums(centre, sums_about(centre, plane), mean, rstd)) statistics.again(plane, mean, rstd);
}

// mean and 1 / sqrt(var + eps) of the planes [first, last), which are at plane(first) and so on.
template <class T, class At>
void instance_statistics(int64_t first, int64_t last, const At& plane, int64_t h, int64_t w, int64_t row, double eps,
                         int64_t correction, Acc<T>* mean, Acc<T>* rstd) {
  const InstanceStatistics<T> statistics(h * w, eps, correction);
  for (; first < last; ++first)
    if (is_small_plane(h, w, row))
      small_statistics(statistics, plane(first), h * w, mean + first, rstd + first);
    else
      large_statistics(statistics, Plane<T>(plane(first), h, w, row), mean + first, rstd + first);
}

}  // namespace stylekern::STYLEKERN_TARGET

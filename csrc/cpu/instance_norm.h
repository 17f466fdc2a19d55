// The adjoint of instance normalisation, a plane at a time. Included by *_target.h.
namespace stylekern::STYLEKERN_TARGET {

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
    STYLEKERN_INLINE void take_step(int64_t j) {
      constexpr std::integral_constant<int, kLanes<A>> whole;
#pragma GCC unroll 4
      for (int v = 0; v < kStepVectors; ++v) add(j + v * kLanes<A>, whole);
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

// g is dense; it may be grad_x itself, unless that is streamed. `sums`: where they are known already, added up in the
// order of PlaneGradientSums.
template <class T>
void instance_norm_backward(const Acc<T>* g, const T* x, int64_t h, int64_t w, int64_t row, Acc<T> mean, Acc<T> rstd,
                            int64_t correction, T* grad_x, std::optional<GradientSums> sums = {},
                            bool streamed = false) {
  using A = Acc<T>;
  const double n = double(h) * double(w);
  flatten(h, w, {row});
  if (!sums)
    sums = PlaneGradientSums(h, w, x, row, mean, rstd, [=](int64_t i, int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
             return load(g + i * w + j, count);
           }).total();
  const NormalizeBackward<A> backward(mean, rstd, *sums, n, correction);
  for (int64_t i = 0; i < h; ++i)
    for_vectors_beside(grad_x + i * w, w, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
      const Vec<A> xj = backward.normalized(load(x + i * row + j, count));
      store_or_stream(grad_x + i * w + j, backward(load(g + i * w + j, count), xj), count, streamed);
    });
}

}  // namespace stylekern::STYLEKERN_TARGET

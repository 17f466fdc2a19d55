// Planes that are summed or fetched in pieces, beside other work. Included by *_target.h.
//
// A plane is summed before results are written, from cache. Done one after the other, reading waits for memory, and
// then writing does. So while results are written, the plane that is next is fetched; or, where caches would not have
// it any more at its turn, its sums are taken along, a few vectors at a time. The order of additions is that of the
// plane alone.
namespace stylekern::STYLEKERN_TARGET {

// A plane whose rows touch, in every tensor that has it, is one long row.
inline void flatten(int64_t& h, int64_t& w, std::initializer_list<int64_t> rows) {
  for (int64_t row : rows)
    if (row != w) return;
  w *= std::exchange(h, 1);
}

// Vectors that are summed or fetched at a time, beside as many of the work.
inline constexpr int kStepVectors = 4;
template <class A>
inline constexpr int64_t kStep = kStepVectors * kLanes<A>;

// Where in h rows of w values someone is who takes them in pieces. Sums in A stay short: after kPending values, at an
// end of a row or of so many of its values, they join sums in double.
struct PiecesOf {
  static constexpr int64_t kPiece = 256, kPending = 1024;

  int64_t h, w;
  int64_t i = 0, j = 0, owed = 0, pending = 0;

  bool done() const { return i == h; }
  bool has_piece() const { return i < h && w - j >= kPiece && j % kPiece == 0; }
  // How long a piece can be.
  int64_t room() const { return done() ? 0 : std::min(w - j, kPending - j % kPending); }
  // What to take of what is owed, in whole units but for the end of a row; 0: nothing.
  int64_t next(int64_t unit) const {
    if (owed <= 0 || i >= h) return 0;
    return std::min(room(), (owed + unit - 1) / unit * unit);
  }
  // `length` values were taken. Whether sums are to join those in double.
  bool pass(int64_t length) {
    owed = std::max<int64_t>(owed - length, 0), pending += length;
    if ((j += length) == w) j = 0, ++i;
    return j % kPending == 0 && pending >= kPending;
  }
};

// A plane that is fetched in pieces instead, so that its sums do not wait when their turn comes; one whose rows touch.
// It goes as far as results do: of a style larger than the content, a part.
template <class T>
struct PlaneFetch {
  struct Piece {
    const T* x;
    STYLEKERN_INLINE void take_step(int64_t j) const { fetch_ahead<kStep<Acc<T>>, 0>(x + j); }
  };

  PlaneFetch(const T* plane, int64_t h, int64_t w, int64_t row) : at{plane, row == w ? h * w : 0} {}

  STYLEKERN_INLINE Piece begin_piece() const { return {at.x}; }
  STYLEKERN_INLINE void end_piece(const Piece&, int64_t length) { at.x += length, at.left -= length; }
  STYLEKERN_INLINE void advance(int64_t values) {
    const int64_t length = std::min(values, at.left);
    fetch_row(at.x, length);
    at.x += length, at.left -= length;
  }

  struct {
    const T* x;
    int64_t left;
    bool has_piece() const { return left >= PiecesOf::kPiece; }
  } at;
};

// for_vectors() of f over a row of results, whose whole vectors begin aligned: an odd plane's would else lie across
// cache lines, as would those of what is read with it. Beside it go other planes, summed or fetched, as far as they
// reach: each has `at`, which knows whether a piece is left, pieces that it begins and ends, and advance() for what is
// in no step with pieces.
template <class T, class F, class... Beside>
STYLEKERN_INLINE void for_vectors_beside(const T* row, int64_t w, F&& f, Beside&... beside) {
  using A = Acc<T>;
  constexpr int64_t piece = PiecesOf::kPiece, lanes = kLanes<A>;
  constexpr std::integral_constant<int, int(lanes)> whole;
  for (int64_t j = 0, length; j < w; j += length) {
    const int64_t past = int64_t(reinterpret_cast<uintptr_t>(row + j) / sizeof(T) % lanes);
    length = std::min(past > 0 ? lanes - past : piece, w - j);  // from the second on, pieces begin aligned
    if (length == piece && (beside.at.has_piece() && ...)) {
      [&](auto... pieces) STYLEKERN_ALWAYS_INLINE {
        for (int64_t k = 0; k < piece; k += kStep<A>) {
          (pieces.take_step(k), ...);
#pragma GCC unroll 4
          for (int v = 0; v < kStepVectors; ++v) f(j + k + v * lanes, whole);
        }
        (beside.end_piece(pieces, piece), ...);
      }(beside.begin_piece()...);
    } else {
      (beside.advance(length), ...);
      for_vectors<A>(length, [&](int64_t k, auto count) STYLEKERN_ALWAYS_INLINE { f(j + k, count); });
    }
  }
}

}  // namespace stylekern::STYLEKERN_TARGET

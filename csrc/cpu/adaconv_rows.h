// adaconv on the CPU: planes convolved with planes, several outputs at a time. Included by *_target.h.
//
// Forward and the gradient of x are the same convolution: of the extended x by the kernel, and of the gradient among
// zeros by the kernel turned around. Each row's result does not depend on how rows are cut into blocks.
namespace stylekern::STYLEKERN_TARGET {

// Values of scratch planes that a tile of rows holds: half a second-level cache.
inline constexpr int64_t kScratchValues = 1 << 16;

// Rows of a tile, of `planes` planes whose rows hold `row` values.
inline int64_t tile_rows(int64_t planes, int64_t row, int64_t taps) {
  const int64_t fitting = kScratchValues / std::max<int64_t>(planes * row, 1) - (taps - 1);
  return std::max<int64_t>(fitting / 8 * 8, 8);
}

// Calls f(first, size) over [0, count), size one of the constants 4, 2, 1. (Eight outputs and half the rows are no
// faster: a weight is loaded for half as many multiply-adds.)
template <class F>
void for_blocks(int64_t count, F&& f) {
  int64_t first = 0;
  for (; first + 4 <= count; first += 4) f(first, std::integral_constant<int, 4>{});
  if (first + 2 <= count) f(first, std::integral_constant<int, 2>{}), first += 2;
  if (first < count) f(first, std::integral_constant<int, 1>{});
}

// Scratch planes: plane m, row i, from the leftmost column that the first tap reads.
template <class A>
struct SourcePlanes {
  const A* x;
  int64_t plane, row, planes;
  int kh, kw;
};

template <class A>
struct TargetPlanes {
  A* y;
  int64_t plane, row;
  bool streamed = false;
};

// f(k, row k) for `count` rows, `stride` apart.
template <int count, class A, class F>
STYLEKERN_INLINE void for_rows(A* row, int64_t stride, F&& f) {
#pragma GCC unroll 10
  for (int k = 0; k < count; ++k) {
    if (k > 0) row = in_register(row + stride);
    f(k, row);
  }
}

// Rows of planes that are fetched beside a block's, or none: of values of any type.
class RowsToFetch {
 public:
  RowsToFetch() = default;
  template <class T>
  RowsToFetch(const T* x, int64_t plane, int64_t row)
      : x_(reinterpret_cast<const char*>(x)), value_(sizeof(T)), plane_(plane * value_), row_(row * value_) {}

  explicit operator bool() const { return x_; }
  // Column j of R rows of a plane.
  template <int R, int... hints>
  STYLEKERN_ALWAYS_INLINE void fetch(int64_t plane, int64_t j) const {
    for_rows<R>(x_ + plane * plane_ + j * value_, row_,
                [](int, const char* x) STYLEKERN_ALWAYS_INLINE { __builtin_prefetch(x, hints...); });
  }

 private:
  const char* x_ = nullptr;
  int64_t value_ = 0, plane_ = 0, row_ = 0;
};

struct FetchedRows {
  RowsToFetch next;     // of each source plane: what is read from memory next
  RowsToFetch results;  // of each output: stored at so many places in turn, each would wait for its line
};

// The kernels of a group's blocks of outputs, weights[m][b][a][output] each, in the order in which they are multiplied
// with. A group's first tile of rows packs them; of a wide group that takes as long as some rows.
template <class A>
class BlockWeights {
 public:
  BlockWeights(int64_t planes, int kh, int kw, int64_t all_outputs)
      : planes_(planes), kh_(kh), kw_(kw), all_outputs_(all_outputs) {}

  // weight(m, output, a, b) for every plane m, of the block's `outputs` from `first` on.
  template <class Weight>
  const A* pack(int64_t first, int outputs, Weight&& weight) {
    values_.resize(size_t(all_outputs_ * planes_ * kh_ * kw_));
    A* to = values_.data() + first * planes_ * kh_ * kw_;
    for (int64_t m = 0; m < planes_; ++m)
      for (int b = 0; b < kw_; ++b)
        for (int a = 0; a < kh_; ++a)
          for (int o = 0; o < outputs; ++o) *to++ = weight(m, o, a, b);
    return packed(first);
  }
  const A* packed(int64_t first) const { return values_.data() + first * planes_ * kh_ * kw_; }

 private:
  int64_t planes_;
  int kh_, kw_;
  int64_t all_outputs_;
  std::vector<A> values_;
};

// Rows that a block of B outputs computes at once. The sums of 16 vectors cover an FMA's latency several times over and
// leave room for R + 2 rows of x and a weight, as do eight in 16 registers; of one output, of which there are as many
// rows as sums, eight or six.
template <int B>
inline constexpr int kBlockRows = kBytes == 64 ? std::min(8, 16 / B) : std::min(6, 8 / B);

// y[o,r,j] = bias[o] + sum over m, b, a of weights[m,b,a,o] * x[m,r+a,j+b], for B outputs and R rows.
//
// Down the columns of taps, up to three at a time: all rows of x that they reach lie in registers beside the sums, and
// with them one weight at a time. A row of x is used up to 3 * B times then, a weight R times.
template <int B, int R, class A, class N>
STYLEKERN_INLINE void convolve_vector(const SourcePlanes<A>& from, const A* weights, const A* bias,
                                      const TargetPlanes<A>& to, const FetchedRows& fetched, int64_t j, N count) {
  if (fetched.results)
#pragma GCC unroll 8
    for (int o = 0; o < B; ++o) fetched.results.fetch<R, 1>(o, j);
  Vec<A> sum[B][R];
#pragma GCC unroll 8
  for (int o = 0; o < B; ++o)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sum[o][r] = broadcast(bias ? bias[o] : A(0));
  // A tap, which meets x[0] in row 0 and so on.
  const auto add = [&](const Vec<A>* x) STYLEKERN_ALWAYS_INLINE {
#pragma GCC unroll 8
    for (int o = 0; o < B; ++o) {
      const Vec<A> weight = broadcast(*weights++);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[o][r] = fma(weight, x[r], sum[o][r]);
    }
  };
  // Taps one below the other, the first of which meets `row` in row 0.
  const auto add_taps = [&]<int... a>(const A* row, std::integer_sequence<int, a...>) STYLEKERN_ALWAYS_INLINE {
    constexpr int count = R + sizeof...(a) - 1;
    Vec<A> x[count];
    for_rows<count>(row, from.row, [&](int r, const A* row) STYLEKERN_ALWAYS_INLINE { x[r] = in_register(load(row)); });
    (add(x + a), ...);
  };
  const A* plane = from.x + j;
  for (int64_t m = 0; m < from.planes; ++m, plane += from.plane) {
    if (fetched.next) fetched.next.fetch<R, 0, kSecondLevel>(m, j);
    for (int b = 0; b < from.kw; ++b) {
      const A* x = plane + b;
      int a = 0;
      for (; a + 3 <= from.kh; a += 3, x += 3 * from.row) add_taps(x, std::make_integer_sequence<int, 3>{});
      if (from.kh - a == 2) add_taps(x, std::make_integer_sequence<int, 2>{});
      if (from.kh - a == 1) add_taps(x, std::make_integer_sequence<int, 1>{});
    }
  }
  for_rows<B>(to.y + j, to.plane, [&](int o, A* plane) STYLEKERN_ALWAYS_INLINE {
    for_rows<R>(plane, to.row,
                [&](int r, A* y) STYLEKERN_ALWAYS_INLINE { store_or_stream(y, sum[o][r], count, to.streamed); });
  });
}

// R rows of w values, for B outputs.
template <int B, int R, class A>
STYLEKERN_NOINLINE void convolve_rows(const SourcePlanes<A>& source, const A* weights, const A* bias,
                                      const TargetPlanes<A>& target, const FetchedRows& beside, int64_t w) {
  // Copies: a store might be to one of them, for all that the compiler knows. (Passed by value, they are copied in
  // vectors, which wait for the parts to get to memory, behind all results that are on their way there.)
  const SourcePlanes<A> from = source;
  const TargetPlanes<A> to = target;
  const FetchedRows fetched = beside;
  for_vectors<A>(w, [&](int64_t j, auto count)
                        STYLEKERN_ALWAYS_INLINE { convolve_vector<B, R>(from, weights, bias, to, fetched, j, count); });
}

}  // namespace stylekern::STYLEKERN_TARGET

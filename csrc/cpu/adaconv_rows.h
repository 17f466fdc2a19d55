// adaconv on the CPU: planes convolved with planes, several outputs at a time. Included by foreach_target.h.
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

// Calls f(first, size) over [0, count), size one of the constants 8, 4, 2, 1; 8 only where there are more than 16
// registers: eight weights for one vector of x would be loaded more often than sums are added to.
template <class F>
void for_blocks(int64_t count, F&& f) {
  int64_t first = 0;
  if constexpr (kBytes == 64)
    for (; first + 8 <= count; first += 8) f(first, std::integral_constant<int, 8>{});
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

// The kernels of a block of outputs, weights[m][a][b][output], so that what one value of x is multiplied with is
// together.
template <class A>
class BlockWeights {
 public:
  // weight(m, output, a, b) for every m below `planes`.
  template <class Weight>
  const A* pack(int64_t planes, int kh, int kw, int outputs, Weight&& weight) {
    values_.resize(size_t(planes * kh * kw * outputs));
    A* to = values_.data();
    for (int64_t m = 0; m < planes; ++m)
      for (int a = 0; a < kh; ++a)
        for (int b = 0; b < kw; ++b)
          for (int o = 0; o < outputs; ++o) *to++ = weight(m, o, a, b);
    return values_.data();
  }

 private:
  std::vector<A> values_;
};

// Rows that a block of B outputs computes at once. The sums of 16 vectors cover an FMA's latency several times over and
// leave room for x and weights; a target of 16 registers has half.
template <int B>
inline constexpr int kBlockRows = std::min(8, (kBytes == 64 ? 16 : 8) / B);

// y[o,r,j] = bias[o] + sum over m, a, b of weights[m,a,b,o] * x[m,r+a,j+b], for B outputs and R rows.
//
// Tap by tap: R vectors of x and one weight at a time lie in registers beside the sums, and each is used B times or R
// times. (Row by row, x would be loaded less often still, but weights then wait in registers for the rows to come, and
// do not fit.)
template <int K, int B, int R, class A, class N>
STYLEKERN_INLINE void convolve_vector(const SourcePlanes<A>& from, const A* weights, const A* bias,
                                      const TargetPlanes<A>& to, int64_t j, N count) {
  const int kh = K ? K : from.kh, kw = K ? K : from.kw;
  Vec<A> sum[B][R];
#pragma GCC unroll 8
  for (int o = 0; o < B; ++o)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sum[o][r] = broadcast(bias ? bias[o] : A(0));
  const A* plane = from.x + j;
  for (int64_t m = 0; m < from.planes; ++m, plane += from.plane) {
    const A* row = plane;
    for (int a = 0; a < kh; ++a, row += from.row)
#pragma GCC unroll 3
      for (int b = 0; b < kw; ++b, weights += B) {
        Vec<A> x[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) x[r] = in_register(load(row + r * from.row + b));
#pragma GCC unroll 8
        for (int o = 0; o < B; ++o) {
          const Vec<A> weight = broadcast(weights[o]);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) sum[o][r] = fma(weight, x[r], sum[o][r]);
        }
      }
  }
#pragma GCC unroll 8
  for (int o = 0; o < B; ++o)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) store_or_stream(to.y + o * to.plane + r * to.row + j, sum[o][r], count, to.streamed);
}

// R rows of w values, K taps both ways where that is known when compiling, else 0.
template <int K, int B, int R, class A>
STYLEKERN_NOINLINE void convolve_block(const SourcePlanes<A> from, const A* weights, const A* bias,
                                       const TargetPlanes<A> to, int64_t w) {
  for_vectors<A>(w, [&](int64_t j, auto count)
                        STYLEKERN_ALWAYS_INLINE { convolve_vector<K, B, R>(from, weights, bias, to, j, count); });
}

// R rows of w values, for B outputs.
template <int B, int R, class A>
void convolve_rows(const SourcePlanes<A>& from, const A* weights, const A* bias, const TargetPlanes<A>& to, int64_t w) {
  if (from.kh == 3 && from.kw == 3)
    convolve_block<3, B, R>(from, weights, bias, to, w);
  else
    convolve_block<0, B, R>(from, weights, bias, to, w);
}

// Calls block(i, size) for blocks of R rows, or of one, that cover [0, rows). The last block reaches back over rows
// that are done already, which costs less than rows one by one.
template <int R, class F>
STYLEKERN_INLINE void for_row_blocks(int64_t rows, F&& block) {
  if (rows < R) {
    for (int64_t i = 0; i < rows; ++i) block(i, std::integral_constant<int, 1>{});
    return;
  }
  for (int64_t i = 0; i + R <= rows; i += R) block(i, std::integral_constant<int, R>{});
  if (rows % R) block(rows - R, std::integral_constant<int, R>{});
}

}  // namespace stylekern::STYLEKERN_TARGET

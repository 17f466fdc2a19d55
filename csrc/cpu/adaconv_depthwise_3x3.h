// adaconv on the CPU, one channel a group and three taps both ways. Included by *_target.h.
//
// Nine multiply-adds a value leave no room for a detour: a scratch row would be stored and loaded once more for a tenth
// of that. So there is no scratch: x is read where it lies, centred as it is loaded, and rstd is part of the weights.
// Meanwhile the next plane is fetched: else its statistics, and then its first rows, wait for memory by themselves. To
// the second-level cache: many rows at once, on their way to the first, hold up what is read there.
// And where registers are left, the sums of a plane further on come along, in what multiply-adds leave of the
// processor.
namespace stylekern::STYLEKERN_TARGET {

// Whether planes that are fetched meanwhile can wait in a cache.
template <class T>
bool fetches_next(const AdaConv& p) {
  return waits_in_cache(p.group_in() * p.h * p.w * int64_t(sizeof(T)));
}

// Whose planes are fetched meanwhile: `next`, an n * groups + g, or -1.
template <class T>
int64_t to_fetch(const AdaConv& p, int64_t next) {
  return fetches_next<T>(p) ? next : -1;
}

// A channel's plane, and the output that is computed from it. (Backward: of g, and the gradient of x.)
template <class T>
struct DepthwisePlane {
  using A = Acc<T>;
  const T* x;
  T* y = nullptr;
  int64_t h, w, row;  // row: of x; y is dense
  Padding padding;
  A mean, rstd, scale = 1, bias = 0;  // scale: of the kernel
  const A* kernel = nullptr;
  bool streamed;
  const T* next;  // the plane to fetch meanwhile, of the same strides; x itself: none, without a test a row

  // The row of x that a tap of output row i reads; null: zeros.
  const T* source(int64_t i) const {
    const int64_t q = border_index(i, h, padding);
    return q < 0 ? nullptr : x + q * row;
  }
  // Rows [i0, i1) of the next plane.
  STYLEKERN_ALWAYS_INLINE void fetch_next(int64_t i0, int64_t i1) const {
    for (int64_t i = i0; next != x && i < i1; ++i) fetch_row<kSecondLevel>(next + i * row, w);
  }
};

// Rows [i0, i1) of V vectors of columns, `count` each, from columns j[0], j[1] ... on. `first` and `last`: the row
// begins with the first, ends with the last of them.
//
// Down the rows of x, so that what is loaded serves the three rows of sums that it takes part in. An addition to a
// sum waits for the one before it, but not for another's: with two vectors there are enough of them to wait for
// nothing, with four too many for the registers. (AVX2 has its weights in memory, with two as with three.) The rows
// above and below, which may be zeros, are no matter of the loop: a test in it would cost a multiply-add.
//
// `along`: nothing, or the plane whose sums come along, two vectors a row: with rows of two or fewer, all of it.
template <bool first, bool last, class T, int V, class N, class... Along>
STYLEKERN_INLINE void depthwise_strip(const DepthwisePlane<T>& p, const Vec<Acc<T>> (&weights)[9], int64_t i0,
                                      int64_t i1, const int64_t (&j)[V], N count, Along&... along) {
  using A = Acc<T>;
  const int64_t w = p.w, stride = p.row;  // copies: a store might be to p, for all that the compiler knows
  const bool streamed = p.streamed;
  const Centre<A> centre(p.mean);
  const ShiftAtEnd<A> left(p.padding, -1), right(p.padding, 1, int(count));
  const Vec<A> bias = broadcast(p.bias);
  Vec<A> sum[3][V];  // of the rows that x's row is below, beside and above of
#pragma GCC unroll 3
  for (int v = 0; v < V; ++v) sum[0][v] = sum[1][v] = sum[2][v] = bias;
  // Adds a row of x to the sums from `from` to `to`.
  const auto take = [&](const T* row, auto from, auto to) STYLEKERN_ALWAYS_INLINE {
    Vec<A> alone{};  // what lies left and right of an only vector is in it
    if constexpr (V == 1) alone = centre(load(row + j[0], count));
#pragma GCC unroll 3
    for (int b = 0; b < 3; ++b) {
      Vec<A> x[V];  // of one tap: those of all three would leave no registers to the weights
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) {
        const T* const here = row + j[v];
        if (V == 1)
          x[v] = b == 0 ? left(alone) : b == 2 ? right(alone) : alone;
        else if (first && v == 0 && b == 0)
          x[v] = left(centre(load(here, count)));
        else if (last && v == V - 1 && b == 2)
          x[v] = right(centre(load(here, count)));
        else
          x[v] = centre(load(here + b - 1, count));
      }
#pragma GCC unroll 3
      for (int k = 0; k < 3; ++k) {
        if (k < from || k > to) continue;
#pragma GCC unroll 3
        for (int v = 0; v < V; ++v) sum[k][v] = fma(weights[3 * (2 - k) + b], x[v], sum[k][v]);
      }
    }
  };
  const auto advance = [&]() STYLEKERN_ALWAYS_INLINE {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) sum[0][v] = sum[1][v], sum[1][v] = sum[2][v], sum[2][v] = bias;
  };
  T* y = p.y + i0 * w;
  const auto finish_row = [&]() STYLEKERN_ALWAYS_INLINE {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) store_or_stream(y + j[v], sum[0][v], count, streamed);
    y += w;
  };
  constexpr std::integral_constant<int, 0> below;
  constexpr std::integral_constant<int, 1> beside;
  constexpr std::integral_constant<int, 2> above;
  if (const T* const row = p.source(i0 - 1)) take(row, above, above);
  advance();
  const T *row = p.x + i0 * stride, *next = p.next + i0 * stride;
  take(row, beside, above);
  advance();
  [&](auto... steps) STYLEKERN_ALWAYS_INLINE {
    for (int64_t i = i0 + 1; i < i1; ++i) {
      if (first && last)  // the strip is the plane: the next one is fetched a row at a time
#pragma GCC unroll 3
        for (int v = 0; v < V; ++v) __builtin_prefetch(next + j[v]);
      (steps.take(), ...);
      row += stride, next += stride;
      take(row, below, above);
      finish_row();
      advance();
    }
    ((steps.take(), along.end(steps)), ...);
  }(along.begin()...);
  if (const T* const row = p.source(i1)) take(row, below, below);
  finish_row();
}

// Scaled, and with rstd. (Those in registers: compilers else multiply, and then move each product to all lanes.)
template <class T>
STYLEKERN_INLINE void depthwise_weights(const DepthwisePlane<T>& p, Vec<Acc<T>> (&weights)[9]) {
  const Vec<Acc<T>> scale = in_register(broadcast(p.scale)), rstd = in_register(broadcast(p.rstd));
  for (int k = 0; k < 9; ++k) weights[k] = broadcast(p.kernel[k]) * scale * rstd;
}

// A plane whose rows are two vectors, and the statistics of the small plane `ahead`.
template <class T>
STYLEKERN_NOINLINE void depthwise_3x3_and_statistics(const DepthwisePlane<T>& p, const T* ahead,
                                                     const InstanceStatistics<T>& statistics, Acc<T>* mean,
                                                     Acc<T>* rstd) {
  constexpr int64_t lanes = kLanes<Acc<T>>;
  SmallPlane<T> along(ahead, p.h * p.w);
  Vec<Acc<T>> weights[9];
  depthwise_weights(p, weights);
  depthwise_strip<true, true>(p, weights, 0, p.h, {0, p.w - lanes}, std::integral_constant<int, int(lanes)>{}, along);
  along.result(statistics, mean, rstd);
}

// Rows [i0, i1) of a plane wider than three vectors, in strips of two and, where their number is odd, a last one of
// three: one alone would take as long as two. The last vector ends with the row, over columns that the one before it
// has too. `along` goes with strips of two vectors: three leave no registers.
template <class T, class... Along>
STYLEKERN_INLINE void depthwise_wide_rows(const DepthwisePlane<T>& p, const Vec<Acc<T>> (&weights)[9], int64_t i0,
                                          int64_t i1, Along&... along) {
  constexpr int64_t lanes = kLanes<Acc<T>>;
  constexpr std::integral_constant<int, int(lanes)> whole;
  const int64_t end = p.w - lanes;  // where the last vector begins
  p.fetch_next(i0, i1);
  depthwise_strip<true, false>(p, weights, i0, i1, {0, lanes}, whole, along...);
  int64_t j = 2 * lanes;
  for (; j + 2 * lanes < end; j += 2 * lanes)
    depthwise_strip<false, false>(p, weights, i0, i1, {j, j + lanes}, whole, along...);
  if (j + lanes < end)
    depthwise_strip<false, true>(p, weights, i0, i1, {j, j + lanes, end}, whole);
  else
    depthwise_strip<false, true>(p, weights, i0, i1, {j, end}, whole, along...);
}

// Rows [row0, row1) of a plane. Strips of wide planes end after 16 rows, whose lines are then in the first-level cache
// for the next strip; after four where results bypass the caches, which should get to memory nearly in its order.
template <class T>
void depthwise_3x3(const DepthwisePlane<T>& p, int64_t row0, int64_t row1) {
  using A = Acc<T>;
  constexpr int64_t lanes = kLanes<A>;
  constexpr std::integral_constant<int, int(lanes)> whole;
  const int64_t end = p.w - lanes;
  Vec<A> weights[9];
  depthwise_weights(p, weights);
  if (end < 0) return depthwise_strip<true, true>(p, weights, row0, row1, {0}, p.w);
  if (end == 0) return depthwise_strip<true, true>(p, weights, row0, row1, {0}, whole);
  if (end <= lanes) return depthwise_strip<true, true>(p, weights, row0, row1, {0, end}, whole);
  if (end <= 2 * lanes) return depthwise_strip<true, true>(p, weights, row0, row1, {0, lanes, end}, whole);
  const int64_t block = p.streamed ? 4 : 16;
  for (int64_t i0 = row0; i0 < row1; i0 += block) depthwise_wide_rows(p, weights, i0, std::min(i0 + block, row1));
}

// The same by way of a run, of planes wider than three vectors. In blocks of three rows or more: strips read a row
// above and one below theirs.
template <class T>
STYLEKERN_NOINLINE void depthwise_3x3(DepthwisePlane<T> p, int64_t row0, int64_t row1, StreamedRun<T>& run) {
  Vec<Acc<T>> weights[9];
  depthwise_weights(p, weights);
  const int64_t block = std::max<int64_t>(StreamedRun<T>::kBlock / p.w, 3);
  T* const y = p.y;
  for (int64_t i0 = row0; i0 < row1; i0 += block) {
    const int64_t i1 = std::min(i0 + block, row1);
    p.y = run.block(y + i0 * p.w, (i1 - i0) * p.w) - i0 * p.w;
    depthwise_wide_rows(p, weights, i0, i1, run);
  }
}

// What a convolution among zeros has just outside of the plane, added to where the border rule reads that from, as far
// as this is in rows [row0, row1): what lacks to the adjoint of a padded convolution.
template <class A>
STYLEKERN_NOINLINE void fold_3x3(const DepthwisePlane<A>& p, Padding rule, int64_t row0, int64_t row1) {
  const int64_t h = p.h, w = p.w;
  const auto at = [&](int64_t i, int64_t j) { return i < 0 || i >= h ? A(0) : p.x[i * p.row + j]; };
  const auto target = [&](int64_t i) -> A* {
    const int64_t q = border_index(i, h, rule);
    return q >= row0 && q < row1 ? p.y + q * w : nullptr;
  };
  for (const int64_t i : {int64_t{-1}, h}) {
    A* const y = target(i);
    if (!y) continue;
    const A *const x = p.x + (i < 0 ? 0 : h - 1) * p.row, *const kernel = p.kernel + (i < 0 ? 6 : 0);
    for_vectors<A>(w, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
      Vec<A> sum = load(y + j, count);
      for (int b = 0; b < 3; ++b) sum = fma(broadcast(kernel[b]), load_window(x, j + b - 1, w), sum);
      store(y + j, sum, count);
    });
  }
  for (const bool last : {false, true}) {
    const int64_t to = border_index(last ? w : -1, w, rule), from = last ? w - 1 : 0;
    if (to < 0) continue;
    const A* const kernel = p.kernel + (last ? 0 : 2);
    const auto sum = [&](A above, A here, A below) { return kernel[0] * above + kernel[3] * here + kernel[6] * below; };
    A above = at(row0 - 1, from), here = at(row0, from);
    for (int64_t i = row0; i < row1; ++i) {
      const A below = at(i + 1, from);
      p.y[i * w + to] += sum(above, here, below);
      above = here, here = below;
    }
    if (A* const y = target(-1)) y[to] += sum(0, 0, at(0, from));
    if (A* const y = target(h)) y[to] += sum(at(h - 1, from), 0, 0);
  }
}

}  // namespace stylekern::STYLEKERN_TARGET

// adaconv on the CPU, forward, one channel a group and three taps both ways: no scratch. Included by foreach_target.h.
//
// Nine multiply-adds a value leave no room for a detour: a scratch row would be stored and loaded once more for a tenth
// of that. So x is read where it lies, centred as it is loaded, and rstd is part of the weights. Meanwhile the next
// plane is fetched: else its statistics, and then its first rows, wait for memory by themselves.
namespace stylekern::STYLEKERN_TARGET {

// A channel's plane, and the output that is computed from it.
template <class T>
struct DepthwisePlane {
  using A = Acc<T>;
  const T* x;
  T* y = nullptr;
  int64_t h, w, row;  // row: of x; y is dense
  Padding padding;
  A mean, rstd, bias = 0;
  const A* kernel = nullptr;
  bool streamed;
  const T* next = nullptr;  // the plane that this thread is at after this one, of the same strides; null: not fetched

  // The row of x that a tap of output row i reads; null: zeros.
  const T* source(int64_t i) const {
    const int64_t q = border_index(i, h, padding);
    return q < 0 ? nullptr : x + q * row;
  }
  // Rows [i0, i1) of the next plane.
  STYLEKERN_ALWAYS_INLINE void fetch_next(int64_t i0, int64_t i1) const {
    constexpr int64_t line = 64 / sizeof(T);
    for (int64_t i = i0; next && i < i1; ++i)
      for (int64_t j = 0; j < w; j += line) __builtin_prefetch(next + i * row + j);
  }
};

// The vector left of a row's first, and right of its last: shifted by one, what lies beyond the end entering.
template <class A>
STYLEKERN_INLINE Vec<A> left_of_first(Padding padding, Vec<A> here) {
  constexpr std::make_integer_sequence<int, kLanes<A>> all;
  if (padding == Padding::kReflect) return shift_up_at_end<1>(here, all);
  return padding == Padding::kReplicate ? shift_up_at_end<0>(here, all) : shift_up_at_end<kLanes<A>>(here, all);
}
template <class A>
STYLEKERN_INLINE Vec<A> right_of_last(Padding padding, Vec<A> here) {
  constexpr int lanes = kLanes<A>;
  constexpr std::make_integer_sequence<int, lanes> all;
  if (padding == Padding::kReflect) return shift_down_at_end<lanes - 2>(here, all);
  return padding == Padding::kReplicate ? shift_down_at_end<lanes - 1>(here, all) : shift_down_at_end<lanes>(here, all);
}

// R rows of V vectors of columns, from column j[v] on. `first` and `last`: the row begins with the first, ends with the
// last of them; constants, but for single vectors.
//
// Three rows of sums take part in a row of x, and an addition to a sum waits for the one before it: with two vectors
// there are enough of them to wait for nothing.
template <int R, int V, class T>
STYLEKERN_INLINE void depthwise_vectors(const DepthwisePlane<T>& p, const T* const (&rows)[R + 2],
                                        const Vec<Acc<T>> (&weights)[9], const int64_t (&j)[V], bool first, bool last,
                                        T* y) {
  using A = Acc<T>;
  constexpr int lanes = kLanes<A>;
  const std::integral_constant<int, lanes> whole;
  const Centre<A> centre(p.mean);
  Vec<A> sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sum[r][v] = broadcast(p.bias);
#pragma GCC unroll 16
  for (int q = 0; q < R + 2; ++q) {
    if (!rows[q]) continue;
#pragma GCC unroll 3
    for (int b = 0; b < 3; ++b) {
      Vec<A> x[V];  // of one tap: those of all three would leave no registers to the sums
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        const T* const here = rows[q] + j[v];
        if (first && v == 0 && b == 0)
          x[v] = left_of_first<A>(p.padding, centre(load(here)));
        else if (last && v == V - 1 && b == 2)
          x[v] = right_of_last<A>(p.padding, centre(load(here)));
        else
          x[v] = centre(load(here + b - 1));
      }
#pragma GCC unroll 3
      for (int a = 0; a < 3; ++a) {
        if (q - a < 0 || q - a >= R) continue;
        const Vec<A> weight = in_register(weights[3 * a + b]);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sum[q - a][v] = fma(weight, x[v], sum[q - a][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store_or_stream(y + r * p.w + j[v], sum[r][v], whole, p.streamed);
}

// One vector, anywhere in a row: what rows of an odd number of vectors end with.
template <int R, class T>
STYLEKERN_NOINLINE void depthwise_vector(const DepthwisePlane<T>& p, const T* const (&rows)[R + 2],
                                         const Vec<Acc<T>> (&weights)[9], int64_t j, T* y) {
  depthwise_vectors<R, 1>(p, rows, weights, {j}, j == 0, j + kLanes<Acc<T>> == p.w, y);
}

// Rows [row0, row1) of a plane that is wider than a vector. A last vector that is not whole reaches back over columns
// that are done already.
template <class T>
void depthwise_3x3(const DepthwisePlane<T> p, int64_t row0, int64_t row1) {
  using A = Acc<T>;
  constexpr int64_t lanes = kLanes<A>;
  const int64_t end = p.w - lanes;  // where the last vector begins
  Vec<A> weights[9];
  for (int k = 0; k < 9; ++k) weights[k] = broadcast(p.kernel[k] * p.rstd);
  for_row_blocks<4>(row1 - row0, [&](int64_t i, auto size) STYLEKERN_ALWAYS_INLINE {
    constexpr int R = size;
    const T* rows[R + 2];
    for (int q = 0; q < R + 2; ++q) rows[q] = p.source(row0 + i + q - 1);
    T* const y = p.y + (row0 + i) * p.w;
    p.fetch_next(row0 + i, row0 + i + R);
    int64_t j = 0;
    if (R > 1 && end <= lanes) return depthwise_vectors<R, 2>(p, rows, weights, {0, end}, true, true, y);
    if (R > 1) {
      depthwise_vectors<R, 2>(p, rows, weights, {0, lanes}, true, false, y);
      for (j = 2 * lanes; j + lanes < end; j += 2 * lanes)
        depthwise_vectors<R, 2>(p, rows, weights, {j, j + lanes}, false, false, y);
      if (j < end) return depthwise_vectors<R, 2>(p, rows, weights, {j, end}, false, true, y);
    }
    for (; j < end; j += lanes) depthwise_vector<R>(p, rows, weights, j, y);
    depthwise_vector<R>(p, rows, weights, end, y);
  });
}

}  // namespace stylekern::STYLEKERN_TARGET

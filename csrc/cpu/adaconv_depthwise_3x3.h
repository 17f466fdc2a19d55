// adaconv on the CPU, forward, one channel a group and three taps both ways: no scratch. Included by foreach_target.h.
//
// Nine multiply-adds a value leave no room for a detour: a scratch row would be stored and loaded once more for a tenth
// of that. So x is read where it lies, centred as it is loaded, and rstd is part of the weights.
namespace stylekern::STYLEKERN_TARGET {

// A channel's plane, and the output that is computed from it.
template <class T>
struct DepthwisePlane {
  using A = Acc<T>;
  const T* x;
  T* y;
  int64_t h, w, row;  // row: of x; y is dense
  Padding padding;
  A mean, rstd, bias;
  const A* kernel;
  bool streamed;

  // The row of x that a tap of output row i reads; null: zeros.
  const T* source(int64_t i) const {
    const int64_t q = border_index(i, h, padding);
    return q < 0 ? nullptr : x + q * row;
  }
};

// What lies beyond an end of a row, from its first or last two values.
template <class A>
STYLEKERN_INLINE A beyond(Padding padding, A end, A inner) {
  return padding == Padding::kReflect ? inner : padding == Padding::kReplicate ? end : A(0);
}

// R rows of one vector of columns, from column j on. `first` and `last`: the row begins or ends with it.
template <int R, bool first, bool last, class T>
STYLEKERN_INLINE void depthwise_vector(const DepthwisePlane<T>& p, const T* const (&rows)[R + 2],
                                       const Vec<Acc<T>> (&weights)[9], int64_t j, T* y) {
  using A = Acc<T>;
  constexpr int lanes = kLanes<A>;
  Vec<A> sum[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sum[r] = broadcast(p.bias);
#pragma GCC unroll 16
  for (int q = 0; q < R + 2; ++q) {
    if (!rows[q]) continue;
    const T* const x = rows[q] + j;
    const Vec<A> here = load(x) - p.mean;
    Vec<A> left, right;
    if constexpr (first)
      left = shift_up(broadcast(beyond<A>(p.padding, here[0], here[1])), here);
    else
      left = load(x - 1) - p.mean;
    if constexpr (last)
      right = shift_down(here, broadcast(beyond<A>(p.padding, here[lanes - 1], here[lanes - 2])));
    else
      right = load(x + 1) - p.mean;
#pragma GCC unroll 3
    for (int a = 0; a < 3; ++a)
      if (q - a >= 0 && q - a < R) {
        sum[q - a] = fma(weights[3 * a], left, sum[q - a]);
        sum[q - a] = fma(weights[3 * a + 1], here, sum[q - a]);
        sum[q - a] = fma(weights[3 * a + 2], right, sum[q - a]);
      }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
    store_or_stream(y + r * p.w + j, sum[r], std::integral_constant<int, lanes>(), p.streamed);
}

// Rows [row0, row1) of a plane that is wider than a vector. A last vector that is not whole reaches back over columns
// that are done already.
template <class T>
void depthwise_3x3(const DepthwisePlane<T> p, int64_t row0, int64_t row1) {
  using A = Acc<T>;
  constexpr int lanes = kLanes<A>;
  Vec<A> weights[9];
  for (int k = 0; k < 9; ++k) weights[k] = broadcast(p.kernel[k] * p.rstd);
  for_row_blocks<1>(row1 - row0, [&](int64_t i, auto size) STYLEKERN_ALWAYS_INLINE {
    constexpr int R = size;
    const T* rows[R + 2];
    for (int q = 0; q < R + 2; ++q) rows[q] = p.source(row0 + i + q - 1);
    T* const y = p.y + (row0 + i) * p.w;
    depthwise_vector<R, true, false>(p, rows, weights, 0, y);
    int64_t j = lanes;
    for (; j + lanes < p.w; j += lanes) depthwise_vector<R, false, false>(p, rows, weights, j, y);
    depthwise_vector<R, false, true>(p, rows, weights, p.w - lanes, y);
  });
}

}  // namespace stylekern::STYLEKERN_TARGET

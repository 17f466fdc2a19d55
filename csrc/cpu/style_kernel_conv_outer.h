// style_kernel_conv on the CPU, outer: a row, forward and backward. Included by foreach_target.h.
//
// Each pixel has a kernel of kv x kh taps that nothing else shares: kv * kh multiply-adds a value and pass, of taps
// that are used kv or kh times. So these are loaded once: where a plane's size is a power of two, the rows of all taps
// lie in the same few lines of every cache, and drive each other out. And an addition to a sum waits for the one before
// it: so several rows of taps are added up at a time, which also share what is loaded for them.
namespace stylekern::STYLEKERN_TARGET {

// Calls f(first, size) over [0, taps), an odd number: all at once where it is the constant K, else four at
// a time, and then the one or three that are left.
template <int K, class F>
STYLEKERN_INLINE void for_tap_blocks(int taps, F&& f) {
  if constexpr (K > 0) {
    f(0, std::integral_constant<int, K>{});
  } else {
    int first = 0;
    for (; taps - first > 4; first += 4) f(first, std::integral_constant<int, 4>{});
    if (taps - first == 3) return f(first, std::integral_constant<int, 3>{});
    f(first, std::integral_constant<int, 1>{});
  }
}

// The taps of a vector of columns. K: their number where that is constant, else 0: then those of the next vector are
// fetched, for they are more streams than processors follow.
template <int K, class A>
struct ColumnTaps {
  Vec<A> tap[K ? K : kMostTaps];

  template <class T, class N>
  STYLEKERN_INLINE ColumnTaps(const T* row, int64_t stride, int taps, N count) {
    for (int k = 0; k < taps; ++k) {
      tap[k] = load(row + k * stride, count);
      if (K == 0) __builtin_prefetch(row + k * stride + 2 * kLanes<A> - 1);
    }
  }
};

// y[j] = sum_a vertical[a,j] * sum_b horizontal[b,j] * x[a,j+b] + bias[j]
template <int K, class T>
STYLEKERN_NOINLINE void outer_row(const StyleKernelConv& p, const T* v, const T* u, const Acc<T>* const* x,
                                  const T* bias, T* y) {
  using A = Acc<T>;
  const int kv = K ? K : p.kv, kh = K ? K : p.kh;
  const int64_t v_tap = p.vertical.tap, u_tap = p.horizontal.tap;
  for_vectors<A>(p.w, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
    const ColumnTaps<K, A> horizontal(u + j, u_tap, kh, count);
    Vec<A> sum = bias ? load(bias + j, count) : Vec<A>{};
    for_tap_blocks<K>(kv, [&]<int rows>(int a, std::integral_constant<int, rows>) STYLEKERN_ALWAYS_INLINE {
      if (K == 0)
        for (int r = 0; r < rows; ++r) __builtin_prefetch(v + (a + r) * v_tap + j + 2 * kLanes<A> - 1);
      const A* from[rows];
      Vec<A> inner[rows];
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        from[r] = x[a + r] + j;
        inner[r] = horizontal.tap[0] * load(from[r], count);
      }
      for (int b = 1; b < kh; ++b)
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) inner[r] = fma(horizontal.tap[b], load(from[r] + b, count), inner[r]);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) sum = fma(load(v + (a + r) * v_tap + j, count), inner[r], sum);
    });
    store(y + j, sum, count);
  });
}

// grad_vertical[a,j]   = sum over channels of g[j] * sum_b horizontal[b,j] * x[a,j+b]
// grad_horizontal[b,j] = sum over channels of g[j] * sum_a vertical[a,j] * x[a,j+b]
//
// Either may be null: not asked for. `first`: of the channels; those after it are added.
template <int K, class T>
STYLEKERN_NOINLINE void outer_filter_rows(const StyleKernelConv& p, const T* v, const T* u, const Acc<T>* const* x,
                                          const T* g, Acc<T>* grad_v, Acc<T>* grad_u, int64_t tap_stride, bool first) {
  using A = Acc<T>;
  const int kv = K ? K : p.kv, kh = K ? K : p.kh;
  for_vectors<A>(p.w, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
    const ColumnTaps<K, A> vertical(v + j, p.vertical.tap, kv, count);
    const ColumnTaps<K, A> horizontal(u + j, p.horizontal.tap, kh, count);
    const Vec<A> gj = load(g + j, count);
    const auto finish = [&](A* sum, Vec<A> value) STYLEKERN_ALWAYS_INLINE {
      store(sum + j, first ? gj * value : gj * value + load(sum + j, count), count);
    };
    if (grad_v)
      for_tap_blocks<K>(kv, [&]<int rows>(int a, std::integral_constant<int, rows>) STYLEKERN_ALWAYS_INLINE {
        const A* from[rows];
        Vec<A> sum[rows];
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) from[r] = x[a + r] + j, sum[r] = Vec<A>{};
        for (int b = 0; b < kh; ++b)
#pragma GCC unroll 8
          for (int r = 0; r < rows; ++r) sum[r] = fma(horizontal.tap[b], load(from[r] + b, count), sum[r]);
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) finish(grad_v + (a + r) * tap_stride, sum[r]);
      });
    if (grad_u)
      for_tap_blocks<K>(kh, [&]<int columns>(int b, std::integral_constant<int, columns>) STYLEKERN_ALWAYS_INLINE {
        Vec<A> sum[columns];
#pragma GCC unroll 8
        for (int q = 0; q < columns; ++q) sum[q] = Vec<A>{};
        for (int a = 0; a < kv; ++a) {
          const A* const from = x[a] + j + b;
#pragma GCC unroll 8
          for (int q = 0; q < columns; ++q) sum[q] = fma(vertical.tap[a], load(from + q, count), sum[q]);
        }
#pragma GCC unroll 8
        for (int q = 0; q < columns; ++q) finish(grad_u + (b + q) * tap_stride, sum[q]);
      });
  });
}

// sums[r,q] = sum_b products[r,q+rh-b] * taps[b,q+rh-b], of rows that lie among zeros.
template <int rows, int K, class A>
STYLEKERN_NOINLINE void outer_input_sums(const PaddedRows<A>& products, const PaddedRows<A>& taps, int kernel,
                                         int64_t w, const PaddedRows<A>& sums) {
  const int kh = K ? K : kernel, rh = kh / 2;
  const A *const product = products.row(0), *const tap = taps.row(0);
  const int64_t product_row = products.stride(), tap_row = taps.stride();
  for (int64_t q = -rh; q < w + rh; q += kLanes<A>) {
    Vec<A> sum[rows];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) sum[r] = Vec<A>{};
    for (int b = 0; b < kh; ++b) {
      const int64_t j = q + rh - b;
      const Vec<A> tap_b = load(tap + b * tap_row + j);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) sum[r] = fma(load(product + r * product_row + j), tap_b, sum[r]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) store(sums.row(r) + q, sum[r]);
  }
}

// grad_x[a,q] = sum over j, b with pad(j+b-rh) = q of g[j] * vertical[a,j] * horizontal[b,j], of a row of outputs.
template <class T>
class OuterInputRows {
 public:
  using A = Acc<T>;

  explicit OuterInputRows(const StyleKernelConv& p)
      : p_(p),
        border_(p.w, p.rh(), p.padding),
        taps_(p.w, 2 * p.rh()),
        products_(p.w, 2 * p.rh()),
        sums_(p.w, p.rh()) {}

  // Adds to row[a] of in_w values, of each tap a for which there is one: else null.
  template <int K>
  STYLEKERN_NOINLINE void add(const T* v, const T* u, const T* g, A* const* row) {
    const int kv = K ? K : p_.kv, kh = K ? K : p_.kh;
    taps_.resize(kh), products_.resize(kMostRows), sums_.resize(kMostRows);
    for (int b = 0; b < kh; ++b) convert(u + b * p_.horizontal.tap, taps_.row(b));
    for_tap_blocks<K>(kv, [&]<int rows>(int a, std::integral_constant<int, rows>) STYLEKERN_ALWAYS_INLINE {
      A* const* const to = row + a;
      if (std::none_of(to, to + rows, [](A* r) { return r != nullptr; })) return;
      for (int r = 0; r < rows; ++r) multiply(g, v + (a + r) * p_.vertical.tap, products_.row(r));
      outer_input_sums<rows, K>(products_, taps_, kh, p_.w, sums_);
      for (int r = 0; r < rows; ++r)
        if (to[r]) finish(sums_.row(r), to[r]);
    });
  }

 private:
  static constexpr int kMostRows = 5;  // of a block of for_tap_blocks()

  // To a scratch row, among zeros.
  STYLEKERN_NOINLINE void convert(const T* from, A* row) const {
    for_vectors<A>(
        p_.w, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE { store(row + j, load(from + j, count), count); });
  }
  STYLEKERN_NOINLINE void multiply(const T* x, const T* y, A* row) const {
    for_vectors<A>(p_.w, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
      store(row + j, load(x + j, count) * load(y + j, count), count);
    });
  }
  STYLEKERN_NOINLINE void finish(A* sums, A* to) const {
    const bool padded = p_.padding == Padding::kNone;  // then x has the columns beyond
    if (!padded) border_.fold(sums);
    const A* const from = sums - (padded ? p_.rh() : 0);
    for_vectors<A>(p_.in_w, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
      store(to + j, load(to + j, count) + load(from + j, count), count);
    });
  }

  StyleKernelConv p_;
  RowBorder border_;
  PaddedRows<A> taps_, products_, sums_;
};

}  // namespace stylekern::STYLEKERN_TARGET

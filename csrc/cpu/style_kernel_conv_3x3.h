// style_kernel_conv on the CPU, sequential, three taps both ways: a row, forward and backward. Included by
// foreach_target.h.
//
// A row is walked a vector after the other, and nothing but results is stored: x is normalised as it is loaded, t stays
// in registers, and a neighbour's t comes from the vector beside by a shift of lanes. The scratch rows that wider taps
// need would cost half as much again.
namespace stylekern::STYLEKERN_TARGET {

// Calls f(v) with v the whole vectors a row of w values has, where that is a number up to `most` that rows are unrolled
// for, else 0.
template <class A, int most, class F>
STYLEKERN_INLINE auto with_vectors(int64_t w, F&& f) {
  if constexpr (kSpecialised) {
    if (w == 2 * kLanes<A>) return f(std::integral_constant<int, 2>{});
    if (w == 4 * kLanes<A>) return f(std::integral_constant<int, 4>{});
    if constexpr (most >= 8)
      if (w == 8 * kLanes<A>) return f(std::integral_constant<int, 8>{});
  }
  return f(std::integral_constant<int, 0>{});
}

// What lies beyond the first and the last vector of a row.
template <class V>
STYLEKERN_INLINE auto beyond_left(Padding padding, V first) {
  return padding == Padding::kZeros ? V{}[0] : padding == Padding::kReflect ? first[1] : first[0];
}
template <class V>
STYLEKERN_INLINE auto beyond_right(Padding padding, V last) {
  constexpr int lanes = sizeof(V) / sizeof(last[0]);
  return padding == Padding::kZeros ? V{}[0] : padding == Padding::kReflect ? last[lanes - 2] : last[lanes - 1];
}

// Calls use(j, count, left, here, right) along a row of w values. here = make(j, count) holds a vector `t`, lanes j to
// j + count - 1 of the row; left and right are the same one lane down and up, with the border rule beyond the ends.
// `rest`: w % lanes, a constant where that is known.
template <class A, class Rest, class Make, class Use>
STYLEKERN_INLINE void for_neighbours(int64_t w, Rest rest, Padding padding, Make&& make, Use&& use) {
  constexpr int lanes = kLanes<A>;
  const std::integral_constant<int, lanes> whole;
  auto here = rest && w < lanes ? make(0, int64_t(rest)) : make(0, whole);
  Vec<A> before = broadcast(beyond_left(padding, here.t));
  int64_t j = 0;
  for (; j + 2 * lanes <= w; j += lanes) {
    const auto next = make(j + lanes, whole);
    use(j, whole, shift_up(before, here.t), here, shift_down(here.t, next.t));
    before = here.t, here = next;
  }
  if (w >= lanes || rest == 0) {
    decltype(here) next{};
    if (rest)
      next = make(j + lanes, int64_t(rest));
    else
      next.t = broadcast(beyond_right(padding, here.t));
    use(j, whole, shift_up(before, here.t), here, shift_down(here.t, next.t));
    if (rest == 0) return;
    before = here.t, here = next, j += lanes;
  }
  A border = 0;
  if (padding == Padding::kReplicate) border = get_lane<A>(here.t, rest - 1);
  if (padding == Padding::kReflect) border = rest > 1 ? get_lane<A>(here.t, rest - 2) : before[lanes - 1];
  use(j, int64_t(rest), shift_up(before, here.t), here, shift_down(with_lane(here.t, rest, border), Vec<A>{}));
}

// The three rows of x that a row of t reads, normalised as they are loaded. Passed by value, so that stores to results
// cannot change what the compiler keeps in registers.
template <class T>
struct InputRows {
  using A = Acc<T>;
  const T* row[3];
  A minus_mean[3], rstd[3];  // 0 and 1 for zeros, and where x is not normalised

  template <class N>
  STYLEKERN_ALWAYS_INLINE Vec<A> get(int a, int64_t j, N count) const {
    return (load(row[a] + j, count) + minus_mean[a]) * rstd[a];  // see Centre
  }
};

// (x - mean) * rstd, with both in registers.
template <class A>
struct Normalized {
  Vec<A> minus_mean, rstd;
  STYLEKERN_ALWAYS_INLINE Vec<A> operator()(Vec<A> x) const { return (x + minus_mean) * rstd; }
};

// A channel's plane of x; without normalisation, mean is null. `zeros` is a row of them. `next`: a plane of the same
// strides to fetch meanwhile, or null.
template <class T>
class InputPlane {
 public:
  using A = Acc<T>;

  InputPlane(const StyleKernelConv& p, const T* x, const A* mean, const A* rstd, const T* zeros,
             const T* next = nullptr)
      : x_(x),
        zeros_(zeros),
        next_(next),
        row_(p.input.row),
        h_(p.h),
        above_(border_index(-1, p.h, p.padding)),
        below_(border_index(p.h, p.h, p.padding)),
        minus_mean_(mean ? -*mean : A(0)),
        rstd_(mean ? *rstd : A(1)) {}

  STYLEKERN_ALWAYS_INLINE InputRows<T> rows(int64_t i) const {
    const T* const x = x_ + i * row_;
    InputRows<T> rows{{x - row_, x, x + row_}, {minus_mean_, minus_mean_, minus_mean_}, {rstd_, rstd_, rstd_}};
    if (i == 0) set_border(rows, 0, above_);
    if (i + 1 == h_) set_border(rows, 2, below_);
    return rows;
  }

  // Row i, or the row that the border rule has for it, in V vectors.
  template <int V>
  STYLEKERN_ALWAYS_INLINE void load_row(int64_t i, Vec<A> (&to)[V]) const {
    const int64_t q = i < 0 ? above_ : i < h_ ? i : below_;
    if (q >= 0)
#pragma GCC unroll 4
      for (int k = 0; k < V; ++k) to[k] = (load(x_ + q * row_ + k * kLanes<A>) + minus_mean_) * rstd_;
    else
#pragma GCC unroll 4
      for (int k = 0; k < V; ++k) to[k] = Vec<A>{};
  }

  const T* row(int64_t i) const { return x_ + i * row_; }
  const T* next() const { return next_ ? next_ : x_; }  // without one x itself: that saves a test
  int64_t h() const { return h_; }
  Normalized<A> normalized() const { return {in_register(broadcast(minus_mean_)), in_register(broadcast(rstd_))}; }

  // Row i, of w values, of the next plane.
  STYLEKERN_ALWAYS_INLINE void fetch_next(int64_t i, int64_t w) const {
    if (next_) fetch_row(next_ + i * row_, w);
  }

 private:
  STYLEKERN_ALWAYS_INLINE void set_border(InputRows<T>& rows, int a, int64_t i) const {
    rows.row[a] = i < 0 ? zeros_ : x_ + i * row_;
    if (i < 0) rows.minus_mean[a] = 0, rows.rstd[a] = 1;
  }

  const T *x_, *zeros_, *next_;
  int64_t row_, h_, above_, below_;
  A minus_mean_, rstd_;
};

template <class A>
struct Column {
  Vec<A> t;
};

// t[j] = sum_a vertical[a,j] * x[a,j]
template <class T, class N>
STYLEKERN_INLINE Column<Acc<T>> vertical_3x3(const InputRows<T>& x, const T* v, int64_t tap, int64_t j, N count) {
  Vec<Acc<T>> t = load(v + j, count) * x.get(0, j, count);
  t = fma(load(v + tap + j, count), x.get(1, j, count), t);
  t = fma(load(v + 2 * tap + j, count), x.get(2, j, count), t);
  return {t};
}

// A channel's plane of filters, bias and output.
template <class T>
struct OutputPlane {
  const T *v, *u, *bias;  // without bias, a row of zeros that every row reads
  T* y;
  int64_t w, v_row, v_tap, u_row, u_tap, bias_row;
  Padding padding;
  bool streamed, fetched;

  // What rows of `values` read that come later than these. Processors follow six streams that go on side by side by
  // themselves; but they begin anew at each plane, and some pages are behind them before they do well.
  STYLEKERN_ALWAYS_INLINE void fetch_filters(const T* v_row, const T* u_row, const T* bias_row, int64_t values) const {
    if (!fetched) return;
    fetch_rows_ahead(v_row, values, v_tap, 3), fetch_rows_ahead(u_row, values, u_tap, 3);
    fetch_rows_ahead(bias_row, values, 0, 1);
  }
};

// y[j] = sum_b horizontal[b,j] * t[j+b-1] + bias[j], rows [i0, i1)
template <class T>
STYLEKERN_INLINE void forward_long_rows_3x3(const OutputPlane<T>& to, const InputPlane<T>& from, int64_t i0,
                                            int64_t i1) {
  using A = Acc<T>;
  for (int64_t i = i0; i < i1; ++i) {
    const InputRows<T> x = from.rows(i);
    from.fetch_next(i, to.w);
    const T *const v = to.v + i * to.v_row, *const u = to.u + i * to.u_row, *const bias = to.bias + i * to.bias_row;
    T* const y = to.y + i * to.w;
    to.fetch_filters(v, u, bias, to.w);
    for_neighbours<A>(
        to.w, to.w % kLanes<A>, to.padding,
        [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE { return vertical_3x3(x, v, to.v_tap, j, count); },
        [&](int64_t j, auto count, Vec<A> left, const Column<A>& here, Vec<A> right) STYLEKERN_ALWAYS_INLINE {
          Vec<A> sum = fma(load(u + j, count), left, load(bias + j, count));
          sum = fma(load(u + to.u_tap + j, count), here.t, sum);
          sum = fma(load(u + 2 * to.u_tap + j, count), right, sum);
          store_or_stream(y + j, sum, count, to.streamed);
        });
  }
}

// Where a row's gradients go. D is T, or the accumulation type where sums over channels wait for their rounding.
template <class T, class D>
struct RowGradients {
  D *v = nullptr, *u = nullptr;  // row of the first tap, then tap_stride further; null: not asked for
  int64_t tap_stride = 0;
  bool first = true;      // channel of the group: sets, and later ones add
  bool streamed = false;  // v and u bypass the caches
  Acc<T>* x[3] = {};      // the row of grad_x that each vertical tap reads; null: not asked for, or no such row
  bool fresh[3] = {};     // nothing has been written to that row yet
};

// tap[j] * g[j]
template <class T>
STYLEKERN_INLINE Acc<T> product_at(const T* tap, const T* g, int64_t j) {
  return load_first(tap + j, 1)[0] * load_first(g + j, 1)[0];
}

// grad_t[q]            = sum over j, b with pad(j+b-1) = q of horizontal[b,j] * g[j]
// grad_horizontal[b,j] = sum over channels of g[j] * t[j+b-1]
// grad_vertical[a,j]   = sum over channels of grad_t[j] * x[a,j]
// grad_x[a,j]         += vertical[a,j] * grad_t[j]
template <class T, class D>
STYLEKERN_INLINE void backward_row_3x3(const StyleKernelConv& p, const InputRows<T> x, const T* v, const T* u,
                                       const T* g, const RowGradients<T, D> to) {
  using A = Acc<T>;
  const int64_t w = p.w, v_tap = p.vertical.tap, u_tap = p.horizontal.tap;
  const bool need_t = to.v || to.x[0] || to.x[1] || to.x[2];
  // What the border rule read beyond the ends goes to one column on each side.
  const int64_t first = border_index(-1, w, p.padding), last = border_index(w, w, p.padding);
  const A to_first = product_at(u, g, 0), to_last = product_at(u + 2 * u_tap, g, w - 1);
  const auto fold = [](Vec<A>& sum, int64_t lane, int64_t lanes, A product) STYLEKERN_ALWAYS_INLINE {
    if (lane >= 0 && lane < lanes) sum += with_lane<A>(Vec<A>{}, lane, product);
  };
  const auto gather_grad_t = [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
    const Vec<A> gj = load(g + j, count);
    Vec<A> sum = load(u + u_tap + j, count) * gj;
    if (j > 0)
      sum = fma(load(u + 2 * u_tap + j - 1, count), load(g + j - 1, count), sum);
    else
      sum += shift_up(Vec<A>{}, load(u + 2 * u_tap, count) * gj);
    if (j + count < w)
      sum = fma(load(u + j + 1, count), load(g + j + 1, count), sum);
    else
      sum += shift_down(load(u + j, count) * gj, Vec<A>{});
    if (j == 0) fold(sum, first, count, to_first);
    if (j + 2 * kLanes<A> >= w) fold(sum, last - j, count, to_last);
    return sum;
  };
  const auto add = [&](D* sum, Vec<A> value, auto count) STYLEKERN_ALWAYS_INLINE {
    if (to.streamed)  // only where the first channel is the last
      stream(sum, value, count);
    else
      store(sum, to.first ? value : value + load(sum, count), count);
  };
  for_neighbours<A>(
      w, w % kLanes<A>, p.padding,
      [&](int64_t j, auto count)
          STYLEKERN_ALWAYS_INLINE { return to.u ? vertical_3x3(x, v, v_tap, j, count) : Column<A>{}; },
      [&](int64_t j, auto count, Vec<A> left, const Column<A>& here, Vec<A> right) STYLEKERN_ALWAYS_INLINE {
        if (to.u) {
          const Vec<A> gj = load(g + j, count);
          add(to.u + j, gj * left, count);
          add(to.u + to.tap_stride + j, gj * here.t, count);
          add(to.u + 2 * to.tap_stride + j, gj * right, count);
        }
        if (!need_t) return;
        const Vec<A> grad_t = gather_grad_t(j, count);
        if (to.v)
          for (int a = 0; a < 3; ++a) add(to.v + a * to.tap_stride + j, grad_t * x.get(a, j, count), count);
        for (int a : {1, 2, 0}) {  // the order that makes `fresh` true at a row's first tap
          if (!to.x[a]) continue;
          const Vec<A> before = to.fresh[a] ? Vec<A>{} : load(to.x[a] + j, count);
          store(to.x[a] + j, fma(load(v + a * v_tap + j, count), grad_t, before), count);
        }
      });
}

}  // namespace stylekern::STYLEKERN_TARGET

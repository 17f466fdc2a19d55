// style_kernel_conv on the CPU, sequential, three taps both ways: a row, forward and backward. Included by
// foreach_target.h.
//
// One row is walked a vector after the other, and nothing but results is stored: x is normalised as it is loaded, t
// stays in registers, and a neighbour's t comes from the vector beside by a shift of lanes. The scratch rows that wider
// taps need would cost half as much again.
namespace stylekern::STYLEKERN_TARGET {

// Calls f(v) with v the whole vectors a row of w values has, where that is a number that rows are unrolled for, else 0.
template <class A, class F>
STYLEKERN_INLINE void with_vectors(int64_t w, F&& f) {
  if (w == 2 * kLanes<A>) return f(std::integral_constant<int, 2>{});
  if (w == 4 * kLanes<A>) return f(std::integral_constant<int, 4>{});
  f(std::integral_constant<int, 0>{});
}

// Calls use(j, count, left, here, right) along a row of w values. here = make(j, count) holds a vector `t`, lanes j to
// j + count - 1 of the row; left and right are the same one lane down and up, with the border rule beyond the ends.
// V: the whole vectors that the row has, which are then unrolled: short rows cost a third less; or 0.
template <class A, int V, class Make, class Use>
STYLEKERN_INLINE void for_neighbours(int64_t w, Padding padding, Make&& make, Use&& use) {
  constexpr int lanes = kLanes<A>;
  const std::integral_constant<int, lanes> whole;
  const auto left_border = [&](Vec<A> first) {
    return padding == Padding::kZeros ? A(0) : padding == Padding::kReflect ? first[1] : first[0];
  };
  if constexpr (V > 0) {
    const auto right_border = [&](Vec<A> last) {
      return padding == Padding::kZeros ? A(0) : padding == Padding::kReflect ? last[lanes - 2] : last[lanes - 1];
    };
    decltype(make(0, whole)) row[V];
#pragma GCC unroll 4
    for (int k = 0; k < V; ++k) row[k] = make(k * lanes, whole);
#pragma GCC unroll 4
    for (int k = 0; k < V; ++k) {
      const Vec<A> before = k > 0 ? row[k - 1].t : broadcast(left_border(row[0].t));
      const Vec<A> after = k + 1 < V ? row[k + 1].t : broadcast(right_border(row[V - 1].t));
      use(k * lanes, whole, shift_up(before, row[k].t), row[k], shift_down(row[k].t, after));
    }
    return;
  }
  const int64_t rest = w % lanes;
  auto here = w < lanes ? make(0, rest) : make(0, whole);
  Vec<A> before = broadcast(left_border(here.t));
  int64_t j = 0;
  for (; j + 2 * lanes <= w; j += lanes) {
    const auto next = make(j + lanes, whole);
    use(j, whole, shift_up(before, here.t), here, shift_down(here.t, next.t));
    before = here.t, here = next;
  }
  if (rest == 0) {
    const A border = padding == Padding::kZeros     ? A(0)
                     : padding == Padding::kReflect ? here.t[lanes - 2]
                                                    : here.t[lanes - 1];
    return use(j, whole, shift_up(before, here.t), here, shift_down(here.t, broadcast(border)));
  }
  if (w > lanes) {
    const auto next = make(j + lanes, rest);
    use(j, whole, shift_up(before, here.t), here, shift_down(here.t, next.t));
    before = here.t, here = next, j += lanes;
  }
  A border = 0;
  if (padding == Padding::kReplicate) border = get_lane<A>(here.t, rest - 1);
  if (padding == Padding::kReflect) border = rest > 1 ? get_lane<A>(here.t, rest - 2) : before[lanes - 1];
  use(j, rest, shift_up(before, here.t), here, shift_down(with_lane(here.t, rest, border), Vec<A>{}));
}

// The three rows of x that a row of t reads, normalised as they are loaded. Passed by value, so that stores to results
// cannot change what the compiler keeps in registers.
template <class T>
struct InputRows {
  using A = Acc<T>;
  const T* row[3];  // null: zeros
  bool normalize;
  A mean, rstd;

  template <class N>
  STYLEKERN_ALWAYS_INLINE Vec<A> get(int a, int64_t j, N count) const {
    if (!row[a]) return Vec<A>{};
    const Vec<A> x = load(row[a] + j, count);
    return normalize ? (x - mean) * rstd : x;
  }
};

// A channel's plane of x; without normalisation, mean is null.
template <class T>
class InputPlane {
 public:
  using A = Acc<T>;

  InputPlane(const StyleKernelConv& p, const T* x, const A* mean, const A* rstd)
      : x_(x),
        row_(p.input.row),
        h_(p.h),
        above_(border_row(border_index(-1, p.h, p.padding))),
        below_(border_row(border_index(p.h, p.h, p.padding))),
        normalize_(mean),
        mean_(mean ? *mean : A(0)),
        rstd_(mean ? *rstd : A(1)) {}

  STYLEKERN_ALWAYS_INLINE InputRows<T> rows(int64_t i) const {
    const T* const x = x_ + i * row_;
    return {{i > 0 ? x - row_ : above_, x, i + 1 < h_ ? x + row_ : below_}, normalize_, mean_, rstd_};
  }

 private:
  const T* border_row(int64_t i) const { return i < 0 ? nullptr : x_ + i * row_; }

  const T* x_;
  int64_t row_, h_;
  const T *above_, *below_;
  bool normalize_;
  A mean_, rstd_;
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
  const T *v, *u, *bias;  // bias: null where there is none
  T* y;
  int64_t w, v_row, v_tap, u_row, u_tap, bias_row;
  Padding padding;
  bool streamed;
};

// y[j] = sum_b horizontal[b,j] * t[j+b-1] + bias[j]
//
// Where `ahead` is given, a row of the plane whose statistics are next: this row waits for memory more than it
// computes, so the sums of another come with it at next to no cost.
template <int V, class T>
STYLEKERN_INLINE void forward_row_3x3(const OutputPlane<T>& to, const InputRows<T> x, int64_t i, const T* ahead,
                                      RunningMoments<Acc<T>>& moments) {
  using A = Acc<T>;
  const T *const v = to.v + i * to.v_row, *const u = to.u + i * to.u_row;
  const T* const bias = to.bias ? to.bias + i * to.bias_row : nullptr;
  T* const y = to.y + i * to.w;
  for_neighbours<A, V>(
      to.w, to.padding,
      [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
        if (ahead) moments.add(load(ahead + j, count));
        return vertical_3x3(x, v, to.v_tap, j, count);
      },
      [&](int64_t j, auto count, Vec<A> left, const Column<A>& here, Vec<A> right) STYLEKERN_ALWAYS_INLINE {
        Vec<A> sum = bias ? load(bias + j, count) : Vec<A>{};
        sum = fma(load(u + j, count), left, sum);
        sum = fma(load(u + to.u_tap + j, count), here.t, sum);
        sum = fma(load(u + 2 * to.u_tap + j, count), right, sum);
        if (to.streamed)
          stream(y + j, sum, count);
        else
          store(y + j, sum, count);
      });
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

// grad_t[q]            = sum over j, b with pad(j+b-1) = q of horizontal[b,j] * g[j]
// grad_horizontal[b,j] = sum over channels of g[j] * t[j+b-1]
// grad_vertical[a,j]   = sum over channels of grad_t[j] * x[a,j]
// grad_x[a,j]         += vertical[a,j] * grad_t[j]
template <int V, class T, class D>
STYLEKERN_INLINE void backward_row_3x3(const StyleKernelConv& p, const InputRows<T> x, const T* v, const T* u,
                                       const T* g, const RowGradients<T, D> to) {
  using A = Acc<T>;
  const int64_t w = p.w, v_tap = p.vertical.tap, u_tap = p.horizontal.tap;
  const bool need_t = to.v || to.x[0] || to.x[1] || to.x[2];
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
    // What the border rule read beyond the ends.
    const auto fold = [&](int64_t outside, const T* tap, int64_t end) {
      const int64_t q = border_index(outside, w, p.padding);
      if (q < j || q >= j + count) return;
      const A product = load_first(tap + end, 1)[0] * load_first(g + end, 1)[0];
      sum += with_lane<A>(Vec<A>{}, q - j, product);
    };
    if (j == 0) fold(-1, u, 0);
    if (j + 2 * kLanes<A> >= w) fold(w, u + 2 * u_tap, w - 1);
    return sum;
  };
  const auto add = [&](D* sum, Vec<A> value, auto count) STYLEKERN_ALWAYS_INLINE {
    if (to.streamed)  // only where the first channel is the last
      stream(sum, value, count);
    else
      store(sum, to.first ? value : value + load(sum, count), count);
  };
  for_neighbours<A, V>(
      w, p.padding,
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

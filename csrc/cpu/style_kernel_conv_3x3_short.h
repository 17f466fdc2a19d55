// style_kernel_conv on the CPU, sequential, three taps both ways, rows of a few whole vectors. Included by
// foreach_target.h.
//
// Such rows fit into registers: those of x, and of its gradient, stay there on their way down the plane, so that each
// is loaded and stored once; of eight vectors, only what is summed fits. And a row's results are stored after its loads
// of this plane: where planes are a page long, all streams meet in the same few lines of the first-level cache, and a
// load waits for an earlier store to an address that ends alike.
namespace stylekern::STYLEKERN_TARGET {

// t[j] = sum_a vertical[a,j] * x[a,j], a row of it; x(a, k): vector k of the row that tap a reads
template <int V, class T, class X>
STYLEKERN_INLINE void vertical_short_3x3(const T* v0, const T* v1, const T* v2, X&& x, Vec<Acc<T>> (&t)[V]) {
#pragma GCC unroll 8
  for (int k = 0; k < V; ++k) {
    const int64_t j = k * kLanes<Acc<T>>;
    t[k] = load(v0 + j) * x(0, k);
    t[k] = fma(load(v1 + j), x(1, k), t[k]);
    t[k] = fma(load(v2 + j), x(2, k), t[k]);
  }
}

// y[j] = sum_b horizontal[b,j] * t[j+b-1] + bias[j], rows [i0, i1). Rows of all tensors but the bias are w values
// apart.
//
// A processor begins later rows' loads while it waits for this one's, as far as it sees: some hundred instructions. So
// in the loop over rows that have others beside them there is no test, nor anything that is the same for all of them.
// Written plainly, it took up to 1.2 times as long.
template <int V, bool streamed, class T>
STYLEKERN_NOINLINE void forward_short_rows_3x3(const OutputPlane<T>& to, const InputPlane<T>& from, int64_t i0,
                                               int64_t i1) {
  using A = Acc<T>;
  constexpr int lanes = kLanes<A>;
  constexpr int64_t w = V * lanes;
  constexpr std::integral_constant<int, lanes> whole;
  const ShiftAtEnd<A> shift_first(to.padding, -1), shift_last(to.padding, 1);
  const int64_t bias_row = to.bias_row, h = from.h();
  const T *const v0 = to.v, *const v1 = v0 + to.v_tap, *const v2 = v1 + to.v_tap;
  const T *const u0 = to.u, *const u1 = u0 + to.u_tap, *const u2 = u1 + to.u_tap;
  const T *bias = to.bias + i0 * bias_row, *const x = from.row(0), *const next = from.next();
  T* const y = to.y;
  const auto normalized = from.normalized();
  const auto row = [&](int64_t at, auto&& of_x) STYLEKERN_ALWAYS_INLINE {
    if constexpr (streamed) {  // so large that the next plane comes from memory
      fetch_row(next + at, w);
      to.fetch_filters(v0 + at, u0 + at, bias, w);
    } else if constexpr (sizeof(T) == 2 && V > 2) {  // whose conversions leave less room to look ahead
      if (to.fetched) to.fetch_filters(v0 + at, u0 + at, bias, w), fetch_row(next + at, w);
    }
    Vec<A> t[V], sum[V];
    vertical_short_3x3(v0 + at, v1 + at, v2 + at, of_x, t);
#pragma GCC unroll 8
    for (int k = 0; k < V; ++k) {
      const int64_t j = at + k * lanes;
      const Vec<A> left = k > 0 ? shift_up(t[k - 1], t[k]) : shift_first(t[0]);
      const Vec<A> right = k + 1 < V ? shift_down(t[k], t[k + 1]) : shift_last(t[V - 1]);
      sum[k] = fma(load(u0 + j), left, load(bias + k * lanes));
      sum[k] = fma(load(u1 + j), t[k], sum[k]);
      sum[k] = fma(load(u2 + j), right, sum[k]);
    }
#pragma GCC unroll 8
    for (int k = 0; k < V; ++k) {
      if constexpr (streamed)
        stream_aligned(y + at + k * lanes, sum[k]);
      else
        store(y + at + k * lanes, sum[k]);
    }
    bias += bias_row;
  };
  const int64_t end = std::min(i1, h - 1) * w;  // of the rows that have one below them
  int64_t at = i0 * w;
  if constexpr (V <= 4) {
    Vec<A> above[V], here[V], below[V];
    from.load_row(i0 - 1, above), from.load_row(i0, here);
    const auto kept = [&](int a, int k) STYLEKERN_ALWAYS_INLINE {
      return a == 0 ? above[k] : a == 1 ? here[k] : below[k];
    };
    for (; at < end; at += w) {
#pragma GCC unroll 4
      for (int k = 0; k < V; ++k) below[k] = normalized(load(x + at + w + k * lanes));
      row(at, kept);
#pragma GCC unroll 4
      for (int k = 0; k < V; ++k) above[k] = here[k], here[k] = below[k];
    }
    if (at < i1 * w) from.load_row(h, below), row(at, kept);
  } else {
    const auto inside = [&](int a, int k)
                            STYLEKERN_ALWAYS_INLINE { return normalized(load(x + at + (a - 1) * w + k * lanes)); };
    const auto at_border = [&]() STYLEKERN_ALWAYS_INLINE {
      const InputRows<T> rows = from.rows(at / w);
      row(at, [&](int a, int k) STYLEKERN_ALWAYS_INLINE { return rows.get(a, k * lanes, whole); });
      at += w;
    };
    if (i0 == 0) at_border();
    for (; at < end; at += w) row(at, inside);
    if (at < i1 * w) at_border();
  }
}

template <int V, class T>
void forward_short_rows_3x3(const OutputPlane<T>& to, const InputPlane<T>& from, int64_t i0, int64_t i1) {
  if constexpr (sizeof(T) >= 4 && STYLEKERN_VECTOR_BYTES >= 32)  // see stream_aligned()
    if (to.streamed) return forward_short_rows_3x3<V, true>(to, from, i0, i1);
  forward_short_rows_3x3<V, false>(to, from, i0, i1);
}

// A channel's plane of filters, gradients of the output, and where the others go.
template <class T>
struct GradientPlane {
  const T *v, *u, *g;
  T *grad_v, *grad_u;  // null: not asked for
  Acc<T>* grad_x;      // dense; null: not asked for
  int64_t h, w, v_row, v_tap, u_row, u_tap, g_row;
  Padding padding;
  bool streamed;  // grad_v and grad_u bypass the caches
  bool fetched;   // v, u and g are fetched ahead
};

// grad_horizontal[b,j] = g[j] * t[j+b-1]
// grad_t[q]            = sum over j, b with pad(j+b-1) = q of horizontal[b,j] * g[j]
// grad_vertical[a,j]   = grad_t[j] * x[a,j]
// grad_x[a,j]         += vertical[a,j] * grad_t[j]
//
// Rows [row0, row1) of all gradients; the rows beside contribute to those of grad_x. done(x, grad_x) gets the V vectors
// of each of these in turn.
template <int V, class T, class Done>
STYLEKERN_INLINE void backward_short_rows_3x3(const GradientPlane<T>& to, const InputPlane<T>& from, int64_t row0,
                                              int64_t row1, Done&& done) {
  using A = Acc<T>;
  constexpr int lanes = kLanes<A>;
  const std::integral_constant<int, lanes> whole;
  const int64_t plane = to.h * to.w, halo = to.grad_x ? 1 : 0;
  const int64_t first = std::max<int64_t>(row0 - halo, 0), last = std::min(row1 + halo, to.h);
  const bool reflect = to.padding == Padding::kReflect, replicate = to.padding == Padding::kReplicate;
  Vec<A> above[V], here[V], below[V]{};                     // rows i - 1, i, i + 1 of x
  Vec<A> grad_above[V]{}, grad_here[V]{}, grad_below[V]{};  // what the rows so far give to the gradients of those
  from.load_row(first - 1, above), from.load_row(first, here);
  const auto finish = [&](int64_t i, const Vec<A>(&x)[V], const Vec<A>(&grad)[V]) STYLEKERN_ALWAYS_INLINE {
    if (!to.grad_x || i < row0 || i >= row1) return;
#pragma GCC unroll 4
    for (int k = 0; k < V; ++k) store(to.grad_x + i * to.w + k * lanes, grad[k]);
    done(x, grad);
  };
  const auto row = [&](int64_t i) STYLEKERN_ALWAYS_INLINE {
    from.load_row(i + 1, below);
    const T *const v = to.v + i * to.v_row, *const u = to.u + i * to.u_row;
    if (to.fetched) {
      fetch_rows_ahead(v, V * lanes, to.v_tap, 3), fetch_rows_ahead(u, V * lanes, to.u_tap, 3);
      fetch_rows_ahead(to.g + i * to.g_row, V * lanes, 0, 1);
    }
    const bool own = i >= row0 && i < row1;
    Vec<A> g[V];
#pragma GCC unroll 4
    for (int k = 0; k < V; ++k) g[k] = load(to.g + i * to.g_row + k * lanes);
    if (to.grad_u && own) {
      Vec<A> t[V];
      const auto x = [&](int a, int k) STYLEKERN_ALWAYS_INLINE {
        return a == 0 ? above[k] : a == 1 ? here[k] : below[k];
      };
      vertical_short_3x3(v, v + to.v_tap, v + 2 * to.v_tap, x, t);
      T* const grad_u = to.grad_u + i * to.w;
#pragma GCC unroll 4
      for (int k = 0; k < V; ++k) {
        const Vec<A> before = k > 0 ? t[k - 1] : broadcast(beyond_left(to.padding, t[0]));
        const Vec<A> after = k + 1 < V ? t[k + 1] : broadcast(beyond_right(to.padding, t[V - 1]));
        store_or_stream(grad_u + k * lanes, g[k] * shift_up(before, t[k]), whole, to.streamed);
        store_or_stream(grad_u + plane + k * lanes, g[k] * t[k], whole, to.streamed);
        store_or_stream(grad_u + 2 * plane + k * lanes, g[k] * shift_down(t[k], after), whole, to.streamed);
      }
    }
    if (to.grad_v || to.grad_x) {
      Vec<A> to_left[V], to_right[V], grad_t[V];  // products that go a column to the left, to the right
#pragma GCC unroll 4
      for (int k = 0; k < V; ++k) {
        const T* const uk = u + k * lanes;
        to_left[k] = load(uk) * g[k], to_right[k] = load(uk + 2 * to.u_tap) * g[k];
        grad_t[k] = load(uk + to.u_tap) * g[k];
      }
      // What the border rule read beyond the ends.
      Vec<A> left{}, right{};
      if (reflect) left[1] = to_left[0][0], right[lanes - 2] = to_right[V - 1][lanes - 1];
      if (replicate) left[0] = to_left[0][0], right[lanes - 1] = to_right[V - 1][lanes - 1];
      grad_t[0] += left, grad_t[V - 1] += right;
#pragma GCC unroll 4
      for (int k = 0; k < V; ++k) {
        grad_t[k] += shift_down(to_left[k], k + 1 < V ? to_left[k + 1] : Vec<A>{});
        grad_t[k] += shift_up(k > 0 ? to_right[k - 1] : Vec<A>{}, to_right[k]);
      }
      if (to.grad_v && own) {
        T* const grad_v = to.grad_v + i * to.w;
#pragma GCC unroll 4
        for (int k = 0; k < V; ++k) {
          store_or_stream(grad_v + k * lanes, grad_t[k] * above[k], whole, to.streamed);
          store_or_stream(grad_v + plane + k * lanes, grad_t[k] * here[k], whole, to.streamed);
          store_or_stream(grad_v + 2 * plane + k * lanes, grad_t[k] * below[k], whole, to.streamed);
        }
      }
#pragma GCC unroll 4
      for (int k = 0; k < V; ++k) {
        const T* const vk = v + k * lanes;
        const Vec<A> up = load(vk) * grad_t[k], down = load(vk + 2 * to.v_tap) * grad_t[k];
        grad_here[k] = fma(load(vk + to.v_tap), grad_t[k], grad_here[k]);
        grad_below[k] = down;
        if (i > 0)
          grad_above[k] += up;
        else if (reflect)
          grad_below[k] += up;
        else if (replicate)
          grad_here[k] += up;
        if (i + 1 < to.h) continue;
        if (reflect) grad_above[k] += down;
        if (replicate) grad_here[k] += down;
      }
    }
  };
  for (int64_t i = first; i <= last; ++i) {
    if (i < last) row(i);
    finish(i - 1, above, grad_above);
#pragma GCC unroll 4
    for (int k = 0; k < V; ++k) {
      above[k] = here[k], here[k] = below[k];
      grad_above[k] = grad_here[k], grad_here[k] = grad_below[k];
    }
  }
}

}  // namespace stylekern::STYLEKERN_TARGET

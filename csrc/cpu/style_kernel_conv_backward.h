// style_kernel_conv on the CPU, backward: the kernels of one target, included by *_target.h.
//
// A unit of work is again a band of rows of one sample and filter group. It owns those rows of every gradient and
// recomputes t, the normalised x, and (for the rv rows on each side that reach into the band) grad_t. Sums run over
// taps and channels in one fixed order, whatever the bands.
namespace stylekern::STYLEKERN_TARGET {

template <class T>
class StyleKernelConvBackward {
 public:
  using A = Acc<T>;

  STYLEKERN_NOINLINE explicit StyleKernelConvBackward(const StyleKernelConvBackwardArgs<T>& args)
      : args_(args),
        p_(args.problem),
        x_(p_, args.mean != nullptr),
        forward_({.problem = p_,
                  .input = args.input,
                  .vertical = args.vertical,
                  .horizontal = args.horizontal,
                  .fetched = args.fetched}),
        border_(p_.w, p_.rh(), p_.padding),
        grad_t_(p_.w, p_.rh()),
        among_zeros_(p_.w, 2 * p_.rh()),
        outer_input_(p_),
        zeros_(size_t(p_.w)),
        offset_(p_.padding == Padding::kNone ? p_.rv() : 0) {}

  // Rows [row0, row1) of grad_vertical and grad_horizontal, and of the gradient of the (normalised) x, whose dense
  // planes, one a channel of the group, start at grad_x.
  void run(int64_t n, int64_t g, int64_t row0, int64_t row1, A* grad_x) {
    n_ = n, g_ = g, row0_ = row0, row1_ = row1, grad_x_ = grad_x;
    own0_ = row0 == 0 ? -offset_ : row0;
    own1_ = row1 == p_.h ? p_.h + offset_ : row1;
    v_ = args_.vertical + p_.vertical.at(n, g);
    u_ = args_.horizontal + p_.horizontal.at(n, g);
    const int halo = grad_x ? p_.rv() : 0;
    const int64_t first = std::max<int64_t>(row0 - halo, 0), last = std::min(row1 + halo, p_.h);
    const int64_t halo_rows = x_.in_place() ? 1 : std::max(1, 2 * p_.rv());
    const int64_t rows = std::max<int64_t>(kTileValues / std::max<int64_t>(p_.w, 1), halo_rows);
    sums_ = {};
    if (three_taps() && p_.groups == p_.c)
      if (with_vectors<A, 4>(p_.w, [&](auto vectors) { return short_rows_3x3<vectors>(); })) return;
    const bool outer = p_.composition == Composition::kOuter;
    const bool sums = !std::is_same_v<T, A> && (p_.channels_per_group() > 1 || outer);
    if (sums) filter_sums_.resize(size_t((p_.kv + p_.kh) * rows * p_.w));
    for (int64_t i0 = first; i0 < last; i0 += rows) {
      const int64_t i1 = std::min(i0 + rows, last);
      if (sums) {
        A* const v = filter_sums_.data();
        A* const u = v + p_.kv * rows * p_.w;
        run_tile(i0, i1, i0 == first, v, u, rows * p_.w, i0);
        convert_filter_rows(v, rows, i0, i1, p_.kv, args_.grad_vertical);
        convert_filter_rows(u, rows, i0, i1, p_.kh, args_.grad_horizontal);
      } else {
        const int64_t plane = (n * p_.groups + g) * p_.h * p_.w;
        run_tile(i0, i1, i0 == first, args_.grad_vertical ? args_.grad_vertical + plane * p_.kv : nullptr,
                 args_.grad_horizontal ? args_.grad_horizontal + plane * p_.kh : nullptr, p_.h * p_.w, 0);
      }
    }
    if (args_.streamed) finish_streams();
  }

  // What run() has added up of its rows of grad_x on the way, if it has.
  const std::optional<GradientSums>& sums() const { return sums_; }

 private:
  bool three_taps() const { return p_.kv == 3 && p_.kh == 3 && p_.composition == Composition::kSequential; }
  const T* v_row(int64_t i) const { return v_ + i * p_.vertical.row; }
  const T* u_row(int64_t i) const { return u_ + i * p_.horizontal.row; }

  // Sums of filter gradients lie at grad_v + a * tap_stride + (i - origin) * w: in memory, or in a tile of this thread.
  template <class D>
  void run_tile(int64_t i0, int64_t i1, bool first_tile, D* grad_v, D* grad_u, int64_t tap_stride, int64_t origin) {
    const bool sequential = p_.composition == Composition::kSequential;
    const bool need_v = args_.grad_vertical, need_u = args_.grad_horizontal;
    const int64_t cpg = p_.channels_per_group(), in_plane = p_.in_h * p_.in_w;
    for (int64_t k = 0; k < cpg; ++k) {
      if (three_taps()) {
        rows_3x3(i0, i1, k, grad_v, grad_u, tap_stride, origin);
        continue;
      }
      const int64_t c = g_ * cpg + k, nc = n_ * p_.c + c;
      const bool normalize = args_.mean != nullptr, first_channel = k == 0;
      if (need_v || need_u)
        x_.fill(args_.input + p_.input.at(n_, c), i0, i1, normalize ? args_.mean[nc] : A(0),
                normalize ? args_.rstd[nc] : A(1), normalize);
      const T* grad = args_.grad + p_.grad.at(n_, c);
      A* const grad_x = grad_x_ ? grad_x_ + k * in_plane : nullptr;
      if (grad_x) {
        const int64_t fresh = first_tile ? own0_ : std::max(i0 + p_.rv(), own0_);
        const int64_t end = i1 + p_.rv() >= own1_ ? own1_ : i1 + p_.rv();
        if (fresh < end) std::fill_n(grad_x + (fresh + offset_) * p_.in_w, (end - fresh) * p_.in_w, A(0));
      }
      const auto each_own_row = [&](auto f) {
        for (int64_t i = std::max(i0, row0_); i < std::min(i1, row1_); ++i) f(i, (i - origin) * p_.w);
      };
      if (sequential) {
        if (need_u) {
          forward_.vertical_rows(v_, x_, i0, i1);
          each_own_row([&](int64_t i, int64_t at) {
            horizontal_filter_row(grad + i * p_.grad.row, forward_.t_row(i - i0), grad_u + at, tap_stride,
                                  first_channel);
          });
        }
        if (!need_v && !grad_x) continue;
        grad_t_.resize(i1 - i0);
        with_taps(p_, [&](auto taps) {
          for (int64_t i = i0; i < i1; ++i) grad_t_row<taps>(grad + i * p_.grad.row, u_row(i), grad_t_.row(i - i0));
        });
        if (need_v)
          each_own_row([&](int64_t i, int64_t at) {
            vertical_filter_row(grad_t_.row(i - i0), x_.row(i), grad_v + at, tap_stride, first_channel);
          });
        if (grad_x)
          for (int64_t i = i0; i < i1; ++i) input_rows(i, grad_t_.row(i - i0), grad_x);
      } else {
        if constexpr (std::is_same_v<D, A>)  // of no other type: run() has 16-bit gradients summed in a tile
          if (need_v || need_u)
            each_own_row([&](int64_t i, int64_t at) {
              fetch(v_row(i), p_.vertical.tap, p_.kv), fetch(u_row(i), p_.horizontal.tap, p_.kh);
              with_taps(p_, [&](auto taps) {
                outer_filter_rows<taps>(p_, v_row(i), u_row(i), x_.row(i), grad + i * p_.grad.row,
                                        need_v ? grad_v + at : nullptr, need_u ? grad_u + at : nullptr, tap_stride,
                                        first_channel);
              });
            });
        if (grad_x)
          for (int64_t i = i0; i < i1; ++i) {
            A* to[kMostTaps];
            for (int a = 0; a < p_.kv; ++a) to[a] = target_row(grad_x, i, a);
            with_taps(p_, [&](auto taps) {
              outer_input_.template add<taps>(v_row(i), u_row(i), grad + i * p_.grad.row, to);
            });
          }
      }
    }
  }

  // Whether rows are short enough; then all is done.
  template <int V>
  bool short_rows_3x3() {
    if constexpr (V > 0) {
      const int64_t nc = n_ * p_.c + g_, filters = nc * p_.h * p_.w * 3;
      const GradientPlane<T> to{v_,
                                u_,
                                args_.grad + p_.grad.at(n_, g_),
                                args_.grad_vertical ? args_.grad_vertical + filters : nullptr,
                                args_.grad_horizontal ? args_.grad_horizontal + filters : nullptr,
                                grad_x_,
                                p_.h,
                                p_.w,
                                p_.vertical.row,
                                p_.vertical.tap,
                                p_.horizontal.row,
                                p_.horizontal.tap,
                                p_.grad.row,
                                p_.padding,
                                args_.streamed,
                                args_.fetched};
      RunningGradientSums<A> sums;
      backward_short_rows_3x3<V>(to, input_plane(g_), row0_, row1_,
                                 [&](const Vec<A>(&x)[V], const Vec<A>(&grad)[V]) STYLEKERN_ALWAYS_INLINE {
#pragma GCC unroll 4
                                   for (int k = 0; k < V; ++k) sums.add(grad[k], x[k]);
                                   sums.end(p_.w);
                                 });
      sums_ = sums.total();
      if (args_.streamed) finish_streams();
    }
    return V > 0;
  }

  InputPlane<T> input_plane(int64_t c) const {
    const int64_t nc = n_ * p_.c + c;
    return InputPlane<T>(p_, args_.input + p_.input.at(n_, c), args_.mean ? args_.mean + nc : nullptr,
                         args_.mean ? args_.rstd + nc : nullptr, zeros_.data());
  }

  template <class D>
  void rows_3x3(int64_t i0, int64_t i1, int64_t k, D* grad_v, D* grad_u, int64_t tap_stride, int64_t origin) {
    const int64_t c = g_ * p_.channels_per_group() + k;
    const InputPlane<T> x = input_plane(c);
    A* const grad_x = grad_x_ ? grad_x_ + k * p_.h * p_.w : nullptr;
    for (int64_t i = i0; i < i1; ++i) {
      RowGradients<T, D> to;
      to.tap_stride = tap_stride, to.first = k == 0, to.streamed = args_.streamed && p_.groups == p_.c;
      if (i >= row0_ && i < row1_) {
        if (args_.grad_vertical) to.v = grad_v + (i - origin) * p_.w;
        if (args_.grad_horizontal) to.u = grad_u + (i - origin) * p_.w;
      }
      for (int a = 0; grad_x && a < 3; ++a) {
        to.x[a] = target_row(grad_x, i, a);
        // Row i's own tap is the first to reach row i where no row above was walked; else the lower tap of i - 1 was.
        to.fresh[a] = (a == 2 && i + 1 < p_.h) || (a == 1 && i == std::max<int64_t>(row0_ - 1, 0));
      }
      const T* const grad = args_.grad + p_.grad.at(n_, c) + i * p_.grad.row;
      if (args_.fetched) {
        fetch_rows_ahead(v_row(i), p_.w, p_.vertical.tap, 3), fetch_rows_ahead(u_row(i), p_.w, p_.horizontal.tap, 3);
        fetch_rows_ahead(grad, p_.w, 0, 1);
        if (to.v && !to.streamed) fetch_rows_ahead(to.v, p_.w, tap_stride, 3);
        if (to.u && !to.streamed) fetch_rows_ahead(to.u, p_.w, tap_stride, 3);
      }
      backward_row_3x3(p_, x.rows(i), v_row(i), u_row(i), grad, to);
    }
  }

  // The row of grad_x that tap a of output row i reads, or null where it reads a zero or another band's row.
  A* target_row(A* grad_x, int64_t i, int a) const {
    const int64_t q = i + a - p_.rv();
    const int64_t row = p_.padding == Padding::kNone ? q : border_index(q, p_.h, p_.padding);
    const bool readable = p_.padding == Padding::kNone || row >= 0;
    return readable && row >= own0_ && row < own1_ ? grad_x + (row + offset_) * p_.in_w : nullptr;
  }

  template <class D>
  STYLEKERN_ALWAYS_INLINE void fetch(const D* row, int64_t tap, int taps) const {
    if (args_.fetched) fetch_rows_ahead(row, p_.w, tap, taps);
  }

  template <class D, class N>
  STYLEKERN_INLINE static void add(D* sum, Vec<A> v, N count, bool first) {
    store(sum, first ? v : v + load(sum, count), count);
  }

  // Calls f(k, j, count) for each tap and each vector of a row. More taps than a cache has ways go one after the other:
  // where planes have a power of two of values, the rows of all taps lie in the same few lines, and drive each other
  // out.
  template <class F>
  STYLEKERN_INLINE void for_taps(int taps, const F& f) const {
    constexpr int kWays = 8;
    if (taps > kWays)
      for (int k = 0; k < taps; ++k)
        for_vectors<A>(p_.w, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE { f(k, j, count); });
    else
      for_vectors<A>(p_.w, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
        for (int k = 0; k < taps; ++k) f(k, j, count);
      });
  }

  // grad_horizontal[b,j] = sum over channels of g[j] * t[j+b-rh]
  template <class D>
  STYLEKERN_NOINLINE void horizontal_filter_row(const T* g, const A* t, D* grad_u, int64_t tap_stride, bool first) {
    t -= p_.rh();
    fetch(grad_u, tap_stride, p_.kh);
    for_taps(p_.kh, [&](int b, int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
      add(grad_u + b * tap_stride + j, load(g + j, count) * load(t + j + b), count, first);
    });
  }

  // grad_t[q] = sum over j, b with pad(j+b-rh) = q of horizontal[b,j] * g[j]: gathered before the border rule, then
  // folded
  template <int K>
  STYLEKERN_NOINLINE void grad_t_row(const T* g, const T* u, A* grad_t) {
    const int kh = K ? K : p_.kh, rh = kh / 2;
    fetch(u, p_.horizontal.tap, kh);
    const auto sums = [&](const auto* taps, int64_t tap_stride, const auto* g, auto&& window) STYLEKERN_ALWAYS_INLINE {
      for (int64_t q = -rh; q < p_.w + rh; q += kLanes<A>) {
        Vec<A> sum{};
        for (int b = 0; b < kh; ++b) sum = fma(window(taps + b * tap_stride, q + rh - b), window(g, q + rh - b), sum);
        store(grad_t + q, sum);
      }
    };
    if constexpr (std::is_same_v<T, A>) {
      sums(u, p_.horizontal.tap, g,
           [&](const A* row, int64_t j) STYLEKERN_ALWAYS_INLINE { return load_window(row, j, p_.w); });
    } else {  // of 16-bit values, windows that reach beyond a row cost several times as much
      among_zeros_.resize(kh + 1);
      A *const taps = among_zeros_.row(0), *const grad = among_zeros_.row(kh);
      const int64_t stride = among_zeros_.stride();
      for_vectors<A>(p_.w, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
        for (int b = 0; b < kh; ++b) store(taps + b * stride + j, load(u + b * p_.horizontal.tap + j, count), count);
        store(grad + j, load(g + j, count), count);
      });
      sums(taps, stride, grad, [](const A* row, int64_t j) STYLEKERN_ALWAYS_INLINE { return load(row + j); });
    }
    border_.fold(grad_t);
  }

  // grad_vertical[a,j] = sum over channels of grad_t[j] * x[a,j]
  template <class D>
  STYLEKERN_NOINLINE void vertical_filter_row(const A* grad_t, const A* const* x, D* grad_v, int64_t tap_stride,
                                              bool first) {
    fetch(grad_v, tap_stride, p_.kv);
    for_taps(p_.kv, [&](int a, int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
      add(grad_v + a * tap_stride + j, load(grad_t + j) * load(x[a] + j, count), count, first);
    });
  }

  // grad_x[pad(i+a-rv), j] += vertical[a,i,j] * grad_t[i,j]
  STYLEKERN_NOINLINE void input_rows(int64_t i, const A* grad_t, A* grad_x) {
    for (int a = 0; a < p_.kv; ++a) {
      A* const row = target_row(grad_x, i, a);
      if (!row) continue;
      const T* v = v_row(i) + a * p_.vertical.tap;
      for_vectors<A>(p_.w, [&](int64_t j, auto count) {
        store(row + j, fma(load(v + j, count), load(grad_t + j), load(row + j, count)), count);
      });
    }
  }

  STYLEKERN_NOINLINE void convert_filter_rows(const A* sums, int64_t rows, int64_t i0, int64_t i1, int taps,
                                              T* out) const {
    if (!out) return;
    out += (n_ * p_.groups + g_) * taps * p_.h * p_.w;
    for (int a = 0; a < taps; ++a)
      for (int64_t i = std::max(i0, row0_); i < std::min(i1, row1_); ++i)
        for_vectors<A>(p_.w, [&](int64_t j, auto count) {
          store(out + (a * p_.h + i) * p_.w + j, load(sums + (a * rows + i - i0) * p_.w + j, count), count);
        });
  }

  StyleKernelConvBackwardArgs<T> args_;
  StyleKernelConv p_;
  InputTile<T> x_;
  StyleKernelConvForward<T> forward_;
  RowBorder border_;
  PaddedRows<A> grad_t_, among_zeros_;
  OuterInputRows<T> outer_input_;
  std::vector<T> zeros_;
  std::optional<GradientSums> sums_;
  int64_t offset_;
  int64_t n_ = 0, g_ = 0, row0_ = 0, row1_ = 0, own0_ = 0, own1_ = 0;
  const T *v_ = nullptr, *u_ = nullptr;
  A* grad_x_ = nullptr;
  std::vector<A> filter_sums_;
};

}  // namespace stylekern::STYLEKERN_TARGET

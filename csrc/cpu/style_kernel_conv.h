// style_kernel_conv on the CPU, forward: the kernels of one target, included by *_target.h.
//
// A unit of work is a band of rows of one sample and filter group. Within it, tiles of about kTileValues values stay in
// the first-level cache between the two passes, so that input, filters, bias and output each cross memory once:
// 9 values a value of x with 3 + 3 taps, a filter a channel, and a bias. Each row's result does not depend on how rows
// are cut into bands and tiles, so any number of threads gives the same bits.
namespace stylekern::STYLEKERN_TARGET {

// Rows of x in the accumulation type, extended by the border rule above and below (and, for `outer`, left and right).
// Rows that memory already holds in that form are read where they lie.
template <class T>
class InputTile {
 public:
  using A = Acc<T>;

  InputTile(const StyleKernelConv& p, bool normalized)
      : p_(p),
        halo_(p.composition == Composition::kOuter && p.padding != Padding::kNone ? p.rh() : 0),
        in_place_(std::is_same_v<T, A> && !normalized && halo_ == 0),
        border_(p.w, halo_, p.padding),
        values_(p.in_w, halo_),
        zeros_(p.padding == Padding::kZeros ? size_t(p.in_w + 2 * halo_ + kLanes<A>) : 0) {}

  // Loads rows [i0 - rv, i1 + rv) of a channel's plane; row(i)[a] is then the row that tap a of output row i reads,
  // from its leftmost column on.
  STYLEKERN_NOINLINE void fill(const T* plane, int64_t i0, int64_t i1, A mean, A rstd, bool normalize) {
    const int rv = p_.rv();
    first_ = i0 - rv;
    rows_.resize(size_t(i1 - i0 + 2 * rv));
    if (!in_place_) values_.resize(i1 - i0 + 2 * rv);
    for (int64_t q = i0 - rv; q < i1 + rv; ++q) {
      const int64_t source = p_.padding == Padding::kNone ? q + rv : border_index(q, p_.h, p_.padding);
      const T* x = plane + source * p_.input.row;
      const A*& row = rows_[size_t(q - first_)];
      if (source < 0) {
        row = zeros_.data();
      } else if constexpr (std::is_same_v<T, A>) {
        row = in_place_ ? x : copy_row(x, q, mean, rstd, normalize);
      } else {
        row = copy_row(x, q, mean, rstd, normalize);
      }
    }
  }

  // Whether rows are read where they lie, so that a tile's halo costs nothing.
  bool in_place() const { return in_place_; }
  const A* const* row(int64_t i) const { return rows_.data() + (i - p_.rv() - first_); }

 private:
  const A* copy_row(const T* x, int64_t q, A mean, A rstd, bool normalize) {
    A* const row = values_.row(q - first_);
    if (normalize) {
      const Centre<A> centre(mean);
      for_vectors<A>(p_.in_w, [&](int64_t j, auto count) { store(row + j, centre(load(x + j, count)) * rstd); });
    } else {
      for_vectors<A>(p_.in_w, [&](int64_t j, auto count) { store(row + j, load(x + j, count)); });
    }
    border_.extend(row);
    return row - halo_;
  }

  StyleKernelConv p_;
  int64_t halo_, first_ = 0;
  bool in_place_;
  RowBorder border_;
  PaddedRows<A> values_;
  std::vector<A> zeros_;
  std::vector<const A*> rows_;
};

// Calls f(k) with k the taps both ways where those are three or five, so that loops over them are unrolled, else 0.
template <class F>
STYLEKERN_INLINE void with_taps(const StyleKernelConv& p, F&& f) {
  if constexpr (kSpecialised) {
    if (p.kv == 3 && p.kh == 3) return f(std::integral_constant<int, 3>{});
    if (p.kv == 5 && p.kh == 5) return f(std::integral_constant<int, 5>{});
  }
  f(std::integral_constant<int, 0>{});
}

template <class T>
class StyleKernelConvForward {
 public:
  using A = Acc<T>;

  STYLEKERN_NOINLINE explicit StyleKernelConvForward(const StyleKernelConvArgs<T>& args)
      : args_(args),
        p_(args.problem),
        x_(p_, args.mean != nullptr),
        border_(p_.w, p_.rh(), p_.padding),
        t_(p_.w, p_.rh()),
        zeros_(size_t(p_.w)),
        cpg_(p_.channels_per_group()),
        three_taps_(p_.kv == 3 && p_.kh == 3 && p_.composition == Composition::kSequential),
        touching_(p_.input.row == p_.w && p_.vertical.row == p_.w && p_.horizontal.row == p_.w),
        fetches_input_(args.fetched && args.mean && waits_in_cache(p_.h * p_.w * int64_t(sizeof(T)))) {}

  // Rows [row0, row1) of a sample and group. `next`: the n * groups + g that is this thread's next, or -1.
  void run(int64_t n, int64_t g, int64_t row0, int64_t row1, int64_t next) {
    if (three_taps_)
      with_vectors<A, kVectors>(touching_ ? p_.w : 0, [&](auto v) { run_3x3<v>(n, g, row0, row1, next); });
    else
      run_tiles(n, g, row0, row1, next);
    if (args_.streamed) finish_streams();
  }

  // Means and deviations of the channels [first, last) of all.
  void statistics(int64_t first, int64_t last) const {
    instance_statistics<T>(
        first, last, [&](int64_t nc) { return plane(nc); }, p_.h, p_.w, p_.input.row, args_.eps, args_.correction,
        args_.mean, args_.rstd);
  }

  // Rows [i0, i1) of t; t_row(i - i0) is the first value of such a row, which the border rule extends on both sides.
  STYLEKERN_NOINLINE void vertical_rows(const T* v, const InputTile<T>& x, int64_t i0, int64_t i1) {
    t_.resize(i1 - i0);
    with_taps(p_, [&](auto k) {
      for (int64_t i = i0; i < i1; ++i) vertical_row<k>(v + i * p_.vertical.row, x.row(i), t_row(i - i0));
    });
  }
  A* t_row(int64_t i) const { return t_.row(i); }

 private:
  // Rows of eight vectors are loaded once a tap, as longer ones are: 16-bit values are then converted thrice, and
  // without AVX2 there is little in the shorter loop that the longer does not have.
  static constexpr int kVectors = sizeof(T) >= 4 && STYLEKERN_VECTOR_BYTES >= 32 ? 8 : 4;

  const T* plane(int64_t nc) const { return args_.input + p_.input.at_number(nc, p_.c); }
  const T* bias(int64_t n, int64_t g, int64_t c) const {
    if (!p_.bias_groups) return nullptr;
    return args_.bias + p_.bias.at(n, p_.bias_groups == p_.c ? c : g);
  }

  // The plane whose rows are fetched meanwhile, or null.
  const T* to_fetch(int64_t next) const { return next >= 0 && fetches_input_ ? plane(next) : nullptr; }

  template <int V>
  void run_3x3(int64_t n, int64_t g, int64_t row0, int64_t row1, int64_t next) {
    const T* const fetched = to_fetch(next);
    const auto rows = [&](int64_t c, int64_t i0, int64_t i1) STYLEKERN_ALWAYS_INLINE {
      const int64_t nc = n * p_.c + c;
      const T* const bias = this->bias(n, g, c);
      const InputPlane<T> from(p_, plane(nc), args_.mean ? args_.mean + nc : nullptr,
                               args_.mean ? args_.rstd + nc : nullptr, zeros_.data(), fetched);
      const OutputPlane<T> to{args_.vertical + p_.vertical.at(n, g),
                              args_.horizontal + p_.horizontal.at(n, g),
                              bias ? bias : zeros_.data(),
                              args_.output + nc * p_.h * p_.w,
                              p_.w,
                              p_.vertical.row,
                              p_.vertical.tap,
                              p_.horizontal.row,
                              p_.horizontal.tap,
                              bias ? p_.bias.row : 0,
                              p_.padding,
                              args_.streamed,
                              args_.fetched};
      if constexpr (V == 0)
        forward_long_rows_3x3(to, from, i0, i1);
      else
        forward_short_rows_3x3<V>(to, from, i0, i1);
    };
    // Filters that several channels share stay in the first-level cache from one to the next.
    const int64_t tile = cpg_ == 1 ? row1 - row0 : std::max<int64_t>(kTileValues / p_.w, 1);
    for (int64_t i0 = row0; i0 < row1; i0 += tile)
      for (int64_t c = g * cpg_; c < (g + 1) * cpg_; ++c) rows(c, i0, std::min(i0 + tile, row1));
  }

  void run_tiles(int64_t n, int64_t g, int64_t row0, int64_t row1, int64_t next) {
    const T* const fetched = to_fetch(next);
    const int64_t tile = std::max<int64_t>(kTileValues / std::max<int64_t>(p_.w, 1), 1);
    const int64_t rows = std::max<int64_t>(tile, 2 * p_.rv());  // rows of x are read again above and below a tile
    for (int64_t i0 = row0; i0 < row1; i0 += rows) {
      const int64_t i1 = std::min(i0 + rows, row1);
      for (int64_t i = i0; fetched && i < i1; ++i) fetch_row(fetched + i * p_.input.row, p_.w);
      for (int64_t c = g * cpg_; c < (g + 1) * cpg_; ++c) {
        const bool normalize = args_.mean != nullptr;
        const int64_t nc = n * p_.c + c;
        const T* bias = this->bias(n, g, c);
        const T* v = args_.vertical + p_.vertical.at(n, g);
        const T* u = args_.horizontal + p_.horizontal.at(n, g);
        T* y = args_.output + nc * p_.h * p_.w;
        x_.fill(plane(nc), i0, i1, normalize ? args_.mean[nc] : A(0), normalize ? args_.rstd[nc] : A(1), normalize);
        if (p_.composition == Composition::kSequential) {
          vertical_rows(v, x_, i0, i1);
          with_taps(p_, [&](auto k) {
            for (int64_t i = i0; i < i1; ++i)
              horizontal_row<k>(u + i * p_.horizontal.row, t_row(i - i0), bias ? bias + i * p_.bias.row : nullptr,
                                y + i * p_.w);
          });
        } else {
          for (int64_t i = i0; i < i1; ++i)
            with_taps(p_, [&](auto k) {
              fetch(v + i * p_.vertical.row, p_.vertical.tap, p_.kv);
              fetch(u + i * p_.horizontal.row, p_.horizontal.tap, p_.kh);
              outer_row<k>(p_, v + i * p_.vertical.row, u + i * p_.horizontal.row, x_.row(i),
                           bias ? bias + i * p_.bias.row : nullptr, y + i * p_.w);
            });
        }
      }
    }
  }

  STYLEKERN_ALWAYS_INLINE void fetch(const T* row, int64_t tap, int taps) const {
    if (args_.fetched) fetch_rows_ahead(row, p_.w, tap, taps);
  }

  // t[j] = sum_a vertical[a,j] * x[a,j], then extended by the border rule
  template <int K>
  STYLEKERN_NOINLINE void vertical_row(const T* v, const A* const* x, A* t) {
    const int kv = K ? K : p_.kv;
    fetch(v, p_.vertical.tap, kv);
    for_vectors<A>(p_.w, [&](int64_t j, auto count) {
      Vec<A> sum = load(v + j, count) * load(x[0] + j, count);
      for (int a = 1; a < kv; ++a) sum = fma(load(v + a * p_.vertical.tap + j, count), load(x[a] + j, count), sum);
      store(t + j, sum);
    });
    border_.extend(t);
  }

  // y[j] = sum_b horizontal[b,j] * t[j+b-rh] + bias[j]
  template <int K>
  STYLEKERN_NOINLINE void horizontal_row(const T* u, const A* t, const T* bias, T* y) {
    const int kh = K ? K : p_.kh;
    t -= kh / 2;
    fetch(u, p_.horizontal.tap, kh);
    for_vectors<A>(p_.w, [&](int64_t j, auto count) {
      Vec<A> sum = bias ? load(bias + j, count) : Vec<A>{};
      for (int b = 0; b < kh; ++b) sum = fma(load(u + b * p_.horizontal.tap + j, count), load(t + j + b), sum);
      store(y + j, sum, count);
    });
  }

  StyleKernelConvArgs<T> args_;
  StyleKernelConv p_;
  InputTile<T> x_;
  RowBorder border_;
  PaddedRows<A> t_;
  std::vector<T> zeros_;
  int64_t cpg_;
  bool three_taps_, touching_, fetches_input_;
};

}  // namespace stylekern::STYLEKERN_TARGET

// adaconv on the CPU, backward: the kernels of one target, included by *_target.h.
namespace stylekern::STYLEKERN_TARGET {

// The gradient of x, the normalised input:
//   grad_x[m,q] = sum over o, i, a with pad(i + a - top) = q (and likewise the columns) of kernel[o,m,a,b] * g[o,i,j]
//
// Gathered before the border rule as a convolution of g among zeros by the kernel turned around, then folded.
template <class T>
class AdaConvBackwardInput {
 public:
  using A = Acc<T>;

  explicit AdaConvBackwardInput(const AdaConvBackwardArgs<T>& args)
      : args_(args),
        p_(args.problem),
        border_(p_.w, p_.left(), right(), p_.padding),
        g_(p_.w, p_.kw - 1),
        rows_(p_.w, std::max(p_.left(), right())),
        weights_(p_.group_out(), p_.kh, p_.kw, p_.group_in()) {}

  // Rows [row0, row1) of all channels of a sample and group, into planes of grad_x. `next`: as forward.
  void run(int64_t n, int64_t g, int64_t row0, int64_t row1, int64_t next, A* grad_x) {
    if (p_.depthwise_3x3() && p_.group_out() == 1) return depthwise(n * p_.c + g, row0, row1, next, grad_x);
    const int64_t tile = tile_rows(p_.group_out(), g_.stride(), p_.kh);
    for (int64_t i0 = row0; i0 < row1; i0 += tile) {
      const int64_t i1 = std::min(i0 + tile, row1);
      fill(n, g, i0, i1);
      if (i0 == row0) for_blocks(p_.group_in(), [&](int64_t first, auto size) { pack(n, g, first, size); });
      channels(i1 - i0, grad_x + i0 * p_.w, false);
    }
    const auto fold = [&](int64_t i) {  // a row outside of the picture
      const int64_t to = border_index(i, p_.h, p_.padding);
      if (to < row0 || to >= row1) return;  // nobody's, or another band's
      fill(n, g, i, i + 1);
      channels(1, grad_x + to * p_.w, true);
    };
    for (int64_t i = -p_.top(); i < 0; ++i) fold(i);
    for (int64_t i = p_.h; i < p_.h + p_.kh - 1 - p_.top(); ++i) fold(i);
  }

  // From the gradient of x to the input's, whole planes of a sample and group. grad_x may be grad_input itself,
  // unless that is streamed.
  void finish(int64_t n, int64_t c, const A* grad_x) const {
    const int64_t nc = n * p_.c + c, values = p_.h * p_.w;
    T* const out = args_.grad_input + nc * values;
    const bool streamed = args_.streamed;
    if (args_.mean)
      instance_norm_backward(grad_x, args_.input + p_.input.at(n, c), p_.h, p_.w, p_.input.row, args_.mean[nc],
                             args_.rstd[nc], args_.correction, out, {}, streamed);
    else if (static_cast<const void*>(grad_x) != out)
      for_vectors_beside(out, values, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
        store_or_stream(out + j, load(grad_x + j, count), count, streamed);
      });
    if (streamed) finish_streams();
  }

 private:
  int right() const { return p_.kw - 1 - p_.left(); }
  const T* grad_plane(int64_t no) const { return args_.grad + p_.grad.at_number(no, p_.out_c); }

  void depthwise(int64_t nc, int64_t row0, int64_t row1, int64_t next, A* grad_x) {
    A turned[9];
    std::reverse_copy(args_.kernel + nc * 9, args_.kernel + nc * 9 + 9, turned);
    const int64_t fetched = to_fetch<T>(p_, next);
    const T *const g = grad_plane(nc), *const next_g = grad_plane(fetched < 0 ? nc : fetched);
    DepthwisePlane<A> plane{.x = nullptr,
                            .y = grad_x,
                            .h = p_.h,
                            .w = p_.w,
                            .row = p_.grad.row,
                            .padding = Padding::kZeros,
                            .mean = 0,
                            .rstd = 1,
                            .kernel = turned,
                            .streamed = false,
                            .next = nullptr};
    const int64_t tile = std::is_same_v<T, A> ? row1 - row0 : tile_rows(1, p_.w, p_.kh);
    for (int64_t i0 = row0; i0 < row1; i0 += tile) {
      const int64_t i1 = std::min(i0 + tile, row1);
      if constexpr (std::is_same_v<T, A>)
        plane.x = g, plane.next = next_g;
      else
        plane.x = plane.next = widened(g, next_g, i0, i1), plane.row = p_.w;
      depthwise_3x3(plane, i0, i1);
      fold_3x3(plane, p_.padding, i0, i1);
    }
  }

  // A plane in A, dense, from where its row 0 would lie; it has the rows that rows [i0, i1) read. Meanwhile `next` is
  // fetched, unless it is the plane.
  STYLEKERN_NOINLINE const A* widened(const T* g, const T* next, int64_t i0, int64_t i1) {
    const int64_t first = std::max<int64_t>(i0 - 1, 0), end = std::min(i1 + 1, p_.h);
    widened_.resize(size_t((end - first) * p_.w));
    for (int64_t i = first; i < end; ++i) {
      const T* const from = g + i * p_.grad.row;
      A* const to = widened_.data() + (i - first) * p_.w;
      if (next != g) fetch_row<kSecondLevel>(next + i * p_.grad.row, p_.w);
      for_vectors<A>(
          p_.w, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE { store(to + j, load(from + j, count), count); });
    }
    return widened_.data() - first * p_.w;
  }

  // Rows of g that the rows [i0, i1) of grad_x read, with zeros around.
  STYLEKERN_NOINLINE void fill(int64_t n, int64_t g, int64_t i0, int64_t i1) {
    g_rows_ = i1 - i0 + p_.kh - 1;
    g_.resize(p_.group_out() * g_rows_);
    for (int64_t o = 0; o < p_.group_out(); ++o) {
      const T* const plane = grad_plane(n * p_.out_c + g * p_.group_out() + o);
      for (int64_t q = 0; q < g_rows_; ++q) {
        A* const row = g_.row(o * g_rows_ + q);
        const int64_t source = i0 + p_.top() - (p_.kh - 1) + q;
        if (source < 0 || source >= p_.h) {
          std::fill(row - (p_.kw - 1), row + p_.w + p_.kw - 1, A(0));
          continue;
        }
        for_vectors<A>(p_.w, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
          store(row + j, load(plane + source * p_.grad.row + j, count));
        });
        std::fill(row - (p_.kw - 1), row, A(0));
        std::fill(row + p_.w, row + p_.w + p_.kw - 1, A(0));
      }
    }
  }

  // Rows of all channels of the group, their columns folded; `more` adds them to what is there.
  void channels(int64_t count, A* grad_x, bool more) {
    for_blocks(p_.group_in(), [&](int64_t first, auto size) { block<size>(first, count, grad_x, more); });
  }

  template <int B>
  void block(int64_t first, int64_t count, A* grad_x, bool more) {
    const A* const weights = weights_.packed(first);
    for_row_blocks<kBlockRows<B>>(count, [&](int64_t i, auto rows) {
      rows_.resize(B * rows);
      const int64_t stride = rows_.stride();
      FetchedRows fetched;
      fetched.results = {grad_x + (first * p_.h + i) * p_.w, p_.h * p_.w, p_.w};
      convolve_rows<B, rows>(
          SourcePlanes<A>{g_.row(i) - (p_.kw - 1), g_rows_ * g_.stride(), g_.stride(), p_.group_out(), p_.kh, p_.kw},
          weights, static_cast<const A*>(nullptr), TargetPlanes<A>{rows_.row(0) - p_.left(), rows * stride, stride},
          fetched, p_.w + p_.kw - 1);
      for (int k = 0; k < B; ++k) take(k * rows, rows, grad_x + ((first + k) * p_.h + i) * p_.w, more);
    });
  }

  STYLEKERN_NOINLINE void pack(int64_t n, int64_t g, int64_t first, int inputs) {
    const int64_t taps = int64_t{p_.kh} * p_.kw;
    const A* const kernel =
        args_.kernel + ((n * p_.out_c + g * p_.group_out()) * p_.group_in() + first) * taps + taps - 1;
    weights_.pack(first, inputs, [&](int64_t o, int m, int a, int b) {
      return kernel[(o * p_.group_in() + m) * taps - a * p_.kw - b];
    });
  }

  // `count` rows that convolve_rows() made, from the first on.
  STYLEKERN_NOINLINE void take(int64_t first, int64_t count, A* to, bool more) {
    for (int64_t i = 0; i < count; ++i) {
      A *const row = rows_.row(first + i), *const sum = to + i * p_.w;
      border_.fold(row);
      for_vectors<A>(p_.w, [&](int64_t j, auto lanes) STYLEKERN_ALWAYS_INLINE {
        store(sum + j, more ? load(sum + j, lanes) + load(row + j, lanes) : load(row + j, lanes), lanes);
      });
    }
  }

  AdaConvBackwardArgs<T> args_;
  AdaConv p_;
  RowBorder border_;
  PaddedRows<A> g_, rows_;
  int64_t g_rows_ = 0;
  BlockWeights<A> weights_;
  std::vector<A> widened_;
};

// The gradients of kernel and bias:
//   grad_kernel[o,m,a,b] = sum over i, j of g[o,i,j] * x[m, pad(i + a - top), pad(j + b - left)]
//   grad_bias[o]         = sum over i, j of g[o,i,j]
template <class T>
class AdaConvBackwardKernel {
 public:
  using A = Acc<T>;

  explicit AdaConvBackwardKernel(const AdaConvBackwardArgs<T>& args) : args_(args), p_(args.problem), x_(p_) {}

  // Outputs [first, last) of a sample and group. `next`: as forward.
  void run(int64_t n, int64_t g, int64_t first, int64_t last, int64_t next) {
    if (args_.grad_bias)
      for (int64_t o = first; o < last; ++o) bias(n, g, o);
    if (!args_.grad_kernel) return;
    const int64_t taps = int64_t{p_.kh} * p_.kw;
    // Of a wide group, some channels at a time, so that a tile has rows enough for sums of kPending vectors: fewer than
    // that cost more to add up than to make.
    const int64_t wanted = std::min(p_.h, (kPending * kLanes<A> + p_.w - 1) / p_.w);
    const int64_t channels = x_.tile(p_.group_in()) >= wanted ? p_.group_in() : x_.channels(wanted);
    const int64_t tile = std::min(x_.tile(channels), kPending), fetched = to_fetch<T>(p_, next);
    const int64_t ahead =
        fetched < 0 ? 0
                    : (fetched / p_.groups - n) * p_.input.n + (fetched % p_.groups - g) * p_.group_in() * p_.input.p;
    sums_.assign(size_t((last - first) * p_.group_in() * taps), 0.0);
    for (int64_t i0 = 0; i0 < p_.h; i0 += tile)
      for (int64_t m0 = 0; m0 < p_.group_in(); m0 += channels) {
        const int64_t rows = std::min(tile, p_.h - i0), m1 = std::min(m0 + channels, p_.group_in());
        x_.fill(args_.input, args_.mean, args_.rstd, n, g * p_.group_in() + m0, m1 - m0, i0, i0 + rows, ahead);
        // Sums in A stay short: a strip is as wide as its rows allow.
        const int64_t strip = std::max<int64_t>(kPending / rows, 1) * kLanes<A>;
        for (int64_t j0 = 0; j0 < p_.w; j0 += strip)
          for_pairs(first, last, [&](int64_t o, auto outputs) {
            double* const sums = sums_.data() + ((o - first) * p_.group_in() + m0) * taps;
            const Strip area{grad(n, g, o) + i0 * p_.grad.row + j0, rows, std::min(strip, p_.w - j0)};
            for (int64_t m = 0; m < m1 - m0; ++m) add<outputs>(area, m, j0, sums + m * taps);
          });
      }
    A* const out = args_.grad_kernel + (n * p_.out_c + g * p_.group_out() + first) * p_.group_in() * taps;
    for (size_t k = 0; k < sums_.size(); ++k) out[k] = A(sums_[k]);
  }

 private:
  // Vectors that are summed in A before their sum joins one in double: what that costs, narrow ones pay more often.
  static constexpr int64_t kPending = std::max(128, 16 * kLanes<A>);

  // The gradient of one output, or of a first of two, from an area's first value on.
  struct Strip {
    const T* g;
    int64_t rows, w;
  };

  const T* grad(int64_t n, int64_t g, int64_t o) const { return args_.grad + p_.grad.at(n, g * p_.group_out() + o); }

  // Two outputs share what is loaded of x, where the sums of two fit into the registers.
  template <class F>
  static void for_pairs(int64_t first, int64_t last, F&& f) {
    int64_t o = first;
    if constexpr (kBytes == 64)
      for (; o + 2 <= last; o += 2) f(o, std::integral_constant<int, 2>{});
    for (; o < last; ++o) f(o, std::integral_constant<int, 1>{});
  }

  void bias(int64_t n, int64_t g, int64_t o) const {
    LaneSum sum;
    for (int64_t i = 0; i < p_.h; ++i) {
      const T* const row = grad(n, g, o) + i * p_.grad.row;
      for_vectors<A>(p_.w, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE { sum.add(load(row + j, count)); });
    }
    args_.grad_bias[n * p_.out_c + g * p_.group_out() + o] = A(sum.total());
  }

  static double total(Vec<A> v) {
    LaneSum sum;
    sum.add(v);
    return sum.total();
  }

  // All taps, nine at a time, and in columns of up to three where fewer are left.
  template <int B>
  void add(const Strip& area, int64_t m, int64_t j0, double* sums) const {
    for (int a = 0, rows; a < p_.kh; a += rows) {
      rows = std::min(3, p_.kh - a);
      for (int b = 0; b < p_.kw;) {
        const Taps taps{m, a, b};
        if (rows == 3 && b + 3 <= p_.kw)
          add_taps<B, 3, 3>(area, taps, j0, sums), b += 3;
        else if (rows == 3)
          add_taps<B, 3, 1>(area, taps, j0, sums), ++b;
        else if (rows == 2)
          add_taps<B, 2, 1>(area, taps, j0, sums), ++b;
        else
          add_taps<B, 1, 1>(area, taps, j0, sums), ++b;
      }
    }
  }

  // The first of some taps, of channel m of the tile.
  struct Taps {
    int64_t m;
    int a, b;
  };

  // Down a column of vectors, a row of x meets as many rows of g as taps lie below each other, which stay in registers.
  template <int B, int rows, int columns>
  void add_taps(const Strip& area, const Taps& taps, int64_t j0, double* sums) const {
    const SourcePlanes<A> from = x_.from(0);
    const A* const x = from.x + taps.m * from.plane + taps.a * from.row + taps.b + j0;
    const int64_t g_row = p_.grad.row, g_plane = p_.grad.p, x_row = from.row, x_rows = area.rows + rows - 1;
    Vec<A> part[B][rows][columns] = {};
    for_vectors<A>(area.w, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
      Vec<A> g[B][rows] = {};  // of rows q, q - 1, q - 2
      const auto row = [&](int64_t q, bool all) STYLEKERN_ALWAYS_INLINE {
#pragma GCC unroll 2
        for (int o = 0; o < B; ++o) {
#pragma GCC unroll 2
          for (int a = rows - 1; a > 0; --a) g[o][a] = g[o][a - 1];
          if (all || q < area.rows) g[o][0] = load(area.g + o * g_plane + q * g_row + j, count);
        }
#pragma GCC unroll 3
        for (int b = 0; b < columns; ++b) {
          const Vec<A> xb = load(x + q * x_row + j + b, count);
#pragma GCC unroll 3
          for (int a = 0; a < rows; ++a)
            if (all || (q >= a && q - a < area.rows))
#pragma GCC unroll 2
              for (int o = 0; o < B; ++o) part[o][a][b] = fma(g[o][a], xb, part[o][a][b]);
        }
      };
      for (int64_t q = 0; q < x_rows; ++q) {
        for (; q >= rows - 1 && q < area.rows; ++q) row(q, true);
        if (q < x_rows) row(q, false);  // the first and the last, of which not all taps read
      }
    });
    for (int o = 0; o < B; ++o)
      for (int a = 0; a < rows; ++a)
        for (int b = 0; b < columns; ++b)
          sums[(o * p_.group_in() * p_.kh + taps.a + a) * p_.kw + taps.b + b] += total(part[o][a][b]);
  }

  AdaConvBackwardArgs<T> args_;
  AdaConv p_;
  InputPlanes<T> x_;
  std::vector<double> sums_;
};

}  // namespace stylekern::STYLEKERN_TARGET

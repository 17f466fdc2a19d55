// adaconv on the CPU, forward: the kernels of one target, included by *_target.h.
//
// A unit of work is a band of rows of one sample and group. Within it, tiles of rows of the group's input channels are
// normalised and extended in scratch that stays in cache, and every output channel of the group is computed from there:
// input and output cross memory once, and there is nothing between.
namespace stylekern::STYLEKERN_TARGET {

// Rows of the input channels of a group in the accumulation type, normalised, extended by the border rule all around.
template <class T>
class InputPlanes {
 public:
  using A = Acc<T>;

  explicit InputPlanes(const AdaConv& p)
      : p_(p),
        border_(p.w, p.left(), p.kw - 1 - p.left(), p.padding),
        values_(p.w, std::max(p.left(), p.kw - 1 - p.left())) {}

  // Rows that a tile of so many channels may have; and of how many channels a tile of so many rows may be.
  int64_t tile(int64_t channels) const { return tile_rows(channels, values_.stride(), p_.kh); }
  int64_t channels(int64_t rows) const {
    return std::clamp<int64_t>(kScratchValues / ((rows + p_.kh - 1) * values_.stride()), 1, p_.group_in());
  }

  // Rows [i0 - top, i1 + kh - 1 - top) of the channels of a sample and group: what output rows [i0, i1) read.
  void fill(const T* input, const A* mean, const A* rstd, int64_t n, int64_t g, int64_t i0, int64_t i1) {
    fill(input, mean, rstd, n, g * p_.group_in(), p_.group_in(), i0, i1, 0);
  }
  // The same of some channels, from `first` on. What lies `ahead` values beyond them is fetched meanwhile, unless that
  // is 0.
  STYLEKERN_NOINLINE void fill(const T* input, const A* mean, const A* rstd, int64_t n, int64_t first, int64_t channels,
                               int64_t i0, int64_t i1, int64_t ahead) {
    rows_ = i1 - i0 + p_.kh - 1, channels_ = channels;
    values_.resize(channels * rows_);
    for (int64_t m = 0; m < channels; ++m) {
      const int64_t c = first + m, nc = n * p_.c + c;
      const T* const plane = input + p_.input.at(n, c);
      for (int64_t q = 0; q < rows_; ++q) {
        A* const row = values_.row(m * rows_ + q);
        const int64_t source = border_index(i0 - p_.top() + q, p_.h, p_.padding);
        if (source < 0) {
          std::fill(row - p_.left(), row + p_.w + p_.kw - 1 - p_.left(), A(0));
          continue;
        }
        const T* const x = plane + source * p_.input.row;
        if (ahead) fetch_row<kSecondLevel>(x + ahead, p_.w);
        if (mean) {
          const Centre<A> centre(mean[nc]);
          const A scale = rstd[nc];
          for_vectors<A>(p_.w, [&](int64_t j, auto count)
                                   STYLEKERN_ALWAYS_INLINE { store(row + j, centre(load(x + j, count)) * scale); });
        } else {
          for_vectors<A>(p_.w,
                         [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE { store(row + j, load(x + j, count)); });
        }
        border_.extend(row);
      }
    }
  }

  // From what the output's row i0 + i reads on.
  SourcePlanes<A> from(int64_t i) const {
    return {values_.row(i) - p_.left(), rows_ * values_.stride(), values_.stride(), channels_, p_.kh, p_.kw};
  }

 private:
  AdaConv p_;
  RowBorder border_;
  PaddedRows<A> values_;
  int64_t rows_ = 0, channels_ = 0;
};

template <class T>
class AdaConvForward {
 public:
  using A = Acc<T>;

  explicit AdaConvForward(const AdaConvArgs<T>& args)
      : args_(args),
        p_(args.problem),
        x_(p_),
        weights_(p_.group_in(), p_.kh, p_.kw, p_.group_out()),
        converted_(p_.w, 0),
        group_out_(p_.group_out()),
        depthwise_(p_.depthwise_3x3()),
        fetches_next_(fetches_next<T>(p_)),
        statistics_(p_.h * p_.w, args.eps, args.correction) {}

  // Whether run() takes the statistics of a plane further on along: in rows of two vectors. Narrower planes are too
  // short for what that costs them, wider ones leave no registers.
  bool takes_along() const {
    return kRegistersLeft && depthwise_ && args_.mean && p_.w > kLanes<A> && p_.w <= 2 * kLanes<A> &&
           is_small_plane(p_.h, p_.w, p_.input.row);
  }

  // Means and deviations of the channels [first, last) of all.
  void statistics(int64_t first, int64_t last) const {
    instance_statistics<T>(
        first, last, [&](int64_t nc) { return args_.input + p_.input.at_number(nc, p_.c); }, p_.h, p_.w, p_.input.row,
        args_.eps, args_.correction, args_.mean, args_.rstd);
  }

  // Rows [row0, row1) of a sample and group. `next`: the n * groups + g that this thread reads from memory next,
  // or -1. `ahead`: the one whose statistics come along, or -1.
  void run(int64_t n, int64_t g, int64_t row0, int64_t row1, int64_t next, int64_t ahead) {
    if (depthwise_) return depthwise(n, g, row0, row1, next, ahead);
    const int64_t tile = x_.tile(p_.group_in());
    const auto group = [&](int64_t n, int64_t g) { return args_.input + p_.input.at(n, g * p_.group_in()); };
    // However large it is: from the last-level cache it comes faster than from memory, too.
    const T* const after = next < 0 ? nullptr : group(next / p_.groups, next % p_.groups);
    for (int64_t i0 = row0; i0 < row1; i0 += tile) {
      const int64_t i1 = std::min(i0 + tile, row1);
      x_.fill(args_.input, args_.mean, args_.rstd, n, g, i0, i1);
      // The next tile, which a large group's statistics left in the last-level cache, beside the second block.
      const int64_t down = std::min(tile + p_.kh - 1 - p_.top(), p_.h - i1);
      const T* const below = i1 < row1 ? group(n, g) + down * p_.input.row : nullptr;
      for_blocks(group_out_, [&](int64_t first, auto size) {
        const A* const weights = i0 == row0 ? pack(n, g, first, size) : weights_.packed(first);
        block<size>(n, g, first, i0, i1, weights, first == 0 ? after : first == 4 ? below : nullptr);
      });
    }
    if (args_.streamed) finish_streams();
  }

 private:
  // Whether a strip's nine weights and six sums leave registers to the sums of one more plane.
  static constexpr bool kRegistersLeft = STYLEKERN_VECTOR_BYTES == 64;

  void depthwise(int64_t n, int64_t g, int64_t row0, int64_t row1, int64_t next, int64_t ahead) {
    const bool in_runs = kSpecialised && args_.in_runs && p_.w > 3 * kLanes<A>;
    const int64_t nc = n * p_.c + g;
    const T* const x = args_.input + p_.input.at(n, g);
    DepthwisePlane<T> plane{.x = x,
                            .h = p_.h,
                            .w = p_.w,
                            .row = p_.input.row,
                            .padding = p_.padding,
                            .mean = args_.mean ? args_.mean[nc] : A(0),
                            .rstd = args_.mean ? args_.rstd[nc] : A(1),
                            .streamed = args_.streamed,
                            .next = next >= 0 && fetches_next_ ? args_.input + p_.input.at_number(next, p_.c) : x};
    for (int64_t o = g * group_out_; o < (g + 1) * group_out_; ++o) {
      const int64_t no = n * p_.out_c + o;
      plane.y = args_.output + no * p_.h * p_.w;
      plane.kernel = args_.kernel + no * 9;
      plane.scale = args_.scale ? args_.scale[no] : A(1);
      plane.bias = args_.bias ? args_.bias[no] : A(0);
      if (kRegistersLeft && ahead >= 0)
        depthwise_3x3_and_statistics(plane, args_.input + p_.input.at_number(ahead, p_.c), statistics_,
                                     args_.mean + ahead, args_.rstd + ahead);
      else if (in_runs)
        depthwise_3x3(plane, row0, row1, run_);
      else
        depthwise_3x3(plane, row0, row1);
      plane.next = plane.x, ahead = -1;  // once is enough
    }
    if (in_runs && next < 0) run_.finish();
    if (args_.streamed) finish_streams();
  }

  // B outputs of the group from `first` on. `next`: where to fetch as many rows of a group meanwhile, or null.
  template <int B>
  void block(int64_t n, int64_t g, int64_t first, int64_t i0, int64_t i1, const A* weights, const T* next) {
    const int64_t no = n * p_.out_c + g * group_out_ + first;
    const A* const bias = args_.bias ? args_.bias + no : nullptr;
    for_row_blocks<kBlockRows<B>>(i1 - i0, [&](int64_t i, auto rows) {
      T* const y = args_.output + (no * p_.h + i0 + i) * p_.w;
      FetchedRows fetched;
      if (next) fetched.next = {next + (i0 + i) * p_.input.row, p_.input.p, p_.input.row};
      if (!args_.streamed) fetched.results = {y, p_.h * p_.w, p_.w};
      if constexpr (std::is_same_v<T, A>) {
        convolve_rows<B, rows>(x_.from(i), weights, bias, TargetPlanes<A>{y, p_.h * p_.w, p_.w, args_.streamed},
                               fetched, p_.w);
      } else {
        converted_.resize(B * rows);
        const int64_t stride = converted_.stride();
        convolve_rows<B, rows>(x_.from(i), weights, bias, TargetPlanes<A>{converted_.row(0), rows * stride, stride},
                               fetched, p_.w);
        for (int k = 0; k < B; ++k) convert(k * rows, rows, y + k * p_.h * p_.w);
      }
    });
  }

  STYLEKERN_NOINLINE const A* pack(int64_t n, int64_t g, int64_t first, int outputs) {
    const int64_t taps = int64_t{p_.kh} * p_.kw;
    const A* const kernel = args_.kernel + (n * p_.out_c + g * group_out_ + first) * p_.group_in() * taps;
    return weights_.pack(first, outputs, [&](int64_t m, int o, int a, int b) {
      return kernel[(o * p_.group_in() + m) * taps + a * p_.kw + b];
    });
  }

  // `count` rows that convolve_rows() made, from the first on.
  STYLEKERN_NOINLINE void convert(int64_t first, int64_t count, T* y) const {
    for (int64_t i = 0; i < count; ++i)
      for_vectors<A>(p_.w, [&](int64_t j, auto lanes) STYLEKERN_ALWAYS_INLINE {
        store(y + i * p_.w + j, load(converted_.row(first + i) + j, lanes), lanes);
      });
  }

  AdaConvArgs<T> args_;
  AdaConv p_;
  InputPlanes<T> x_;
  BlockWeights<A> weights_;
  PaddedRows<A> converted_;  // rows of y before they are rounded to 16 bits
  int64_t group_out_;
  bool depthwise_, fetches_next_;
  StreamedRun<T> run_;  // goes on from plane to plane: mostly, they follow each other
  InstanceStatistics<T> statistics_;
};

}  // namespace stylekern::STYLEKERN_TARGET

// wavelet_pool and wavelet_unpool on the CPU: the kernels of one target, included by *_target.h.
//
// A row of blocks is two rows of the picture and one of each band. Every value is read once and written once, in whole
// vectors; the two columns of a block are taken apart and put together in registers.
namespace stylekern::STYLEKERN_TARGET {

template <class V>
struct Block {
  V a, b, c, d;
};
template <class V>
struct BandValues {
  V ll, lh, hl, hh;
};

template <class V>
STYLEKERN_INLINE BandValues<V> pooled(const Block<V>& x) {
  const V top = x.a + x.b, bottom = x.c + x.d, top_step = x.b - x.a, bottom_step = x.d - x.c;
  return {(top + bottom) / 2, (top_step + bottom_step) / 2, (bottom - top) / 2, (bottom_step - top_step) / 2};
}
template <class V>
STYLEKERN_INLINE Block<V> unpooled(const BandValues<V>& y) {
  const V left_top = y.ll - y.hl, left_bottom = y.ll + y.hl, step_top = y.lh - y.hh, step_bottom = y.lh + y.hh;
  return {(left_top - step_top) / 2, (left_top + step_top) / 2, (left_bottom - step_bottom) / 2,
          (left_bottom + step_bottom) / 2};
}

template <class T>
struct WaveletKernels {
  using A = Acc<T>;
  static constexpr int64_t kRow = kLanes<A>;

  // Of one of the two rows that take turns in the picture. A few rows ahead: on a Zen 5, whatever is not in its
  // second-level cache takes half the time then; a Zen 3 neither gains nor loses. Not further than to that cache: on a
  // Zen 4, 0.8 to 0.9 of the time for what comes from memory, the same for what does not.
  STYLEKERN_ALWAYS_INLINE static void fetch(const T* row, int64_t j) {
    fetch_ahead<2 * kRow, 8 << 10, kSecondLevel>(row + 2 * j);
  }

  // The pairs of a row from column 2 j on: (even columns, odd columns).
  template <class N>
  STYLEKERN_ALWAYS_INLINE static std::pair<Vec<A>, Vec<A>> pairs(const T* row, int64_t j, N count) {
    if constexpr (std::is_same_v<N, int64_t>) {
      Vec<A> first = load(row + 2 * j, std::min<int64_t>(2 * count, kRow)), second{};
      if (2 * count > kRow) second = load(row + 2 * j + kRow, 2 * count - kRow);
      return {even_lanes(first, second), odd_lanes(first, second)};
    } else {
      return load_pairs(row + 2 * j);
    }
  }
  template <class N>
  STYLEKERN_ALWAYS_INLINE static void store_pairs(T* row, int64_t j, Vec<A> even, Vec<A> odd, N count, bool streamed) {
    const Vec<A> first = zip_low(even, odd), second = zip_high(even, odd);
    if constexpr (std::is_same_v<N, int64_t>) {
      store(row + 2 * j, first, std::min<int64_t>(2 * count, kRow));
      if (2 * count > kRow) store(row + 2 * j + kRow, second, 2 * count - kRow);
    } else {
      store_or_stream(row + 2 * j, first, count, streamed);
      store_or_stream(row + 2 * j + kRow, second, count, streamed);
    }
  }

  static A value(const T* x) {
    if constexpr (std::is_same_v<A, T>) return *x;
    return load_first(x, 1)[0];
  }
  static void set(T* x, A value) {
    if constexpr (std::is_same_v<A, T>)
      *x = value;
    else
      store_first(x, broadcast(value), 1);
  }

  // A row of blocks, to a row of each band. `beside` is called once a vector of these.
  template <class Beside>
  STYLEKERN_ALWAYS_INLINE static void pool_row(const WaveletPool& p, const T* top, const T* bottom, T* const (&out)[4],
                                               bool streamed, const Beside& beside) {
    map_vectors<A>(out[0], p.w / 2, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
      beside();
      fetch(top, j), fetch(bottom, j);
      const auto [a, b] = pairs(top, j, count);
      const auto [c, d] = pairs(bottom, j, count);
      const BandValues<Vec<A>> y = pooled<Vec<A>>({a, b, c, d});
      store_or_stream(out[0] + j, y.ll, count, streamed);
      store_or_stream(out[1] + j, y.lh, count, streamed);
      store_or_stream(out[2] + j, y.hl, count, streamed);
      store_or_stream(out[3] + j, y.hh, count, streamed);
    });
    if (p.band_w == p.w / 2) return;
    const A a = value(top + p.w - 1), c = value(bottom + p.w - 1);
    const bool repeat = p.odd == OddRule::kRepeat;
    const BandValues<A> y = pooled<A>({a, repeat ? a : A(0), c, repeat ? c : A(0)});
    set(out[0] + p.w / 2, y.ll), set(out[1] + p.w / 2, y.lh);
    set(out[2] + p.w / 2, y.hl), set(out[3] + p.w / 2, y.hh);
  }

  // Rows of blocks [first, last) of all planes, from the picture to the bands.
  static void pool(const WaveletPool& p, const T* picture, T* const* bands, bool streamed, bool in_runs, int64_t first,
                   int64_t last) {
    const std::vector<T> zeros(p.odd == OddRule::kZero && p.h % 2 ? size_t(p.w) : 0);
    int64_t plane = first / p.band_h, i = first % p.band_h;
    const T* from = picture + p.picture.at_number(plane, p.c);
    const auto next_row = [&](T* const(&out)[4], const auto& beside) STYLEKERN_ALWAYS_INLINE {
      if (i == p.band_h) i = 0, from = picture + p.picture.at_number(++plane, p.c);
      const T* const top = from + 2 * i * p.picture.row;
      const bool whole = 2 * i++ + 1 < p.h;
      const T* const bottom = whole ? top + p.picture.row : p.odd == OddRule::kRepeat ? top : zeros.data();
      pool_row(p, top, bottom, out, streamed, beside);
    };
    if (!kSpecialised || !in_runs) {
      for (int64_t r = first * p.band_w; r < last * p.band_w; r += p.band_w)
        next_row({bands[0] + r, bands[1] + r, bands[2] + r, bands[3] + r}, [] {});
      if (streamed) finish_streams();
      return;
    }
    const int64_t rows = std::max<int64_t>(StreamedRun<T>::kBlock / p.band_w, 1);
    StreamedRun<T> runs[4];
    unsigned turn = 0;
    for (int64_t r = first; r < last; r += rows) {
      const int64_t count = std::min(rows, last - r);
      T* out[4];
      for (int k = 0; k < 4; ++k) out[k] = runs[k].block(bands[k] + r * p.band_w, count * p.band_w);
      for (int64_t q = 0; q < count; ++q) {
        next_row(out, [&]() STYLEKERN_ALWAYS_INLINE { runs[turn++ % 4].send_some(); });
        for (T*& row : out) row += p.band_w;
      }
    }
    for (StreamedRun<T>& run : runs) run.finish();
  }

  // A row of blocks, to one or two rows of the picture. `beside` is called once two vectors of each.
  template <class Beside>
  STYLEKERN_ALWAYS_INLINE static void unpool_row(const WaveletPool& p, const T* const (&in)[4], T* top, bool whole,
                                                 bool streamed, bool fetched, const Beside& beside) {
    const bool repeat = p.odd == OddRule::kRepeat;
    map_vectors<A>(in[0], p.w / 2, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
      beside();
      if (fetched) fetch(top, j);
      if (fetched && whole) fetch(top + p.w, j);
      Block<Vec<A>> x = unpooled<Vec<A>>(
          {load(in[0] + j, count), load(in[1] + j, count), load(in[2] + j, count), load(in[3] + j, count)});
      if (!whole && repeat) x.a += x.c, x.b += x.d;
      store_pairs(top, j, x.a, x.b, count, streamed);
      if (whole) store_pairs(top + p.w, j, x.c, x.d, count, streamed);
    });
    if (p.w % 2 == 0) return;
    const int64_t j = p.w / 2;
    Block<A> x{};
    if (j < p.band_w) x = unpooled<A>({value(in[0] + j), value(in[1] + j), value(in[2] + j), value(in[3] + j)});
    if (repeat) x.a += x.b, x.c += x.d;
    set(top + p.w - 1, !whole && repeat ? x.a + x.c : x.a);
    if (whole) set(top + 2 * p.w - 1, x.c);
  }

  // Rows of blocks [first, last) of all planes, from the bands to the picture.
  static void unpool(const WaveletPool& p, const T* const* bands, T* picture, bool streamed, bool in_runs,
                     int64_t first, int64_t last) {
    const int64_t block_rows = (p.h + 1) / 2;  // with kDrop, an odd last one has no bands
    // What is written is fetched too, before it is overwritten; but short rows, which processors follow by themselves.
    const bool fetched = !streamed && !in_runs && p.w * int64_t(sizeof(T)) > 256;
    int64_t plane = first / block_rows, i = first % block_rows;
    const T* from[4];
    const auto begin_plane = [&] {
      for (int k = 0; k < 4; ++k) from[k] = bands[k] + p.bands[k].at_number(plane, p.c);
    };
    begin_plane();
    // To `top`; returns where the one after it goes.
    const auto next_row = [&](T* top, const auto& beside) STYLEKERN_ALWAYS_INLINE {
      if (i == block_rows) i = 0, ++plane, begin_plane();
      const bool whole = 2 * i + 1 < p.h;
      if (i < p.band_h) {
        const T* in[4];
        for (int k = 0; k < 4; ++k) in[k] = from[k] + i * p.bands[k].row;
        unpool_row(p, in, top, whole, streamed, fetched, beside);
      } else {
        std::fill_n(top, p.w, T{});
      }
      ++i;
      return top + (whole ? 2 * p.w : p.w);
    };
    const auto place = [&](int64_t r) { return picture + (r / block_rows * p.h + r % block_rows * 2) * p.w; };
    if (!kSpecialised || !in_runs) {
      T* top = place(first);
      for (int64_t r = first; r < last; ++r) top = next_row(top, [] {});
      if (streamed) finish_streams();
      return;
    }
    const int64_t rows = std::max<int64_t>(StreamedRun<T>::kBlock / p.w, 1);
    StreamedRun<T> run;
    for (int64_t r = first, end; r < last; r = end) {
      end = std::min(r + rows, last);
      T* top = run.block(place(r), place(end) - place(r));
      for (int64_t q = r; q < end; ++q) top = next_row(top, [&]() STYLEKERN_ALWAYS_INLINE { run.send_some(); });
    }
    run.finish();
  }
};

}  // namespace stylekern::STYLEKERN_TARGET

// wavelet_pool and wavelet_unpool on the CPU: the kernels of one target, included by foreach_target.h.
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
  // second-level cache takes half the time then; a Zen 3 neither gains nor loses.
  STYLEKERN_ALWAYS_INLINE static void fetch(const T* row, int64_t j) { fetch_ahead<2 * kRow, 8 << 10>(row + 2 * j); }

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

  // Rows of blocks [first, last) of all planes, from the picture to the bands.
  static void pool(const WaveletPool& p, const T* picture, T* const* bands, bool streamed, int64_t first,
                   int64_t last) {
    const std::vector<T> zeros(p.odd == OddRule::kZero && p.h % 2 ? size_t(p.w) : 0);
    int64_t plane = first / p.band_h, i = first % p.band_h;
    const T* from = picture + p.picture.at_number(plane, p.c);
    for (int64_t r = first; r < last; ++r, ++i) {
      if (i == p.band_h) i = 0, from = picture + p.picture.at_number(++plane, p.c);
      const T* const top = from + 2 * i * p.picture.row;
      const bool whole = 2 * i + 1 < p.h;
      const T* const bottom = whole ? top + p.picture.row : p.odd == OddRule::kRepeat ? top : zeros.data();
      T* const out[4] = {bands[0] + r * p.band_w, bands[1] + r * p.band_w, bands[2] + r * p.band_w,
                         bands[3] + r * p.band_w};
      map_vectors<A>(out[0], p.w / 2, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
        fetch(top, j), fetch(bottom, j);
        const auto [a, b] = pairs(top, j, count);
        const auto [c, d] = pairs(bottom, j, count);
        const BandValues<Vec<A>> y = pooled<Vec<A>>({a, b, c, d});
        store_or_stream(out[0] + j, y.ll, count, streamed);
        store_or_stream(out[1] + j, y.lh, count, streamed);
        store_or_stream(out[2] + j, y.hl, count, streamed);
        store_or_stream(out[3] + j, y.hh, count, streamed);
      });
      if (p.band_w == p.w / 2) continue;
      const A a = value(top + p.w - 1), c = value(bottom + p.w - 1);
      const bool repeat = p.odd == OddRule::kRepeat;
      const BandValues<A> y = pooled<A>({a, repeat ? a : A(0), c, repeat ? c : A(0)});
      set(out[0] + p.w / 2, y.ll), set(out[1] + p.w / 2, y.lh);
      set(out[2] + p.w / 2, y.hl), set(out[3] + p.w / 2, y.hh);
    }
    if (streamed) finish_streams();
  }

  // Rows of blocks [first, last) of all planes, from the bands to the picture.
  static void unpool(const WaveletPool& p, const T* const* bands, T* picture, bool streamed, int64_t first,
                     int64_t last) {
    const int64_t block_rows = (p.h + 1) / 2;  // with kDrop, an odd last one has no bands
    const bool repeat = p.odd == OddRule::kRepeat;
    // What is written is fetched too, before it is overwritten; but short rows, which processors follow by themselves.
    const bool fetched = !streamed && p.w * int64_t(sizeof(T)) > 256;
    int64_t plane = first / block_rows, i = first % block_rows;
    const T* from[4];
    const auto begin_plane = [&] {
      for (int k = 0; k < 4; ++k) from[k] = bands[k] + p.bands[k].at_number(plane, p.c);
    };
    begin_plane();
    for (int64_t r = first; r < last; ++r, ++i) {
      if (i == block_rows) i = 0, ++plane, begin_plane();
      T* const top = picture + (plane * p.h + 2 * i) * p.w;
      if (i == p.band_h) {
        std::fill_n(top, p.w, T{});
        continue;
      }
      const T* in[4];
      for (int k = 0; k < 4; ++k) in[k] = from[k] + i * p.bands[k].row;
      const bool whole = 2 * i + 1 < p.h;
      map_vectors<A>(in[0], p.w / 2, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
        if (fetched) fetch(top, j);
        if (fetched && whole) fetch(top + p.w, j);
        Block<Vec<A>> x = unpooled<Vec<A>>(
            {load(in[0] + j, count), load(in[1] + j, count), load(in[2] + j, count), load(in[3] + j, count)});
        if (!whole && repeat) x.a += x.c, x.b += x.d;
        store_pairs(top, j, x.a, x.b, count, streamed);
        if (whole) store_pairs(top + p.w, j, x.c, x.d, count, streamed);
      });
      if (p.w % 2 == 0) continue;
      const int64_t j = p.w / 2;
      Block<A> x{};
      if (j < p.band_w) x = unpooled<A>({value(in[0] + j), value(in[1] + j), value(in[2] + j), value(in[3] + j)});
      if (repeat) x.a += x.b, x.c += x.d;
      set(top + p.w - 1, !whole && repeat ? x.a + x.c : x.a);
      if (whole) set(top + 2 * p.w - 1, x.c);
    }
    if (streamed) finish_streams();
  }
};

}  // namespace stylekern::STYLEKERN_TARGET

// Parts of vectors, lanes that move, and loops a vector at a time. Included by simd_target.h.
namespace stylekern::STYLEKERN_TARGET {

// Lane numbers, in the integers that masks of Vec<A> are made of.
template <class A>
using Lanes = decltype(Vec<A>{} < Vec<A>{});
template <class A, int... l>
STYLEKERN_INLINE Lanes<A> lane_numbers(std::integer_sequence<int, l...>) {
  return Lanes<A>{l...};
}
template <class A>
STYLEKERN_INLINE Lanes<A> lane_numbers() {
  return lane_numbers<A>(std::make_integer_sequence<int, kLanes<A>>());
}

// Copies count < 2 * piece values. In pieces: a call of memcpy takes as long as several vectors.
template <int piece, class T>
STYLEKERN_INLINE void copy_first(T* to, const T* from, int64_t count) {
  if (count & piece) std::memcpy(to, from, piece * sizeof(T)), to += piece, from += piece;
  if constexpr (piece > 1) copy_first<piece / 2>(to, from, count);
}

// The `count` first lanes, the others zero; nothing is read or written beyond them. By way of memory, these are called:
// inlined, ends of rows would be a fifth of what there is to compile.
template <class T>
STYLEKERN_NOINLINE Vec<Acc<T>> load_first(const T* p, int64_t count) {
  T buffer[kLanes<Acc<T>>] = {};
  copy_first<kLanes<Acc<T>>>(buffer, p, count);
  return load(buffer);
}
template <class T>
STYLEKERN_NOINLINE void store_first(T* p, Vec<Acc<T>> v, int64_t count) {
  T buffer[kLanes<Acc<T>>];
  store(buffer, v);
  copy_first<kLanes<Acc<T>>>(p, buffer, count);
}
#if STYLEKERN_VECTOR_BYTES == 64
STYLEKERN_INLINE Vec<float> load_first(const float* p, int64_t count) {
  return (Vec<float>)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p);
}
STYLEKERN_INLINE void store_first(float* p, Vec<float> v, int64_t count) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), (__m512)v);
}
STYLEKERN_INLINE Vec<double> load_first(const double* p, int64_t count) {
  return (Vec<double>)_mm512_maskz_loadu_pd(__mmask8((1u << count) - 1), p);
}
STYLEKERN_INLINE void store_first(double* p, Vec<double> v, int64_t count) {
  _mm512_mask_storeu_pd(p, __mmask8((1u << count) - 1), (__m512d)v);
}
template <class T>
  requires(sizeof(T) == 2)
STYLEKERN_INLINE Vec<float> load_first(const T* p, int64_t count) {
  return from_bits((Vec16)_mm256_maskz_loadu_epi16(__mmask16((1u << count) - 1), p), T());
}
template <class T>
  requires(sizeof(T) == 2)
STYLEKERN_INLINE void store_first(T* p, Vec<float> v, int64_t count) {
  _mm256_mask_storeu_epi16(p, __mmask16((1u << count) - 1), (__m256i)to_bits(v, T()));
}
#elif STYLEKERN_VECTOR_BYTES == 32
STYLEKERN_INLINE Vec<float> load_first(const float* p, int64_t count) {
  return (Vec<float>)_mm256_maskload_ps(p, (__m256i)(lane_numbers<float>() < int(count)));
}
STYLEKERN_INLINE Vec<double> load_first(const double* p, int64_t count) {
  return (Vec<double>)_mm256_maskload_pd(p, (__m256i)(lane_numbers<double>() < count));
}
// In pieces: AMD's processors take a dozen cycles for a masked store.
STYLEKERN_INLINE void store_first(float* p, Vec<float> v, int64_t count) {
  if (count == 8) return store(p, v);
  __m128 low = _mm256_castps256_ps128((__m256)v);
  if (count & 4) _mm_storeu_ps(p, low), p += 4, low = _mm256_extractf128_ps((__m256)v, 1);
  if (count & 2) _mm_storel_pi((__m64*)p, low), p += 2, low = _mm_movehl_ps(low, low);
  if (count & 1) _mm_store_ss(p, low);
}
STYLEKERN_INLINE void store_first(double* p, Vec<double> v, int64_t count) {
  if (count == 4) return store(p, v);
  __m128d low = _mm256_castpd256_pd128((__m256d)v);
  if (count & 2) _mm_storeu_pd(p, low), p += 2, low = _mm256_extractf128_pd((__m256d)v, 1);
  if (count & 1) _mm_store_sd(p, low);
}
#endif

// A lane whose number is not a constant; a copy in memory, so that v itself can stay in a register.
template <class A>
STYLEKERN_INLINE A get_lane(Vec<A> v, int64_t lane) {
  A lanes[kLanes<A>];
  store(lanes, v);
  return lanes[lane];
}
template <class A>
STYLEKERN_INLINE Vec<A> with_lane(Vec<A> v, int64_t lane, A value) {
  return lane_numbers<A>() == int(lane) ? broadcast(value) : v;
}
// The `count` first lanes of a vector, the others zero.
template <class A>
STYLEKERN_INLINE Vec<A> first_lanes(Vec<A> v, int64_t count) {
  return lane_numbers<A>() < int(count) ? v : Vec<A>{};
}
template <class A, int lanes>
STYLEKERN_INLINE Vec<A> first_lanes(Vec<A> v, std::integral_constant<int, lanes>) {
  static_assert(lanes == kLanes<A>);
  return v;
}

// Lanes j .. j + lanes - 1 of a row of w values, zero outside of the row.
template <class T>
STYLEKERN_NOINLINE Vec<Acc<T>> load_end_window(const T* row, int64_t j, int64_t w) {
  constexpr int lanes = kLanes<Acc<T>>;
  T buffer[lanes] = {};
  const int64_t first = std::max<int64_t>(j, 0), last = std::min(j + lanes, w);
  if (first < last) copy_first<lanes>(buffer + (first - j), row + first, last - first);
  return load(buffer);
}
#if STYLEKERN_VECTOR_BYTES == 32
template <class A>
STYLEKERN_INLINE __m256i lanes_inside(int64_t j, int64_t w) {
  const int begin = int(std::clamp<int64_t>(-j, 0, kLanes<A>)), end = int(std::clamp<int64_t>(w - j, 0, kLanes<A>));
  return (__m256i)((lane_numbers<A>() >= begin) & (lane_numbers<A>() < end));
}
STYLEKERN_INLINE Vec<float> load_end_window(const float* row, int64_t j, int64_t w) {
  return (Vec<float>)_mm256_maskload_ps(row + j, lanes_inside<float>(j, w));  // masked lanes are not touched
}
STYLEKERN_INLINE Vec<double> load_end_window(const double* row, int64_t j, int64_t w) {
  return (Vec<double>)_mm256_maskload_pd(row + j, lanes_inside<double>(j, w));
}
#endif
template <class T>
STYLEKERN_INLINE Vec<Acc<T>> load_window(const T* row, int64_t j, int64_t w) {
  return j >= 0 && j + kLanes<Acc<T>> <= w ? load(row + j) : load_end_window(row, j, w);
}
#if STYLEKERN_VECTOR_BYTES == 64
STYLEKERN_INLINE Vec<float> load_window(const float* row, int64_t j, int64_t w) {
  const uint32_t below = j < 0 ? uint32_t(-j) : 0, end = uint32_t(std::clamp<int64_t>(w - j, 0, 16));
  const uint32_t mask = below >= 16 ? 0 : ((1u << end) - 1) & ~((1u << below) - 1);
  return (Vec<float>)_mm512_maskz_loadu_ps(__mmask16(mask), row + j);  // masked lanes are not touched
}
#endif

// Elements `first` to `first + lanes - 1` of two vectors side by side.
template <int first, class V, int... l>
STYLEKERN_INLINE V window(V a, V b, std::integer_sequence<int, l...>) {
#if STYLEKERN_VECTOR_BYTES == 64
  // GCC takes a permutation, whose indices need a register, and which overwrites one of its operands.
  if constexpr (sizeof(a[0]) == 4)
    return (V)_mm512_alignr_epi32((__m512i)b, (__m512i)a, first);
  else
    return (V)_mm512_alignr_epi64((__m512i)b, (__m512i)a, first);
#elif defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, first + l...);
#else
  return __builtin_shuffle(a, b, decltype(a < b){first + l...});
#endif
}
// Lanes one up, the last lane of `before` entering below: lane l is element l - 1 of the row.
template <class V>
STYLEKERN_INLINE V shift_up(V before, V here) {
  constexpr int lanes = sizeof(V) / sizeof(before[0]);
  return window<lanes - 1>(before, here, std::make_integer_sequence<int, lanes>());
}
// Lanes one down, the first lane of `next` entering above: lane l is element l + 1 of the row.
template <class V>
STYLEKERN_INLINE V shift_down(V here, V next) {
  return window<1>(here, next, std::make_integer_sequence<int, sizeof(V) / sizeof(here[0])>());
}

// Lane index[l] of x in lane l.
template <class A>
STYLEKERN_INLINE Vec<A> permute(Vec<A> x, Lanes<A> index) {
#if STYLEKERN_VECTOR_BYTES == 64
  if constexpr (sizeof(A) == 4)
    return (Vec<A>)_mm512_permutexvar_ps((__m512i)index, (__m512)x);
  else
    return (Vec<A>)_mm512_permutexvar_pd((__m512i)index, (__m512d)x);
#elif STYLEKERN_VECTOR_BYTES == 32
  if constexpr (sizeof(A) == 8) index = index * (int64_t{2} << 32 | 2) + (int64_t{1} << 32);  // two halves a lane
  return (Vec<A>)_mm256_permutevar8x32_ps((__m256)x, (__m256i)index);
#else
  A lanes[kLanes<A>];
  store(lanes, x);
  for (int l = 0; l < kLanes<A>; ++l) x[l] = lanes[index[l]];
  return x;
#endif
}

// Elements first, first + 2, ... of two vectors side by side.
template <int first, class V, int... l>
STYLEKERN_INLINE V every_other(V a, V b, std::integer_sequence<int, l...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, first + 2 * l...);
#else
  return __builtin_shuffle(a, b, decltype(a < b){first + 2 * l...});
#endif
}
template <class V>
STYLEKERN_INLINE V even_lanes(V a, V b) {
  return every_other<0>(a, b, std::make_integer_sequence<int, sizeof(V) / sizeof(a[0])>());
}
template <class V>
STYLEKERN_INLINE V odd_lanes(V a, V b) {
  return every_other<1>(a, b, std::make_integer_sequence<int, sizeof(V) / sizeof(a[0])>());
}

// The values of even and of odd number among the 2 * lanes from p on.
template <class T>
STYLEKERN_INLINE std::pair<Vec<Acc<T>>, Vec<Acc<T>>> load_pairs(const T* p) {
  const Vec<Acc<T>> first = load(p), second = load(p + kLanes<Acc<T>>);
  return {even_lanes(first, second), odd_lanes(first, second)};
}
#if STYLEKERN_VECTOR_BYTES == 32
// Quarters are loaded to where no shuffle has to cross the middle of a register, which takes AVX2 several cycles.
STYLEKERN_INLINE std::pair<Vec<float>, Vec<float>> load_pairs(const float* p) {
  const __m256 a = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + 8), 1);
  const __m256 b = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p + 4)), _mm_loadu_ps(p + 12), 1);
  return {(Vec<float>)_mm256_shuffle_ps(a, b, 0x88), (Vec<float>)_mm256_shuffle_ps(a, b, 0xdd)};
}
STYLEKERN_INLINE std::pair<Vec<double>, Vec<double>> load_pairs(const double* p) {
  const __m256d a = _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(p)), _mm_loadu_pd(p + 4), 1);
  const __m256d b = _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(p + 2)), _mm_loadu_pd(p + 6), 1);
  return {(Vec<double>)_mm256_unpacklo_pd(a, b), (Vec<double>)_mm256_unpackhi_pd(a, b)};
}
#endif

// a0 b0 a1 b1 ..., from lane `first` of both on.
template <int first, class V, int... l>
STYLEKERN_INLINE V zipped(V a, V b, std::integer_sequence<int, l...>) {
  constexpr int lanes = sizeof(V) / sizeof(a[0]);
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, (first + l / 2 + l % 2 * lanes)...);
#else
  return __builtin_shuffle(a, b, decltype(a < b){(first + l / 2 + l % 2 * lanes)...});
#endif
}
template <class V>
STYLEKERN_INLINE V zip_low(V a, V b) {
  return zipped<0>(a, b, std::make_integer_sequence<int, sizeof(V) / sizeof(a[0])>());
}
template <class V>
STYLEKERN_INLINE V zip_high(V a, V b) {
  constexpr int lanes = sizeof(V) / sizeof(a[0]);
  return zipped<lanes / 2>(a, b, std::make_integer_sequence<int, lanes>());
}

// Calls f(j, count) over [0, w): full vectors first, with count a constant that folds, then the rest.
template <class A, class F>
STYLEKERN_INLINE void for_vectors(int64_t w, F&& f) {
  constexpr int lanes = kLanes<A>;
  int64_t j = 0;
  for (; j + lanes <= w; j += lanes) f(j, std::integral_constant<int, lanes>{});
  if (j < w) f(j, w - j);
}

// The same for a map, which may compute a value twice: the last vector overlaps the one before instead of being cut
// short, and the second overlaps the first where that makes all in between aligned in `row`. A plane of an odd number
// of values would else put the next one's stores, and its loads from tensors of the same shape, across cache lines.
template <class A, class T, class F>
STYLEKERN_INLINE void map_vectors(const T* row, int64_t w, F&& f) {
  constexpr int64_t lanes = kLanes<A>, size = lanes * sizeof(T);
  if (w < lanes) {
    if (w > 0) f(int64_t{0}, w);
    return;
  }
  const int64_t past = int64_t(reinterpret_cast<uintptr_t>(row) % size), last = w - lanes;
  int64_t j = 0, next = (size - past) / int64_t(sizeof(T));
  for (; j < last; j = std::min(next, last), next += lanes) f(j, std::integral_constant<int, lanes>{});
  f(last, std::integral_constant<int, lanes>{});
}

// load and store of a whole vector or of its first lanes, after the count that for_vectors hands over.
template <class T, int lanes>
STYLEKERN_INLINE Vec<Acc<T>> load(const T* p, std::integral_constant<int, lanes>) {
  return load(p);
}
template <class T>
STYLEKERN_INLINE Vec<Acc<T>> load(const T* p, int64_t count) {
  return load_first(p, count);
}
template <class T, int lanes>
STYLEKERN_INLINE void store(T* p, Vec<Acc<T>> v, std::integral_constant<int, lanes>) {
  store(p, v);
}
template <class T>
STYLEKERN_INLINE void store(T* p, Vec<Acc<T>> v, int64_t count) {
  store_first(p, v, count);
}

// Caches, as __builtin_prefetch() numbers them.
inline constexpr int kFirstLevel = 3, kSecondLevel = 2;

// Fetches the lines that lie `ahead` bytes beyond those of `count` values. Processors follow streams by themselves, but
// lose two rows that take turns: each jumps over the other's lines, which were there before.
template <int count, int ahead, int cache = kFirstLevel, class T>
STYLEKERN_INLINE void fetch_ahead(const T* p) {
  constexpr uintptr_t kLine = 64;
#pragma GCC unroll 4
  for (uintptr_t at = ahead; at < ahead + count * sizeof(T); at += kLine)
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + at), 0, cache);
}

// Fetches a row of w values. (Inlined, as what follows: calls of a function that does nothing else are left out, as if
// it did nothing.)
template <int cache = kFirstLevel, class T>
STYLEKERN_INLINE void fetch_row(const T* row, int64_t w) {
  for (int64_t j = 0; j < w; j += 64 / int64_t(sizeof(T))) __builtin_prefetch(row + j, 0, cache);
}

// As fetch_ahead() for rows of w values of several taps, read or written, a whole row at once: streams that stop for
// other work, or for the next plane, are lost as well. To the second-level cache: seven rows on their way to the first
// hold up what is read there, which on a Zen 4 takes longer than not to fetch them.
template <class T>
STYLEKERN_INLINE void fetch_rows_ahead(const T* row, int64_t w, int64_t tap, int taps) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int a = 0; a < taps; ++a)
    for (int64_t j = 0; j < w; j += kLine) fetch_ahead<1, 1 << 10, kSecondLevel>(row + a * tap + j);
}

// A store past the caches of a whole aligned vector; of 16-bit values a usual one.
template <class T>
STYLEKERN_INLINE void stream_aligned(T* p, Vec<Acc<T>> v) {
#if STYLEKERN_VECTOR_BYTES == 64
  if constexpr (sizeof(T) >= 4) return _mm512_stream_si512((__m512i*)p, (__m512i)v);
#elif STYLEKERN_VECTOR_BYTES == 32
  if constexpr (sizeof(T) >= 4) return _mm256_stream_si256((__m256i*)p, (__m256i)v);
#endif
  store(p, v);
}

// A store past the caches, to where worth_streaming() said. Half a cache line waits beside the caches for the other
// half, and there is room for a few at a time (see streams_whole_lines()). Quarters, what is left of a row, and vectors
// that are not aligned go the usual way.
template <class T, class N>
STYLEKERN_INLINE void stream(T* p, Vec<Acc<T>> v, N count) {
#if STYLEKERN_VECTOR_BYTES >= 32
  if constexpr (sizeof(T) >= 4 && !std::is_same_v<N, int64_t>) {
    if (reinterpret_cast<uintptr_t>(p) % kBytes == 0) return stream_aligned(p, v);
  }
#endif
  store(p, v, count);
}
template <class T, class N>
STYLEKERN_INLINE void store_or_stream(T* p, Vec<Acc<T>> v, N count, bool streamed) {
  if (streamed)
    stream(p, v, count);
  else
    store(p, v, count);
}
// Orders streamed stores before whatever tells another thread that they are there.
inline void finish_streams() {
#if STYLEKERN_VECTOR_BYTES >= 32
  _mm_sfence();
#endif
}

// Calls block(i, size) for blocks of R rows, or of one, that cover [0, rows). The last block reaches back over rows
// that are done already, which costs less than rows one by one.
template <int R, class F>
STYLEKERN_INLINE void for_row_blocks(int64_t rows, F&& block) {
  if (rows < R) {
    for (int64_t i = 0; i < rows; ++i) block(i, std::integral_constant<int, 1>{});
    return;
  }
  for (int64_t i = 0; i + R <= rows; i += R) block(i, std::integral_constant<int, R>{});
  if (rows % R) block(rows - R, std::integral_constant<int, R>{});
}

}  // namespace stylekern::STYLEKERN_TARGET

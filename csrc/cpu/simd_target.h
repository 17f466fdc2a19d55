// Vectors of one target: no include guard, foreach_target.h includes this once a target.
//
// The compiler's own vector types carry the arithmetic (+, -, *), so that only multiply-adds, loads and stores of part
// of a vector and the 16-bit conversions need a target's own instructions.
namespace stylekern::STYLEKERN_TARGET {

inline constexpr int kBytes = STYLEKERN_VECTOR_BYTES;

template <class A>
struct VectorType {
  typedef A type __attribute__((vector_size(STYLEKERN_VECTOR_BYTES)));
};
template <class A>
using Vec = typename VectorType<A>::type;
template <class A>
inline constexpr int kLanes = kBytes / sizeof(A);

template <class A>
STYLEKERN_INLINE Vec<A> broadcast(A x) {
  return x - Vec<A>{};  // the sum would turn -0 into 0
}

STYLEKERN_INLINE Vec<float> load(const float* p) {
  Vec<float> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
STYLEKERN_INLINE Vec<double> load(const double* p) {
  Vec<double> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
STYLEKERN_INLINE void store(float* p, Vec<float> v) { std::memcpy(p, &v, sizeof v); }
STYLEKERN_INLINE void store(double* p, Vec<double> v) { std::memcpy(p, &v, sizeof v); }

// The value itself, in a register from here on. Compilers else load a value anew for each use as an operand: loads then
// bound a kernel that multiplies what it has loaded several times.
template <class V>
STYLEKERN_INLINE V in_register(V v) {
#if STYLEKERN_VECTOR_BYTES == 64
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

// a * b + c, rounded once where the target can. The compiler contracts nothing by itself (-ffp-contract=off): of two
// products it would fuse one here and the other there, and where a kernel is inlined twice, results would differ in
// their last bits with the path that was taken.
STYLEKERN_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
#if STYLEKERN_VECTOR_BYTES == 64
  return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif STYLEKERN_VECTOR_BYTES == 32
  return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Vec<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
STYLEKERN_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
#if STYLEKERN_VECTOR_BYTES == 64
  return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif STYLEKERN_VECTOR_BYTES == 32
  return (Vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
  return (Vec<double>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

// 16 bits a lane: the storage of Half and BFloat16.
typedef uint16_t Vec16 __attribute__((vector_size(STYLEKERN_VECTOR_BYTES / 2)));
typedef uint32_t Vec32 __attribute__((vector_size(STYLEKERN_VECTOR_BYTES)));
typedef int32_t VecInt __attribute__((vector_size(STYLEKERN_VECTOR_BYTES)));

// A BFloat16 is the upper half of a float. AVX-512 moves the halves in one instruction, without a conversion and a
// shift: loads of 16 bits would otherwise be what bounds a kernel.
#if STYLEKERN_VECTOR_BYTES == 64
typedef uint16_t Halves __attribute__((vector_size(STYLEKERN_VECTOR_BYTES)));
template <int... l>
STYLEKERN_INLINE Halves halves_from_each(std::integer_sequence<int, l...>) {
  return Halves{uint16_t(l / 2)...};
}
template <int... l>
STYLEKERN_INLINE Halves upper_halves(std::integer_sequence<int, l...>) {
  return Halves{uint16_t(l < 16 ? 2 * l + 1 : 0)...};
}
STYLEKERN_INLINE Vec<float> from_bits(Vec16 bits, BFloat16) {
  const auto source = (__m512i)halves_from_each(std::make_integer_sequence<int, 32>());
  return (Vec<float>)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, source, _mm512_castsi256_si512((__m256i)bits));
}
STYLEKERN_INLINE Vec16 upper_half(Vec32 bits) {
  const auto source = (__m512i)upper_halves(std::make_integer_sequence<int, 32>());
  return (Vec16)_mm512_castsi512_si256(_mm512_permutexvar_epi16(source, (__m512i)bits));
}
#elif STYLEKERN_VECTOR_BYTES == 32
STYLEKERN_INLINE Vec<float> from_bits(Vec16 bits, BFloat16) {
  return (Vec<float>)((Vec32)_mm256_cvtepu16_epi32((__m128i)bits) << 16);
}
STYLEKERN_INLINE Vec16 upper_half(Vec32 bits) {
  const __m256i shifted = (__m256i)(bits >> 16), packed = _mm256_packus_epi32(shifted, shifted);
  return (Vec16)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}
#else
STYLEKERN_INLINE Vec<float> from_bits(Vec16 bits, BFloat16) {
  return (Vec<float>)(__builtin_convertvector(bits, Vec32) << 16);
}
STYLEKERN_INLINE Vec16 upper_half(Vec32 bits) { return __builtin_convertvector(bits >> 16, Vec16); }
#endif
STYLEKERN_INLINE Vec16 to_bits(Vec<float> v, BFloat16) {
  const Vec32 u = (Vec32)v;
  const Vec32 rounded = u + 0x7fff + ((u >> 16) & 1);
  return upper_half(v != v ? Vec32{} + 0x7fc00000 : rounded);
}
STYLEKERN_INLINE Vec<float> from_bits(Vec16 bits, Half) {
#if STYLEKERN_VECTOR_BYTES == 64
  return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, (__m256i)bits);
#elif STYLEKERN_VECTOR_BYTES == 32
  return (Vec<float>)_mm256_cvtph_ps((__m128i)bits);
#else
  // to_float(), without branches
  const Vec32 u = __builtin_convertvector(bits, Vec32), sign = (u & 0x8000) << 16, magnitude = u & 0x7fff;
  const Vec32 normal = (magnitude << 13) + (magnitude < 0x7c00 ? Vec32{} + (112u << 23) : Vec32{} + (224u << 23));
  const Vec<float> subnormal = __builtin_convertvector((VecInt)magnitude, Vec<float>) * 0x1p-24f;
  return (Vec<float>)((magnitude < 0x400 ? (Vec32)subnormal : normal) | sign);
#endif
}
STYLEKERN_INLINE Vec16 to_bits(Vec<float> v, Half) {
#if STYLEKERN_VECTOR_BYTES == 64
  return (Vec16)_mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif STYLEKERN_VECTOR_BYTES == 32
  return (Vec16)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#else
  // to_half(), without branches
  const Vec32 u = (Vec32)v, sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff;
  const Vec32 normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000) >> 13;
  const Vec32 subnormal = (Vec32)((Vec<float>)magnitude + 0.5f) - 0x3f000000;
  const VecInt order = (VecInt)magnitude;  // compared in fewer instructions, and never negative
  Vec32 bits = order < 0x38800000 ? subnormal : normal;
  bits = order >= 0x477ff000 ? Vec32{} + 0x7c00 : bits;
  bits = order > 0x7f800000 ? Vec32{} + 0x7e00 : bits;
  return __builtin_convertvector(bits | sign, Vec16);
#endif
}

template <class T>
  requires(sizeof(T) == 2)
STYLEKERN_INLINE Vec<float> load(const T* p) {
  Vec16 bits;
  std::memcpy(&bits, p, sizeof bits);
  return from_bits(bits, T());
}
template <class T>
  requires(sizeof(T) == 2)
STYLEKERN_INLINE void store(T* p, Vec<float> v) {
  const Vec16 bits = to_bits(v, T());
  std::memcpy(p, &bits, sizeof bits);
}

// The `count` first lanes, the others zero; nothing is read or written beyond them.
template <class T>
STYLEKERN_INLINE Vec<Acc<T>> load_first(const T* p, int64_t count) {
  T buffer[kLanes<Acc<T>>] = {};
  std::memcpy(buffer, p, size_t(count) * sizeof(T));
  return load(buffer);
}
template <class T>
STYLEKERN_INLINE void store_first(T* p, Vec<Acc<T>> v, int64_t count) {
  T buffer[kLanes<Acc<T>>];
  store(buffer, v);
  std::memcpy(p, buffer, size_t(count) * sizeof(T));
}
#if STYLEKERN_VECTOR_BYTES == 64
STYLEKERN_INLINE Vec<float> load_first(const float* p, int64_t count) {
  return (Vec<float>)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p);
}
STYLEKERN_INLINE void store_first(float* p, Vec<float> v, int64_t count) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), (__m512)v);
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
#endif

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

// Lanes j .. j + lanes - 1 of a row of w values, zero outside of the row.
template <class T>
STYLEKERN_INLINE Vec<Acc<T>> load_window(const T* row, int64_t j, int64_t w) {
  constexpr int lanes = kLanes<Acc<T>>;
  if (j >= 0 && j + lanes <= w) return load(row + j);
  T buffer[lanes] = {};
  const int64_t first = std::max<int64_t>(j, 0), last = std::min(j + lanes, w);
  if (first < last) std::memcpy(buffer + (first - j), row + first, size_t(last - first) * sizeof(T));
  return load(buffer);
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
#if defined(__clang__) || __GNUC__ >= 12
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

// The same at an end of a row: element `entering` of (here, zeros) enters.
template <int entering, class V, int... l>
STYLEKERN_INLINE V shift_up_at_end(V here, std::integer_sequence<int, l...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(here, V{}, (l == 0 ? entering : l - 1)...);
#else
  return __builtin_shuffle(here, V{}, decltype(here < here){(l == 0 ? entering : l - 1)...});
#endif
}
template <int entering, class V, int... l>
STYLEKERN_INLINE V shift_down_at_end(V here, std::integer_sequence<int, l...>) {
  constexpr int end = sizeof...(l) - 1;
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(here, V{}, (l == end ? entering : l + 1)...);
#else
  return __builtin_shuffle(here, V{}, decltype(here < here){(l == end ? entering : l + 1)...});
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

// The same, with the first of several vectors cut short where that makes the whole ones of `to` aligned: a plane of an
// odd number of values puts the next one's stores, and its loads from tensors of the same shape, across cache lines.
template <class A, class T, class F>
STYLEKERN_INLINE void for_aligned_vectors(const T* to, int64_t w, F&& f) {
  constexpr uintptr_t size = kLanes<A> * sizeof(T);
  const uintptr_t past = reinterpret_cast<uintptr_t>(to) % size;
  const int64_t head = past && w >= 4 * kLanes<A> ? int64_t((size - past) / sizeof(T)) : 0;
  if (head) f(int64_t{0}, head);
  for_vectors<A>(w - head, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE { f(head + j, count); });
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

// A store past the caches, to where worth_streaming() said. Half a cache line waits beside the caches for the other
// half, and there is room for a few at a time (see streams_whole_lines()). Quarters, and what is left of a row, go the
// usual way.
template <class T, class N>
STYLEKERN_INLINE void stream(T* p, Vec<Acc<T>> v, N count) {
#if STYLEKERN_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<T, float> && !std::is_same_v<N, int64_t>) return _mm512_stream_ps(p, (__m512)v);
  if constexpr (std::is_same_v<T, double> && !std::is_same_v<N, int64_t>) return _mm512_stream_pd(p, (__m512d)v);
#elif STYLEKERN_VECTOR_BYTES == 32
  if constexpr (std::is_same_v<T, float> && !std::is_same_v<N, int64_t>) return _mm256_stream_ps(p, (__m256)v);
  if constexpr (std::is_same_v<T, double> && !std::is_same_v<N, int64_t>) return _mm256_stream_pd(p, (__m256d)v);
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

}  // namespace stylekern::STYLEKERN_TARGET

// Vectors of one target: no include guard, foreach_target.h includes this once a target.
//
// The compiler's own vector types carry the arithmetic (+, -, *; it contracts a * b + c to a fused multiply-add), so
// that only loads and stores of part of a vector and the 16-bit conversions need a target's own instructions.
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
inline Vec<A> broadcast(A x) {
  return Vec<A>{} + x;
}

inline Vec<float> load(const float* p) {
  Vec<float> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline Vec<double> load(const double* p) {
  Vec<double> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec<float> v) { std::memcpy(p, &v, sizeof v); }
inline void store(double* p, Vec<double> v) { std::memcpy(p, &v, sizeof v); }

typedef uint16_t Vec16 __attribute__((vector_size(STYLEKERN_VECTOR_BYTES / 2)));
typedef uint32_t Vec32 __attribute__((vector_size(STYLEKERN_VECTOR_BYTES)));

inline Vec<float> load(const BFloat16* p) {
  Vec16 bits;
  std::memcpy(&bits, p, sizeof bits);
  const Vec32 wide = __builtin_convertvector(bits, Vec32) << 16;
  return (Vec<float>)wide;
}
inline void store(BFloat16* p, Vec<float> v) {
  const Vec32 u = (Vec32)v;
  const Vec32 rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  const Vec32 nan = (Vec32)(v != v);
  const Vec16 bits = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), Vec16);
  std::memcpy(p, &bits, sizeof bits);
}

inline Vec<float> load(const Half* p) {
#if STYLEKERN_VECTOR_BYTES == 64
  return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif STYLEKERN_VECTOR_BYTES == 32
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vec<float> v{};
  for (int l = 0; l < kLanes<float>; ++l) v[l] = to_float(p[l]);
  return v;
#endif
}
inline void store(Half* p, Vec<float> v) {
#if STYLEKERN_VECTOR_BYTES == 64
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif STYLEKERN_VECTOR_BYTES == 32
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int l = 0; l < kLanes<float>; ++l) p[l] = to_half(v[l]);
#endif
}

// The `count` first lanes, the others zero; nothing is read or written beyond them.
template <class T>
inline Vec<Acc<T>> load_first(const T* p, int64_t count) {
  T buffer[kLanes<Acc<T>>] = {};
  std::memcpy(buffer, p, size_t(count) * sizeof(T));
  return load(buffer);
}
template <class T>
inline void store_first(T* p, Vec<Acc<T>> v, int64_t count) {
  T buffer[kLanes<Acc<T>>];
  store(buffer, v);
  std::memcpy(p, buffer, size_t(count) * sizeof(T));
}
#if STYLEKERN_VECTOR_BYTES == 64
inline Vec<float> load_first(const float* p, int64_t count) {
  return (Vec<float>)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p);
}
inline void store_first(float* p, Vec<float> v, int64_t count) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), (__m512)v);
}
#endif

// Lanes j .. j + lanes - 1 of a row of w values, zero outside of the row.
template <class T>
inline Vec<Acc<T>> load_window(const T* row, int64_t j, int64_t w) {
  constexpr int lanes = kLanes<Acc<T>>;
  if (j >= 0 && j + lanes <= w) return load(row + j);
  T buffer[lanes] = {};
  const int64_t first = std::max<int64_t>(j, 0), last = std::min(j + lanes, w);
  if (first < last) std::memcpy(buffer + (first - j), row + first, size_t(last - first) * sizeof(T));
  return load(buffer);
}
#if STYLEKERN_VECTOR_BYTES == 64
inline Vec<float> load_window(const float* row, int64_t j, int64_t w) {
  const uint32_t below = j < 0 ? uint32_t(-j) : 0, end = uint32_t(std::clamp<int64_t>(w - j, 0, 16));
  const uint32_t mask = below >= 16 ? 0 : ((1u << end) - 1) & ~((1u << below) - 1);
  return (Vec<float>)_mm512_maskz_loadu_ps(__mmask16(mask), row + j);  // masked lanes are not touched
}
#endif

// Calls f(j, count) over [0, w): full vectors first, with count a constant that folds, then the rest.
template <class A, class F>
inline __attribute__((always_inline)) void for_vectors(int64_t w, F&& f) {
  constexpr int lanes = kLanes<A>;
  int64_t j = 0;
  for (; j + lanes <= w; j += lanes) f(j, std::integral_constant<int, lanes>{});
  if (j < w) f(j, w - j);
}

// load and store of a whole vector or of its first lanes, after the count that for_vectors hands over.
template <class T, int lanes>
inline Vec<Acc<T>> load(const T* p, std::integral_constant<int, lanes>) {
  return load(p);
}
template <class T>
inline Vec<Acc<T>> load(const T* p, int64_t count) {
  return load_first(p, count);
}
template <class T, int lanes>
inline void store(T* p, Vec<Acc<T>> v, std::integral_constant<int, lanes>) {
  store(p, v);
}
template <class T>
inline void store(T* p, Vec<Acc<T>> v, int64_t count) {
  store_first(p, v, count);
}

}  // namespace stylekern::STYLEKERN_TARGET

// Vectors of Half and BFloat16, which are computed with as floats. Included by simd_target.h.
namespace stylekern::STYLEKERN_TARGET {

// 16 bits a lane: the storage of Half and BFloat16.
typedef uint16_t Vec16 __attribute__((vector_size(STYLEKERN_VECTOR_BYTES / 2)));
typedef uint32_t Vec32 __attribute__((vector_size(STYLEKERN_VECTOR_BYTES)));
typedef int32_t VecInt __attribute__((vector_size(STYLEKERN_VECTOR_BYTES)));

// A BFloat16 is the upper half of a float. The halves are moved, which takes an instruction less than to convert and to
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
// AVX2 moves bytes within the halves of a register only: both get all 16 from memory, and pick theirs.
STYLEKERN_INLINE Vec<float> from_bits(Vec16 bits, BFloat16) {
  const __m256i source = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7,  //
                                          -1, -1, 8, 9, -1, -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15);
  return (Vec<float>)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256((__m128i)bits), source);
}
STYLEKERN_INLINE Vec16 upper_half(Vec32 bits) {
  const __m128i source = _mm_setr_epi8(2, 3, 6, 7, 10, 11, 14, 15, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i packed = _mm256_shuffle_epi8((__m256i)bits, _mm256_broadcastsi128_si256(source));
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
#if STYLEKERN_VECTOR_BYTES == 64
STYLEKERN_INLINE Vec<float> from_bits(Vec16 bits, Half) {
  return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, (__m256i)bits);
}
STYLEKERN_INLINE Vec16 to_bits(Vec<float> v, Half) {
  return (Vec16)_mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT);
}
#elif STYLEKERN_VECTOR_BYTES == 32
STYLEKERN_INLINE Vec<float> from_bits(Vec16 bits, Half) { return (Vec<float>)_mm256_cvtph_ps((__m128i)bits); }
STYLEKERN_INLINE Vec16 to_bits(Vec<float> v, Half) {
  return (Vec16)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
}
#else
// to_float() and to_half() without branches. Called, as inlined they would be a third of some kernels' code, and of the
// time that compiling takes; the lowest target's calling convention is what all code here is compiled for.
__attribute__((noinline)) inline Vec<float> from_bits(Vec16 bits, Half) {
  const Vec32 u = __builtin_convertvector(bits, Vec32), sign = (u & 0x8000) << 16, magnitude = u & 0x7fff;
  const Vec32 normal = (magnitude << 13) + (magnitude < 0x7c00 ? Vec32{} + (112u << 23) : Vec32{} + (224u << 23));
  const Vec<float> subnormal = __builtin_convertvector((VecInt)magnitude, Vec<float>) * 0x1p-24f;
  return (Vec<float>)((magnitude < 0x400 ? (Vec32)subnormal : normal) | sign);
}
__attribute__((noinline)) inline Vec16 to_bits(Vec<float> v, Half) {
  const Vec32 u = (Vec32)v, sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff;
  const Vec32 normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000) >> 13;
  const Vec32 subnormal = (Vec32)((Vec<float>)magnitude + 0.5f) - 0x3f000000;
  const VecInt order = (VecInt)magnitude;  // compared in fewer instructions, and never negative
  Vec32 bits = order < 0x38800000 ? subnormal : normal;
  bits = order >= 0x477ff000 ? Vec32{} + 0x7c00 : bits;
  bits = order > 0x7f800000 ? Vec32{} + 0x7e00 : bits;
  return __builtin_convertvector(bits | sign, Vec16);
}
#endif

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

}  // namespace stylekern::STYLEKERN_TARGET

// Vectors of one target: no include guard, foreach_target.h includes this once a target.
//
// The compiler's own vector types carry the arithmetic (+, -, *), so that only multiply-adds, loads and stores of part
// of a vector and the 16-bit conversions need a target's own instructions.
namespace stylekern::STYLEKERN_TARGET {

inline constexpr int kBytes = STYLEKERN_VECTOR_BYTES;

// Whether kernels of special shapes are compiled beside those of all. They are not for an x86-64 without AVX2, an old
// or a small processor: they would be a tenth of what there is to compile.
#if defined(__x86_64__) && STYLEKERN_VECTOR_BYTES == 16
inline constexpr bool kSpecialised = false;
#else
inline constexpr bool kSpecialised = true;
#endif

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

// The same of a pointer that walks along rows: compilers else compute where each row is once for all, and keep that in
// memory.
template <class T>
STYLEKERN_INLINE T* in_register(T* p) {
  asm("" : "+r"(p));
  return p;
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

}  // namespace stylekern::STYLEKERN_TARGET

#include "simd_half.h"
#include "simd_lanes.h"

// What every instruction set shares: storage types, their scalar conversions, and the choice of the target.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__x86_64__)
// Where results may be anything, g++'s own header reads variables that it never sets, and warns of that wherever its
// functions are inlined.
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// Functions and lambdas that take or return vectors are always inlined: a call would pass them by the calling
// convention of one instruction set to code for another, and through memory. (But for a row's end, of simd_lanes.h,
// which only code of its own target calls.)
#define STYLEKERN_ALWAYS_INLINE __attribute__((always_inline))
#define STYLEKERN_INLINE inline STYLEKERN_ALWAYS_INLINE

// Functions that a call costs nothing, once a row or a tile: inlined at each of their callers, or cloned for one of
// them, they would be much of what there is to compile.
#if defined(__clang__)
#define STYLEKERN_NOINLINE __attribute__((noinline))
#else
#define STYLEKERN_NOINLINE __attribute__((noinline, noclone))
#endif

namespace stylekern {

// 16-bit storage; arithmetic happens in float.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type that sums run in: float, or double for double.
template <class T>
struct AccumulateType {
  using type = float;
};
template <>
struct AccumulateType<double> {
  using type = double;
};
template <class T>
using Acc = typename AccumulateType<T>::type;

inline float to_float(BFloat16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }

inline float to_float(Half x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16, exponent = (x.bits >> 10) & 31, mantissa = x.bits & 1023;
  if (exponent == 0) return std::copysign(float(mantissa) * 0x1p-24f, std::bit_cast<float>(sign | 0x3f800000u));
  return std::bit_cast<float>(sign | (exponent == 31 ? 255u : exponent + 112) << 23 | mantissa << 13);
}

// A value in the type that sums run in.
template <class T>
Acc<T> to_acc(T x) {
  if constexpr (std::is_same_v<T, Acc<T>>)
    return x;
  else
    return to_float(x);
}

// Round to nearest, ties to even; NaN stays NaN.
inline BFloat16 to_bfloat16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  if (x != x) return {0x7fc0};
  return {uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}

inline Half to_half(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x), magnitude = u & 0x7fffffff, sign = (u >> 16) & 0x8000;
  if (magnitude > 0x7f800000) return {uint16_t(sign | 0x7e00)};   // NaN
  if (magnitude >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // rounds to 65536 or more: infinity
  if (magnitude < 0x38800000) {
    // Subnormal: an ulp of 0.5 is the smallest half, so the addition rounds.
    const uint32_t rounded = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f);
    return {uint16_t(sign | (rounded - 0x3f000000))};
  }
  return {uint16_t(sign | ((magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000) >> 13))};
}

// Whether caches no longer have it at the next call: of the bytes that a call reads and writes together.
inline bool is_large(int64_t bytes) { return bytes > int64_t{32} << 20; }

// Whether a plane that is fetched before its turn still is in a second-level cache then.
inline bool waits_in_cache(int64_t bytes) { return bytes < int64_t{1} << 17; }

// How many planes have their statistics taken at a time: of small ones a few, which a first-level cache still has when
// they are used. By itself, a small plane waits for its statistics' last divisions and root.
inline int64_t planes_together(int64_t values) {
  constexpr int64_t kSmallPlane = 1024;
  return values > kSmallPlane ? 1 : 2 * kSmallPlane / std::max<int64_t>(values, 1);
}
// The same in groups of planes.
inline int64_t groups_together(int64_t group, int64_t values) {
  return std::max<int64_t>(planes_together(values) / std::max<int64_t>(group, 1), 1);
}
// How many planes, or 0: that the next one's sums come along while results are written. That is better where a plane,
// of `bytes`, would not wait in cache. Measured: 0.8 to 0.95 of the time where this says so, else 1 to 1.2 (Zen 5).
inline int64_t planes_together_or_along(int64_t values, int64_t bytes) {
  return waits_in_cache(bytes) ? planes_together(values) : 0;
}

// Whether results should bypass the caches, which saves reading each line before it is overwritten. `bytes`: of all
// that the call reads and writes. Measured on two cores, all operators: where that is large it gains up to a third,
// else it loses as much.
inline bool worth_streaming(const void* results, int64_t bytes, int64_t row_bytes) {
  constexpr int64_t kLine = 64;
  return is_large(bytes) && row_bytes % kLine == 0 && reinterpret_cast<uintptr_t>(results) % kLine == 0;
}

// What worth_streaming() wants to know of results of h rows of w values of `size` bytes, where rows of `row` values are
// read: kernels walk rows that touch as one, in vectors that begin aligned. A long one counts as whole lines: only its
// ends are parts of lines, and stored the usual way.
inline int64_t stream_row_bytes(int64_t h, int64_t w, int64_t row, size_t size) {
  constexpr int64_t kLine = 64, kLong = 64 * kLine;
  const int64_t bytes = (row == w ? h * w : w) * int64_t(size);
  return bytes < kLong ? bytes : bytes / kLine * kLine;
}

enum class Target { kBaseline, kAvx2, kAvx512 };

// The best target that this processor runs; STYLEKERN_CPU_TARGET=baseline|avx2|avx512 asks for a lower one.
Target cpu_target();
const char* cpu_target_name(Target target);

// Whether a loop may stream to several places in turn. AVX2 stores half a cache line at a time, which waits for the
// other half in one of a few buffers. Measured on AVX2, on a noisy machine: one place gains 10 to 30 %, two of a
// backward pass break even or lose up to a third, four that are walked together lose 10 to 35 %, six and eight half.
inline bool streams_whole_lines() { return cpu_target() == Target::kAvx512; }

// Whether results that are not stored past the caches directly should get there by way of a block (see streamed_run.h):
// rows that are no whole lines, and those of which a vector is only half a line. Never for the baseline: on an x86-64
// that has no kernels for it (kSpecialised).
inline bool worth_a_run(int64_t bytes) { return is_large(bytes) && cpu_target() != Target::kBaseline; }

}  // namespace stylekern

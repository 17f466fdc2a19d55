// The border rule: which sample a tap that falls outside of the picture reads. One definition for CPU and CUDA.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define STYLEKERN_HD __host__ __device__ __forceinline__
#else
#define STYLEKERN_HD inline
#endif

namespace stylekern {

enum class Padding : int { kReflect = 0, kReplicate = 1, kZeros = 2, kNone = 3 };

// Maps a position in [-r, size + r) to the sample it reads in [0, size), or to -1 where it reads a zero.
// Reflect needs r < size, which the callers check.
STYLEKERN_HD int64_t border_index(int64_t q, int64_t size, Padding padding) {
  if (q >= 0 && q < size) return q;
  switch (padding) {
    case Padding::kReflect:
      return q < 0 ? -q : 2 * (size - 1) - q;
    case Padding::kReplicate:
      return q < 0 ? 0 : size - 1;
    default:
      return -1;
  }
}

}  // namespace stylekern

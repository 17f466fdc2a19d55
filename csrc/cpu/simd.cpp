#include "simd.h"

#include <cstdlib>
#include <string_view>

namespace stylekern {

static Target detect() {
  Target best = Target::kBaseline;
#if defined(__x86_64__)
  __builtin_cpu_init();
  // Whatever has AVX2 has F16C, which not every compiler can ask about.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = Target::kAvx2;
  if (best == Target::kAvx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    best = Target::kAvx512;
#endif
  const char* asked = std::getenv("STYLEKERN_CPU_TARGET");
  for (Target target : {Target::kBaseline, Target::kAvx2})
    if (asked && std::string_view(asked) == cpu_target_name(target)) return std::min(best, target);
  return best;
}

Target cpu_target() {
  static const Target target = detect();
  return target;
}

const char* cpu_target_name(Target target) {
  switch (target) {
    case Target::kAvx512:
      return "avx512";
    case Target::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace stylekern

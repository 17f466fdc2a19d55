// Compiles one file of kernels for several instruction sets into one object, and picks at run time.
//
//   #define STYLEKERN_KERNELS "style_kernel_conv_target.h"
//   #include "foreach_target.h"
//
// includes the file once a target, each time inside `namespace stylekern::<target>` with STYLEKERN_TARGET its name and
// STYLEKERN_VECTOR_BYTES the width of its registers. So one binary serves every x86-64, and sources need no flags of
// their own. The file includes others of its kind, and no header with a guard: such are included before, for the lowest
// target. Its includes are in the order in which they need each other; a comment between two keeps clang-format from
// sorting them.
#include "simd.h"

#define STYLEKERN_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define STYLEKERN_PUSH_TARGET(isa) \
  STYLEKERN_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define STYLEKERN_POP_TARGET STYLEKERN_PRAGMA(clang attribute pop)
#else
#define STYLEKERN_PUSH_TARGET(isa) STYLEKERN_PRAGMA(GCC push_options) STYLEKERN_PRAGMA(GCC target(isa))
#define STYLEKERN_POP_TARGET STYLEKERN_PRAGMA(GCC pop_options)
#endif

#if defined(__x86_64__)
STYLEKERN_PUSH_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#define STYLEKERN_TARGET avx512
#define STYLEKERN_VECTOR_BYTES 64
#include "simd_target.h"
#include STYLEKERN_KERNELS
#undef STYLEKERN_TARGET
#undef STYLEKERN_VECTOR_BYTES
STYLEKERN_POP_TARGET

STYLEKERN_PUSH_TARGET("avx2,fma,f16c")
#define STYLEKERN_TARGET avx2
#define STYLEKERN_VECTOR_BYTES 32
#include "simd_target.h"
#include STYLEKERN_KERNELS
#undef STYLEKERN_TARGET
#undef STYLEKERN_VECTOR_BYTES
STYLEKERN_POP_TARGET
#endif

#define STYLEKERN_TARGET baseline
#define STYLEKERN_VECTOR_BYTES 16
#include "simd_target.h"
#include STYLEKERN_KERNELS
#undef STYLEKERN_TARGET
#undef STYLEKERN_VECTOR_BYTES

namespace stylekern {

// call(target), of a macro, with the namespace of the target that cpu_target() names.
#if defined(__x86_64__)
#define STYLEKERN_FOR_TARGET(call) \
  switch (cpu_target()) {          \
    case Target::kAvx512:          \
      return call(avx512);         \
    case Target::kAvx2:            \
      return call(avx2);           \
    default:                       \
      return call(baseline);       \
  }
#else
#define STYLEKERN_FOR_TARGET(call) return call(baseline)
#endif

}  // namespace stylekern

// cgm_attention: sizes and options.
//
//   S = alpha q^ k^T          x^ = x / max(|x|, eps), or x         A = exp(S - lse)
//   T = gate_scale / Lk + gate_bias                                y = sum over v with A > T of A value(v)
//   renormalize: y / mass, mass the sum over v with A > T of A
#pragma once
#include <cstdint>

namespace stylekern {

struct CgmAttention {
  int64_t n, queries, keys, d, dv;
  double alpha, temperature, eps;
  bool cosine, straight_through, renormalize;
};

}  // namespace stylekern

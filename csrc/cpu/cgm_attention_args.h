// What the torch side hands to the CPU kernels of cgm_attention.
#pragma once
#include "../common/cgm_attention.h"
#include "simd.h"

namespace stylekern {

// A block of queries against all keys. Null: not there, or not asked for.
template <class T>
struct CgmBlock {
  Acc<T>* scores;                                       // [rows, Lk]
  Acc<T>* products = nullptr;                           // [rows, Lk], of the output's gradient and the values; or none
  const T *gate_scale = nullptr, *gate_bias = nullptr;  // [rows]
  Acc<T>*lse = nullptr, *mass = nullptr;                // [rows]
  T *grad_scale = nullptr, *grad_bias = nullptr;        // [rows]
};

}  // namespace stylekern

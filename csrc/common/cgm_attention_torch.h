// cgm_attention: from torch tensors to the problem that the kernels read.
#pragma once
#include "cgm_attention.h"
#include "torch_side.h"

namespace stylekern {

inline bool parse_straight_through(StringHandle handle) {
  const std::string name = take_string(handle);
  STD_TORCH_CHECK(name == "straight_through" || name == "none", "gate_grad must be none or straight_through, got ",
                  name);
  return name == "straight_through";
}

inline CgmAttention make_cgm_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                       const std::optional<Tensor>& gate_scale, const std::optional<Tensor>& gate_bias,
                                       double alpha, bool cosine, StringHandle gate_grad, double temperature,
                                       bool renormalize, double eps) {
  const bool straight_through = parse_straight_through(gate_grad) && (gate_scale || gate_bias);
  STD_TORCH_CHECK(query.dim() == 3 && key.dim() == 3 && value.dim() == 3,
                  "cgm_attention: query must be [N, Lq, D], key [N, Lk, D] and value [N, Lk, Dv]");
  const CgmAttention p{.n = query.size(0),
                       .queries = query.size(1),
                       .keys = key.size(1),
                       .d = query.size(2),
                       .dv = value.size(2),
                       .alpha = alpha,
                       .temperature = temperature,
                       .eps = eps,
                       .cosine = cosine,
                       .straight_through = straight_through,
                       .renormalize = renormalize};
  check_shape("key", key, {p.n, p.keys, p.d});
  check_shape("value", value, {p.n, p.keys, p.dv});
  for (const Tensor* x : {&key, &value}) check_dtype("key and value", *x, query.scalar_type());
  for (const std::optional<Tensor>* x : {&gate_scale, &gate_bias}) {
    if (!*x) continue;
    check_shape("gate_scale and gate_bias", **x, {p.n, p.queries});
    check_dtype("gate_scale and gate_bias", **x, query.scalar_type());
  }
  return p;
}

}  // namespace stylekern

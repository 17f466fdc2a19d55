// adaconv: from torch tensors to the problem that the kernels read, for CPU and CUDA.
#pragma once
#include <array>
#include <optional>

#include "adaconv.h"
#include "torch_side.h"

namespace stylekern {

// The kernel must be contiguous, the input have dense rows.
inline AdaConv make_adaconv(const Tensor& input, const Tensor& kernel, StringHandle padding_mode, bool normalize,
                            int64_t correction) {
  AdaConv p{};
  p.padding = parse_padding(take_string(padding_mode));
  STD_TORCH_CHECK(input.dim() == 4 && kernel.dim() == 5,
                  "adaconv: input must be [N, C, H, W] and kernel [N, Co, C/G, kh, kw]");
  p.n = input.size(0), p.c = input.size(1), p.h = input.size(2), p.w = input.size(3);
  p.out_c = kernel.size(1), p.kh = int(kernel.size(3)), p.kw = int(kernel.size(4));
  const int64_t group_in = kernel.size(2);
  STD_TORCH_CHECK(group_in > 0 ? p.c > 0 && p.c % group_in == 0 : p.c == 0,
                  "adaconv: C/G of the kernel must divide C, and be 0 where C is");
  p.groups = group_in > 0 ? p.c / group_in : 1;
  STD_TORCH_CHECK(p.padding != Padding::kNone, "adaconv: padding_mode must be reflect, replicate or zeros");
  STD_TORCH_CHECK(kernel.size(0) == p.n && p.kh > 0 && p.kw > 0 && (p.groups == 0 || p.out_c % p.groups == 0),
                  "adaconv: the shapes of input and kernel do not fit");
  STD_TORCH_CHECK(p.padding != Padding::kReflect || p.n * p.c * p.h * p.w == 0 || (p.top() < p.h && p.left() < p.w),
                  "adaconv: reflect needs k / 2 < size");
  check_dtype("kernel", kernel, accumulate_type(input));
  if (normalize) check_variance("input", input, correction);
  p.input = plane_strides(input);
  return p;
}

// scale or bias, where there is one: a value of each sample's outputs, dense.
inline std::optional<Tensor> of_outputs(const char* name, const std::optional<Tensor>& x, const AdaConv& p,
                                        const Tensor& input) {
  if (!x) return {};
  check_shape(name, *x, {p.n, p.out_c});
  check_dtype(name, *x, accumulate_type(input));
  return torch::stable::contiguous(*x);
}

// The kernel of each output times its scale.
inline Tensor scaled(const Tensor& kernel, Tensor scale) {
  while (scale.dim() < kernel.dim()) scale = torch::stable::unsqueeze(scale, -1);
  std::array<StableIValue, 2> stack{torch::stable::detail::from(kernel), torch::stable::detail::from(scale)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mul", "Tensor", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace stylekern

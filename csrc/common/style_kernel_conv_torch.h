// style_kernel_conv: from torch tensors to the problem that the kernels read, for CPU and CUDA.
#pragma once
#include "style_kernel_conv.h"
#include "torch_side.h"

namespace stylekern {

inline Composition parse_composition(const std::string& name) {
  STD_TORCH_CHECK(name == "sequential" || name == "outer", "composition must be sequential or outer, got ", name);
  return name == "outer" ? Composition::kOuter : Composition::kSequential;
}

inline StyleKernelConv make_style_kernel_conv(const Tensor& input, const Tensor& vertical, const Tensor& horizontal,
                                              const std::string& padding_mode, const std::string& composition,
                                              bool normalize, int64_t correction) {
  StyleKernelConv p{};
  p.padding = parse_padding(padding_mode);
  p.composition = parse_composition(composition);
  STD_TORCH_CHECK(input.dim() == 4 && vertical.dim() == 5 && horizontal.dim() == 5,
                  "style_kernel_conv: input must be [N, C, H, W], vertical and horizontal [N, G, k, H, W]");
  check_floating("input", input);
  if (normalize) check_variance("input", input, correction);
  p.n = input.size(0), p.c = input.size(1), p.in_h = input.size(2), p.in_w = input.size(3);
  p.groups = vertical.size(1), p.h = vertical.size(3), p.w = vertical.size(4);
  const int64_t kv = vertical.size(2), kh = horizontal.size(2);
  STD_TORCH_CHECK(kv % 2 == 1 && kv <= kMostTaps && kh % 2 == 1 && kh <= kMostTaps,
                  "style_kernel_conv: taps must be odd, from 1 to ", kMostTaps, ", got ", kv, " and ", kh);
  p.kv = int(kv), p.kh = int(kh);
  const bool padded = p.padding == Padding::kNone;
  STD_TORCH_CHECK(!padded || (p.composition == Composition::kOuter && !normalize),
                  "style_kernel_conv: padding_mode none needs composition outer, and no normalize");
  STD_TORCH_CHECK(vertical.size(0) == p.n && horizontal.size(0) == p.n && horizontal.size(1) == p.groups &&
                      horizontal.size(3) == p.h && horizontal.size(4) == p.w &&
                      p.in_h == p.h + (padded ? p.kv - 1 : 0) && p.in_w == p.w + (padded ? p.kh - 1 : 0) &&
                      (p.groups > 0 ? p.c % p.groups == 0 : p.c == 0),
                  "style_kernel_conv: sizes of input, vertical and horizontal do not fit");
  STD_TORCH_CHECK(p.padding != Padding::kReflect || p.n * p.c * p.h * p.w == 0 || (p.rv() < p.h && p.rh() < p.w),
                  "style_kernel_conv: reflect needs k / 2 < size");
  STD_TORCH_CHECK(vertical.scalar_type() == input.scalar_type() && horizontal.scalar_type() == input.scalar_type(),
                  "style_kernel_conv: input, vertical and horizontal must have one dtype");
  p.input = plane_strides(input), p.vertical = plane_strides(vertical), p.horizontal = plane_strides(horizontal);
  return p;
}

// Adds a bias [N, C, H, W] or [N, G, H, W].
inline void set_bias(StyleKernelConv& p, const Tensor& input, const Tensor& bias) {
  STD_TORCH_CHECK(bias.dim() == 4 && bias.size(0) == p.n && (bias.size(1) == p.c || bias.size(1) == p.groups) &&
                      bias.size(2) == p.h && bias.size(3) == p.w && bias.scalar_type() == input.scalar_type(),
                  "style_kernel_conv: bias must be [N, C, H, W] or [N, G, H, W] of the input's dtype");
  p.bias_groups = bias.size(1);
  p.bias = plane_strides(bias);
}

// Adds the gradient of the output, [N, C, H, W].
inline void set_grad(StyleKernelConv& p, const Tensor& input, const Tensor& grad) {
  check_shape("grad", grad, {p.n, p.c, p.h, p.w});
  check_dtype("grad", grad, input.scalar_type());
  p.grad = plane_strides(grad);
}

// mean and rstd, [N, C] in the accumulation type, or [0] without normalisation.
inline std::pair<Tensor, Tensor> empty_statistics(const Tensor& input, bool normalize) {
  const auto empty = [&] { return normalize ? empty_statistic(input) : empty_of(input, {0}, accumulate_type(input)); };
  return {empty(), empty()};
}

// The gradients of input, vertical and horizontal; [0] for one that is not asked for, zeros where there is no output.
inline std::tuple<Tensor, Tensor, Tensor> empty_gradients(const StyleKernelConv& p, const Tensor& input,
                                                          bool need_input, bool need_vertical, bool need_horizontal) {
  Tensor x = need_input ? empty_of(input, {p.n, p.c, p.in_h, p.in_w}) : empty_of(input, {0});
  Tensor v = need_vertical ? empty_of(input, {p.n, p.groups, p.kv, p.h, p.w}) : empty_of(input, {0});
  Tensor u = need_horizontal ? empty_of(input, {p.n, p.groups, p.kh, p.h, p.w}) : empty_of(input, {0});
  if (p.n * p.c * p.h * p.w == 0)
    for (Tensor* grad : {&x, &v, &u}) torch::stable::zero_(*grad);
  return {x, v, u};
}

}  // namespace stylekern

// style_kernel_conv on CUDA: the torch side. The kernels are in style_kernel_conv.cuh and
// style_kernel_conv_backward.cuh.
#include <torch/csrc/stable/accelerator.h>

#include "../common/style_kernel_conv_torch.h"
#include "style_kernel_conv_backward.cuh"
#include "torch_cuda.h"

namespace stylekern {
namespace {

std::tuple<Tensor, Tensor, Tensor> style_kernel_conv(Tensor input, Tensor vertical, Tensor horizontal,
                                                     std::optional<Tensor> bias, StringHandle padding_mode,
                                                     StringHandle composition, bool normalize, double eps,
                                                     int64_t correction) {
  const std::string padding = take_string(padding_mode), composed = take_string(composition);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  input = with_dense_rows(input), vertical = with_dense_rows(vertical), horizontal = with_dense_rows(horizontal);
  StyleKernelConv p = make_style_kernel_conv(input, vertical, horizontal, padding, composed, normalize, correction);
  check_device(input, {&vertical, &horizontal});
  if (bias) {
    bias = with_dense_rows(*bias);
    set_bias(p, input, *bias);
    check_device(input, {&*bias});
  }
  Tensor output = empty_of(input, {p.n, p.c, p.h, p.w});
  auto [mean, rstd] = empty_statistics(input, normalize);
  with_cuda_dtype(input, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = cuda::Acc<T>;
    check_launch(cuda::style_kernel_conv_forward<T>(
        p, data<T>(input), data<T>(vertical), data<T>(horizontal), bias ? data<T>(*bias) : nullptr,
        mutable_data<T>(output), normalize ? mutable_data<A>(mean) : nullptr,
        normalize ? mutable_data<A>(rstd) : nullptr, eps, correction, current_stream(input)));
  });
  return {output, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> style_kernel_conv_backward(Tensor grad, Tensor input, Tensor vertical,
                                                              Tensor horizontal, Tensor mean, Tensor rstd,
                                                              StringHandle padding_mode, StringHandle composition,
                                                              bool normalize, int64_t correction, bool need_input,
                                                              bool need_vertical, bool need_horizontal) {
  const std::string padding = take_string(padding_mode), composed = take_string(composition);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  grad = with_dense_rows(grad), input = with_dense_rows(input);
  vertical = with_dense_rows(vertical), horizontal = with_dense_rows(horizontal);
  StyleKernelConv p = make_style_kernel_conv(input, vertical, horizontal, padding, composed, normalize, correction);
  set_grad(p, input, grad);
  check_device(input, {&grad, &vertical, &horizontal});
  if (normalize) {
    check_statistic("mean", input, mean), check_statistic("rstd", input, rstd);
    check_device(input, {&mean, &rstd});
  }
  auto [grad_input, grad_vertical, grad_horizontal] =
      empty_gradients(p, input, need_input, need_vertical, need_horizontal);
  with_cuda_dtype(input, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = cuda::Acc<T>;
    const size_t bytes =
        cuda::style_kernel_conv_backward_workspace<T>(p, normalize, need_input, need_vertical, need_horizontal);
    const Tensor workspace = empty_of(input, {int64_t(bytes / sizeof(A))}, accumulate_type(input));
    check_launch(cuda::style_kernel_conv_backward<T>(
        p, data<T>(grad), data<T>(input), data<T>(vertical), data<T>(horizontal), normalize ? data<A>(mean) : nullptr,
        normalize ? data<A>(rstd) : nullptr, need_input ? mutable_data<T>(grad_input) : nullptr,
        need_vertical ? mutable_data<T>(grad_vertical) : nullptr,
        need_horizontal ? mutable_data<T>(grad_horizontal) : nullptr, mutable_data<A>(workspace), correction,
        current_stream(input)));
  });
  return {grad_input, grad_vertical, grad_horizontal};
}

}  // namespace
}  // namespace stylekern

STABLE_TORCH_LIBRARY_IMPL(stylekern, CUDA, m) {
  m.impl("style_kernel_conv", TORCH_BOX(&stylekern::style_kernel_conv));
  m.impl("style_kernel_conv_backward", TORCH_BOX(&stylekern::style_kernel_conv_backward));
}

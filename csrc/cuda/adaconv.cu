// adaconv on CUDA: the torch side. The kernels are in adaconv.cuh and adaconv_backward.cuh.
#include <torch/csrc/stable/accelerator.h>

#include "../common/adaconv_torch.h"
#include "adaconv_backward.cuh"
#include "torch_cuda.h"

namespace stylekern {
namespace {

std::tuple<Tensor, Tensor, Tensor> adaconv(Tensor input, Tensor kernel, std::optional<Tensor> scale,
                                           std::optional<Tensor> bias, bool normalize, StringHandle padding_mode,
                                           double eps, int64_t correction) {
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  check_device(input, {&kernel});
  input = with_dense_rows(input), kernel = torch::stable::contiguous(kernel);
  const AdaConv p = make_adaconv(input, kernel, padding_mode, normalize, correction);
  for (const auto& x : {scale, bias})
    if (x) check_device(input, {&*x});
  scale = of_outputs("scale", scale, p, input), bias = of_outputs("bias", bias, p, input);
  if (scale) kernel = scaled(kernel, *scale);
  Tensor output = empty_of(input, {p.n, p.out_c, p.h, p.w});
  const auto empty = [&] { return normalize ? empty_statistic(input) : empty_of(input, {0}, accumulate_type(input)); };
  Tensor mean = empty(), rstd = empty();
  with_cuda_dtype(input, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = cuda::Acc<T>;
    check_launch(cuda::adaconv_forward<T>(p, data<T>(input), data<A>(kernel), bias ? data<A>(*bias) : nullptr,
                                          mutable_data<T>(output), normalize ? mutable_data<A>(mean) : nullptr,
                                          normalize ? mutable_data<A>(rstd) : nullptr, eps, correction,
                                          current_stream(input)));
  });
  return {output, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> adaconv_backward(Tensor grad, Tensor input, Tensor kernel, Tensor mean, Tensor rstd,
                                                    bool normalize, StringHandle padding_mode, int64_t correction,
                                                    bool need_input, bool need_kernel, bool need_bias) {
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  check_device(input, {&grad, &kernel});
  grad = with_dense_rows(grad), input = with_dense_rows(input), kernel = torch::stable::contiguous(kernel);
  AdaConv p = make_adaconv(input, kernel, padding_mode, normalize, correction);
  check_shape("grad", grad, {p.n, p.out_c, p.h, p.w});
  check_dtype("grad", grad, input.scalar_type());
  p.grad = plane_strides(grad);
  if (normalize) {
    check_device(input, {&mean, &rstd});
    check_statistic("mean", input, mean), check_statistic("rstd", input, rstd);
  }
  const ScalarType sums = accumulate_type(input);
  Tensor grad_input = need_input ? empty_of(input, {p.n, p.c, p.h, p.w}) : empty_of(input, {0});
  Tensor grad_kernel =
      need_kernel ? empty_of(input, {p.n, p.out_c, kernel.size(2), p.kh, p.kw}, sums) : empty_of(input, {0}, sums);
  Tensor grad_bias = need_bias ? empty_of(input, {p.n, p.out_c}, sums) : empty_of(input, {0}, sums);
  if (input.numel() == 0) torch::stable::zero_(grad_kernel);
  if (p.h * p.w == 0) torch::stable::zero_(grad_bias);
  with_cuda_dtype(input, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = cuda::Acc<T>;
    const cuda::AdaConvWorkspace<T> plan(p, normalize, need_input, need_kernel);
    const Tensor workspace = empty_of(input, {plan.values()}, sums);
    check_launch(cuda::adaconv_backward<T>(
        p, data<T>(grad), data<T>(input), data<A>(kernel), normalize ? data<A>(mean) : nullptr,
        normalize ? data<A>(rstd) : nullptr, need_input ? mutable_data<T>(grad_input) : nullptr,
        need_kernel ? mutable_data<A>(grad_kernel) : nullptr, need_bias ? mutable_data<A>(grad_bias) : nullptr,
        mutable_data<A>(workspace), correction, current_stream(input)));
  });
  return {grad_input, grad_kernel, grad_bias};
}

}  // namespace
}  // namespace stylekern

STABLE_TORCH_LIBRARY_IMPL(stylekern, CUDA, m) {
  m.impl("adaconv", TORCH_BOX(&stylekern::adaconv));
  m.impl("adaconv_backward", TORCH_BOX(&stylekern::adaconv_backward));
}

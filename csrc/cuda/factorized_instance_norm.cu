// factorized_instance_norm on CUDA: the torch side. The kernels are in factorized_instance_norm.cuh.
#include <torch/csrc/stable/accelerator.h>

#include "../common/factorized_instance_norm_torch.h"
#include "factorized_instance_norm.cuh"
#include "torch_cuda.h"

namespace stylekern {
namespace {

std::tuple<Tensor, Tensor, Tensor> factorized_instance_norm(Tensor content, Tensor gamma_ind, Tensor beta_ind,
                                                            Tensor gamma_style, Tensor beta_style, double eps,
                                                            int64_t correction) {
  const torch::stable::accelerator::DeviceGuard guard(content.get_device_index());
  check_device(content, {&gamma_ind, &beta_ind, &gamma_style, &beta_style});
  content = with_dense_rows(content), gamma_style = with_dense_rows(gamma_style);
  beta_style = with_dense_rows(beta_style);
  gamma_ind = torch::stable::contiguous(gamma_ind), beta_ind = torch::stable::contiguous(beta_ind);
  FactorizedInstanceNorm p = make_factorized_instance_norm(content, gamma_ind, beta_ind, gamma_style, correction);
  check_shape("beta_style", beta_style, {p.n, p.c, p.h, p.w});
  check_dtype("beta_style", beta_style, content.scalar_type());
  p.beta_style = plane_strides(beta_style);
  Tensor output = empty_of(content, {p.n, p.c, p.h, p.w});
  Tensor mean = empty_statistic(content), rstd = empty_statistic(content);
  with_cuda_dtype(content, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = cuda::Acc<T>;
    const Tensor workspace =
        empty_of(content, {cuda::factorized_instance_norm_workspace<T>(p)}, accumulate_type(content));
    check_launch(cuda::factorized_instance_norm_forward<T>(
        p, data<T>(content), data<T>(gamma_ind), data<T>(beta_ind), data<T>(gamma_style), data<T>(beta_style),
        mutable_data<T>(output), mutable_data<A>(mean), mutable_data<A>(rstd), mutable_data<A>(workspace), eps,
        current_stream(content)));
  });
  return {output, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> factorized_instance_norm_backward(Tensor grad, Tensor content,
                                                                             Tensor gamma_ind, Tensor beta_ind,
                                                                             Tensor gamma_style, Tensor mean,
                                                                             Tensor rstd, int64_t correction,
                                                                             bool need_content, bool need_gamma_style) {
  const torch::stable::accelerator::DeviceGuard guard(content.get_device_index());
  check_device(content, {&grad, &gamma_ind, &beta_ind, &gamma_style, &mean, &rstd});
  grad = with_dense_rows(grad), content = with_dense_rows(content), gamma_style = with_dense_rows(gamma_style);
  gamma_ind = torch::stable::contiguous(gamma_ind), beta_ind = torch::stable::contiguous(beta_ind);
  FactorizedInstanceNorm p = make_factorized_instance_norm(content, gamma_ind, beta_ind, gamma_style, correction);
  check_shape("grad", grad, {p.n, p.c, p.h, p.w});
  check_dtype("grad", grad, content.scalar_type());
  p.grad = plane_strides(grad);
  check_statistic("mean", content, mean), check_statistic("rstd", content, rstd);
  Tensor grad_content = need_content ? empty_of(content, {p.n, p.c, p.h, p.w}) : empty_of(content, {0});
  Tensor grad_gamma_style = need_gamma_style ? empty_of(content, {p.n, p.c, p.h, p.w}) : empty_of(content, {0});
  Tensor sum_gx = empty_statistic(content), sum_g = empty_statistic(content);
  if (content.numel() == 0) torch::stable::zero_(sum_gx), torch::stable::zero_(sum_g);
  with_cuda_dtype(content, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = cuda::Acc<T>;
    const Tensor workspace =
        empty_of(content, {cuda::factorized_instance_norm_workspace<T>(p)}, accumulate_type(content));
    check_launch(cuda::factorized_instance_norm_backward<T>(
        p, data<T>(grad), data<T>(content), data<T>(gamma_ind), data<T>(beta_ind), data<T>(gamma_style), data<A>(mean),
        data<A>(rstd), need_content ? mutable_data<T>(grad_content) : nullptr,
        need_gamma_style ? mutable_data<T>(grad_gamma_style) : nullptr, mutable_data<A>(sum_gx), mutable_data<A>(sum_g),
        mutable_data<A>(workspace), current_stream(content)));
  });
  return {grad_content, grad_gamma_style, sum_gx, sum_g};
}

}  // namespace
}  // namespace stylekern

STABLE_TORCH_LIBRARY_IMPL(stylekern, CUDA, m) {
  m.impl("factorized_instance_norm", TORCH_BOX(&stylekern::factorized_instance_norm));
  m.impl("factorized_instance_norm_backward", TORCH_BOX(&stylekern::factorized_instance_norm_backward));
}

// adain on CUDA: the torch side. The kernels are in adain.cuh.
#include <torch/csrc/stable/accelerator.h>

#include "../common/adain_torch.h"
#include "adain.cuh"
#include "torch_cuda.h"

namespace stylekern {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> adain(Tensor content, Tensor style, double eps, int64_t correction) {
  const torch::stable::accelerator::DeviceGuard guard(content.get_device_index());
  check_device(content, {&style});
  content = with_dense_rows(content), style = with_dense_rows(style);
  const Adain p = make_adain(content, style, correction);
  Tensor output = empty_of(content, {p.n, p.c, p.h, p.w});
  Tensor content_mean = empty_statistic(content), content_rstd = empty_statistic(content);
  Tensor style_mean = empty_statistic(content), style_rstd = empty_statistic(content);
  with_cuda_dtype(content, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = cuda::Acc<T>;
    const cuda::AdainStatistics<A> statistics{mutable_data<A>(content_mean), mutable_data<A>(content_rstd),
                                              mutable_data<A>(style_mean), mutable_data<A>(style_rstd)};
    const Tensor workspace = empty_of(content, {cuda::adain_workspace<T>(p)}, accumulate_type(content));
    check_launch(cuda::adain_forward<T>(p, data<T>(content), data<T>(style), mutable_data<T>(output), statistics,
                                        mutable_data<A>(workspace), eps, current_stream(content)));
  });
  return {output, content_mean, content_rstd, style_mean, style_rstd};
}

std::tuple<Tensor, Tensor> adain_backward(Tensor grad, Tensor content, Tensor style, Tensor content_mean,
                                          Tensor content_rstd, Tensor style_mean, Tensor style_rstd, int64_t correction,
                                          bool need_content, bool need_style) {
  const torch::stable::accelerator::DeviceGuard guard(content.get_device_index());
  check_device(content, {&grad, &style, &content_mean, &content_rstd, &style_mean, &style_rstd});
  grad = with_dense_rows(grad), content = with_dense_rows(content), style = with_dense_rows(style);
  Adain p = make_adain(content, style, correction);
  check_shape("grad", grad, {p.n, p.c, p.h, p.w});
  check_dtype("grad", grad, content.scalar_type());
  p.grad = plane_strides(grad);
  check_statistic("content_mean", content, content_mean), check_statistic("content_rstd", content, content_rstd);
  check_statistic("style_mean", content, style_mean), check_statistic("style_rstd", content, style_rstd);
  Tensor grad_content = need_content ? empty_of(content, {p.n, p.c, p.h, p.w}) : empty_of(content, {0});
  Tensor grad_style = need_style ? empty_of(style, {p.n, p.c, p.style_h, p.style_w}) : empty_of(style, {0});
  if (content.numel() == 0) torch::stable::zero_(grad_style);
  with_cuda_dtype(content, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = cuda::Acc<T>;
    const cuda::AdainStatistics<const A> statistics{data<A>(content_mean), data<A>(content_rstd), data<A>(style_mean),
                                                    data<A>(style_rstd)};
    const Tensor workspace = empty_of(content, {cuda::adain_workspace<T>(p)}, accumulate_type(content));
    check_launch(cuda::adain_backward<T>(p, data<T>(grad), data<T>(content), data<T>(style), statistics,
                                         need_content ? mutable_data<T>(grad_content) : nullptr,
                                         need_style ? mutable_data<T>(grad_style) : nullptr, mutable_data<A>(workspace),
                                         current_stream(content)));
  });
  return {grad_content, grad_style};
}

}  // namespace
}  // namespace stylekern

STABLE_TORCH_LIBRARY_IMPL(stylekern, CUDA, m) {
  m.impl("adain", TORCH_BOX(&stylekern::adain));
  m.impl("adain_backward", TORCH_BOX(&stylekern::adain_backward));
}

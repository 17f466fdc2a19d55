// factorized_instance_norm on the CPU: the torch side. The kernels are in factorized_instance_norm.h.
#include "../common/factorized_instance_norm_torch.h"
#include "dtypes.h"
#include "factorized_instance_norm_args.h"

#define STYLEKERN_KERNELS "factorized_instance_norm_target.h"
#include "foreach_target.h"
#include "parallel.h"

namespace stylekern {
namespace {

std::tuple<Tensor, Tensor, Tensor> factorized_instance_norm(Tensor content, Tensor gamma_ind, Tensor beta_ind,
                                                            Tensor gamma_style, Tensor beta_style, double eps,
                                                            int64_t correction) {
  content = with_dense_rows(content), gamma_style = with_dense_rows(gamma_style);
  beta_style = with_dense_rows(beta_style);
  gamma_ind = torch::stable::contiguous(gamma_ind), beta_ind = torch::stable::contiguous(beta_ind);
  FactorizedInstanceNorm p = make_factorized_instance_norm(content, gamma_ind, beta_ind, gamma_style, correction);
  check_shape("beta_style", beta_style, {p.n, p.c, p.h, p.w});
  check_dtype("beta_style", beta_style, content.scalar_type());
  p.beta_style = plane_strides(beta_style);
  Tensor output = empty_of(content, {p.n, p.c, p.h, p.w});
  Tensor mean = empty_statistic(content), rstd = empty_statistic(content);
  if (output.numel() == 0) return {output, mean, rstd};
  with_dtype(content, [&](auto type) {
    using T = decltype(type);
    using A = Acc<T>;
    FactorizedInstanceNormArgs<T> args{
        p, data<T>(content), data<T>(gamma_ind), data<T>(beta_ind), data<T>(gamma_style), data<T>(beta_style)};
    args.output = mutable_data<T>(output), args.eps = eps;
    args.mean = mutable_data<A>(mean), args.rstd = mutable_data<A>(rstd);
    const bool flat = p.content.row == p.w && p.gamma_style.row == p.w && p.beta_style.row == p.w;
    const int64_t bytes = 4 * output.numel() * int64_t(sizeof(T));
    args.streamed = worth_streaming(args.output, bytes, stream_row_bytes(p.h, p.w, flat ? p.w : 0, sizeof(T)));
    const int64_t together = planes_together_or_along(p.h * p.w, p.h * p.w * int64_t(sizeof(T)));
    args.along = together == 0, args.fetched = is_large(bytes);
#define STYLEKERN_CALL(target)                                                                                       \
  for_planes(                                                                                                        \
      p.planes(), p.h, 4 * p.w, together,                                                                            \
      [&](int64_t first, int64_t last) { target::FactorizedInstanceNormKernels<T>::statistics(args, first, last); }, \
      [&](int64_t plane, int64_t row0, int64_t row1, int64_t next) {                                                 \
        target::FactorizedInstanceNormKernels<T>::apply(args, plane, row0, row1, next);                              \
      })
    STYLEKERN_FOR_TARGET(STYLEKERN_CALL);
#undef STYLEKERN_CALL
  });
  return {output, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> factorized_instance_norm_backward(Tensor grad, Tensor content,
                                                                             Tensor gamma_ind, Tensor beta_ind,
                                                                             Tensor gamma_style, Tensor mean,
                                                                             Tensor rstd, int64_t correction,
                                                                             bool need_content, bool need_gamma_style) {
  grad = with_dense_rows(grad), content = with_dense_rows(content), gamma_style = with_dense_rows(gamma_style);
  gamma_ind = torch::stable::contiguous(gamma_ind), beta_ind = torch::stable::contiguous(beta_ind);
  FactorizedInstanceNorm p = make_factorized_instance_norm(content, gamma_ind, beta_ind, gamma_style, correction);
  check_shape("grad", grad, {p.n, p.c, p.h, p.w});
  check_dtype("grad", grad, content.scalar_type());
  p.grad = plane_strides(grad);
  check_statistic("mean", content, mean);
  check_statistic("rstd", content, rstd);
  const auto result = [&](bool needed) {
    return needed ? empty_of(content, {p.n, p.c, p.h, p.w}) : empty_of(content, {0});
  };
  Tensor grad_content = result(need_content), grad_gamma_style = result(need_gamma_style);
  Tensor sum_gx = empty_statistic(content), sum_g = empty_statistic(content);
  if (content.numel() == 0) {
    torch::stable::zero_(sum_gx), torch::stable::zero_(sum_g);
    return {grad_content, grad_gamma_style, sum_gx, sum_g};
  }
  with_dtype(content, [&](auto type) {
    using T = decltype(type);
    using A = Acc<T>;
    FactorizedInstanceNormArgs<T> args{p, data<T>(content), data<T>(gamma_ind), data<T>(beta_ind),
                                       data<T>(gamma_style)};
    args.grad = data<T>(grad);
    args.grad_content = need_content ? mutable_data<T>(grad_content) : nullptr;
    args.grad_gamma_style = need_gamma_style ? mutable_data<T>(grad_gamma_style) : nullptr;
    args.mean = const_cast<A*>(data<A>(mean)), args.rstd = const_cast<A*>(data<A>(rstd));
    args.sum_gx = mutable_data<A>(sum_gx), args.sum_g = mutable_data<A>(sum_g);
    const bool flat = p.content.row == p.w && p.gamma_style.row == p.w && p.grad.row == p.w;
    const int64_t values = 3 * content.numel() + grad_content.numel() + grad_gamma_style.numel();
    const int64_t bytes = values * int64_t(sizeof(T));
    const int64_t row_bytes = stream_row_bytes(p.h, p.w, flat ? p.w : 0, sizeof(T));
    args.streamed = streams_whole_lines() && worth_streaming(args.grad_content, bytes, row_bytes) &&
                    worth_streaming(args.grad_gamma_style, bytes, row_bytes);
#define STYLEKERN_CALL(target)                                                                   \
  for_steps(                                                                                     \
      p.planes(), 8 * p.h * p.w, [] { return std::optional<target::GradientSums>(); },           \
      [&](auto& sums, int64_t plane, const Turn& turn) {                                         \
        sums = target::FactorizedInstanceNormKernels<T>::backward(args, plane, turn.next, sums); \
      })
    STYLEKERN_FOR_TARGET(STYLEKERN_CALL);
#undef STYLEKERN_CALL
  });
  return {grad_content, grad_gamma_style, sum_gx, sum_g};
}

}  // namespace
}  // namespace stylekern

STABLE_TORCH_LIBRARY_IMPL(stylekern, CPU, m) {
  m.impl("factorized_instance_norm", TORCH_BOX(&stylekern::factorized_instance_norm));
  m.impl("factorized_instance_norm_backward", TORCH_BOX(&stylekern::factorized_instance_norm_backward));
}

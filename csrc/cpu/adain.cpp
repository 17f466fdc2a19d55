// adain on the CPU: the torch side. The kernels are in adain.h.
#include "../common/adain_torch.h"
#include "adain_args.h"
#include "dtypes.h"

#define STYLEKERN_KERNELS "adain_target.h"
#include "foreach_target.h"
#include "parallel.h"

namespace stylekern {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> adain(Tensor content, Tensor style, double eps, int64_t correction) {
  content = with_dense_rows(content), style = with_dense_rows(style);
  const Adain p = make_adain(content, style, correction);
  Tensor output = empty_of(content, {p.n, p.c, p.h, p.w});
  Tensor content_mean = empty_statistic(content), content_rstd = empty_statistic(content);
  Tensor style_mean = empty_statistic(content), style_rstd = empty_statistic(content);
  if (output.numel() == 0) return {output, content_mean, content_rstd, style_mean, style_rstd};
  with_dtype(content, [&](auto type) {
    using T = decltype(type);
    using A = Acc<T>;
    AdainArgs<T> args{p, data<T>(content), data<T>(style)};
    args.output = mutable_data<T>(output), args.eps = eps;
    args.content_mean = mutable_data<A>(content_mean), args.content_rstd = mutable_data<A>(content_rstd);
    args.style_mean = mutable_data<A>(style_mean), args.style_rstd = mutable_data<A>(style_rstd);
    const int64_t bytes = (2 * output.numel() + style.numel()) * int64_t(sizeof(T));
    args.streamed = worth_streaming(args.output, bytes, stream_row_bytes(p.h, p.w, p.content.row, sizeof(T)));
    const int64_t values = p.h * p.w, style_values = p.style_h * p.style_w;
    const int64_t together =
        planes_together_or_along(std::max(values, style_values), (values + style_values) * int64_t(sizeof(T)));
    args.along = together == 0, args.fetched = is_large(bytes);
#define STYLEKERN_CALL(target)                                                                      \
  for_planes(                                                                                       \
      p.planes(), p.h, 4 * p.w, together,                                                           \
      [&](int64_t first, int64_t last) { target::AdainKernels<T>::statistics(args, first, last); }, \
      [&](int64_t plane, int64_t row0, int64_t row1, int64_t next) {                                \
        target::AdainKernels<T>::apply(args, plane, row0, row1, next);                              \
      })
    STYLEKERN_FOR_TARGET(STYLEKERN_CALL);
#undef STYLEKERN_CALL
  });
  return {output, content_mean, content_rstd, style_mean, style_rstd};
}

std::tuple<Tensor, Tensor> adain_backward(Tensor grad, Tensor content, Tensor style, Tensor content_mean,
                                          Tensor content_rstd, Tensor style_mean, Tensor style_rstd, int64_t correction,
                                          bool need_content, bool need_style) {
  grad = with_dense_rows(grad), content = with_dense_rows(content), style = with_dense_rows(style);
  Adain p = make_adain(content, style, correction);
  check_shape("grad", grad, {p.n, p.c, p.h, p.w});
  check_dtype("grad", grad, content.scalar_type());
  p.grad = plane_strides(grad);
  for (const Tensor* x : {&content_mean, &content_rstd, &style_mean, &style_rstd})
    check_statistic("statistics", content, *x);
  Tensor grad_content = need_content ? empty_of(content, {p.n, p.c, p.h, p.w}) : empty_of(content, {0});
  Tensor grad_style = need_style ? empty_of(style, {p.n, p.c, p.style_h, p.style_w}) : empty_of(style, {0});
  if (content.numel() == 0) {
    torch::stable::zero_(grad_style);
    return {grad_content, grad_style};
  }
  with_dtype(content, [&](auto type) {
    using T = decltype(type);
    using A = Acc<T>;
    AdainArgs<T> args{p, data<T>(content), data<T>(style), data<T>(grad)};
    args.grad_content = need_content ? mutable_data<T>(grad_content) : nullptr;
    args.grad_style = need_style ? mutable_data<T>(grad_style) : nullptr;
    args.content_mean = const_cast<A*>(data<A>(content_mean)),
    args.content_rstd = const_cast<A*>(data<A>(content_rstd));
    args.style_mean = const_cast<A*>(data<A>(style_mean)), args.style_rstd = const_cast<A*>(data<A>(style_rstd));
    const int64_t bytes =
        (grad.numel() + content.numel() + grad_content.numel() + 2 * grad_style.numel()) * int64_t(sizeof(T));
    args.streamed = worth_streaming(
        args.grad_content, bytes, stream_row_bytes(p.h, p.w, p.content.row == p.grad.row ? p.grad.row : 0, sizeof(T)));
    args.style_streamed =
        worth_streaming(args.grad_style, bytes, stream_row_bytes(p.style_h, p.style_w, p.style.row, sizeof(T)));
#define STYLEKERN_CALL(target)                                                                                   \
  for_steps(                                                                                                     \
      p.planes(), 4 * (p.h * p.w + p.style_h * p.style_w), [] { return std::optional<target::GradientSums>(); }, \
      [&](auto& sums, int64_t plane, const Turn& turn) {                                                         \
        sums = target::AdainKernels<T>::backward(args, plane, turn.next, sums);                                  \
      })
    STYLEKERN_FOR_TARGET(STYLEKERN_CALL);
#undef STYLEKERN_CALL
  });
  return {grad_content, grad_style};
}

}  // namespace
}  // namespace stylekern

STABLE_TORCH_LIBRARY_IMPL(stylekern, CPU, m) {
  m.impl("adain", TORCH_BOX(&stylekern::adain));
  m.impl("adain_backward", TORCH_BOX(&stylekern::adain_backward));
}

// style_kernel_conv on the CPU: the torch side. The kernels are in style_kernel_conv.h and
// style_kernel_conv_backward.h.
#include "../common/style_kernel_conv_torch.h"
#include "dtypes.h"
#include "rows.h"
#include "style_kernel_conv_args.h"

#define STYLEKERN_KERNELS "style_kernel_conv_target.h"
#include "foreach_target.h"
#include "parallel.h"

namespace stylekern {
namespace {

// About how many multiplications a sample and group costs: what decides whether threads are worth waking.
int64_t cost(const StyleKernelConv& p) {
  return p.channels_per_group() * p.h * p.w *
         (p.composition == Composition::kOuter ? int64_t{p.kv} * p.kh : p.kv + p.kh);
}

// Calls f(kernels) with the kernels of this processor's target.
template <class T, class F>
void with_kernels(const F& f) {
#define STYLEKERN_CALL(target) f(target::StyleKernelConvKernels<T>())
  STYLEKERN_FOR_TARGET(STYLEKERN_CALL);
#undef STYLEKERN_CALL
}

template <class T>
void forward(const StyleKernelConvArgs<T>& args) {
  const StyleKernelConv& p = args.problem;
  const int64_t bands = band_count(p.n * p.groups, p.h, p.kv), cpg = p.channels_per_group();
  const int64_t together = groups_together(cpg, p.h * p.w);
  with_kernels<T>([&](const auto& kernels) {
    if (args.mean && bands > 1)
      parallel_for(p.n * p.c, p.h * p.w,
                   [&](int64_t begin, int64_t end) { kernels.forward(args).statistics(begin, end); });
    // Groups are convolved right after their statistics, while they are in cache.
    for_bands(
        p, bands, cost(p) / bands, [&] { return std::pair{kernels.forward(args), Batches()}; },
        [&](auto& state, int64_t n, int64_t g, int64_t row0, int64_t row1, const Turn& turn) {
          auto& conv = state.first;  // clang before 16 captures no structured binding
          const int64_t unit = n * p.groups + g;
          if (args.mean && bands == 1)
            state.second.before(unit, turn, together,
                                [&](int64_t first, int64_t last) { conv.statistics(first * cpg, last * cpg); });
          conv.run(n, g, row0, row1, turn.later(unit, args.mean ? together : 1));
        });
  });
}

template <class T>
void backward(const StyleKernelConvBackwardArgs<T>& args, const Tensor& input) {
  using A = Acc<T>;
  const StyleKernelConv& p = args.problem;
  const int64_t bands = band_count(p.n * p.groups, p.h, p.kv), cpg = p.channels_per_group(), in_plane = p.in_h * p.in_w;
  // The gradient of x is summed in place, or for 16-bit types in a buffer: a group's planes of this thread, or, where
  // several bands fill a plane, all planes.
  const bool in_place = std::is_same_v<T, A>;
  std::optional<Tensor> buffer;
  if (args.grad_input && !in_place && bands > 1)
    buffer = empty_of(input, {p.n * p.c * in_plane}, accumulate_type(input));
  // sums: those of the plane's gradient, of the kernels' own type, or nothing.
  const auto finish = [&](const auto& kernels, int64_t n, int64_t c, const A* grad_x, auto... sums) {
    const int64_t nc = n * p.c + c;
    T* const out = args.grad_input + nc * in_plane;
    if (args.mean)
      kernels.normalize_backward(grad_x, args.input + p.input.at(n, c), p.h, p.w, p.input.row, args.mean[nc],
                                 args.rstd[nc], args.correction, out, sums...);
    else if (!in_place)
      kernels.convert(grad_x, in_plane, out);
  };
  with_kernels<T>([&](const auto& kernels) {
    const auto planes = [&](int64_t n, int64_t g) -> A* {  // of the whole tensor
      const int64_t first = (n * p.c + g * cpg) * in_plane;
      if constexpr (std::is_same_v<T, A>) return args.grad_input + first;
      return static_cast<A*>(buffer->mutable_data_ptr()) + first;
    };
    for_bands(
        p, bands, cost(p) / bands, [&] { return std::pair{kernels.backward(args), std::vector<A>()}; },
        [&](auto& state, int64_t n, int64_t g, int64_t row0, int64_t row1, const Turn&) {
          auto& [conv, own_planes] = state;
          A* grad_x = nullptr;
          if (args.grad_input && (in_place || buffer)) grad_x = planes(n, g);
          if (args.grad_input && !in_place && !buffer) {
            own_planes.resize(size_t(cpg * in_plane));
            grad_x = own_planes.data();
          }
          conv.run(n, g, row0, row1, grad_x);
          if (grad_x && bands == 1)
            for (int64_t k = 0; k < cpg; ++k) finish(kernels, n, g * cpg + k, grad_x + k * in_plane, conv.sums());
        });
    if (args.grad_input && bands > 1)
      parallel_for(p.n * p.c, in_plane, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          finish(kernels, i / p.c, i % p.c, planes(i / p.c, 0) + i % p.c * in_plane);
      });
  });
}

std::tuple<Tensor, Tensor, Tensor> style_kernel_conv(Tensor input, Tensor vertical, Tensor horizontal,
                                                     std::optional<Tensor> bias, StringHandle padding_mode,
                                                     StringHandle composition, bool normalize, double eps,
                                                     int64_t correction) {
  const std::string padding = take_string(padding_mode), composed = take_string(composition);
  input = with_dense_rows(input), vertical = with_dense_rows(vertical), horizontal = with_dense_rows(horizontal);
  StyleKernelConv p = make_style_kernel_conv(input, vertical, horizontal, padding, composed, normalize, correction);
  if (bias) {
    bias = with_dense_rows(*bias);
    set_bias(p, input, *bias);
  }
  Tensor output = empty_of(input, {p.n, p.c, p.h, p.w});
  const auto statistics = empty_statistics(input, normalize);  // clang before 16 captures no structured binding
  const Tensor &mean = statistics.first, &rstd = statistics.second;
  if (p.n * p.c * p.h * p.w == 0) return {output, mean, rstd};
  with_dtype(input, [&](auto type) {
    using T = decltype(type);
    StyleKernelConvArgs<T> args{p, data<T>(input), data<T>(vertical), data<T>(horizontal)};
    args.bias = bias ? data<T>(*bias) : nullptr;
    args.output = mutable_data<T>(output);
    args.mean = normalize ? mutable_data<Acc<T>>(mean) : nullptr;
    args.rstd = normalize ? mutable_data<Acc<T>>(rstd) : nullptr;
    args.eps = eps, args.correction = correction;
    const int64_t values =
        input.numel() + vertical.numel() + horizontal.numel() + (bias ? bias->numel() : 0) + output.numel();
    const int64_t bytes = values * int64_t(sizeof(T));
    args.streamed = worth_streaming(args.output, bytes, p.w * int64_t(sizeof(T)));
    args.fetched = is_large(bytes) && p.groups == p.c;
    forward(args);
  });
  return {output, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> style_kernel_conv_backward(Tensor grad, Tensor input, Tensor vertical,
                                                              Tensor horizontal, Tensor mean, Tensor rstd,
                                                              StringHandle padding_mode, StringHandle composition,
                                                              bool normalize, int64_t correction, bool need_input,
                                                              bool need_vertical, bool need_horizontal) {
  const std::string padding = take_string(padding_mode), composed = take_string(composition);
  grad = with_dense_rows(grad), input = with_dense_rows(input);
  vertical = with_dense_rows(vertical), horizontal = with_dense_rows(horizontal);
  StyleKernelConv p = make_style_kernel_conv(input, vertical, horizontal, padding, composed, normalize, correction);
  set_grad(p, input, grad);
  if (normalize) check_statistic("mean", input, mean), check_statistic("rstd", input, rstd);
  const auto gradients = empty_gradients(p, input, need_input, need_vertical, need_horizontal);
  const auto& grad_input = std::get<0>(gradients);
  const auto& grad_vertical = std::get<1>(gradients);
  const auto& grad_horizontal = std::get<2>(gradients);
  if (p.n * p.c * p.h * p.w == 0) return gradients;
  with_dtype(input, [&](auto type) {
    using T = decltype(type);
    StyleKernelConvBackwardArgs<T> args{p, data<T>(grad), data<T>(input), data<T>(vertical), data<T>(horizontal)};
    args.mean = normalize ? data<Acc<T>>(mean) : nullptr;
    args.rstd = normalize ? data<Acc<T>>(rstd) : nullptr;
    args.grad_input = need_input ? mutable_data<T>(grad_input) : nullptr;
    args.grad_vertical = need_vertical ? mutable_data<T>(grad_vertical) : nullptr;
    args.grad_horizontal = need_horizontal ? mutable_data<T>(grad_horizontal) : nullptr;
    args.correction = correction;
    // The forward came before: what it reads is read again by the next, and gradients would drive it out of the caches.
    const int64_t both_passes = 3 * (input.numel() + vertical.numel() + horizontal.numel()) + 2 * grad.numel();
    const int64_t bytes = both_passes * int64_t(sizeof(T)), row_bytes = p.w * int64_t(sizeof(T));
    args.streamed = streams_whole_lines() && worth_streaming(args.grad_vertical, bytes, row_bytes) &&
                    worth_streaming(args.grad_horizontal, bytes, row_bytes);
    args.fetched = is_large(bytes) && p.groups == p.c;
    backward(args, input);
  });
  return gradients;
}

}  // namespace
}  // namespace stylekern

STABLE_TORCH_LIBRARY_IMPL(stylekern, CPU, m) {
  m.impl("style_kernel_conv", TORCH_BOX(&stylekern::style_kernel_conv));
  m.impl("style_kernel_conv_backward", TORCH_BOX(&stylekern::style_kernel_conv_backward));
}

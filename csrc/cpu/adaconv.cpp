// adaconv on the CPU: the torch side. The kernels are in adaconv.h and adaconv_backward.h.
#include "../common/adaconv_torch.h"
#include "adaconv_args.h"
#include "dtypes.h"
#include "rows.h"

#define STYLEKERN_KERNELS "adaconv_target.h"
#include "foreach_target.h"
#include "parallel.h"

namespace stylekern {
namespace {

// About how many multiplications a sample and group costs: what decides whether threads are worth waking.
int64_t cost(const AdaConv& p) { return p.group_out() * p.h * p.w * (p.group_in() * p.kh * p.kw + 4) / 4; }

// Calls f(kernels) with the kernels of this processor's target.
template <class T, class F>
void with_kernels(const F& f) {
#define STYLEKERN_CALL(target) f(target::AdaConvKernels<T>())
  STYLEKERN_FOR_TARGET(STYLEKERN_CALL);
#undef STYLEKERN_CALL
}

template <class T>
void forward(const AdaConvArgs<T>& args) {
  const AdaConv& p = args.problem;
  const int64_t bands = band_count(p.n * p.groups, p.h, p.kh), group = p.group_in();
  const int64_t together = groups_together(group, p.h * p.w);
  with_kernels<T>([&](const auto& kernels) {
    if (args.mean && bands > 1)
      parallel_for(p.n * p.c, p.h * p.w,
                   [&](int64_t begin, int64_t end) { kernels.forward(args).statistics(begin, end); });
    // Groups are convolved right after their statistics, while they are in cache.
    for_bands(
        p, bands, cost(p) / bands, [&] { return std::pair{kernels.forward(args), Batches()}; },
        [&](auto& state, int64_t n, int64_t g, int64_t row0, int64_t row1, const Turn& turn) {
          auto& conv = state.first;
          const int64_t unit = n * p.groups + g;
          if (!args.mean || bands > 1) return conv.run(n, g, row0, row1, turn.later(unit, 1), -1);
          state.second.before(unit, turn, together,
                              [&](int64_t first, int64_t last) { conv.statistics(first * group, last * group); });
          const int64_t ahead = conv.takes_along() ? state.second.along(unit, turn) : -1;
          conv.run(n, g, row0, row1, turn.later(unit, together + (ahead >= 0)), ahead);
        });
  });
}

// The gradients of kernel and bias, a group's in parts where there are too few groups for the threads.
template <class T>
void backward_kernel(const AdaConvBackwardArgs<T>& args) {
  const AdaConv& p = args.problem;
  const int64_t units = p.n * p.groups, wanted = 4 * int64_t(torch::stable::get_num_threads());
  const int64_t parts = std::clamp<int64_t>((wanted + units - 1) / units, 1, std::max<int64_t>(p.group_out() / 2, 1));
  with_kernels<T>([&](const auto& kernels) {
    parallel_for(units * parts, cost(p) / parts, [&](int64_t begin, int64_t end) {
      auto conv = kernels.backward_kernel(args);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t unit = i / parts, part = i % parts;
        conv.run(unit / p.groups, unit % p.groups, p.group_out() * part / parts, p.group_out() * (part + 1) / parts,
                 -1);
      }
    });
  });
}

// All gradients that are asked for, that of x among them.
template <class T>
void backward(AdaConvBackwardArgs<T> args, const Tensor& input) {
  using A = Acc<T>;
  const AdaConv& p = args.problem;
  const int64_t bands = band_count(p.n * p.groups, p.h, p.kh), plane = p.h * p.w;
  // A group at a time, x and g cross memory once for all gradients; where there are groups enough for the threads.
  const bool others = args.grad_kernel || args.grad_bias;
  const bool together = others && p.n * p.groups >= 4 * int64_t(torch::stable::get_num_threads());
  if (others && !together) backward_kernel(args);
  // The gradient of x is summed in place; or in a buffer, for 16-bit types, and for depthwise results that then bypass
  // the caches: a group's planes of this thread, or, of 16-bit types where several bands fill a plane, all planes. (Zen
  // 4: 0.75 to 0.9 of the time with planes up to 1 MiB, 1.0 with 4. Other groups gain nothing.)
  const int64_t size = sizeof(T), bytes = (2 * p.n * p.c + p.n * p.out_c) * plane * size;
  args.streamed = std::is_same_v<T, A> && bands == 1 && p.depthwise_3x3() && p.group_out() == 1 &&
                  plane * size <= (1 << 20) &&
                  worth_streaming(args.grad_input, bytes, stream_row_bytes(p.h, p.w, p.input.row, sizeof(T)));
  const bool in_place = std::is_same_v<T, A> && !args.streamed;
  std::optional<Tensor> buffer;
  if (!in_place && bands > 1) buffer = empty_of(input, {p.n * p.c * plane}, accumulate_type(input));
  const auto planes = [&](int64_t nc) -> A* {  // of the whole tensor
    if constexpr (std::is_same_v<T, A>) return args.grad_input + nc * plane;
    return static_cast<A*>(buffer->mutable_data_ptr()) + nc * plane;
  };
  with_kernels<T>([&](const auto& kernels) {
    for_bands(
        p, bands, cost(p) * (together && args.grad_kernel ? 2 : 1) / bands,
        [&] { return std::tuple{kernels.backward_kernel(args), kernels.backward_input(args), std::vector<A>()}; },
        [&](auto& state, int64_t n, int64_t g, int64_t row0, int64_t row1, const Turn& turn) {
          auto& [kernel, conv, own_planes] = state;
          if (together) kernel.run(n, g, 0, p.group_out(), turn.next);
          const int64_t first = g * p.group_in();
          A* grad_x = nullptr;
          if (in_place || buffer) {
            grad_x = planes(n * p.c + first);
          } else {
            own_planes.resize(size_t(p.group_in() * plane));
            grad_x = own_planes.data();
          }
          conv.run(n, g, row0, row1, turn.next, grad_x);
          if (bands == 1)
            for (int64_t m = 0; m < p.group_in(); ++m) conv.finish(n, first + m, grad_x + m * plane);
        });
    if (bands > 1)
      parallel_for(p.n * p.c, 4 * plane, [&](int64_t begin, int64_t end) {
        const auto conv = kernels.backward_input(args);
        for (int64_t nc = begin; nc < end; ++nc) conv.finish(nc / p.c, nc % p.c, planes(nc));
      });
  });
}

std::tuple<Tensor, Tensor, Tensor> adaconv(Tensor input, Tensor kernel, std::optional<Tensor> scale,
                                           std::optional<Tensor> bias, bool normalize, StringHandle padding_mode,
                                           double eps, int64_t correction) {
  input = with_dense_rows(input), kernel = torch::stable::contiguous(kernel);
  const AdaConv p = make_adaconv(input, kernel, padding_mode, normalize, correction);
  scale = of_outputs("scale", scale, p, input), bias = of_outputs("bias", bias, p, input);
  if (scale && !p.depthwise_3x3()) kernel = scaled(kernel, *std::exchange(scale, {}));
  Tensor output = empty_of(input, {p.n, p.out_c, p.h, p.w});
  const auto empty = [&] { return normalize ? empty_statistic(input) : empty_of(input, {0}, accumulate_type(input)); };
  Tensor mean = empty(), rstd = empty();
  if (output.numel() == 0) return {output, mean, rstd};
  with_dtype(input, [&](auto type) {
    using T = decltype(type);
    using A = Acc<T>;
    AdaConvArgs<T> args{p, data<T>(input), data<A>(kernel)};
    args.scale = scale ? data<A>(*scale) : nullptr;
    args.bias = bias ? data<A>(*bias) : nullptr;
    args.output = mutable_data<T>(output);
    args.mean = normalize ? mutable_data<A>(mean) : nullptr;
    args.rstd = normalize ? mutable_data<A>(rstd) : nullptr;
    args.eps = eps, args.correction = correction;
    // Blocks of outputs and rows are eight places in turn; a depthwise row is stored two vectors at a time. Between
    // small planes, reads and writes of memory alternate too often. Measured on Zen 4. Streamed: 1.2 times the time
    // with planes of 1 KiB, 0.7 to 1 with 2 KiB, 0.55 to 0.95 from 4 KiB on. By way of a run: up to 1.2 with 5 KiB, 0.5
    // to 0.9 from 8 KiB on; but 1.5 and more with rows of a MiB, of which a block is no longer a small part of a cache.
    const int64_t size = sizeof(T), plane = p.h * p.w * size, bytes = (input.numel() + output.numel()) * size;
    args.streamed = size >= 4 && (streams_whole_lines() || p.depthwise_3x3()) && plane >= (1 << 11) &&
                    worth_streaming(args.output, bytes, p.w * size);
    args.in_runs =
        !args.streamed && p.depthwise_3x3() && plane >= (1 << 13) && p.w * size <= (1 << 16) && worth_a_run(bytes);
    forward(args);
  });
  return {output, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> adaconv_backward(Tensor grad, Tensor input, Tensor kernel, Tensor mean, Tensor rstd,
                                                    bool normalize, StringHandle padding_mode, int64_t correction,
                                                    bool need_input, bool need_kernel, bool need_bias) {
  grad = with_dense_rows(grad), input = with_dense_rows(input), kernel = torch::stable::contiguous(kernel);
  AdaConv p = make_adaconv(input, kernel, padding_mode, normalize, correction);
  check_shape("grad", grad, {p.n, p.out_c, p.h, p.w});
  check_dtype("grad", grad, input.scalar_type());
  p.grad = plane_strides(grad);
  if (normalize) check_statistic("mean", input, mean), check_statistic("rstd", input, rstd);
  const ScalarType sums = accumulate_type(input);
  Tensor grad_input = need_input ? empty_of(input, {p.n, p.c, p.h, p.w}) : empty_of(input, {0});
  Tensor grad_kernel =
      need_kernel ? empty_of(input, {p.n, p.out_c, kernel.size(2), p.kh, p.kw}, sums) : empty_of(input, {0}, sums);
  Tensor grad_bias = need_bias ? empty_of(input, {p.n, p.out_c}, sums) : empty_of(input, {0}, sums);
  if (grad.numel() == 0) {
    for (Tensor* x : {&grad_input, &grad_kernel, &grad_bias}) torch::stable::zero_(*x);
    return {grad_input, grad_kernel, grad_bias};
  }
  with_dtype(input, [&](auto type) {
    using T = decltype(type);
    using A = Acc<T>;
    AdaConvBackwardArgs<T> args{p, data<T>(grad), data<T>(input), data<A>(kernel)};
    args.mean = normalize ? data<A>(mean) : nullptr;
    args.rstd = normalize ? data<A>(rstd) : nullptr;
    args.grad_input = need_input ? mutable_data<T>(grad_input) : nullptr;
    args.grad_kernel = need_kernel ? mutable_data<A>(grad_kernel) : nullptr;
    args.grad_bias = need_bias ? mutable_data<A>(grad_bias) : nullptr;
    args.correction = correction;
    if (need_input)
      backward(args, input);
    else if (need_kernel || need_bias)
      backward_kernel(args);
  });
  return {grad_input, grad_kernel, grad_bias};
}

}  // namespace
}  // namespace stylekern

STABLE_TORCH_LIBRARY_IMPL(stylekern, CPU, m) {
  m.impl("adaconv", TORCH_BOX(&stylekern::adaconv));
  m.impl("adaconv_backward", TORCH_BOX(&stylekern::adaconv_backward));
}

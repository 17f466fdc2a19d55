// A program without Python that has the operators from libstylekern: adain against its definition.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <cstdio>
#include <tuple>

int main() {
  using at::Tensor;
  const Tensor content = at::randn({2, 3, 17, 19}), style = at::randn({2, 3, 5, 7}) * 2 + 1;
  const double eps = 1e-5;

  using Adain = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, double, int64_t);
  static const auto adain = c10::Dispatcher::singleton().findSchemaOrThrow("stylekern::adain", "").typed<Adain>();
  const Tensor result = std::get<0>(adain.call(content, style, eps, 1));

  const auto mean = [](const Tensor& x) { return x.to(at::kDouble).mean({2, 3}, true); };
  const auto deviation = [&](const Tensor& x) {
    return (x.to(at::kDouble).var(at::IntArrayRef{2, 3}, true, true) + eps).sqrt();
  };
  const Tensor expected = (content - mean(content)) / deviation(content) * deviation(style) + mean(style);
  const double error = ((result - expected).abs().max() / expected.abs().max()).item<double>();
  std::printf("relative error %.1e\n", error);
  return error > 2e-5;
}

// factorized_instance_norm on the CPU: the kernels of one target, included by *_target.h. A unit of work is a
// plane: its statistics are taken, and applied while it is in cache.
namespace stylekern::STYLEKERN_TARGET {

template <class T>
struct FactorizedInstanceNormKernels {
  using A = Acc<T>;
  using Args = FactorizedInstanceNormArgs<T>;

  static A of_channel(const Args& args, const T* x, int64_t plane) { return to_acc(x[plane % args.problem.c]); }

  // Of the planes [first, last).
  static void statistics(const Args& args, int64_t first, int64_t last) {
    const FactorizedInstanceNorm& p = args.problem;
    instance_statistics<T>(
        first, last, [&](int64_t plane) { return args.plane(args.content, p.content, plane); }, p.h, p.w, p.content.row,
        args.eps, p.correction, args.mean, args.rstd);
  }

  // y = gamma_style * (gamma_ind * x + beta_ind) + beta_style, rows [row0, row1). Plane `next`, unless that is -1,
  // is fetched meanwhile, or its statistics come along.
  static void apply(const Args& args, int64_t plane, int64_t row0, int64_t row1, int64_t next) {
    const FactorizedInstanceNorm& p = args.problem;
    const Centre<A> centre(args.mean[plane]);
    const A rstd = args.rstd[plane];
    const A gamma = of_channel(args, args.gamma_ind, plane), beta = of_channel(args, args.beta_ind, plane);
    const T* const content = args.plane(args.content, p.content, plane) + row0 * p.content.row;
    const T* const gamma_style = args.plane(args.gamma_style, p.gamma_style, plane) + row0 * p.gamma_style.row;
    const T* const beta_style = args.plane(args.beta_style, p.beta_style, plane) + row0 * p.beta_style.row;
    T* const y = args.output + (plane * p.h + row0) * p.w;
    const bool streamed = args.streamed;  // a copy: results might overwrite what is read through a reference
    int64_t h = row1 - row0, w = p.w;
    flatten(h, w, {p.content.row, p.gamma_style.row, p.beta_style.row});
    const auto rows = [&](auto&... beside) {
      for (int64_t i = 0; i < h; ++i) {
        const T* const from = content + i * p.content.row;
        const T *const scale = gamma_style + i * p.gamma_style.row, *const shift = beta_style + i * p.beta_style.row;
        T* const to = y + i * w;
        const auto one = [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
          const Vec<A> x = centre(load(from + j, count)) * rstd;
          const Vec<A> inner = fma(x, broadcast(gamma), broadcast(beta));
          store_or_stream(to + j, fma(load(scale + j, count), inner, load(shift + j, count)), count, streamed);
        };
        for_vectors_beside(to, w, one, beside...);
      }
    };
    if (next >= 0 && args.along) {
      PlaneMoments<T> ahead(args.plane(args.content, p.content, next), p.h, p.w, p.content.row);
      rows(ahead);
      ahead.result(args.eps, p.correction, args.mean + next, args.rstd + next);
    } else if (next >= 0 && args.fetched) {
      PlaneFetch<T> ahead(args.plane(args.content, p.content, next), p.h, p.w, p.content.row);
      rows(ahead);
    } else {
      rows();
    }
    if (streamed) finish_streams();
  }

  // sum(g * gamma_style), sum(g * gamma_style * x) of a plane, or of none, -1.
  static auto gradient_sums(const Args& args, int64_t plane) {
    const FactorizedInstanceNorm& p = args.problem;
    int64_t h = p.h, w = p.w, grad_row = p.grad.row, gamma_row = p.gamma_style.row;
    flatten(h, w, {p.content.row, gamma_row, grad_row});
    const int64_t some = std::max<int64_t>(plane, 0);
    const T* const grad = args.plane(args.grad, p.grad, some);
    const T* const gamma_style = args.plane(args.gamma_style, p.gamma_style, some);
    return PlaneGradientSums(
        h, w, plane < 0 ? nullptr : args.plane(args.content, p.content, plane), p.content.row, args.mean[some],
        args.rstd[some], [=](int64_t i, int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
          return load(grad + i * grad_row + j, count) * load(gamma_style + i * gamma_row + j, count);
        });
  }

  // `sums`: of this plane, where they are known. Returns those of plane `next`, which come along.
  static std::optional<GradientSums> backward(const Args& args, int64_t plane, int64_t next,
                                              std::optional<GradientSums> sums) {
    const FactorizedInstanceNorm& p = args.problem;
    const A gamma = of_channel(args, args.gamma_ind, plane), beta = of_channel(args, args.beta_ind, plane);
    const double n = double(p.h) * double(p.w);
    if (!sums) sums = gradient_sums(args, plane).total();
    args.sum_g[plane] = A(sums->g), args.sum_gx[plane] = A(sums->gx);
    auto ahead = gradient_sums(args, next);
    const bool streamed = args.streamed;
    // grad_content = rstd * gamma_ind * (g * gamma_style - sum_g / n - x * sum_gx / (n - correction))
    const NormalizeBackward<A> backward(args.mean[plane], args.rstd[plane], *sums, n, p.correction, double(gamma));
    int64_t h = p.h, w = p.w;
    flatten(h, w, {p.content.row, p.gamma_style.row, p.grad.row});
    for (int64_t i = 0; i < h && (args.grad_content || args.grad_gamma_style); ++i) {
      const T* const content = args.plane(args.content, p.content, plane) + i * p.content.row;
      const T* const gamma_style = args.plane(args.gamma_style, p.gamma_style, plane) + i * p.gamma_style.row;
      const T* const grad = args.plane(args.grad, p.grad, plane) + i * p.grad.row;
      const int64_t at = plane * p.h * p.w + i * w;
      T* const to_content = args.grad_content ? args.grad_content + at : nullptr;
      T* const to_gamma = args.grad_gamma_style ? args.grad_gamma_style + at : nullptr;
      const auto one = [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
        const Vec<A> x = backward.normalized(load(content + j, count)), g = load(grad + j, count);
        if (to_content) store_or_stream(to_content + j, backward(g * load(gamma_style + j, count), x), count, streamed);
        // grad_gamma_style = g * (gamma_ind * x + beta_ind)
        if (to_gamma) store_or_stream(to_gamma + j, g * fma(x, broadcast(gamma), broadcast(beta)), count, streamed);
      };
      for_vectors_beside(to_content ? to_content : to_gamma, w, one, ahead);
    }
    if (streamed) finish_streams();
    if (next < 0) return {};
    return ahead.total();
  }
};

}  // namespace stylekern::STYLEKERN_TARGET

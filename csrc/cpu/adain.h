// adain on the CPU: the kernels of one target, included by *_target.h. A unit of work is a plane: its statistics
// are taken, and applied while it is in cache.
namespace stylekern::STYLEKERN_TARGET {

template <class T>
struct AdainKernels {
  using A = Acc<T>;

  // Of the planes [first, last).
  static void statistics(const AdainArgs<T>& args, int64_t first, int64_t last) {
    const Adain& p = args.problem;
    instance_statistics<T>(
        first, last, [&](int64_t plane) { return args.style_plane(plane); }, p.style_h, p.style_w, p.style.row,
        args.eps, p.correction, args.style_mean, args.style_rstd);
    instance_statistics<T>(
        first, last, [&](int64_t plane) { return args.content_plane(plane); }, p.h, p.w, p.content.row, args.eps,
        p.correction, args.content_mean, args.content_rstd);
  }

  // y = (content - content_mean) * (content_rstd / style_rstd) + style_mean, rows [row0, row1). Plane `next`,
  // unless that is -1, is fetched meanwhile, or its statistics come along.
  static void apply(const AdainArgs<T>& args, int64_t plane, int64_t row0, int64_t row1, int64_t next) {
    const Adain& p = args.problem;
    const Centre<A> centre(args.content_mean[plane]);
    const A style_mean = args.style_mean[plane];
    const A scale = A(double(args.content_rstd[plane]) / double(args.style_rstd[plane]));
    const bool streamed = args.streamed;  // a copy: results might overwrite what is read through a reference
    const T* const x = args.content_plane(plane) + row0 * p.content.row;
    T* const y = args.output + (plane * p.h + row0) * p.w;
    int64_t h = row1 - row0, w = p.w;
    flatten(h, w, {p.content.row});
    const auto rows = [&](auto&... beside) {
      for (int64_t i = 0; i < h; ++i) {
        const T* const from = x + i * p.content.row;
        T* const to = y + i * w;
        const auto one = [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
          const Vec<A> centred = centre(load(from + j, count));
          store_or_stream(to + j, fma(centred, broadcast(scale), broadcast(style_mean)), count, streamed);
        };
        for_vectors_beside(to, w, one, beside...);
      }
    };
    if (next >= 0 && args.along) {
      PlaneMoments<T> content(args.content_plane(next), p.h, p.w, p.content.row);
      PlaneMoments<T> style(args.style_plane(next), p.style_h, p.style_w, p.style.row);
      rows(content, style);
      content.result(args.eps, p.correction, args.content_mean + next, args.content_rstd + next);
      style.result(args.eps, p.correction, args.style_mean + next, args.style_rstd + next);
    } else if (next >= 0 && args.fetched) {
      PlaneFetch<T> content(args.content_plane(next), p.h, p.w, p.content.row);
      PlaneFetch<T> style(args.style_plane(next), p.style_h, p.style_w, p.style.row);
      rows(content, style);
    } else {
      rows();
    }
    if (streamed) finish_streams();
  }

  // sum(g), sum(g * x) of a plane, or of none, -1.
  static auto gradient_sums(const AdainArgs<T>& args, int64_t plane) {
    const Adain& p = args.problem;
    int64_t h = p.h, w = p.w, row = p.grad.row;
    flatten(h, w, {p.content.row, row});
    const T* const grad = args.grad_plane(std::max<int64_t>(plane, 0));
    return PlaneGradientSums(h, w, plane < 0 ? nullptr : args.content_plane(plane), p.content.row,
                             plane < 0 ? A(0) : args.content_mean[plane], plane < 0 ? A(0) : args.content_rstd[plane],
                             [=](int64_t i, int64_t j, auto count)
                                 STYLEKERN_ALWAYS_INLINE { return load(grad + i * row + j, count); });
  }

  // `sums`: of this plane, where they are known. Returns those of plane `next`, which come along.
  static std::optional<GradientSums> backward(const AdainArgs<T>& args, int64_t plane, int64_t next,
                                              std::optional<GradientSums> sums) {
    const Adain& p = args.problem;
    const T *const x = args.content_plane(plane), *const grad = args.grad_plane(plane);
    const A mean = args.content_mean[plane], rstd = args.content_rstd[plane];
    const double style_rstd = double(args.style_rstd[plane]);
    const double n = double(p.h) * double(p.w), m = double(p.style_h) * double(p.style_w);
    if (!sums) sums = gradient_sums(args, plane).total();
    auto ahead = gradient_sums(args, next);
    const bool streamed = args.streamed, style_streamed = args.style_streamed;
    if (args.grad_content) {
      // grad_content = content_rstd / style_rstd * (g - sum(g) / n - x * sum(g * x) / (n - correction))
      const NormalizeBackward<A> backward(mean, rstd, *sums, n, p.correction, 1 / style_rstd);
      int64_t h = p.h, w = p.w;
      flatten(h, w, {p.content.row, p.grad.row});
      for (int64_t i = 0; i < h; ++i) {
        const T *const from = x + i * p.content.row, *const g = grad + i * p.grad.row;
        T* const to = args.grad_content + plane * p.h * p.w + i * w;
        const auto one = [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
          const Vec<A> xj = backward.normalized(load(from + j, count));
          store_or_stream(to + j, backward(load(g + j, count), xj), count, streamed);
        };
        for_vectors_beside(to, w, one, ahead);
      }
    }
    if (args.grad_style) {
      // grad_style = sum(g) / m + (style - style_mean) * style_rstd * sum(g * x) / (m - correction)
      const A first = A(sums->g / m), slope = A(style_rstd * sums->gx / (m - double(p.correction)));
      const Centre<A> centre(args.style_mean[plane]);
      int64_t h = p.style_h, w = p.style_w;
      flatten(h, w, {p.style.row});
      for (int64_t i = 0; i < h; ++i) {
        const T* const from = args.style_plane(plane) + i * p.style.row;
        T* const to = args.grad_style + plane * p.style_h * p.style_w + i * w;
        const auto one = [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
          const Vec<A> centred = centre(load(from + j, count));
          store_or_stream(to + j, fma(centred, broadcast(slope), broadcast(first)), count, style_streamed);
        };
        for_vectors_beside(to, w, one, ahead);
      }
    }
    if (streamed || style_streamed) finish_streams();
    if (next < 0) return {};
    return ahead.total();
  }
};

}  // namespace stylekern::STYLEKERN_TARGET

// cgm_attention on the CPU: a block of queries against all keys at a time, or short samples together, its products by
// torch. The walks over the block's rows are in cgm_attention.h.
#include "../common/cgm_attention_torch.h"
#include "cgm_attention_args.h"
#include "dtypes.h"
#include "matmul.h"

#define STYLEKERN_KERNELS "cgm_attention_target.h"
#include "foreach_target.h"
#include "parallel.h"

namespace stylekern {
namespace {

using torch::stable::transpose;

constexpr int64_t kScores = int64_t{1} << 21;  // of a block: what the last-level cache has room for

// Queries of a block: as many as leave its scores in the last-level cache. More would not make the products faster,
// fewer would: each packs all keys anew.
int64_t block_rows(const CgmAttention& p) {
  constexpr int64_t kMost = 1024, kFewest = 32;
  return std::min(p.queries, std::clamp(kScores / std::max<int64_t>(p.keys, 1), kFewest, kMost));
}

// Samples of a block: of short ones several, because each product, and each walk over its rows, takes some time to
// start.
int64_t block_samples(const CgmAttention& p) {
  const int64_t width = std::max(p.d, p.dv), scores = p.queries * p.keys, values = (p.queries + p.keys) * width;
  if (block_rows(p) < p.queries || scores * width >= kWorthSettingUp) return 1;
  return std::clamp<int64_t>(kScores / std::max<int64_t>({scores, values, 1}), 1, p.n);
}

// Calls f(kernels) with the kernels of this processor's target.
template <class T, class F>
void with_kernels(const F& f) {
#define STYLEKERN_CALL(target) f(target::CgmAttentionKernels<T>())
  STYLEKERN_FOR_TARGET(STYLEKERN_CALL);
#undef STYLEKERN_CALL
}

Tensor rows_of(Tensor x, int64_t first, int64_t count) { return torch::stable::narrow(x, 0, first, count); }
// Queries [first, first + count) of samples.
Tensor queries_of(Tensor x, int64_t first, int64_t count) { return torch::stable::narrow(x, 1, first, count); }

// Rows of queries, keys or values as the products read them.
template <class T>
struct Prepared {
  using A = Acc<T>;

  Prepared(const Tensor& like, int64_t rows, int64_t d, bool cosine, double eps)
      : d(d), cosine(cosine), eps(eps), values(empty_of(like, {rows, d}, accumulate_type(like))) {
    if (cosine) norms.resize(size_t(rows));
  }

  // Takes x [N, L, d] with dense rows, and returns it as the products read it.
  Tensor take(const Tensor& x) {
    const T* const from = data<T>(x);
    const int64_t samples = x.size(0), rows = x.size(1), sample = x.stride(0), stride = x.stride(1);
    with_kernels<T>([&](auto kernels) {
      parallel_for(samples * rows, 2 * d, [&](int64_t first, int64_t last) {
        for (int64_t end; first < last; first = end) {
          const int64_t n = first / rows;
          end = std::min(last, (n + 1) * rows);
          kernels.prepare(from + n * sample + first % rows * stride, stride, d, cosine, eps,
                          mutable_data<A>(values) + first * d, norms.data() + first, end - first);
        }
      });
    });
    return torch::stable::view(rows_of(values, 0, samples * rows), {samples, rows, d});
  }

  // From the gradient of what was taken, contiguous, to that of what it was taken from, which may be the same tensor.
  void finish(const Tensor& grad, const Tensor& to) {
    with_kernels<T>([&](auto kernels) {
      parallel_for(grad.size(0) * grad.size(1), 2 * d, [&](int64_t first, int64_t last) {
        kernels.finish(data<A>(grad), data<A>(values), d, cosine, eps, norms.data(), mutable_data<T>(to), first, last);
      });
    });
  }

  int64_t d;
  bool cosine;
  double eps;
  Tensor values;
  std::vector<A> norms;
};

// Values of samples, as the products read them.
template <class T>
Tensor in_accumulate_type(const Tensor& x) {
  if constexpr (std::is_same_v<T, Acc<T>>) return x;
  return Prepared<T>(x, x.size(0) * x.size(1), x.size(2), false, 0).take(x);
}

// Where the products may write a result of x's dtype and shape: there, or in a buffer that is converted afterwards.
template <class T>
Tensor target_of(const Tensor& x) {
  if constexpr (std::is_same_v<T, Acc<T>>) return x;
  return empty_of(x, {x.size(0), x.size(1), x.size(2)}, accumulate_type(x));
}

std::optional<Tensor> contiguous(const std::optional<Tensor>& x) {
  return x ? std::optional(torch::stable::contiguous(*x)) : x;
}
template <class T>
const T* at(const std::optional<Tensor>& x, int64_t offset) {
  return x ? data<T>(*x) + offset : nullptr;
}
std::tuple<Tensor, Tensor, Tensor> cgm_attention(Tensor query, Tensor key, Tensor value,
                                                 std::optional<Tensor> gate_scale, std::optional<Tensor> gate_bias,
                                                 double alpha, bool cosine, StringHandle gate_grad, double temperature,
                                                 bool renormalize, double eps) {
  const CgmAttention p = make_cgm_attention(query, key, value, gate_scale, gate_bias, alpha, cosine, gate_grad,
                                            temperature, renormalize, eps);
  query = with_dense_rows(query), key = with_dense_rows(key), value = with_dense_rows(value);
  gate_scale = contiguous(gate_scale), gate_bias = contiguous(gate_bias);
  Tensor output = empty_of(query, {p.n, p.queries, p.dv});
  Tensor lse = empty_of(query, {p.n, p.queries}, accumulate_type(query)), mass = torch::stable::empty_like(lse);
  if (lse.numel() == 0) return {output, lse, mass};
  with_dtype(query, [&](auto type) {
    using T = decltype(type);
    using A = Acc<T>;
    const int64_t rows = block_rows(p), samples = block_samples(p);
    Prepared<T> keys(key, samples * p.keys, p.d, p.cosine, p.eps);
    Prepared<T> queries(query, samples * rows, p.d, p.cosine, p.eps);
    for (int64_t n = 0; n < p.n; n += samples) {
      const int64_t together = std::min(samples, p.n - n);
      const Tensor k = keys.take(rows_of(key, n, together));
      const Tensor values = in_accumulate_type<T>(rows_of(value, n, together));
      for (int64_t first = 0; first < p.queries; first += rows) {
        const int64_t count = std::min(rows, p.queries - first), offset = n * p.queries + first;
        const Tensor q = queries.take(queries_of(rows_of(query, n, together), first, count));
        const Tensor scores = product(q, transpose(k, 1, 2));
        CgmBlock<T> block{mutable_data<A>(scores)};
        block.gate_scale = at<T>(gate_scale, offset), block.gate_bias = at<T>(gate_bias, offset);
        block.lse = mutable_data<A>(lse) + offset, block.mass = mutable_data<A>(mass) + offset;
        with_kernels<T>([&](auto kernels) {
          parallel_for(together * count, 4 * p.keys,
                       [&](int64_t begin, int64_t end) { kernels.weigh(block, p, begin, end); });
        });
        const Tensor weighted = product(scores, values);
        T* const result = mutable_data<T>(output) + offset * p.dv;
        with_kernels<T>([&](auto kernels) {
          parallel_for(together * count, p.dv, [&](int64_t begin, int64_t end) {
            kernels.write(data<A>(weighted), p.renormalize ? block.mass : nullptr, p.dv, result, begin, end);
          });
        });
      }
    }
  });
  return {output, lse, mass};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> cgm_attention_backward(
    Tensor grad, Tensor query, Tensor key, Tensor value, std::optional<Tensor> gate_scale,
    std::optional<Tensor> gate_bias, Tensor output, Tensor lse, Tensor mass, double alpha, bool cosine,
    StringHandle gate_grad, double temperature, bool renormalize, double eps, bool need_query, bool need_key,
    bool need_value, bool need_gate) {
  const CgmAttention p = make_cgm_attention(query, key, value, gate_scale, gate_bias, alpha, cosine, gate_grad,
                                            temperature, renormalize, eps);
  for (const Tensor* x : {&grad, &output}) {
    check_shape("grad and output", *x, {p.n, p.queries, p.dv});
    check_dtype("grad and output", *x, query.scalar_type());
  }
  for (const Tensor* x : {&lse, &mass}) {
    check_shape("lse and mass", *x, {p.n, p.queries});
    check_dtype("lse and mass", *x, accumulate_type(query));
  }
  query = with_dense_rows(query), key = with_dense_rows(key), value = with_dense_rows(value);
  gate_scale = contiguous(gate_scale), gate_bias = contiguous(gate_bias);
  grad = with_dense_rows(grad);
  mass = torch::stable::contiguous(mass);
  const auto empty = [&](bool needed, std::initializer_list<int64_t> sizes) {
    Tensor x = needed ? empty_of(query, sizes) : empty_of(query, {0});
    if (grad.numel() == 0 || p.keys == 0) torch::stable::zero_(x);  // nothing depends on anything
    return x;
  };
  Tensor grad_query = empty(need_query, {p.n, p.queries, p.d}), grad_key = empty(need_key, {p.n, p.keys, p.d});
  Tensor grad_value = empty(need_value, {p.n, p.keys, p.dv});
  Tensor grad_scale = empty(need_gate && gate_scale, {p.n, p.queries});
  Tensor grad_bias = empty(need_gate && gate_bias, {p.n, p.queries});
  if (grad.numel() == 0 || p.keys == 0) return {grad_query, grad_key, grad_value, grad_scale, grad_bias};
  const bool need_scores = need_query || need_key || need_gate;
  with_dtype(query, [&](auto type) {
    using T = decltype(type);
    using A = Acc<T>;
    const int64_t rows = block_rows(p), samples = block_samples(p);
    Prepared<T> keys(key, samples * p.keys, p.d, p.cosine, p.eps);
    Prepared<T> queries(query, samples * rows, p.d, p.cosine, p.eps);
    for (int64_t n = 0; n < p.n; n += samples) {
      const int64_t together = std::min(samples, p.n - n);
      const Tensor k = keys.take(rows_of(key, n, together));
      const Tensor values = in_accumulate_type<T>(rows_of(value, n, together));
      std::optional<Tensor> key_sum, value_sum;
      if (need_key) key_sum = target_of<T>(rows_of(grad_key, n, together));
      if (need_value) value_sum = target_of<T>(rows_of(grad_value, n, together));
      for (int64_t first = 0; first < p.queries; first += rows) {
        const int64_t count = std::min(rows, p.queries - first), offset = n * p.queries + first;
        const auto block_of = [&](const Tensor& x) { return queries_of(rows_of(x, n, together), first, count); };
        const Tensor q = queries.take(block_of(query)), g = in_accumulate_type<T>(block_of(grad));
        const Tensor scores = product(q, transpose(k, 1, 2));
        std::optional<Tensor> products;
        if (need_scores) products = product(g, transpose(values, 1, 2));
        CgmBlock<T> block{mutable_data<A>(scores), products ? mutable_data<A>(*products) : nullptr};
        block.gate_scale = at<T>(gate_scale, offset), block.gate_bias = at<T>(gate_bias, offset);
        block.mass = const_cast<A*>(data<A>(mass)) + offset;
        block.grad_scale = grad_scale.numel() ? mutable_data<T>(grad_scale) + offset : nullptr;
        block.grad_bias = grad_bias.numel() ? mutable_data<T>(grad_bias) + offset : nullptr;
        with_kernels<T>([&](auto kernels) {
          parallel_for(together * count, 8 * p.keys,
                       [&](int64_t begin, int64_t end) { kernels.weigh_backward(block, p, begin, end); });
        });
        if (need_value) multiply(transpose(scores, 1, 2), g, *value_sum, first > 0);
        if (need_key) multiply(transpose(*products, 1, 2), q, *key_sum, first > 0);
        if (need_query) queries.finish(product(*products, k), block_of(grad_query));
      }
      if (need_key) keys.finish(*key_sum, rows_of(grad_key, n, together));
      if (need_value && !std::is_same_v<T, A>)
        Prepared<T>(value, 0, p.dv, false, 0).finish(*value_sum, rows_of(grad_value, n, together));
    }
  });
  return {grad_query, grad_key, grad_value, grad_scale, grad_bias};
}

}  // namespace
}  // namespace stylekern

STABLE_TORCH_LIBRARY_IMPL(stylekern, CPU, m) {
  m.impl("cgm_attention", TORCH_BOX(&stylekern::cgm_attention));
  m.impl("cgm_attention_backward", TORCH_BOX(&stylekern::cgm_attention_backward));
}

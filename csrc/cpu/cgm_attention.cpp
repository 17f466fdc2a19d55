// cgm_attention on the CPU: a block of queries against all keys at a time, its products by torch. The walks over the
// block's rows are in cgm_attention.h.
#include "../common/cgm_attention_torch.h"
#include "cgm_attention_args.h"
#include "dtypes.h"
#include "matmul.h"

#define STYLEKERN_KERNELS "cgm_attention_target.h"
#include "foreach_target.h"
#include "parallel.h"

namespace stylekern {
namespace {

constexpr int64_t kScores = int64_t{1} << 21;  // of a block: what the last-level cache has room for

// Queries of a block: as many as leave its scores in the last-level cache. More would not make the products faster,
// fewer would: each packs all keys anew.
int64_t block_rows(const CgmAttention& p) {
  constexpr int64_t kMost = 1024, kFewest = 32;
  return std::min(p.queries, std::clamp(kScores / std::max<int64_t>(p.keys, 1), kFewest, kMost));
}

// Of one of the products that a sample takes.
int64_t multiply_adds(const CgmAttention& p) { return p.queries * p.keys * std::max(p.d, p.dv); }

// Calls f(kernels) with the kernels of this processor's target.
template <class T, class F>
void with_kernels(const F& f) {
#define STYLEKERN_CALL(target) f(target::CgmAttentionKernels<T>())
  STYLEKERN_FOR_TARGET(STYLEKERN_CALL);
#undef STYLEKERN_CALL
}

// Rows of queries, keys or values: x[n, first:first + count], with dense rows.
template <class T>
struct Rows {
  T* values;
  int64_t count, d, stride;

  Rows(const Tensor& x, int64_t n, int64_t first, int64_t count)
      : values(const_cast<T*>(data<T>(x)) + n * x.stride(0) + first * x.stride(1)),
        count(count),
        d(x.size(2)),
        stride(x.stride(1)) {}
  Rows(const Tensor& x, int64_t n) : Rows(x, n, 0, x.size(1)) {}
};

// What the products read of queries, keys, values or gradients: unit rows, rows of A, or what was given itself; and the
// way back, for gradients.
template <class T>
class Prepared {
  using A = Acc<T>;
  static constexpr bool kSameType = std::is_same_v<T, A>;

 public:
  Prepared(const Tensor& like, int64_t rows, int64_t d, bool cosine = false, double eps = 0)
      : cosine_(cosine),
        eps_(eps),
        values_(empty_of(like, {cosine || !kSameType ? rows : 0, d}, accumulate_type(like))),
        sum_(empty_of(values_, {0})) {
    if (cosine) norms_.resize(size_t(rows));
  }

  Matrix<A> take(const Rows<T>& x) {
    if constexpr (kSameType)
      if (!cosine_) return {x.values, x.count, x.d, x.stride};
    A* const to = mutable_data<A>(values_);
    with_kernels<T>([&](auto kernels) {
      parallel_for(x.count, 2 * x.d, [&](int64_t first, int64_t last) {
        kernels.prepare(x.values + first * x.stride, x.stride, x.d, cosine_, eps_, to + first * x.d,
                        norms_.data() + first, last - first);
      });
    });
    return {to, x.count, x.d, x.d};
  }

  // Where products may add up a gradient, contiguous: in its place, or, where that is of another type, beside it.
  Matrix<A> sum_of(const Rows<T>& grad) {
    if constexpr (kSameType) return {grad.values, grad.count, grad.d, grad.d};
    sum_ = empty_of(values_, {grad.count, grad.d});
    return matrix<A>(sum_);
  }

  // From the gradient of what was taken, contiguous, to that of what it was taken from, which may be the same place.
  void finish(const A* grad, const Rows<T>& to) {
    with_kernels<T>([&](auto kernels) {
      parallel_for(to.count, 2 * to.d, [&](int64_t first, int64_t last) {
        kernels.finish(grad, data<A>(values_), to.d, cosine_, eps_, norms_.data(), to.values, first, last);
      });
    });
  }

 private:
  bool cosine_;
  double eps_;
  Tensor values_, sum_;
  std::vector<A> norms_;
};

// Samples one after the other, of a thread or of all threads.
template <class T>
struct Sample {
  using A = Acc<T>;
  const CgmAttention& p;
  const Tensor &query, &key, &value;
  Prepared<T> queries, keys, values;
  Matrix<A> k, v;

  Sample(const CgmAttention& p, const Tensor& query, const Tensor& key, const Tensor& value)
      : p(p),
        query(query),
        key(key),
        value(value),
        queries(query, block_rows(p), p.d, p.cosine, p.eps),
        keys(key, p.keys, p.d, p.cosine, p.eps),
        values(value, p.keys, p.dv) {}

  // Calls f(first, q, scores) for blocks of sample n's queries, with q as the products read them, and scores = q k^T.
  template <class F>
  void for_blocks(int64_t n, const F& f) {
    k = keys.take({key, n}), v = values.take({value, n});
    for (int64_t first = 0, rows = block_rows(p); first < p.queries; first += rows) {
      const Matrix<A> q = queries.take({query, n, first, std::min(rows, p.queries - first)});
      f(first, q, product(q, k.transposed()));
    }
  }
};

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
    const auto make = [&] { return Sample<T>(p, query, key, value); };
    for_samples(p.n, multiply_adds(p), make, [&](Sample<T>& sample, int64_t n) {
      sample.for_blocks(n, [&](int64_t first, const Matrix<A>&, const Tensor& scores) {
        const int64_t count = scores.size(0), offset = n * p.queries + first;
        CgmBlock<T> block{mutable_data<A>(scores)};
        block.gate_scale = at<T>(gate_scale, offset), block.gate_bias = at<T>(gate_bias, offset);
        block.lse = mutable_data<A>(lse) + offset, block.mass = mutable_data<A>(mass) + offset;
        with_kernels<T>([&](auto kernels) {
          parallel_for(count, 4 * p.keys, [&](int64_t begin, int64_t end) { kernels.weigh(block, p, begin, end); });
        });
        const Tensor weighted = product(matrix<A>(scores), sample.v);
        T* const result = mutable_data<T>(output) + offset * p.dv;
        with_kernels<T>([&](auto kernels) {
          parallel_for(count, p.dv, [&](int64_t begin, int64_t end) {
            kernels.write(data<A>(weighted), p.renormalize ? block.mass : nullptr, p.dv, result, begin, end);
          });
        });
      });
    });
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
    const auto make = [&] {
      return std::pair{Sample<T>(p, query, key, value), Prepared<T>(grad, block_rows(p), p.dv)};
    };
    for_samples(p.n, multiply_adds(p), make, [&](auto& state, int64_t n) {
      auto& [sample, gradients] = state;
      Matrix<A> key_sum, value_sum;
      if (need_key) key_sum = sample.keys.sum_of({grad_key, n});
      if (need_value) value_sum = sample.values.sum_of({grad_value, n});
      sample.for_blocks(n, [&](int64_t first, const Matrix<A>& q, const Tensor& scores) {
        const int64_t count = scores.size(0), offset = n * p.queries + first;
        const Matrix<A> g = gradients.take({grad, n, first, count}), weights = matrix<A>(scores);
        std::optional<Tensor> products;
        if (need_scores) products = product(g, sample.v.transposed());
        CgmBlock<T> block{weights.values, products ? mutable_data<A>(*products) : nullptr};
        block.gate_scale = at<T>(gate_scale, offset), block.gate_bias = at<T>(gate_bias, offset);
        block.mass = const_cast<A*>(data<A>(mass)) + offset;
        block.grad_scale = grad_scale.numel() ? mutable_data<T>(grad_scale) + offset : nullptr;
        block.grad_bias = grad_bias.numel() ? mutable_data<T>(grad_bias) + offset : nullptr;
        with_kernels<T>([&](auto kernels) {
          parallel_for(count, 8 * p.keys,
                       [&](int64_t begin, int64_t end) { kernels.weigh_backward(block, p, begin, end); });
        });
        if (need_value) multiply(weights.transposed(), g, value_sum, first > 0);
        if (need_key) multiply(matrix<A>(*products).transposed(), q, key_sum, first > 0);
        if (need_query) {
          const Tensor grad_q = product(matrix<A>(*products), sample.k);
          sample.queries.finish(data<A>(grad_q), {grad_query, n, first, count});
        }
      });
      if (need_key) sample.keys.finish(key_sum.values, {grad_key, n});
      if (need_value) sample.values.finish(value_sum.values, {grad_value, n});
    });
  });
  return {grad_query, grad_key, grad_value, grad_scale, grad_bias};
}

}  // namespace
}  // namespace stylekern

STABLE_TORCH_LIBRARY_IMPL(stylekern, CPU, m) {
  m.impl("cgm_attention", TORCH_BOX(&stylekern::cgm_attention));
  m.impl("cgm_attention_backward", TORCH_BOX(&stylekern::cgm_attention_backward));
}

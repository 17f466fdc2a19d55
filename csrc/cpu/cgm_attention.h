// cgm_attention on the CPU: rows of scores, one query each. Included by *_target.h.
//
// The products around them are torch's. A row lies in the first-level cache or the second while it is walked
// several times.
namespace stylekern::STYLEKERN_TARGET {

template <class T>
struct CgmAttentionKernels {
  using A = Acc<T>;

  // Rows of x [rows, d], `stride` apart, as the products read them: of A, and divided by their norms where asked for.
  static void prepare(const T* x, int64_t stride, int64_t d, bool cosine, double eps, A* to, A* norms, int64_t rows) {
    for (int64_t i = 0; i < rows; ++i) {
      const T* const row = x + i * stride;
      if (cosine) {
        norms[i] = unit_row(row, d, eps, to + i * d);
        continue;
      }
      for_vectors<A>(d, [&](int64_t j, auto count)
                            STYLEKERN_ALWAYS_INLINE { store(to + i * d + j, load(row + j, count), count); });
    }
  }

  // The adjoint of prepare: from the gradient of what the products read to that of x.
  static void finish(const A* grad, const A* prepared, int64_t d, bool cosine, double eps, const A* norms, T* to,
                     int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      if (cosine)
        unit_row_backward(grad + i * d, prepared + i * d, d, norms[i], eps, to + i * d);
      else
        copy_row(grad + i * d, d, to + i * d);
    }
  }

  // What the softmax of a row is made of: A = exp(S - top) / sum.
  struct RowSoftmax {
    A top;
    double sum;
  };

  // A row of products becomes the softmax of alpha times it: the same bits in the forward and in the backward pass, so
  // that both keep the same keys.
  static RowSoftmax softmax(A* row, int64_t keys, A alpha) {
    const Vec<A> lowest = broadcast(-std::numeric_limits<A>::infinity());
    Vec<A> tops = lowest;
    for_vectors<A>(keys, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
      Vec<A> s = load(row + j, count) * alpha;
      store(row + j, s, count);
      if constexpr (std::is_same_v<decltype(count), int64_t>) s = lane_numbers<A>() < int(count) ? s : lowest;
      tops = s > tops ? s : tops;
    });
    A lanes[kLanes<A>];
    store(lanes, tops);
    const A top = *std::max_element(lanes, lanes + kLanes<A>);
    LaneSum sum;
    for_vectors<A>(keys, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
      const Vec<A> e = first_lanes<A>(exp_of_negative<A>(load(row + j, count) - top), count);
      store(row + j, e, count);
      sum.add(e);
    });
    const double total = sum.total();
    const Vec<A> factor = broadcast(A(1 / total));
    for_vectors<A>(keys, [&](int64_t j, auto count)
                             STYLEKERN_ALWAYS_INLINE { store(row + j, load(row + j, count) * factor, count); });
    return {top, total};
  }

  // Queries [first, last) of a block, forward: scores become the weights of the values. What is no number is kept, so
  // that it shows.
  static void weigh(const CgmBlock<T>& block, const CgmAttention& p, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      A* const row = block.scores + i * p.keys;
      const RowSoftmax made = softmax(row, p.keys, A(p.alpha));
      const Vec<A> least = broadcast(dropped(gate(block, p, i)));
      LaneSum mass;
      for_vectors<A>(p.keys, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
        const Vec<A> a = kept(load(row + j, count), least);
        store(row + j, a, count);
        mass.add(a);
      });
      block.lse[i] = A(double(made.top) + std::log(made.sum));
      block.mass[i] = A(mass.total());
    }
  }

  // Rows [first, last) of the product, divided by the mass, and of the output's type.
  static void write(const A* product, const A* mass, int64_t dv, T* output, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      if (!(mass && mass[i] > 0)) {
        copy_row(product + i * dv, dv, output + i * dv);
        continue;
      }
      const Vec<A> divisor = broadcast(mass[i]);
      for_vectors<A>(dv, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
        store(output + i * dv + j, load(product + i * dv + j, count) / divisor, count);
      });
    }
  }

  // Queries [first, last) of a block, backward. With e[u,v] = g[u] . value[v], less g[u] . y[u] where renormalised, and
  // both divided by the mass there:
  //   dA = keep e + [straight_through] A e s (1 - s) Lk / temperature        s = sigmoid((A - T) Lk / temperature)
  //   dT = -[straight_through] sum over v of A e s (1 - s) Lk / temperature
  //   dS = A (dA - sum over v of A dA)
  // Scores become keep A, the weights of the values; products of g and value, where there are any, become alpha dS.
  static void weigh_backward(const CgmBlock<T>& block, const CgmAttention& p, int64_t first, int64_t last) {
    const A slope = A(std::min(double(p.keys) / p.temperature, double(std::numeric_limits<A>::max())));
    for (int64_t i = first; i < last; ++i) {
      A* const row = block.scores + i * p.keys;
      softmax(row, p.keys, A(p.alpha));
      const A mass = p.renormalize && block.mass[i] > 0 ? block.mass[i] : A(1);
      const A t = gate(block, p, i);
      const Vec<A> threshold = broadcast(t), least = broadcast(dropped(t)), inverse = broadcast(1 / mass);
      if (!block.products) {
        for_vectors<A>(p.keys, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
          store(row + j, kept(load(row + j, count), least) * inverse, count);
        });
        continue;
      }
      A* const products = block.products + i * p.keys;
      const Vec<A> less = broadcast(p.renormalize ? kept_sum(row, products, p.keys, least) / mass : A(0));
      LaneSum along, gate_sum;
      for_vectors<A>(p.keys, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
        const Vec<A> a = load(row + j, count), e = (load(products + j, count) - less) * inverse;
        Vec<A> grad_a = a <= least ? Vec<A>{} : e;
        if (p.straight_through) {
          const Vec<A> z = (a - threshold) * slope, small = exp_of_negative<A>(z < 0 ? z : -z);
          const Vec<A> surrogate = a * e * (small / ((small + A(1)) * (small + A(1)))) * slope;
          gate_sum.add(surrogate);
          grad_a += surrogate;
        }
        store(products + j, grad_a, count);
        along.add(a * grad_a);  // lanes beyond the row have a = 0
      });
      const Vec<A> sum = broadcast(A(along.total()));
      for_vectors<A>(p.keys, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
        const Vec<A> a = load(row + j, count);
        store(products + j, a * (load(products + j, count) - sum) * A(p.alpha), count);
        store(row + j, kept(a, least) * inverse, count);
      });
      set(block.grad_scale, i, -A(gate_sum.total() / double(p.keys)));
      set(block.grad_bias, i, -A(gate_sum.total()));
    }
  }

 private:
  // The threshold of a query: where it is not a number, nothing passes; without a gate, everything does.
  static A gate(const CgmBlock<T>& block, const CgmAttention& p, int64_t i) {
    constexpr A kNothing = std::numeric_limits<A>::infinity();
    if (!block.gate_scale && !block.gate_bias) return -kNothing;
    const A scale = block.gate_scale ? value(block.gate_scale + i) : A(0);
    const A bias = block.gate_bias ? value(block.gate_bias + i) : A(0), threshold = scale / A(p.keys) + bias;
    return threshold != threshold ? kNothing : threshold;
  }
  // The largest A that a threshold drops: from 0 down it drops nothing, not even what underflows to 0.
  static A dropped(A threshold) { return threshold <= 0 ? -std::numeric_limits<A>::infinity() : threshold; }
  static STYLEKERN_INLINE Vec<A> kept(Vec<A> a, Vec<A> least) { return a <= least ? Vec<A>{} : a; }
  static A value(const T* x) { return load_first(x, 1)[0]; }
  static void set(T* x, int64_t i, A value) {
    if (x) store_first(x + i, broadcast(value), 1);
  }
  static void copy_row(const A* from, int64_t d, T* to) {
    if (static_cast<const void*>(from) == to) return;
    for_vectors<A>(d,
                   [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE { store(to + j, load(from + j, count), count); });
  }
  // sum over the kept keys of A times a product: g[u] . y[u] times the mass, without the output's rounding.
  static A kept_sum(const A* row, const A* products, int64_t keys, Vec<A> least) {
    LaneSum sum;
    for_vectors<A>(keys, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
      const Vec<A> a = load(row + j, count);
      sum.add(a <= least ? Vec<A>{} : a * load(products + j, count));
    });
    return A(sum.total());
  }
};

}  // namespace stylekern::STYLEKERN_TARGET

// Rows divided by their norm, and the adjoint. Included by *_target.h.
namespace stylekern::STYLEKERN_TARGET {

// to = x / max(|x|, eps); returns |x|. A row whose norm overflows the type gives zeros.
template <class T>
Acc<T> unit_row(const T* x, int64_t d, double eps, Acc<T>* to) {
  using A = Acc<T>;
  LaneSum squares;
  for_vectors<A>(d, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
    const Vec<A> v = load(x + j, count);
    squares.add_product(v, v);
  });
  const A norm = A(std::sqrt(squares.total()));
  const Vec<A> divisor = broadcast(std::max(norm, A(eps)));
  for_vectors<A>(
      d, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE { store(to + j, load(x + j, count) / divisor, count); });
  return norm;
}

// From the gradient of a unit row to the row's, which may take its place:
//   grad = (grad_unit - unit (unit . grad_unit)) / |x|, or grad_unit / eps where |x| < eps
template <class T>
void unit_row_backward(const Acc<T>* grad_unit, const Acc<T>* unit, int64_t d, Acc<T> norm, double eps, T* grad) {
  using A = Acc<T>;
  A along = 0;
  if (norm >= A(eps)) {
    LaneSum sum;
    for_vectors<A>(d, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
      sum.add_product(load(unit + j, count), load(grad_unit + j, count));
    });
    along = A(sum.total());
  }
  const Vec<A> divisor = broadcast(std::max(norm, A(eps)));
  for_vectors<A>(d, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
    store(grad + j, fma(load(unit + j, count), broadcast(-along), load(grad_unit + j, count)) / divisor, count);
  });
}

}  // namespace stylekern::STYLEKERN_TARGET

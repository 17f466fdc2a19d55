// Rows divided by their norm, and the adjoint. Included by *_target.h.
namespace stylekern::STYLEKERN_TARGET {

// Calls body(divide) with divide(v) = v / divisor, which is above 0. Instructions that divide take a vector of floats
// ten cycles and more. So a quotient comes from the inverse, and is corrected by what it leaves of v: normal numbers
// round differently only within 2^-22 of an ulp of the middle between two. They divide where the divisor is near the
// ends of the range, and where the target cannot tell what is left.
template <class A, class F>
STYLEKERN_INLINE void with_division(A divisor, const F& body) {
  constexpr bool kFuses = kBytes > 16;  // multiply-adds that round once
  constexpr A kFar = std::is_same_v<A, float> ? A(1e18) : A(1e150);
  const Vec<A> by = broadcast(divisor), inverse = broadcast(A(1) / divisor);
  if (kFuses && divisor > A(1) / kFar && divisor < kFar)
    body([&](Vec<A> v) STYLEKERN_ALWAYS_INLINE {
      const Vec<A> quotient = v * inverse, corrected = fma(fma(quotient, -by, v), inverse, quotient);
      return quotient - quotient == 0 ? corrected : quotient;  // of infinity nothing is left
    });
  else
    body([&](Vec<A> v) STYLEKERN_ALWAYS_INLINE { return v / by; });
}

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
  with_division(std::max(norm, A(eps)), [&](const auto& divide) STYLEKERN_ALWAYS_INLINE {
    for_vectors<A>(
        d, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE { store(to + j, divide(load(x + j, count)), count); });
  });
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
  with_division(std::max(norm, A(eps)), [&](const auto& divide) STYLEKERN_ALWAYS_INLINE {
    for_vectors<A>(d, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
      store(grad + j, divide(fma(load(unit + j, count), broadcast(-along), load(grad_unit + j, count))), count);
    });
  });
}

}  // namespace stylekern::STYLEKERN_TARGET

// The exponential function in vectors. Included by *_target.h.
namespace stylekern::STYLEKERN_TARGET {

// e^x for x <= 0, as softmax and sigmoid ask for, to about an ulp. Below the smallest normal number it is 0; NaN stays.
//
// x = n log 2 + r with |r| <= log(2) / 2, so that e^x = 2^n e^r, and e^r is summed up until terms no longer count.
// Added to kRound, n lies in the lowest bits of the sum, which shifted are the exponent of 2^n.
template <class A>
STYLEKERN_INLINE Vec<A> exp_of_negative(Vec<A> x) {
  constexpr bool single = std::is_same_v<A, float>;
  constexpr A kLog2e = A(1.4426950408889634), kRound = single ? A(0x1.8p23) : A(0x1.8p52);
  // log 2 in two parts: n times the first is exact.
  constexpr A kHigh = single ? A(0.693359375) : A(6.93147180369123816490e-01);
  constexpr A kLow = single ? A(-2.12194440e-4) : A(1.90821492927058770002e-10);
  constexpr A kLowest = single ? A(-87.33) : A(-708.39);
  constexpr int kTerms = single ? 8 : 14, kMantissa = single ? 23 : 52;
  const Vec<A> shifted = fma(x, broadcast(kLog2e), broadcast(kRound)), n = shifted - kRound;
  const Vec<A> r = fma(n, broadcast(-kLow), fma(n, broadcast(-kHigh), x));
  const auto factor = [](int k) {  // 1 / k!
    double product = 1;
    for (int i = 2; i <= k; ++i) product *= i;
    return A(1 / product);
  };
  Vec<A> sum = broadcast(factor(kTerms - 1));
#pragma GCC unroll 16
  for (int k = kTerms - 2; k >= 0; --k) sum = fma(sum, r, broadcast(factor(k)));
  // Unsigned, which may overflow: where e^x is 0 this is no power.
  typedef std::conditional_t<single, uint32_t, uint64_t> Bits __attribute__((vector_size(STYLEKERN_VECTOR_BYTES)));
  const Bits power = ((Bits)shifted << kMantissa) + (Bits)broadcast(A(1));
  return x < kLowest ? Vec<A>{} : sum * (Vec<A>)power;
}

}  // namespace stylekern::STYLEKERN_TARGET

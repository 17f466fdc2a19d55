// Sums in double of vectors of float or double. Included by *_target.h.
namespace stylekern::STYLEKERN_TARGET {

// The sum of a vector's lanes: its halves are added, theirs after that, until one lane is left.
template <class A, int half = kLanes<A> / 2>
STYLEKERN_INLINE A lane_total(Vec<A> v) {
  v += window<half>(v, v, std::make_integer_sequence<int, kLanes<A>>());
  if constexpr (half > 1)
    return lane_total<A, half / 2>(v);
  else
    return v[0];
}

// A sum in double over the lanes of vectors of float or double.
class LaneSum {
 public:
  STYLEKERN_ALWAYS_INLINE void add(Vec<float> v) {
    Vec<double> wide[2];
    widen(v, wide);
    low_ += wide[0], high_ += wide[1];
  }
  STYLEKERN_ALWAYS_INLINE void add(Vec<double> v) { low_ += v; }

  // Products are taken in double too: squares of large floats are no floats.
  STYLEKERN_ALWAYS_INLINE void add_product(Vec<float> a, Vec<float> b) {
    Vec<double> wide_a[2], wide_b[2];
    widen(a, wide_a), widen(b, wide_b);
    low_ = fma(wide_a[0], wide_b[0], low_), high_ = fma(wide_a[1], wide_b[1], high_);
  }
  STYLEKERN_ALWAYS_INLINE void add_product(Vec<double> a, Vec<double> b) { low_ = fma(a, b, low_); }

  double total() const { return lane_total<double>(low_ + high_); }

 private:
  STYLEKERN_ALWAYS_INLINE static void widen(Vec<float> v, Vec<double> (&wide)[2]) {
#if STYLEKERN_VECTOR_BYTES == 64
    wide[0] = (Vec<double>)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v));
    wide[1] = (Vec<double>)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1));
#elif STYLEKERN_VECTOR_BYTES == 32
    wide[0] = (Vec<double>)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v));
    wide[1] = (Vec<double>)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1));
#else
    typedef float HalfVector __attribute__((vector_size(STYLEKERN_VECTOR_BYTES / 2)));
    HalfVector halves[2];
    std::memcpy(halves, &v, sizeof v);
    for (int i = 0; i < 2; ++i) wide[i] = __builtin_convertvector(halves[i], Vec<double>);
#endif
  }

  Vec<double> low_{}, high_{};
};

}  // namespace stylekern::STYLEKERN_TARGET

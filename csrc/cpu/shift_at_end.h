// The border rule in lanes. Included by *_target.h.
namespace stylekern::STYLEKERN_TARGET {

// A row's first or last vector shifted by one, so that what the border rule has beyond the end enters. The rule is in
// the lanes' numbers: to choose by it in every row would cost as much as two of its multiply-adds.
template <class A>
class ShiftAtEnd {
 public:
  // `step`: -1 for what is left of the first vector, 1 for what is right of the last, which has `count` values.
  ShiftAtEnd(Padding padding, int step, int count = kLanes<A>) {
    const Lanes<A> lane = lane_numbers<A>();
    const int end = step < 0 ? 0 : count - 1;
    const auto beyond = step < 0 ? lane <= end : lane >= end;
    index_ = in_register(beyond ? lane - (padding == Padding::kReflect ? step : 0) : lane + step);
    kept_ = in_register(lane != (padding == Padding::kZeros ? end : -1));
  }
  STYLEKERN_ALWAYS_INLINE Vec<A> operator()(Vec<A> x) const {
    return (Vec<A>)((Lanes<A>)permute<A>(x, index_) & kept_);
  }

 private:
  Lanes<A> index_, kept_;
};

}  // namespace stylekern::STYLEKERN_TARGET

// Results that bypass the caches on their way to rows that are no whole lines. Included by *_target.h.
//
// What is streamed has to be a whole line, and rows of 67 values begin anywhere in one. So they are written to a block
// that stays in cache and begins as far from a line's start as their place does, and its lines are streamed from there.
// Stores get to memory in their order: behind many lines in a row, what a kernel stores waits, and a line that was
// stored in two parts can only be loaded when they have got there. So a block's lines go out a few at a time while the
// next one is written. And the line that a block ends in becomes the next one's first: stored in parts, it would be
// read from memory for each, and everything stored after it would wait for that.
namespace stylekern::STYLEKERN_TARGET {

template <class T>
class StreamedRun {
 public:
  static constexpr int64_t kLine = 64 / sizeof(T);
  // About what a block should have, as far as whole rows allow: few lines, for what a processor has room for on the way
  // to memory.
  static constexpr int64_t kBlock = 27 * kLine;

  // Lines of a block that wait, for who sends them off beside other work.
  struct Steps {
    const T* from;
    T* to;
    int64_t lines;

    // Four lines: about what there is time for beside two vectors of multiply-adds, or one of each of four bands.
    STYLEKERN_ALWAYS_INLINE void take() {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        if (lines == 0) return;
#pragma GCC unroll 4
        for (int64_t j = 0; j < kLine; j += kBytes / int64_t(sizeof(T)))  // bytes, whatever they are
          stream_aligned(reinterpret_cast<float*>(to + j), load(reinterpret_cast<const float*>(from + j)));
        from += kLine, to += kLine, --lines;
      }
    }
  };
  STYLEKERN_ALWAYS_INLINE Steps begin() const { return waiting_; }
  STYLEKERN_ALWAYS_INLINE void end(const Steps& steps) { waiting_ = steps; }

  // Sends off a few.
  STYLEKERN_ALWAYS_INLINE void send_some() { waiting_.take(); }

  // Where to write the next `count` values, which are for `to`. Those of the block before are written.
  STYLEKERN_NOINLINE T* block(T* to, int64_t count) {
    const bool follows = end_ > 0 && to == to_ + end_;
    pass(follows);
    const T* const end = block_ + end_;
    const int64_t past = int64_t(reinterpret_cast<uintptr_t>(to) / sizeof(T) % kLine);
    std::vector<T>& buffer = buffers_[turn_ ^= 1];
    if (const size_t needed = size_t(past + count + 3 * kLine); buffer.size() < needed) buffer.resize(needed);
    const uintptr_t address = reinterpret_cast<uintptr_t>(buffer.data());
    block_ = buffer.data() + (64 - address % 64) % 64 / sizeof(T) + kLine;
    // The rest is copied with what is before it, to which there is a line's room: a vector that was just stored can be
    // loaded at once as the whole that it was.
    if (follows)
      std::memcpy(block_ + past - kLine, end - kLine, 64);
    else
      first_ = past;
    to_ = to - past, end_ = past + count;
    return block_ + past;
  }

  // Sends off all that there is.
  STYLEKERN_NOINLINE void finish() {
    pass(false), send();
    end_ = 0;
    finish_streams();
  }

 private:
  // The whole lines of the block wait from here on. Its values before them are stored, and those behind them, unless
  // another block follows, which takes them over.
  void pass(bool follows) {
    send();
    const int64_t whole = end_ / kLine * kLine, from = first_ > 0 ? kLine : 0;
    if (whole > 0 || !follows) store_values(first_, std::min(from, end_));
    if (!follows) store_values(std::max(whole, from), end_);
    if (whole > from) waiting_ = {block_ + from, to_ + from, (whole - from) / kLine};
    if (whole > 0) first_ = 0;
  }
  void send() {
    while (waiting_.lines > 0) waiting_.take();
  }
  void store_values(int64_t first, int64_t last) const {
    for (int64_t k = first; k < last; ++k) to_[k] = block_[k];
  }

  std::vector<T> buffers_[2];  // of the block that is written, and the one before
  int turn_ = 0;
  T *block_ = nullptr, *to_ = nullptr;  // the block, and where it goes, from a line's start on
  int64_t first_ = 0, end_ = 0;         // its values, counted from there
  Steps waiting_{};
};

}  // namespace stylekern::STYLEKERN_TARGET

// Loops on torch's own threads.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "simd.h"

namespace stylekern {

// Steps 0 to count - 1 of a loop, an equal share a thread, which takes it in chunks, large ones first. When its own is
// done, a thread takes from the others': the system may have held one of them up. Shares rather than one queue, because
// what a thread has in its caches, from the operator before or the call before, mostly is its share.
class Chunks {
 public:
  STYLEKERN_NOINLINE Chunks(int64_t count, int64_t threads, int64_t smallest)
      : shares_(size_t(threads)), smallest_(smallest) {
    for (int64_t t = 0; t < threads; ++t) {
      shares_[size_t(t)].next = count * t / threads;
      shares_[size_t(t)].end = count * (t + 1) / threads;
    }
  }

  // The next chunk for a thread; empty when all are taken.
  STYLEKERN_NOINLINE std::pair<int64_t, int64_t> take(int64_t thread) {
    for (size_t k = 0; k < shares_.size(); ++k) {
      Share& share = shares_[(size_t(thread) + k) % shares_.size()];
      int64_t begin = share.next.load(std::memory_order_relaxed);
      while (begin < share.end) {
        const int64_t end = std::min(begin + std::max((share.end - begin) / 4, smallest_), share.end);
        if (share.next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) return {begin, end};
      }
    }
    return {0, 0};
  }

 private:
  // Apart by more than a cache line, wherever they lie. (Aligned, they would be allocated as results are: behind the
  // result of the same call, where what is left of them keeps the next result from taking that one's place.)
  struct Share {
    std::atomic<int64_t> next;
    int64_t end;
    char apart[112];
  };
  std::vector<Share> shares_;
  const int64_t smallest_;
};

// Where a thread has its chunks from: the threads' shares, or, alone, the whole loop at once. One type for both, so
// that there is one body of a loop to compile.
class Take {
 public:
  explicit Take(int64_t count) : count_(count) {}
  Take(Chunks& chunks, int64_t thread) : chunks_(&chunks), thread_(thread) {}
  std::pair<int64_t, int64_t> operator()() {
    if (chunks_) return chunks_->take(thread_);
    return {0, std::exchange(count_, 0)};
  }

 private:
  Chunks* chunks_ = nullptr;
  int64_t thread_ = 0, count_ = 0;
};

// What a loop calls, whatever its type, so that there is one loop to compile and not one a kernel.
template <class... Args>
class Call {
 public:
  template <class F>
  Call(const F& f) : f_(&f), call_([](const void* f, Args... args) { (*static_cast<const F*>(f))(args...); }) {}
  void operator()(Args... args) const { call_(f_, args...); }

 private:
  const void* f_;
  void (*call_)(const void*, Args...);
};

// Calls work(take) on as many of torch's threads as count steps are worth; take() returns the next chunk [begin, end)
// of [0, count), empty when there is none. `operations` is about what one step costs; below kWorthAThread of them for
// the whole loop, the caller's thread does it alone.
STYLEKERN_NOINLINE inline void on_threads(int64_t count, int64_t operations, Call<Take&> work) {
  constexpr int64_t kWorthAThread = 1 << 16, kSmallest = 1 << 13;
  const int64_t cost = std::max<int64_t>(operations, 1), grain = std::max<int64_t>(kWorthAThread / cost, 1);
  const int64_t threads = std::min<int64_t>(int64_t(torch::stable::get_num_threads()), (count + grain - 1) / grain);
  if (threads <= 1) {
    Take all(count);
    return work(all);
  }
  Chunks chunks(count, threads, std::max<int64_t>(kSmallest / cost, 1));
  torch::stable::parallel_for(0, threads, 1, [&](int64_t thread, int64_t) {
    Take take(chunks, thread);
    work(take);
  });
}

// Calls f(begin, end) on chunks of [0, count), on torch's threads.
STYLEKERN_NOINLINE inline void parallel_for(int64_t count, int64_t operations, Call<int64_t, int64_t> f) {
  on_threads(count, operations, [&](Take& take) {
    for (auto [begin, end] = take(); begin < end; std::tie(begin, end) = take()) f(begin, end);
  });
}

// Bands of rows that each of so many units is cut into: one, unless there are too few units for the threads. A band is
// never thinner than the taps reach, so that what bands compute twice stays below what they compute once.
inline int64_t band_count(int64_t units, int64_t h, int64_t taps) {
  const int64_t wanted = 4 * int64_t(torch::stable::get_num_threads()), thinnest = std::max<int64_t>(2 * taps, 8);
  if (units >= wanted) return 1;
  return std::clamp<int64_t>((wanted + units - 1) / units, 1, std::max<int64_t>(h / thinnest, 1));
}

// What a thread does after a step: `next`, or -1 for nothing. From that step up to `end`, its steps follow each other.
struct Turn {
  int64_t next, end;

  // The step that is `further` than this one, or, where the steps that follow each other end before it, `next`.
  int64_t later(int64_t step, int64_t further) const { return step + further < end ? step + further : next; }
};

// A thread's chunks, a step at a time.
class Steps {
 public:
  explicit Steps(Take& take) : take_(take) {}
  // -1 when there are no more.
  STYLEKERN_NOINLINE int64_t next() {
    if (step_ == end_) std::tie(step_, end_) = take_();
    return step_ < end_ ? step_++ : -1;
  }
  // Of the chunk that next() was in.
  int64_t end() const { return end_; }

 private:
  Take& take_;
  int64_t step_ = 0, end_ = 0;
};

// What is done for some steps at once, before the first of them, or for one further on along with each.
class Batches {
 public:
  // Calls do_first(step, last) where it has not been for this step: for `together` of them, as far as they follow each
  // other.
  template <class F>
  void before(int64_t step, const Turn& turn, int64_t together, const F& do_first) {
    if (done_ == 0) {
      done_ = std::min(together, turn.end - step);
      do_first(step, step + done_);
    }
    --done_;
  }
  // After before(), for who does it along with this step: the first step for which it is to do, or -1. (One that is
  // two further or more, with `together` 2 or more: what it comes to is not waited for by the next.)
  int64_t along(int64_t step, const Turn& turn) {
    const int64_t ahead = step + done_ + 1;
    if (ahead >= turn.end) return -1;
    ++done_;
    return ahead;
  }

 private:
  int64_t done_ = 0;  // of the steps to come
};

// Calls work(state, step, turn) for every step, on torch's threads, with a state per thread that make() returns.
template <class Make, class Work>
void for_steps(int64_t count, int64_t operations, const Make& make, const Work& work) {
  constexpr int64_t kStep = 256;  // however small a step: mostly a plane, whose statistics end in divisions and a root
  on_threads(count, operations + kStep, [&](Take& take) {
    Steps steps(take);
    int64_t step = steps.next();
    if (step < 0) return;
    for (auto state = make(); step >= 0;) {
      const int64_t end = steps.end(), next = steps.next();
      work(state, step, Turn{next, end});
      step = next;
    }
  });
}

// Calls work(state, n, g, row0, row1, turn) for every band of every sample and group, as for_steps() does; where there
// is one band, `turn` is of n * groups + g, and where there are more, of nothing. P is an operator's problem.
template <class P, class Make, class Work>
void for_bands(const P& p, int64_t bands, int64_t operations, const Make& make, const Work& work) {
  for_steps(p.n * p.groups * bands, operations, make, [&](auto& state, int64_t step, const Turn& turn) {
    const auto call = [&](int64_t unit, int64_t row0, int64_t row1, const Turn& turn) {
      work(state, unit / p.groups, unit % p.groups, row0, row1, turn);
    };
    if (bands == 1) return call(step, 0, p.h, turn);
    const int64_t band = step % bands;
    call(step / bands, p.h * band / bands, p.h * (band + 1) / bands, Turn{-1, -1});
  });
}

// Calls first(plane, last) for planes up to `last`, and then(plane, row0, row1, next) for all rows of each after that,
// on torch's threads. `operations` is about what a row costs.
//
// Mostly one right after the other, while planes are in cache: first() for `together` planes, then() for each of them,
// with `next` the plane that is `together` further (see Turn). With `together` 0, first() only for the first plane of a
// thread: then() has to do the same for `next`, the plane that the thread goes on with. Without a next one, that is -1.
// Where there are too few planes for the threads, first() for all, and then() in bands of rows, without a next.
STYLEKERN_NOINLINE inline void for_planes(int64_t planes, int64_t h, int64_t operations, int64_t together,
                                          Call<int64_t, int64_t> first, Call<int64_t, int64_t, int64_t, int64_t> then) {
  const int64_t wanted = 4 * int64_t(torch::stable::get_num_threads());
  const int64_t bands = planes >= wanted ? 1 : std::clamp<int64_t>((wanted + planes - 1) / planes, 1, h);
  if (bands == 1)
    return for_steps(
        planes, h * operations, [] { return std::pair{false, Batches()}; },
        [&](auto& state, int64_t plane, const Turn& turn) {
          if (together)
            state.second.before(plane, turn, together, first);
          else if (!std::exchange(state.first, true))
            first(plane, plane + 1);
          then(plane, 0, h, turn.later(plane, std::max<int64_t>(together, 1)));
        });
  parallel_for(planes, h * operations, first);
  parallel_for(planes * bands, h * operations / bands, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t plane = i / bands, band = i % bands;
      then(plane, h * band / bands, h * (band + 1) / bands, -1);
    }
  });
}

}  // namespace stylekern

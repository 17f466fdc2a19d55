// Loops on torch's own threads.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace stylekern {

// Calls f(begin, end) on chunks of [0, count). `operations` is about what one step costs; below kWorthAThread of them
// for the whole loop, the caller's thread does it alone.
template <class F>
void parallel_for(int64_t count, int64_t operations, const F& f) {
  constexpr int64_t kWorthAThread = 1 << 16;
  const int64_t grain = std::max<int64_t>(kWorthAThread / std::max<int64_t>(operations, 1), 1);
  if (count <= grain) {
    if (count > 0) f(0, count);
    return;
  }
  torch::stable::parallel_for(0, count, grain, f);
}

// Bands of rows that each of so many units is cut into: one, unless there are too few units for the threads. A band is
// never thinner than the taps reach, so that what bands compute twice stays below what they compute once.
inline int64_t band_count(int64_t units, int64_t h, int64_t taps) {
  const int64_t wanted = 4 * int64_t(torch::stable::get_num_threads()), thinnest = std::max<int64_t>(2 * taps, 8);
  if (units >= wanted) return 1;
  return std::clamp<int64_t>((wanted + units - 1) / units, 1, std::max<int64_t>(h / thinnest, 1));
}

// Calls work(state, n, g, row0, row1, more) for every band of every sample and group, on torch's threads, with a state
// per chunk that make() returns; `more` where the next band is of the same chunk. P is an operator's problem.
template <class P, class Make, class Work>
void for_bands(const P& p, int64_t bands, int64_t operations, const Make& make, const Work& work) {
  parallel_for(p.n * p.groups * bands, operations, [&](int64_t begin, int64_t end) {
    auto state = make();
    for (int64_t i = begin; i < end; ++i) {
      const int64_t unit = i / bands, band = i % bands;
      work(state, unit / p.groups, unit % p.groups, p.h * band / bands, p.h * (band + 1) / bands, i + 1 < end);
    }
  });
}

// Calls first(plane) for every plane, and then(plane, row0, row1) for all of its rows after that, on torch's threads:
// one right after the other, while the plane is in cache, or, where there are too few planes for the threads, the
// second in bands of rows. `operations` is about what a row costs.
template <class First, class Then>
void for_planes(int64_t planes, int64_t h, int64_t operations, const First& first, const Then& then) {
  const int64_t wanted = 4 * int64_t(torch::stable::get_num_threads());
  const int64_t bands = planes >= wanted ? 1 : std::clamp<int64_t>((wanted + planes - 1) / planes, 1, h);
  parallel_for(planes, h * operations, [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      first(plane);
      if (bands == 1) then(plane, 0, h);
    }
  });
  if (bands == 1) return;
  parallel_for(planes * bands, h * operations / bands, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t plane = i / bands, band = i % bands;
      then(plane, h * band / bands, h * (band + 1) / bands);
    }
  });
}

}  // namespace stylekern

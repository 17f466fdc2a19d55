// A plane in the registers of a block, and what is summed over it.
#pragma once
#include <cmath>

#include "common.cuh"

namespace stylekern::cuda {

// Threads of a block that works on a plane, at most, and how many such blocks a multiprocessor must hold at once:
// doubles take two registers each. Operators that hold two or three tensors have fewer threads, and so more registers;
// single halves need more, for their conversions.
inline constexpr int kPlaneThreads = 512, kTileThreads = 384, kPartThreads = 256;
template <class T>
inline constexpr int kPlaneBlocks = std::is_same_v<T, double> ? 1 : 2;
template <class T, int V>
inline constexpr int kTileBlocks = sizeof(T) == 4 || (sizeof(T) < 4 && V > 1) ? 2 : 1;

// Planes that are fewer leave multiprocessors idle where a block has a whole plane.
inline constexpr int kFewPlanes = 256;

// Count, mean and sum of squared deviations of some values.
template <class A>
struct Moments {
  A count, mean, m2;
};

// From the sums of x - centre and of its square, over `count` values. `centre` is their mean but for rounding, or that
// of the plane's first tile: at most sqrt(tiles) standard deviations away, which costs next to no digits.
template <class A>
STYLEKERN_DEVICE Moments<A> moments_around(A centre, const Vec<A, 2>& sums, int64_t count) {
  const A shift = sums[0] / A(count);
  return {A(count), centre + shift, sums[1] - sums[0] * shift};
}

// What a variance of `count` values divides by. None are left: by zero, as torch does.
template <class A>
STYLEKERN_DEVICE A variance_divisor(int64_t count, int64_t correction) {
  return A(count > correction ? count - correction : 0);
}

template <class A>
struct Statistics {
  A mean, rstd;
};

// The two sums over a plane that a gradient through normalisation needs: of g, and of g * x. The zeros beyond its end
// are left out of the product: less a large mean, times rstd, they can be infinite.
template <class A>
using GradSums = Vec<A, 2>;

// Vectors of each tensor that a thread holds in registers, whose loads are in flight at once: 16 values. Fewer where
// doubles, or the positions in rows with gaps, need the registers.
template <class T, int V, bool Dense>
inline constexpr int kHeld = !Dense ? 4 : (sizeof(T) > 4 ? 8 : 16) / V;

// How a plane is cut into tiles, and those into parts: `each` a part, where there are as many.
struct Cut {
  int tiles, each;
  int last;  // vectors of the last tile

  STYLEKERN_HD Cut(int tiles, int each, int last) : tiles(tiles), each(each), last(last) {}
  Cut(int64_t h, int64_t w, int v, int r, unsigned threads, int parts) {
    const int64_t size = int64_t(r) * threads, vectors = h * (w / v);
    tiles = int((vectors + size - 1) / size), each = (tiles + parts - 1) / parts;
    last = int(vectors - (tiles - 1) * size);
  }
};

// A piece of a plane that a block holds in registers. Of the warp's 32 * R neighbouring vectors each thread has vector
// `first` of the plane, and R - 1 more at distances of 32, which are known at compile time. Most planes are one tile.
// `Dense`: all tensors' rows follow each other without a gap, and h is 1.
template <int V, int R, bool Dense>
struct Tile {
  int64_t w, first;
  int vectors;  // of the tile; none beyond the plane's end
  int left;     // of those, from the thread's first one on

  STYLEKERN_DEVICE Tile(const Cut& cut, int64_t w, int tile) : w(w) {
    const int size = R * int(blockDim.x);
    const int own = int(threadIdx.x) / 32 * 32 * R + int(threadIdx.x) % 32;
    first = int64_t(tile) * size + own;
    vectors = tile < cut.tiles - 1 ? size : tile < cut.tiles ? cut.last : 0;
    left = vectors - own;
  }
  STYLEKERN_DEVICE bool has(int k) const { return 32 * k < left; }
  STYLEKERN_DEVICE int count() const { return vectors * V; }

  // This thread's vectors of a tensor's plane; zeros where the plane has ended.
  template <class T>
  STYLEKERN_DEVICE void load(Vec<T, V> (&x)[R], const T* plane, int64_t row) const {
    if constexpr (Dense) {
      const T* const start = plane + first * V;
#pragma unroll
      for (int k = 0; k < R; ++k) x[k] = has(k) ? cuda::load<V>(start + 32 * V * k) : Vec<T, V>{};
    } else {
      const int64_t columns = w / V, step_j = 32 % columns, step = 32 / columns * row + step_j * V;
      int64_t j = first % columns;
      const T* at = plane + first / columns * row + j * V;
#pragma unroll
      for (int k = 0; k < R; ++k) {
        x[k] = has(k) ? cuda::load<V>(at) : Vec<T, V>{};
        j += step_j, at += step;
        if (j >= columns) j -= columns, at += row - w;
      }
    }
  }
  // Calls f(k), which returns this thread's k-th vector, and writes that to the plane of a contiguous tensor.
  template <class T, class F>
  STYLEKERN_DEVICE void store(T* plane, F f) const {
#pragma unroll
    for (int k = 0; k < R; ++k)
      if (has(k)) store_as(plane + first * V + 32 * V * k, f(k));
  }

  // This thread's part of the sum of x - from.
  template <class T>
  STYLEKERN_DEVICE Acc<T> sum(const Vec<T, V> (&x)[R], Acc<T> from) const {
    Acc<T> sum = 0;
#pragma unroll
    for (int k = 0; k < R; ++k)
#pragma unroll
      for (int e = 0; e < V; ++e) sum += has(k) ? to_acc(x[k][e]) - from : Acc<T>(0);
    return sum;
  }
  // Adds this thread's part of the sums of x - centre and of its square.
  template <class T>
  STYLEKERN_DEVICE void add_deviations(const Vec<T, V> (&x)[R], Acc<T> centre, Vec<Acc<T>, 2>& sums) const {
    Acc<T> sum = 0, squares = 0;
#pragma unroll
    for (int k = 0; k < R; ++k)
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const Acc<T> d = has(k) ? to_acc(x[k][e]) - centre : Acc<T>(0);
        sum += d, squares += d * d;
      }
    sums[0] += sum, sums[1] += squares;
  }
};

// The tiles of a part; there may be none, and `last` is one of the plane all the same.
struct TileRange {
  int first, last;

  STYLEKERN_DEVICE TileRange(const Cut& cut, int part) {
    first = part * cut.each < cut.tiles ? part * cut.each : cut.tiles;
    last = (first + cut.each < cut.tiles ? first + cut.each : cut.tiles) - 1;
  }
};

// The pieces of work of a launch: planes, or their parts.
struct Parts {
  int64_t planes;
  int each;  // of a plane; 1: it is not cut
  Divisor by_each, by_channels;

  Parts(int64_t samples, int64_t channels, int each)
      : planes(samples * channels), each(each), by_each(each), by_channels(channels) {}
  STYLEKERN_HD int64_t count() const { return planes * each; }
};

// One of them.
struct Part {
  int64_t plane, n, c;  // of sample n and channel c
  int part;

  STYLEKERN_DEVICE Part(const Parts& parts, int64_t piece) : plane(piece) {
    part = int(parts.by_each.split(plane));
    n = plane, c = parts.by_channels.split(n);
  }
};

// Calls f with the width of an access, as with_width, and whether the planes are dense. Rows with gaps between them are
// rare enough to be read value by value.
template <class T, class F>
cudaError_t with_layout(bool dense, bool wide, F f) {
  if (!dense) return f(std::integral_constant<int, 1>{}, std::false_type{});
  return with_width<T>(wide, [&](auto width) { return f(width, std::true_type{}); });
}

// Threads of a block whose tiles, of r vectors a thread, cover a plane: one tile if `most` threads suffice.
inline unsigned tile_threads(int64_t h, int64_t w, int v, int r, int most) {
  const int64_t warps = (h * (w / v) + 32 * r - 1) / (32 * r);
  return unsigned(warps < most / 32 ? (warps > 0 ? warps : 1) * 32 : most);
}

// Planes that are few, and larger than what a block holds, are cut into parts of a block each: one kernel takes the
// parts' moments or sums, and the next one adds a plane's up, one a thread, before it goes on with its own part. The
// cut follows from the sizes alone, so that results do.
inline int plane_parts(int64_t planes, int64_t h, int64_t w, int v, int r) {
  const int64_t vectors = h * (w / v), size = int64_t(r) * kPartThreads, tiles = (vectors + size - 1) / size;
  if (planes >= kFewPlanes || vectors <= int64_t(r) * kTileThreads) return 1;
  return int(tiles < kPartThreads ? tiles : kPartThreads);
}

// At least as many, however the tensors lie in memory.
inline int64_t most_parts(int64_t planes, int64_t values) { return plane_parts(planes, 1, values, 1, 4); }

// Of some tiles of a plane, or of none. The first tile's mean is taken from the plane's first value on, so that a large
// mean costs no digits and a constant plane has no variance; the deviations from it then mend what a first value far
// from the others cost.
template <int V, int R, bool Dense, class T>
STYLEKERN_DEVICE Moments<Acc<T>> moments_of(const T* x, int64_t row, const Cut& cut, int64_t w, const TileRange& range,
                                            BlockSums<Acc<T>, 2>& sum) {
  using A = Acc<T>;
  const A from = to_acc(x[0]);
  A centre = from;
  Vec<A, 2> sums = zeros<A, 2>();
  int64_t count = 0;
  for (int k = range.first; k <= range.last; ++k) {
    const Tile<V, R, Dense> tile(cut, w, k);
    Vec<T, V> values[R];
    tile.load(values, x, row);
    if (k == range.first) centre += sum(tile.sum(values, from)) / A(tile.count());
    tile.add_deviations(values, centre, sums);
    count += tile.count();
  }
  if (count == 0) return {};
  return moments_around(centre, sum(sums), count);
}

// What this thread adds to a plane, of whose parts these are the entries: that of one part, or nothing.
template <class S>
STYLEKERN_DEVICE S entry_of_part(const S* entries, int parts) {
  return int(threadIdx.x) < parts ? entries[threadIdx.x] : S{};
}

// Of N planes, of `counts` values, from those of their parts, of which the first is never empty.
template <class A, int N, int Most>
STYLEKERN_DEVICE void merge_parts(Moments<A> (&of_planes)[N], const Moments<A>* const (&of_parts)[N], int parts,
                                  const int64_t (&counts)[N], BlockSums<A, Most>& sum) {
  Moments<A> own[N];
  Vec<A, N> means;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    own[k] = entry_of_part(of_parts[k], parts);
    means[k] = own[k].count / A(counts[k]) * (own[k].mean - of_parts[k]->mean);
  }
  means = sum(means);
  Vec<A, 2 * N> deviations;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    means[k] += of_parts[k]->mean;
    const A shift = own[k].mean - means[k];
    deviations[2 * k] = own[k].count * shift, deviations[2 * k + 1] = own[k].m2 + own[k].count * shift * shift;
  }
  deviations = sum(deviations);
#pragma unroll
  for (int k = 0; k < N; ++k)
    of_planes[k] = moments_around(means[k], Vec<A, 2>{deviations[2 * k], deviations[2 * k + 1]}, counts[k]);
}

template <class A>
STYLEKERN_DEVICE Statistics<A> statistics_of(const Moments<A>& plane, int64_t count, int64_t correction, double eps) {
  return {plane.mean, A(1) / sqrt(plane.m2 / variance_divisor<A>(count, correction) + A(eps))};
}

}  // namespace stylekern::cuda

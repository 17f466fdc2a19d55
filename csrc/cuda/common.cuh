// What the CUDA kernels share: accumulation types, 16-byte access, the tile a block works on, the vectors of a plane,
// reductions over a block.
//
// The host tests compile these files with g++: whatever needs nvcc is behind STYLEKERN_LAUNCH and STYLEKERN_SHARED,
// and shared memory is always dynamic, so that the tests can poison it and find its end.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../common/planes.h"

#ifdef __CUDACC__
#define STYLEKERN_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)
// Dynamic shared memory of the block, as an array of `type`.
#define STYLEKERN_SHARED(type, name)                            \
  extern __shared__ __align__(16) unsigned char name##_bytes[]; \
  type* const name = reinterpret_cast<type*>(name##_bytes)
#endif
#define STYLEKERN_DEVICE __device__ __forceinline__

namespace stylekern::cuda {

template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <class T>
using Acc = typename Accumulate<T>::type;

STYLEKERN_DEVICE float to_acc(float x) { return x; }
STYLEKERN_DEVICE double to_acc(double x) { return x; }
STYLEKERN_DEVICE float to_acc(__half x) { return __half2float(x); }
STYLEKERN_DEVICE float to_acc(__nv_bfloat16 x) { return __bfloat162float(x); }

STYLEKERN_DEVICE void from_acc(float x, float& y) { y = x; }
STYLEKERN_DEVICE void from_acc(double x, double& y) { y = x; }
STYLEKERN_DEVICE void from_acc(float x, __half& y) { y = __float2half_rn(x); }
STYLEKERN_DEVICE void from_acc(float x, __nv_bfloat16& y) { y = __float2bfloat16_rn(x); }

// V neighbouring values. Aligned to their size, so that they move in one access of up to 16 bytes.
template <class T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Vec {
  T value[V];
  STYLEKERN_DEVICE T& operator[](int e) { return value[e]; }
  STYLEKERN_DEVICE const T& operator[](int e) const { return value[e]; }
};

// Values of T in 16 bytes.
template <class T>
inline constexpr int kWide = 16 / sizeof(T);

template <int V, class T>
STYLEKERN_DEVICE Vec<T, V> load(const T* p) {
  return *reinterpret_cast<const Vec<T, V>*>(p);
}

template <class T, int V>
STYLEKERN_DEVICE void store(T* p, const Vec<T, V>& x) {
  *reinterpret_cast<Vec<T, V>*>(p) = x;
}

// To global memory. nvcc takes some of the plain wide stores apart into their members; these it cannot.
template <class T, int V>
STYLEKERN_DEVICE void store_global(T* p, const Vec<T, V>& x) {
  if constexpr (sizeof(x) % sizeof(uint2) == 0) {
    using Word = std::conditional_t<sizeof(x) % sizeof(uint4) == 0, uint4, uint2>;
    Word words[sizeof(x) / sizeof(Word)];
    memcpy(words, &x, sizeof(x));
#pragma unroll
    for (size_t k = 0; k < sizeof(x) / sizeof(Word); ++k) __stwb(reinterpret_cast<Word*>(p) + k, words[k]);
  } else {
    store(p, x);
  }
}

template <class A, int V>
STYLEKERN_DEVICE Vec<A, V> zeros() {
  Vec<A, V> x;
#pragma unroll
  for (int e = 0; e < V; ++e) x[e] = A(0);
  return x;
}

template <class T, int V>
STYLEKERN_DEVICE Vec<Acc<T>, V> to_acc(const Vec<T, V>& x) {
  Vec<Acc<T>, V> y;
#pragma unroll
  for (int e = 0; e < V; ++e) y[e] = to_acc(x[e]);
  return y;
}

// Rounds to T and stores to global memory.
template <class T, class A, int V>
STYLEKERN_DEVICE void store_as(T* p, const Vec<A, V>& x) {
  Vec<T, V> y;
#pragma unroll
  for (int e = 0; e < V; ++e) from_acc(x[e], y[e]);
  store_global(p, y);
}

// y += a * x, value by value.
template <class A, int V>
STYLEKERN_DEVICE void add_product(Vec<A, V>& y, const Vec<A, V>& a, const Vec<A, V>& x) {
#pragma unroll
  for (int e = 0; e < V; ++e) y[e] += a[e] * x[e];
}

// A product that is rounded before it is used: nvcc merges no sum or difference into it.
#ifdef __CUDA_ARCH__
STYLEKERN_DEVICE float product_rounded(float a, float b) { return __fmul_rn(a, b); }
STYLEKERN_DEVICE double product_rounded(double a, double b) { return __dmul_rn(a, b); }
#else
template <class A>
STYLEKERN_DEVICE A product_rounded(A a, A b) {
  return a * b;
}
#endif

// Whether every row of a tensor starts on 16 bytes: its base and all its strides do.
template <class T>
bool wide_rows(const T* data, const PlaneStrides& s) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && (s.n | s.p | s.tap | s.row) % kWide<T> == 0;
}

// Calls f with the number of values of an access, known at compile time.
template <class T, class F>
cudaError_t with_width(bool wide, F f) {
  return wide ? f(std::integral_constant<int, kWide<T>>{}) : f(std::integral_constant<int, 1>{});
}

// Blocks of a launch that strides over `count` pieces of work. One dimension, because gridDim.y and z end at 65535.
STYLEKERN_HD unsigned grid_of(int64_t count) { return unsigned(count < 2147483647 ? count : 2147483647); }

// A divisor that is known before the launch: dividing by it is a multiplication, where the hardware would take a
// hundred cycles for 64 bits. Exact for dividends in [0, 2^63).
struct Divisor {
  uint64_t factor = 0;
  int64_t value = 1;
  int shift = 0;

  Divisor() = default;
  explicit Divisor(int64_t divisor) : value(divisor) {
    if (value <= 1) return;
    int bits = 0;
    while ((uint64_t(1) << bits) < uint64_t(value)) ++bits;
    factor = uint64_t(((unsigned __int128)(1) << (63 + bits)) / uint64_t(value)) + 1;
    shift = bits - 1;
  }

  STYLEKERN_HD int64_t quotient(int64_t x) const {
    if (value <= 1) return x;
#ifdef __CUDA_ARCH__
    return int64_t(__umul64hi(factor, uint64_t(x)) >> shift);
#else
    return int64_t(uint64_t(((unsigned __int128)(factor)*uint64_t(x)) >> 64) >> shift);
#endif
  }
  // The remainder; x becomes the quotient.
  STYLEKERN_HD int64_t split(int64_t& x) const {
    const int64_t q = quotient(x), rest = x - q * value;
    x = q;
    return rest;
  }
};

// How the blocks cut [planes, h, w]: a block is threads_y rows of threads_x vectors, one vector a thread. Next to
// another block, `halo_y` rows and `halo_x` vectors on each side belong to the neighbour: their threads stage what
// the block's own threads read, and write nothing.
struct Tiling {
  int threads_x, threads_y, halo_x, halo_y;
  int64_t planes, tiles_y, tiles_x;
  Divisor by_y, by_x;  // tiles_y and tiles_x

  STYLEKERN_HD int64_t tiles() const { return planes * tiles_y * tiles_x; }
  STYLEKERN_HD unsigned blocks() const { return grid_of(tiles()); }
  STYLEKERN_HD int threads() const { return threads_x * threads_y; }
};

// Tiles of at most max_x by max_threads / max_x threads, of one size as far as it goes; a plane that fits into one
// needs no halo.
inline Tiling make_tiling(int64_t planes, int64_t h, int64_t w, int v, int max_x, int max_threads, int halo_rows,
                          int halo_columns) {
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  Tiling t{};
  t.planes = planes;
  const int64_t vectors = ceil_div(w, v);
  t.halo_x = vectors <= max_x ? 0 : int(ceil_div(halo_columns, v));
  t.tiles_x = ceil_div(vectors, vectors <= max_x ? max_x : max_x - 2 * t.halo_x);
  t.threads_x = vectors > 0 ? int(ceil_div(vectors, t.tiles_x)) + 2 * t.halo_x : 1;
  const int max_y = max_threads / t.threads_x;
  t.halo_y = h <= max_y ? 0 : halo_rows;
  t.tiles_y = ceil_div(h, h <= max_y ? max_y : max_y - 2 * t.halo_y);
  t.threads_y = h > 0 ? (t.halo_y > 0 ? int(ceil_div(h, t.tiles_y)) + 2 * t.halo_y : int(h <= max_y ? h : max_y)) : 1;
  t.by_y = Divisor(t.tiles_y), t.by_x = Divisor(t.tiles_x);
  return t;
}

// Where a thread works: its plane, its row and the first of its V columns.
struct Place {
  int64_t plane, i, j;
  bool inside;  // of the plane
  bool owns;    // inside, and not of the halo
};

// Of thread (x, y) of a tile.
template <int V>
STYLEKERN_DEVICE Place place(const Tiling& t, int64_t tile, int64_t h, int64_t w, int x, int y) {
  const int64_t tile_x = t.by_x.split(tile), tile_y = t.by_y.split(tile);
  Place p;
  p.plane = tile;
  p.i = tile_y * (t.threads_y - 2 * t.halo_y) - t.halo_y + y;
  p.j = (tile_x * (t.threads_x - 2 * t.halo_x) - t.halo_x + x) * V;
  p.inside = p.i >= 0 && p.i < h && p.j >= 0 && p.j < w;
  p.owns = p.inside && x >= t.halo_x && x < t.threads_x - t.halo_x && y >= t.halo_y && y < t.threads_y - t.halo_y;
  return p;
}

template <int V>
STYLEKERN_DEVICE Place place(const Tiling& t, int64_t tile, int64_t h, int64_t w) {
  return place<V>(t, tile, h, w, threadIdx.x, threadIdx.y);
}

// A plane whose rows follow each other without a gap is one long row.
inline bool gapless(int64_t h, int64_t w, const PlaneStrides& s) { return h <= 1 || s.row == w; }

// Threads of a block that works on a plane: a power of two, whole warps, and not many more than it has vectors.
inline dim3 plane_block(int64_t h, int64_t w, int v, int max_threads) {
  const int64_t vectors = (w + v - 1) / v;
  int x = 1, y = 1;
  while (x < 64 && x < vectors) x *= 2;
  while (x * y < 32 || (x * y < max_threads && (h == 1 ? x * y < vectors : y < h))) y *= 2;
  return dim3(x, y);
}

// Calls f(i, j) for the vectors of a plane that are this thread's, always in the same order. The loads of
// `Unroll` calls are in flight at once.
template <int V, int Unroll, class F>
STYLEKERN_DEVICE void for_each_vector(int64_t h, int64_t w, F f) {
  if (h == 1) {
    const int64_t step = int64_t(blockDim.x) * blockDim.y * V;
#pragma unroll(Unroll)
    for (int64_t j = int64_t(threadIdx.y * blockDim.x + threadIdx.x) * V; j < w; j += step) f(int64_t(0), j);
  } else {
    for (int64_t j = int64_t(threadIdx.x) * V; j < w; j += int64_t(blockDim.x) * V)
#pragma unroll(Unroll)
      for (int64_t i = threadIdx.y; i < h; i += blockDim.y) f(i, j);
  }
}

// Calls f(q) for the positions q in [-before, size + after) that the border rule maps to `index`, in a fixed order.
template <class F>
STYLEKERN_DEVICE void for_each_source(int64_t index, int64_t size, int before, int after, Padding padding, F f) {
  f(index);
  if (padding == Padding::kReflect) {
    if (index >= 1 && index <= before) f(-index);
    if (index <= size - 2 && index >= size - 1 - after) f(2 * (size - 1) - index);
  } else if (padding == Padding::kReplicate) {
    if (index == 0)
      for (int64_t q = -before; q < 0; ++q) f(q);
    if (index == size - 1)
      for (int64_t q = size; q < size + after; ++q) f(q);
  }
}

inline constexpr unsigned kAllLanes = 0xffffffff;

// The sums of `Count` values over the lanes of a warp: lane l gets that of values[l * Count / 32]. While a lane has
// several, each exchange halves them and doubles the lanes that share one.
template <int Distance = 16, class A, int Count>
STYLEKERN_DEVICE A sum_warp(const Vec<A, Count>& values, int thread) {
  if constexpr (Distance == 0) {
    return values[0];
  } else if constexpr (Count == 1) {
    return sum_warp<Distance / 2>(Vec<A, 1>{values[0] + __shfl_xor_sync(kAllLanes, values[0], Distance)}, thread);
  } else {
    constexpr int half = Count / 2;
    const bool upper = thread & Distance;
    Vec<A, half> kept;
#pragma unroll
    for (int k = 0; k < half; ++k) {
      const A give = upper ? values[k] : values[k + half];
      kept[k] = (upper ? values[k + half] : values[k]) + __shfl_xor_sync(kAllLanes, give, Distance);
    }
    return sum_warp<Distance / 2>(kept, thread);
  }
}

// Sums over the threads of a block, whole warps, to every thread, always in the same order: over the lanes of each
// warp, then over the warps. Up to `Most` values at a time. Two areas of shared memory take turns, so that a sum needs
// one barrier.
template <class A, int Most>
class BlockSums {
 public:
  static STYLEKERN_HD size_t bytes(unsigned threads) { return 2 * Most * (threads / 32) * sizeof(A); }

  STYLEKERN_DEVICE explicit BlockSums(A* shared)
      : area(shared), other(shared + Most * (blockDim.x * blockDim.y / 32)) {}

  template <int N>
  STYLEKERN_DEVICE Vec<A, N> operator()(const Vec<A, N>& values) {
    static_assert(N <= Most && 32 % N == 0);
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, warps = blockDim.x * blockDim.y / 32;
    const A of_warp = sum_warp(values, thread);
    if (thread % (32 / N) == 0) area[thread / (32 / N)] = of_warp;
    __syncthreads();
    Vec<A, N> sums = zeros<A, N>();
#pragma unroll 4
    for (int warp = 0; warp < warps; ++warp) {
      const Vec<A, N> part = load<N>(area + warp * N);
#pragma unroll
      for (int k = 0; k < N; ++k) sums[k] += part[k];
    }
    A* const last = area;
    area = other, other = last;
    return sums;
  }
  STYLEKERN_DEVICE A operator()(A value) { return (*this)(Vec<A, 1>{value})[0]; }

 private:
  A *area, *other;
};

}  // namespace stylekern::cuda

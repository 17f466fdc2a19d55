// style_kernel_conv backward on CUDA. Every gradient is gathered by the thread that writes it, in a fixed order: there
// are no atomics, and the same input gives the same bits.
//
//   style_kernel_conv_bwd_kernel             sequential, 1 or 3 taps each way: everything in one pass. A block owns a
//                                            tile of one sample and filter group, a thread V columns of one row. For
//                                            each channel of the group the threads put t, horizontal * grad and
//                                            vertical * grad_t into shared memory for their neighbours. The gradients
//                                            of the taps stay in registers until the last channel.
//   style_kernel_conv_bwd_rows_kernel        sequential, any taps, in three passes: t and grad_t into the workspace,
//   style_kernel_conv_bwd_taps_kernel        the gradients of the taps,
//   style_kernel_conv_bwd_input_kernel       and that of x.
//   style_kernel_conv_outer_bwd_taps_kernel  outer, any taps: the gradients of the taps,
//   style_kernel_conv_outer_bwd_input_kernel and that of x.
//   style_kernel_conv_bwd_normalize_kernel   from the gradient of the normalised x to that of the input: a block a plane.
//
// The passes that take any taps own one value a thread: neighbouring threads read neighbouring values, whatever the
// tap, and what several of them read comes from the caches.
//
// Fewest bytes, values a value of x, at k = 3 and one filter a channel: x, grad, 6 taps, grad_x, 6 tap gradients: 15.
// The single pass reads 8 of them again in the halo of its tiles, mostly from the second-level cache. For many taps the
// taps outweigh the rest, and the three passes read each of them once, the vertical ones twice.
#pragma once
#include <type_traits>

#include "style_kernel_conv.cuh"

namespace stylekern::cuda {

// What the backward kernels read and write. Null: not given, or not asked for.
template <class T>
struct Backward {
  using A = Acc<T>;
  const T *grad, *input, *vertical, *horizontal;
  const A *mean, *rstd;                            // [N, C]
  T *grad_input, *grad_vertical, *grad_horizontal;
  A* grad_x;        // [N, C, H, W]: of the normalised x, not yet of the input; null: grad_input is final
  A *t, *grad_t;    // [N, C, H, W]
};

// Calls f(q) for the positions q in [-r, size + r) that the border rule maps to `index`, always in the same order.
template <class F>
STYLEKERN_DEVICE void for_each_source(int64_t index, int64_t size, int r, Padding padding, F f) {
  f(index);
  if (padding == Padding::kReflect) {
    if (index >= 1 && index <= r) f(-index);
    if (index <= size - 2 && index >= size - 1 - r) f(2 * (size - 1) - index);
  } else if (padding == Padding::kReplicate) {
    if (index == 0)
      for (int64_t q = -r; q < 0; ++q) f(q);
    if (index == size - 1)
      for (int64_t q = size; q < size + r; ++q) f(q);
  }
}

template <class T>
STYLEKERN_DEVICE const T* grad_at(const StyleKernelConv& p, const T* grad, int64_t n, int64_t c, int64_t i) {
  return grad + n * p.grad.n + c * p.grad.p + i * p.grad.row;
}

// Offset of tap 0 of a contiguous gradient [N, G, taps, H, W]; the next tap is H * W further.
STYLEKERN_DEVICE int64_t tap_offset(const StyleKernelConv& p, int taps, int64_t ng, int64_t i, int64_t j) {
  return (ng * taps * p.h + i) * p.w + j;
}

template <class T, int V>
STYLEKERN_DEVICE void store_grad_x(const Backward<T>& d, int64_t offset, const Vec<Acc<T>, V>& value) {
  if (d.grad_x)
    store(d.grad_x + offset, value);
  else
    store_as(d.grad_input + offset, value);
}

// Threads of a tile of the single pass. A wide thread needs many registers, a narrow one has a larger halo.
template <int V>
inline constexpr int kBackwardThreads = V > 1 ? 256 : 512;

template <class T, int V, int K>
__global__ void __launch_bounds__(kBackwardThreads<V>)
    style_kernel_conv_bwd_kernel(StyleKernelConv p, Tiling tiling, Backward<T> d) {
  using A = Acc<T>;
  constexpr int r = K / 2;
  STYLEKERN_SHARED(A, shared);  // t, then for each tap but the middle one horizontal * grad, then vertical * grad_t
  const int64_t tile_row = int64_t(tiling.threads_x) * V, tile_values = tile_row * tiling.threads_y;
  A* const t_own = shared + (int64_t(threadIdx.y) * tiling.threads_x + threadIdx.x) * V;
  A* const hg_own = t_own + tile_values;
  A* const vg_own = hg_own + (K - 1) * tile_values;
  const auto slot = [&](int tap) { return (tap < r ? tap : tap - 1) * tile_values; };  // the middle tap has none

  for (int64_t tile = blockIdx.x; tile < tiling.tiles(); tile += gridDim.x) {
    const Place at = place<V>(tiling, tile, p.h, p.w);
    const int64_t n = at.plane / p.groups, g = at.plane % p.groups, i = at.i, j = at.j;
    Vec<T, V> v[K], h[K];
    Vec<A, V> grad_v[K], grad_h[K];
    if (at.inside) {
#pragma unroll
      for (int a = 0; a < K; ++a)
        v[a] = load<V>(filter_at(d.vertical, p.vertical, n, g, i, j) + a * p.vertical.tap);
#pragma unroll
      for (int b = 0; b < K; ++b)
        h[b] = load<V>(filter_at(d.horizontal, p.horizontal, n, g, i, j) + b * p.horizontal.tap);
    }
#pragma unroll
    for (int a = 0; a < K; ++a) grad_v[a] = grad_h[a] = zeros<A, V>();

    for (int64_t c = g * p.channels_per_group(); c < (g + 1) * p.channels_per_group(); ++c) {
      Vec<A, V> grad, x[K], t = zeros<A, V>(), hg[K], grad_t = zeros<A, V>();
      if (at.inside) {
        grad = to_acc(load<V>(grad_at(p, d.grad, n, c, i) + j));
        const Plane<T> plane = input_plane(p, d.input, d.mean, d.rstd, n, c);
#pragma unroll
        for (int a = 0; a < K; ++a) x[a] = plane.template row<V>(border_index(i + a - r, p.h, p.padding), j);
#pragma unroll
        for (int a = 0; a < K; ++a) add_product(t, to_acc(v[a]), x[a]);
        store(t_own, t);
#pragma unroll
        for (int b = 0; b < K; ++b) {
          hg[b] = zeros<A, V>();
          add_product(hg[b], to_acc(h[b]), grad);
          if (b != r) store(hg_own + slot(b), hg[b]);
        }
      }
      __syncthreads();

      if (at.inside) {
        // horizontal[b,i,q] * grad[i,q] of another thread
        const auto hg_at = [&](int b, int64_t q) { return q < 0 || q >= p.w ? A(0) : hg_own[slot(b) + q - j]; };
        // grad_t[i,j'] = sum over (j,b) with pad(j+b-rh) = j' of horizontal[b,i,j] * grad[i,j]
        const int x_thread = threadIdx.x;
        if (x_thread >= tiling.halo_x && x_thread < tiling.threads_x - tiling.halo_x) {
#pragma unroll
          for (int b = 0; b < K; ++b)
#pragma unroll
            for (int e = 0; e < V; ++e) {
              const int from = e + r - b;
              grad_t[e] += from >= 0 && from < V ? hg[b][from] : hg_at(b, j + from);
            }
          if (K > 1 && (j <= r || j + V >= p.w - r)) {
#pragma unroll
            for (int e = 0; e < V; ++e)
              for_each_source(j + e, p.w, r, p.padding, [&](int64_t q) {
                if (q >= 0 && q < p.w) return;  // already there
#pragma unroll
                for (int b = 0; b < K; ++b)
                  if (b != r) grad_t[e] += hg_at(b, q + r - b);
              });
          }
        }
#pragma unroll
        for (int a = 0; a < K; ++a)
          if (a != r) {
            Vec<A, V> vg = zeros<A, V>();
            add_product(vg, to_acc(v[a]), grad_t);
            store(vg_own + slot(a), vg);
          }
        if (at.owns) {
          // grad_v[a,i,j] = sum_c grad_t[i,j] * x[pad(i+a-rv), j]
#pragma unroll
          for (int a = 0; a < K; ++a) add_product(grad_v[a], grad_t, x[a]);
          // grad_h[b,i,j] = sum_c grad[i,j] * t[i, pad(j+b-rh)]
          A window[V + 2 * r];
#pragma unroll
          for (int e = 0; e < V + 2 * r; ++e) {
            const int64_t q = border_index(j + e - r, p.w, p.padding);
            window[e] = e >= r && e < V + r ? t[e - r] : q < 0 ? A(0) : t_own[q - j];
          }
#pragma unroll
          for (int b = 0; b < K; ++b)
#pragma unroll
            for (int e = 0; e < V; ++e) grad_h[b][e] += grad[e] * window[b + e];
        }
      }
      __syncthreads();  // the next channel writes t and hg, and vg after its first barrier

      if (at.owns && d.grad_input) {
        // grad_x[i',j] = sum over (i,a) with pad(i+a-rv) = i' of vertical[a,i,j] * grad_t[i,j]
        Vec<A, V> grad_x = zeros<A, V>();
        add_product(grad_x, to_acc(v[r]), grad_t);
        if constexpr (K > 1)
          for_each_source(i, p.h, r, p.padding, [&](int64_t q) {
#pragma unroll
            for (int a = 0; a < K; ++a) {
              const int64_t from = q + r - a;
              if (a == r || from < 0 || from >= p.h) continue;
              const Vec<A, V> vg = load<V>(vg_own + slot(a) + (from - i) * tile_row);
#pragma unroll
              for (int e = 0; e < V; ++e) grad_x[e] += vg[e];
            }
          });
        store_grad_x(d, ((n * p.c + c) * p.h + i) * p.w + j, grad_x);
      }
    }

    if (at.owns && d.grad_vertical)
#pragma unroll
      for (int a = 0; a < K; ++a)
        store_as(d.grad_vertical + tap_offset(p, K, at.plane, i, j) + a * p.h * p.w, grad_v[a]);
    if (at.owns && d.grad_horizontal)
#pragma unroll
      for (int b = 0; b < K; ++b)
        store_as(d.grad_horizontal + tap_offset(p, K, at.plane, i, j) + b * p.h * p.w, grad_h[b]);
    __syncthreads();  // the next tile writes t
  }
}

inline constexpr int kValueThreads = 256;  // of the kernels that own one value a thread

template <class T>
__global__ void __launch_bounds__(kValueThreads)
    style_kernel_conv_bwd_rows_kernel(StyleKernelConv p, Tiling tiling, Backward<T> d) {
  using A = Acc<T>;
  for (int64_t tile = blockIdx.x; tile < tiling.tiles(); tile += gridDim.x) {
    const Place at = place<1>(tiling, tile, p.h, p.w);
    if (!at.owns) continue;
    const int64_t n = at.plane / p.c, c = at.plane % p.c, g = c / p.channels_per_group();
    const int64_t offset = (at.plane * p.h + at.i) * p.w + at.j;
    if (d.t) {
      // t[i,j] = sum_a vertical[a,i,j] * x[pad(i+a-rv), j]
      const T* v = filter_at(d.vertical, p.vertical, n, g, at.i, at.j);
      const Plane<T> x = input_plane(p, d.input, d.mean, d.rstd, n, c);
      A t = 0;
#pragma unroll 4
      for (int a = 0; a < p.kv; ++a)
        t += to_acc(v[a * p.vertical.tap]) * x.at(border_index(at.i + a - p.rv(), p.h, p.padding), at.j);
      d.t[offset] = t;
    }
    if (d.grad_t) {
      // grad_t[i,j'] = sum over (j,b) with pad(j+b-rh) = j' of horizontal[b,i,j] * grad[i,j]
      const T* h = filter_at(d.horizontal, p.horizontal, n, g, at.i, 0);
      const T* grad = grad_at(p, d.grad, n, c, at.i);
      A grad_t = 0;
      for_each_source(at.j, p.w, p.rh(), p.padding, [&](int64_t q) {
#pragma unroll 4
        for (int b = 0; b < p.kh; ++b) {
          const int64_t j = q + p.rh() - b;
          if (j >= 0 && j < p.w) grad_t += to_acc(h[b * p.horizontal.tap + j]) * to_acc(grad[j]);
        }
      });
      d.grad_t[offset] = grad_t;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kValueThreads)
    style_kernel_conv_bwd_taps_kernel(StyleKernelConv p, Tiling tiling, Backward<T> d) {
  using A = Acc<T>;
  for (int64_t tile = blockIdx.x; tile < tiling.tiles(); tile += gridDim.x) {
    const Place at = place<1>(tiling, tile, p.h, p.w);
    if (!at.owns) continue;
    const int64_t n = at.plane / p.groups, g = at.plane % p.groups;
    const int64_t first = g * p.channels_per_group(), last = first + p.channels_per_group();
    const auto row_of = [&](int64_t c) { return ((n * p.c + c) * p.h + at.i) * p.w; };
    if (d.grad_vertical)
#pragma unroll 4
      for (int a = 0; a < p.kv; ++a) {
        // grad_v[a,i,j] = sum_c grad_t[i,j] * x[pad(i+a-rv), j]
        const int64_t i = border_index(at.i + a - p.rv(), p.h, p.padding);
        A sum = 0;
        for (int64_t c = first; c < last; ++c)
          sum += d.grad_t[row_of(c) + at.j] * input_plane(p, d.input, d.mean, d.rstd, n, c).at(i, at.j);
        from_acc(sum, d.grad_vertical[tap_offset(p, p.kv, at.plane, at.i, at.j) + a * p.h * p.w]);
      }
    if (d.grad_horizontal)
#pragma unroll 4
      for (int b = 0; b < p.kh; ++b) {
        // grad_h[b,i,j] = sum_c grad[i,j] * t[i, pad(j+b-rh)]
        const int64_t j = border_index(at.j + b - p.rh(), p.w, p.padding);
        A sum = 0;
        for (int64_t c = first; c < last && j >= 0; ++c)
          sum += to_acc(grad_at(p, d.grad, n, c, at.i)[at.j]) * d.t[row_of(c) + j];
        from_acc(sum, d.grad_horizontal[tap_offset(p, p.kh, at.plane, at.i, at.j) + b * p.h * p.w]);
      }
  }
}

template <class T>
__global__ void __launch_bounds__(kValueThreads)
    style_kernel_conv_bwd_input_kernel(StyleKernelConv p, Tiling tiling, Backward<T> d) {
  using A = Acc<T>;
  for (int64_t tile = blockIdx.x; tile < tiling.tiles(); tile += gridDim.x) {
    const Place at = place<1>(tiling, tile, p.h, p.w);
    if (!at.owns) continue;
    const int64_t n = at.plane / p.c, g = at.plane % p.c / p.channels_per_group();
    const T* v = filter_at(d.vertical, p.vertical, n, g, 0, at.j);
    const A* grad_t = d.grad_t + at.plane * p.h * p.w + at.j;
    // grad_x[i',j] = sum over (i,a) with pad(i+a-rv) = i' of vertical[a,i,j] * grad_t[i,j]
    A grad_x = 0;
    for_each_source(at.i, p.h, p.rv(), p.padding, [&](int64_t q) {
#pragma unroll 4
      for (int a = 0; a < p.kv; ++a) {
        const int64_t i = q + p.rv() - a;
        if (i >= 0 && i < p.h) grad_x += to_acc(v[a * p.vertical.tap + i * p.vertical.row]) * grad_t[i * p.w];
      }
    });
    store_grad_x(d, (at.plane * p.h + at.i) * p.w + at.j, Vec<A, 1>{grad_x});
  }
}

template <class T>
__global__ void __launch_bounds__(kValueThreads)
    style_kernel_conv_outer_bwd_taps_kernel(StyleKernelConv p, Tiling tiling, Backward<T> d) {
  using A = Acc<T>;
  const int ov = origin(p, p.rv()), oh = origin(p, p.rh());
  for (int64_t tile = blockIdx.x; tile < tiling.tiles(); tile += gridDim.x) {
    const Place at = place<1>(tiling, tile, p.h, p.w);
    if (!at.owns) continue;
    const int64_t n = at.plane / p.groups, g = at.plane % p.groups;
    const int64_t first = g * p.channels_per_group(), last = first + p.channels_per_group();
    const T* v = filter_at(d.vertical, p.vertical, n, g, at.i, at.j);
    const T* h = filter_at(d.horizontal, p.horizontal, n, g, at.i, at.j);
    if (d.grad_vertical)
      for (int a = 0; a < p.kv; ++a) {
        // grad_v[a,i,j] = sum_c grad[i,j] * (sum_b horizontal[b,i,j] * x[pad(i+a-rv), pad(j+b-rh)])
        const int64_t i = border_index(at.i + a - ov, p.in_h, p.padding);
        A sum = 0;
        for (int64_t c = first; c < last; ++c) {
          const Plane<T> x = input_plane(p, d.input, d.mean, d.rstd, n, c);
          A part = 0;
#pragma unroll 4
          for (int b = 0; b < p.kh; ++b)
            part += to_acc(h[b * p.horizontal.tap]) * x.at(i, border_index(at.j + b - oh, p.in_w, p.padding));
          sum += to_acc(grad_at(p, d.grad, n, c, at.i)[at.j]) * part;
        }
        from_acc(sum, d.grad_vertical[tap_offset(p, p.kv, at.plane, at.i, at.j) + a * p.h * p.w]);
      }
    if (d.grad_horizontal)
      for (int b = 0; b < p.kh; ++b) {
        // grad_h[b,i,j] = sum_c grad[i,j] * (sum_a vertical[a,i,j] * x[pad(i+a-rv), pad(j+b-rh)])
        const int64_t j = border_index(at.j + b - oh, p.in_w, p.padding);
        A sum = 0;
        for (int64_t c = first; c < last; ++c) {
          const Plane<T> x = input_plane(p, d.input, d.mean, d.rstd, n, c);
          A part = 0;
#pragma unroll 4
          for (int a = 0; a < p.kv; ++a)
            part += to_acc(v[a * p.vertical.tap]) * x.at(border_index(at.i + a - ov, p.in_h, p.padding), j);
          sum += to_acc(grad_at(p, d.grad, n, c, at.i)[at.j]) * part;
        }
        from_acc(sum, d.grad_horizontal[tap_offset(p, p.kh, at.plane, at.i, at.j) + b * p.h * p.w]);
      }
  }
}

template <class T>
__global__ void __launch_bounds__(kValueThreads)
    style_kernel_conv_outer_bwd_input_kernel(StyleKernelConv p, Tiling tiling, Backward<T> d) {
  using A = Acc<T>;
  const int ov = origin(p, p.rv()), oh = origin(p, p.rh());
  for (int64_t tile = blockIdx.x; tile < tiling.tiles(); tile += gridDim.x) {
    const Place at = place<1>(tiling, tile, p.in_h, p.in_w);
    if (!at.owns) continue;
    const int64_t n = at.plane / p.c, c = at.plane % p.c, g = c / p.channels_per_group();
    // grad_x[i',j'] = sum over (i,a) with pad(i+a-rv) = i' and (j,b) with pad(j+b-rh) = j'
    //                 of vertical[a,i,j] * horizontal[b,i,j] * grad[i,j]
    A grad_x = 0;
    for_each_source(at.i, p.in_h, p.rv(), p.padding, [&](int64_t qi) {
      for (int a = 0; a < p.kv; ++a) {
        const int64_t i = qi + ov - a;
        if (i < 0 || i >= p.h) continue;
        const T* v = filter_at(d.vertical, p.vertical, n, g, i, 0) + a * p.vertical.tap;
        const T* h = filter_at(d.horizontal, p.horizontal, n, g, i, 0);
        const T* grad = grad_at(p, d.grad, n, c, i);
        for_each_source(at.j, p.in_w, p.rh(), p.padding, [&](int64_t qj) {
#pragma unroll 4
          for (int b = 0; b < p.kh; ++b) {
            const int64_t j = qj + oh - b;
            if (j >= 0 && j < p.w) grad_x += to_acc(v[j]) * to_acc(h[b * p.horizontal.tap + j]) * to_acc(grad[j]);
          }
        });
      }
    });
    store_grad_x(d, (at.plane * p.in_h + at.i) * p.in_w + at.j, Vec<A, 1>{grad_x});
  }
}

// grad_input = rstd * (grad_x - mean(grad_x) - x * sum(grad_x * x) / (H * W - correction)), x normalised.
// grad_x may be grad_input itself: a thread reads a value before it overwrites it.
template <class T>
__global__ void __launch_bounds__(kValueThreads)
    style_kernel_conv_bwd_normalize_kernel(StyleKernelConv p, Backward<T> d, int64_t correction) {
  using A = Acc<T>;
  using Sums = Vec<A, 2>;  // of grad_x, of grad_x * x
  STYLEKERN_SHARED(Sums, shared);
  for (int64_t nc = blockIdx.x; nc < p.n * p.c; nc += gridDim.x) {
    const Plane<T> x = input_plane(p, d.input, d.mean, d.rstd, nc / p.c, nc % p.c);
    const A* grad_x = d.grad_x + nc * p.h * p.w;
    const auto for_each_value = [&](auto f) {
      for (int64_t j = threadIdx.x; j < p.w; j += blockDim.x)
#pragma unroll 4
        for (int64_t i = threadIdx.y; i < p.h; i += blockDim.y) f(i, j);
    };
    Sums sums = zeros<A, 2>();
    for_each_value([&](int64_t i, int64_t j) {
      sums[0] += grad_x[i * p.w + j];
      sums[1] += grad_x[i * p.w + j] * x.at(i, j);
    });
    sums = reduce_block(sums, shared, [](const Sums& a, const Sums& b) { return Sums{a[0] + b[0], a[1] + b[1]}; });
    const int64_t divisor = p.h * p.w - correction;
    const A mean_grad = sums[0] / A(p.h * p.w), slope = sums[1] / A(divisor > 0 ? divisor : 0);
    for_each_value([&](int64_t i, int64_t j) {
      const int64_t k = i * p.w + j;
      from_acc(x.rstd * (grad_x[k] - mean_grad - x.at(i, j) * slope), d.grad_input[nc * p.h * p.w + k]);
    });
  }
}

// Whether the single pass serves: sequential, as many taps each way, 1 or 3.
inline bool in_one_pass(const StyleKernelConv& p) {
  return p.composition == Composition::kSequential && p.kv == p.kh && p.kv <= 3;
}

// Planes [N, C, H, W] of the accumulation type that the backward needs beside its outputs: t and grad_t of the three
// passes, and the gradient of the normalised x where grad_input cannot hold it.
template <class T>
struct BackwardPlan {
  bool t, grad_t, grad_x;
  BackwardPlan(const StyleKernelConv& p, bool normalize, bool need_input, bool need_vertical, bool need_horizontal) {
    const bool passes = p.composition == Composition::kSequential && !in_one_pass(p);
    t = passes && need_horizontal;
    grad_t = passes && (need_input || need_vertical);
    grad_x = normalize && need_input && !std::is_same_v<T, Acc<T>>;
  }
  int planes() const { return t + grad_t + grad_x; }
};

// Bytes of the workspace that style_kernel_conv_backward needs.
template <class T>
size_t style_kernel_conv_backward_workspace(const StyleKernelConv& problem, bool normalize, bool need_input,
                                            bool need_vertical, bool need_horizontal) {
  const StyleKernelConv p = simplify(problem);
  return BackwardPlan<T>(p, normalize, need_input, need_vertical, need_horizontal).planes() * sizeof(Acc<T>) *
         size_t(p.n * p.c * p.h * p.w);
}

// Writes the gradients, contiguous, that are not null. mean and rstd: as the forward gave them, null without
// normalisation. The workspace starts on 16 bytes.
template <class T>
cudaError_t style_kernel_conv_backward(const StyleKernelConv& problem, const T* grad, const T* input,
                                       const T* vertical, const T* horizontal, const Acc<T>* mean, const Acc<T>* rstd,
                                       T* grad_input, T* grad_vertical, T* grad_horizontal, void* workspace,
                                       int64_t correction, cudaStream_t stream) {
  using A = Acc<T>;
  const StyleKernelConv p = simplify(problem);
  if (p.n * p.groups * p.h * p.w == 0 || !(grad_input || grad_vertical || grad_horizontal)) return cudaSuccess;
  Backward<T> d{grad, input, vertical, horizontal, mean, rstd, grad_input, grad_vertical, grad_horizontal};
  const BackwardPlan<T> plan(p, mean, grad_input, grad_vertical, grad_horizontal);
  A* free = static_cast<A*>(workspace);
  const auto take = [&] { return std::exchange(free, free + p.n * p.c * p.h * p.w); };
  if constexpr (std::is_same_v<T, A>)
    d.grad_x = mean ? grad_input : nullptr;
  else
    d.grad_x = plan.grad_x ? take() : nullptr;
  d.t = plan.t ? take() : nullptr;
  d.grad_t = plan.grad_t ? take() : nullptr;

  cudaError_t error = cudaSuccess;
  const auto by_value = [&](auto kernel, int64_t planes, int64_t h, int64_t w) {
    const Tiling tiling = make_tiling(planes, h, w, 1, 64, kValueThreads, 0, 0);
    if (error != cudaSuccess || tiling.tiles() == 0) return;
    STYLEKERN_LAUNCH(kernel, tiling.blocks(), dim3(tiling.threads_x, tiling.threads_y), 0, stream, p, tiling, d);
    error = cudaGetLastError();
  };
  if (in_one_pass(p)) {
    const bool wide = wide_rows(grad, p.grad) && wide_rows(input, p.input) && wide_filters(p, vertical, horizontal) &&
                      wide_rows(grad_input, {}) && wide_rows(grad_vertical, {}) && wide_rows(grad_horizontal, {}) &&
                      wide_rows(d.grad_x, {});
    error = with_width<T>(wide, [&](auto width) {
      constexpr int V = decltype(width)::value;
      const Tiling tiling =
          make_tiling(p.n * p.groups, p.h, p.w, V, V > 1 ? 16 : 32, kBackwardThreads<V>, p.rv(), p.rh());
      const auto kernel = p.kv == 1 ? style_kernel_conv_bwd_kernel<T, V, 1> : style_kernel_conv_bwd_kernel<T, V, 3>;
      const size_t shared = sizeof(A) * V * tiling.threads() * (2 * p.kv - 1);
      STYLEKERN_LAUNCH(kernel, tiling.blocks(), dim3(tiling.threads_x, tiling.threads_y), shared, stream, p, tiling,
                       d);
      return cudaGetLastError();
    });
  } else if (p.composition == Composition::kSequential) {
    if (d.t || d.grad_t) by_value(style_kernel_conv_bwd_rows_kernel<T>, p.n * p.c, p.h, p.w);
    if (grad_vertical || grad_horizontal) by_value(style_kernel_conv_bwd_taps_kernel<T>, p.n * p.groups, p.h, p.w);
    if (grad_input) by_value(style_kernel_conv_bwd_input_kernel<T>, p.n * p.c, p.h, p.w);
  } else {
    if (grad_vertical || grad_horizontal)
      by_value(style_kernel_conv_outer_bwd_taps_kernel<T>, p.n * p.groups, p.h, p.w);
    if (grad_input) by_value(style_kernel_conv_outer_bwd_input_kernel<T>, p.n * p.c, p.in_h, p.in_w);
  }
  if (error != cudaSuccess || !mean || !grad_input || p.c == 0) return error;
  int x = 1;  // a power of two, for reduce_block
  while (x < 64 && x < p.w) x *= 2;
  const auto kernel = style_kernel_conv_bwd_normalize_kernel<T>;
  const unsigned blocks = unsigned(p.n * p.c < 2147483647 ? p.n * p.c : 2147483647);
  STYLEKERN_LAUNCH(kernel, blocks, dim3(x, kValueThreads / x), kValueThreads * sizeof(A) * 2, stream, p, d,
                   correction);
  return cudaGetLastError();
}

}  // namespace stylekern::cuda

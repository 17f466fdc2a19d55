// style_kernel_conv backward on CUDA. Every gradient is gathered by the thread that writes it, in a fixed order: there
// are no atomics, and the same input gives the same bits.
//
// Sequential, with 3 or 5 taps each way and a filter for each channel: style_kernel_conv_backward_strips.cuh.
//
// style_kernel_conv_bwd_kernel is the single pass of filters that channels share: sequential, 1 or 3 taps each way. A
// block owns a tile of one sample and filter group, a thread V columns of one row. For each channel of the group the
// threads put t, horizontal * grad and vertical * grad_t into shared memory for their neighbours. The gradients of the
// taps stay in registers until the last channel.
//
// Everything else goes through style_kernel_conv_backward_passes.cuh.
//
// Fewest bytes, values a value of x, at k = 3 and one filter a channel: x, grad, 6 taps, grad_x, 6 tap gradients: 15.
// The single pass reads the first 8 again in the halo of its tiles, mostly from the second-level cache.
#pragma once
#include <type_traits>
#include <utility>

#include "style_kernel_conv_backward_strips.cuh"

namespace stylekern::cuda {

// Threads of a tile of the single pass. A wide thread needs many registers, a narrow one has a larger halo.
template <int V>
inline constexpr int kBackwardThreads = V > 1 ? 256 : 512;
template <int V>
inline constexpr int kBackwardBlocks = V == 4 ? 2 : 1;  // a multiprocessor, at least
// Of 16 bits 8 bytes a thread: 8 values, in float32, would leave room for one block a multiprocessor.
template <int Wide>
inline constexpr int kBackwardWidth = Wide < 4 ? Wide : 4;

template <class T, int V, int K>
__global__ void __launch_bounds__(kBackwardThreads<V>, kBackwardBlocks<V>)
    style_kernel_conv_bwd_kernel(StyleKernelConv p, Tiling tiling, Channels by, Backward<T> d) {
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
    const int64_t i = at.i, j = at.j;
    int64_t n = at.plane;
    const int64_t g = by.groups.split(n);
    Vec<T, V> v[K], h[K];
    Vec<A, V> grad_v[K], grad_h[K];
    if (at.inside) {
#pragma unroll
      for (int a = 0; a < K; ++a) v[a] = load<V>(filter_at(d.vertical, p.vertical, n, g, i, j) + a * p.vertical.tap);
#pragma unroll
      for (int b = 0; b < K; ++b)
        h[b] = load<V>(filter_at(d.horizontal, p.horizontal, n, g, i, j) + b * p.horizontal.tap);
    }
#pragma unroll
    for (int a = 0; a < K; ++a) grad_v[a] = grad_h[a] = zeros<A, V>();

    for (int64_t c = g * by.per_group.value; c < (g + 1) * by.per_group.value; ++c) {
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
          if constexpr (K > 1) add_over_border<K>(grad_t, p, j, hg_at);
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
          window_of<r>(window, p, j, t, t_own);
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
          for_each_source(i, p.h, r, r, p.padding, [&](int64_t q) {
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
  }
}

// Whether a single pass serves: strips, or, sequential too, as many taps each way, 1 or 3.
inline bool in_one_pass(const StyleKernelConv& p) {
  return in_strips(p) || (p.composition == Composition::kSequential && p.kv == p.kh && p.kv <= 3);
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
cudaError_t style_kernel_conv_backward(const StyleKernelConv& problem, const T* grad, const T* input, const T* vertical,
                                       const T* horizontal, const Acc<T>* mean, const Acc<T>* rstd, T* grad_input,
                                       T* grad_vertical, T* grad_horizontal, void* workspace, int64_t correction,
                                       cudaStream_t stream) {
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
    STYLEKERN_LAUNCH(kernel, tiling.blocks(), dim3(tiling.threads_x, tiling.threads_y), 0, stream, p, tiling,
                     Channels(p), d);
    error = cudaGetLastError();
  };
  if (in_one_pass(p)) {
    const bool wide = wide_rows(grad, p.grad) && wide_rows(input, p.input) && wide_filters(p, vertical, horizontal) &&
                      wide_rows(grad_input, {}) && wide_rows(grad_vertical, {}) && wide_rows(grad_horizontal, {}) &&
                      wide_rows(d.grad_x, {});
    error = with_width<T>(wide, [&](auto width) {
      constexpr int V = kBackwardWidth<decltype(width)::value>;
      if (in_strips(p))
        return p.kv == 3 ? style_kernel_conv_backward_strips<T, V, 3>(p, d, stream)
                         : style_kernel_conv_backward_strips<T, V, 5>(p, d, stream);
      const Tiling tiling = make_tiling(p.n * p.groups, p.h, p.w, V, 32, kBackwardThreads<V>, p.rv(), p.rh());
      const auto kernel = p.kv == 1 ? style_kernel_conv_bwd_kernel<T, V, 1> : style_kernel_conv_bwd_kernel<T, V, 3>;
      const size_t shared = sizeof(A) * V * tiling.threads() * (2 * p.kv - 1);
      STYLEKERN_LAUNCH(kernel, tiling.blocks(), dim3(tiling.threads_x, tiling.threads_y), shared, stream, p, tiling,
                       Channels(p), d);
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
  return instance_norm_backward<T>({p.n, p.c, p.h, p.w, p.input}, d.grad_x, input, mean, rstd, grad_input, correction,
                                   stream);
}

}  // namespace stylekern::cuda

// style_kernel_conv backward on CUDA, for any number of taps: kernels that own one value a thread. Neighbouring threads
// read neighbouring values, whatever the tap, and what several of them read comes from the caches.
//
//   style_kernel_conv_bwd_rows_kernel         sequential: t and grad_t into the workspace,
//   style_kernel_conv_bwd_taps_kernel         the gradients of the taps,
//   style_kernel_conv_bwd_input_kernel        and that of x.
//   style_kernel_conv_outer_bwd_taps_kernel   outer: the gradients of the taps,
//   style_kernel_conv_outer_bwd_input_kernel  and that of x.
//
// Every tap is read once from memory, a vertical one twice in the sequential passes: where there are many taps they
// outweigh all the rest.
#pragma once
#include "style_kernel_conv.cuh"

namespace stylekern::cuda {

// What the backward kernels read and write. Null: not given, or not asked for.
template <class T>
struct Backward {
  using A = Acc<T>;
  const T *grad, *input, *vertical, *horizontal;
  const A *mean, *rstd;  // [N, C]
  T *grad_input, *grad_vertical, *grad_horizontal;
  A* grad_x;      // [N, C, H, W]: of the normalised x, not yet of the input; null: grad_input is final
  A *t, *grad_t;  // [N, C, H, W]
};

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
    store_global(d.grad_x + offset, value);
  else
    store_as(d.grad_input + offset, value);
}

// Of the gradient of t in V columns from j on: what comes from taps that reach over the border, with hg_at(b, q) of
// horizontal[b] * grad at column q, or zero beyond the border.
template <int K, class A, int V, class At>
STYLEKERN_DEVICE void add_over_border(Vec<A, V>& grad_t, const StyleKernelConv& p, int64_t j, At hg_at) {
  constexpr int r = K / 2;
  if (j > r && j + V < p.w - r) return;
#pragma unroll
  for (int e = 0; e < V; ++e)
    for_each_source(j + e, p.w, r, r, p.padding, [&](int64_t q) {
      if (q >= 0 && q < p.w) return;  // not over the border
#pragma unroll
      for (int b = 0; b < K; ++b)
        if (b != r) grad_t[e] += hg_at(b, q + r - b);
    });
}

// t at V columns from j on, which are a thread's own, and at r more on each side, from where `t_own` lies in shared
// memory.
template <int r, class A, int V>
STYLEKERN_DEVICE void window_of(A (&window)[V + 2 * r], const StyleKernelConv& p, int64_t j, const Vec<A, V>& t,
                                const A* t_own) {
#pragma unroll
  for (int e = 0; e < V + 2 * r; ++e) {
    const int64_t q = border_index(j + e - r, p.w, p.padding);
    window[e] = e >= r && e < V + r ? t[e - r] : q < 0 ? A(0) : t_own[q - j];
  }
}

inline constexpr int kValueThreads = 256;  // of the kernels that own one value a thread

template <class T>
__global__ void __launch_bounds__(kValueThreads, 2)
    style_kernel_conv_bwd_rows_kernel(StyleKernelConv p, Tiling tiling, Channels by, Backward<T> d) {
  using A = Acc<T>;
  for (int64_t tile = blockIdx.x; tile < tiling.tiles(); tile += gridDim.x) {
    const Place at = place<1>(tiling, tile, p.h, p.w);
    if (!at.owns) continue;
    int64_t n = at.plane;
    const int64_t c = by.channels.split(n), g = by.per_group.quotient(c);
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
      for_each_source(at.j, p.w, p.rh(), p.rh(), p.padding, [&](int64_t q) {
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
__global__ void __launch_bounds__(kValueThreads, 2)
    style_kernel_conv_bwd_taps_kernel(StyleKernelConv p, Tiling tiling, Channels by, Backward<T> d) {
  using A = Acc<T>;
  for (int64_t tile = blockIdx.x; tile < tiling.tiles(); tile += gridDim.x) {
    const Place at = place<1>(tiling, tile, p.h, p.w);
    if (!at.owns) continue;
    int64_t n = at.plane;
    const int64_t g = by.groups.split(n), first = g * by.per_group.value, last = first + by.per_group.value;
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
__global__ void __launch_bounds__(kValueThreads, 2)
    style_kernel_conv_bwd_input_kernel(StyleKernelConv p, Tiling tiling, Channels by, Backward<T> d) {
  using A = Acc<T>;
  for (int64_t tile = blockIdx.x; tile < tiling.tiles(); tile += gridDim.x) {
    const Place at = place<1>(tiling, tile, p.h, p.w);
    if (!at.owns) continue;
    int64_t n = at.plane;
    const int64_t g = by.per_group.quotient(by.channels.split(n));
    const T* v = filter_at(d.vertical, p.vertical, n, g, 0, at.j);
    const A* grad_t = d.grad_t + at.plane * p.h * p.w + at.j;
    // grad_x[i',j] = sum over (i,a) with pad(i+a-rv) = i' of vertical[a,i,j] * grad_t[i,j]
    A grad_x = 0;
    for_each_source(at.i, p.h, p.rv(), p.rv(), p.padding, [&](int64_t q) {
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
__global__ void __launch_bounds__(kValueThreads, 2)
    style_kernel_conv_outer_bwd_taps_kernel(StyleKernelConv p, Tiling tiling, Channels by, Backward<T> d) {
  using A = Acc<T>;
  const int ov = origin(p, p.rv()), oh = origin(p, p.rh());
  for (int64_t tile = blockIdx.x; tile < tiling.tiles(); tile += gridDim.x) {
    const Place at = place<1>(tiling, tile, p.h, p.w);
    if (!at.owns) continue;
    int64_t n = at.plane;
    const int64_t g = by.groups.split(n), first = g * by.per_group.value, last = first + by.per_group.value;
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
__global__ void __launch_bounds__(kValueThreads, 2)
    style_kernel_conv_outer_bwd_input_kernel(StyleKernelConv p, Tiling tiling, Channels by, Backward<T> d) {
  using A = Acc<T>;
  const int ov = origin(p, p.rv()), oh = origin(p, p.rh());
  for (int64_t tile = blockIdx.x; tile < tiling.tiles(); tile += gridDim.x) {
    const Place at = place<1>(tiling, tile, p.in_h, p.in_w);
    if (!at.owns) continue;
    int64_t n = at.plane;
    const int64_t c = by.channels.split(n), g = by.per_group.quotient(c);
    // grad_x[i',j'] = sum over (i,a) with pad(i+a-rv) = i' and (j,b) with pad(j+b-rh) = j'
    //                 of vertical[a,i,j] * horizontal[b,i,j] * grad[i,j]
    A grad_x = 0;
    for_each_source(at.i, p.in_h, p.rv(), p.rv(), p.padding, [&](int64_t qi) {
      for (int a = 0; a < p.kv; ++a) {
        const int64_t i = qi + ov - a;
        if (i < 0 || i >= p.h) continue;
        const T* v = filter_at(d.vertical, p.vertical, n, g, i, 0) + a * p.vertical.tap;
        const T* h = filter_at(d.horizontal, p.horizontal, n, g, i, 0);
        const T* grad = grad_at(p, d.grad, n, c, i);
        for_each_source(at.j, p.in_w, p.rh(), p.rh(), p.padding, [&](int64_t qj) {
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

}  // namespace stylekern::cuda

// style_kernel_conv backward on CUDA, sequential, 3 taps each way, a filter for each channel.
//
// style_kernel_conv_bwd_strip_kernel walks down strips of rows. The lanes of a strip cover a row, V columns each, and
// exchange what neighbouring columns share by shuffles. A row of x is read once and kept for the next two; what a row
// gives to the gradients of the rows above and below it waits in registers. Only the rows next to a strip are read by
// two of them.
#pragma once
#include "style_kernel_conv_backward_passes.cuh"

namespace stylekern::cuda {

inline constexpr int kStripThreads = 128;

// How strips cut [planes, h, w]. `lanes`, a power of two up to 32, cover `lanes` vectors of a row; where a row has
// more, the first and the last lane belong to the neighbouring strips.
struct Strips {
  int lanes, halo, rows;
  int64_t planes, count_y, count_x;
  Divisor by_y, by_x;

  STYLEKERN_HD int64_t count() const { return planes * count_y * count_x; }
};

// The fewer rows a strip has, the more warps there are, and the more rows are read twice.
inline Strips make_strips(int64_t planes, int64_t h, int64_t w, int v) {
  const int64_t vectors = w / v;
  Strips s{};
  s.planes = planes;
  s.lanes = 1;
  while (s.lanes < 32 && s.lanes < vectors) s.lanes *= 2;
  s.halo = vectors > 32;
  const int64_t own = s.lanes - 2 * s.halo;
  s.count_x = (vectors + own - 1) / own;
  for (s.rows = 16;; s.rows /= 2) {
    s.count_y = (h + s.rows - 1) / s.rows;
    if (s.rows == 4 || s.count() * s.lanes / 32 >= 2048) break;
  }
  s.by_y = Divisor(s.count_y), s.by_x = Divisor(s.count_x);
  return s;
}

// Of neighbouring lanes. Between strips too, where nothing reads it.
template <class A>
STYLEKERN_DEVICE A from_left(A x) {
  return __shfl_up_sync(0xffffffff, x, 1);
}
template <class A>
STYLEKERN_DEVICE A from_right(A x) {
  return __shfl_down_sync(0xffffffff, x, 1);
}

template <class T, int V>
__global__ void __launch_bounds__(kStripThreads, std::is_same_v<T, double> ? 2 : 4)
    style_kernel_conv_bwd_strip_kernel(StyleKernelConv p, Strips s, Channels by, Backward<T> d) {
  using A = Acc<T>;
  const bool reflect = p.padding == Padding::kReflect, replicate = p.padding == Padding::kReplicate;
  const int lane = threadIdx.x & (s.lanes - 1), strips = kStripThreads / s.lanes;
  // All lanes of a warp go through the same steps, so that every shuffle meets all of them.
  for (int64_t first = int64_t(blockIdx.x) * strips; first < s.count(); first += int64_t(gridDim.x) * strips) {
    int64_t plane = first + threadIdx.x / s.lanes;
    const bool exists = plane < s.count();
    const int64_t strip_x = s.by_x.split(plane), top = s.by_y.split(plane) * s.rows;
    const int64_t bottom = top + s.rows < p.h ? top + s.rows : p.h;
    const int64_t j = (strip_x * (s.lanes - 2 * s.halo) - s.halo + lane) * V;
    const bool inside = exists && j >= 0 && j < p.w, leftmost = j == 0, rightmost = j + V == p.w;
    const bool owns = inside && lane >= s.halo && lane < s.lanes - s.halo;
    int64_t n = plane;
    const int64_t c = by.channels.split(n);
    const Plane<T> x = exists ? input_plane(p, d.input, d.mean, d.rstd, n, c) : Plane<T>{d.input, 0, A(0), A(1)};

    Vec<A, V> above = zeros<A, V>(), here = above, grad_above = above, grad_here = above;
    if (inside) above = x.template row<V>(border_index(top - 1, p.h, p.padding), j), here = x.template row<V>(top, j);
    for (int64_t i = top - 1; i <= top + s.rows; ++i) {
      const bool there = inside && i >= 0 && i < p.h && i <= bottom, own = there && i >= top && i < bottom;
      Vec<A, V> v[3] = {zeros<A, V>(), zeros<A, V>(), zeros<A, V>()}, hg[3] = {v[0], v[0], v[0]};
      Vec<A, V> grad = v[0], below = v[0], t = v[0];
      if (there) {
        const T* filter = filter_at(d.vertical, p.vertical, n, c, i, j);
        if (i >= top) v[0] = to_acc(load<V>(filter));
        if (own) v[1] = to_acc(load<V>(filter + p.vertical.tap));
        if (i < bottom || i == p.h - 1) v[2] = to_acc(load<V>(filter + 2 * p.vertical.tap));
        if (own) below = x.template row<V>(border_index(i + 1, p.h, p.padding), j);
        grad = to_acc(load<V>(grad_at(p, d.grad, n, c, i) + j));
        filter = filter_at(d.horizontal, p.horizontal, n, c, i, j);
#pragma unroll
        for (int b = 0; b < 3; ++b) add_product(hg[b], to_acc(load<V>(filter + b * p.horizontal.tap)), grad);
      }
      if (own) add_product(t, v[0], above), add_product(t, v[1], here), add_product(t, v[2], below);

      // The t next to these columns, and what their taps give to the gradient of t in these.
      A t_left = from_left(t[V - 1]), t_right = from_right(t[0]);
      const A t_from_left = t_left, t_from_right = t_right;
      const A hg_left = from_left(hg[2][V - 1]), hg_right = from_right(hg[0][0]);
      // grad_t[i,j'] = sum over (j,b) with pad(j+b-1) = j' of horizontal[b,i,j] * grad[i,j]
      Vec<A, V> grad_t = hg[1];
#pragma unroll
      for (int e = 0; e < V; ++e) {
        grad_t[e] += e + 1 < V ? hg[0][e + 1] : rightmost ? A(0) : hg_right;
        grad_t[e] += e > 0 ? hg[2][e - 1] : leftmost ? A(0) : hg_left;
      }
      if (leftmost && replicate) grad_t[0] += hg[0][0], t_left = t[0];
      if (rightmost && replicate) grad_t[V - 1] += hg[2][V - 1], t_right = t[V - 1];
      if constexpr (V > 1) {
        if (leftmost && reflect) grad_t[1] += hg[0][0], t_left = t[1];
        if (rightmost && reflect) grad_t[V - 2] += hg[2][V - 1], t_right = t[V - 2];
      } else {
        const A hg_first = from_left(hg[0][0]), hg_last = from_right(hg[2][0]);
        if (j == 1 && reflect) grad_t[0] += hg_first;
        if (j == p.w - 2 && reflect) grad_t[0] += hg_last;
        if (leftmost && reflect) t_left = t_from_right;
        if (rightmost && reflect) t_right = t_from_left;
      }
      if (leftmost && !reflect && !replicate) t_left = A(0);
      if (rightmost && !reflect && !replicate) t_right = A(0);

      if (own && owns) {
        const int64_t offset = tap_offset(p, 3, plane, i, j);
        if (d.grad_vertical) {
          // grad_v[a,i,j] = grad_t[i,j] * x[pad(i+a-1), j]
#pragma unroll
          for (int a = 0; a < 3; ++a) {
            Vec<A, V> y = zeros<A, V>();
            add_product(y, grad_t, a == 0 ? above : a == 1 ? here : below);
            store_as(d.grad_vertical + offset + a * p.h * p.w, y);
          }
        }
        if (d.grad_horizontal) {
          // grad_h[b,i,j] = grad[i,j] * t[i, pad(j+b-1)]
#pragma unroll
          for (int b = 0; b < 3; ++b) {
            Vec<A, V> y;
#pragma unroll
            for (int e = 0; e < V; ++e) {
              const int q = e + b - 1;
              y[e] = grad[e] * (q < 0 ? t_left : q < V ? t[q] : t_right);
            }
            store_as(d.grad_horizontal + offset + b * p.h * p.w, y);
          }
        }
      }

      // grad_x[i',j] = sum over (i,a) with pad(i+a-1) = i' of vertical[a,i,j] * grad_t[i,j]
      Vec<A, V> grad_below = zeros<A, V>();
      add_product(grad_here, v[1], grad_t);
      if (i > 0) add_product(grad_above, v[0], grad_t);
      if (i == 0 && reflect) add_product(grad_below, v[0], grad_t);
      if (i == 0 && replicate) add_product(grad_here, v[0], grad_t);
      if (i < p.h - 1) add_product(grad_below, v[2], grad_t);
      if (i == p.h - 1 && reflect) add_product(grad_above, v[2], grad_t);
      if (i == p.h - 1 && replicate) add_product(grad_here, v[2], grad_t);
      if (owns && d.grad_input && i > top && i <= bottom) store_grad_x(d, (plane * p.h + i - 1) * p.w + j, grad_above);
      grad_above = grad_here, grad_here = grad_below;
      if (i >= top) above = here, here = below;
    }
  }
}

// Whether strips serve.
inline bool in_strips(const StyleKernelConv& p) {
  return p.composition == Composition::kSequential && p.kv == 3 && p.kh == 3 && p.groups == p.c;
}

template <class T, int V>
cudaError_t style_kernel_conv_backward_strips(const StyleKernelConv& p, const Backward<T>& d, cudaStream_t stream) {
  const Strips s = make_strips(p.n * p.c, p.h, p.w, V);
  const int64_t strips = kStripThreads / s.lanes;
  const auto kernel = style_kernel_conv_bwd_strip_kernel<T, V>;
  STYLEKERN_LAUNCH(kernel, grid_of((s.count() + strips - 1) / strips), kStripThreads, 0, stream, p, s, Channels(p), d);
  return cudaGetLastError();
}

}  // namespace stylekern::cuda

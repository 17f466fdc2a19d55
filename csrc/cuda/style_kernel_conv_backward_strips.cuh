// style_kernel_conv backward on CUDA, sequential, 3 or 5 taps each way, a filter for each channel.
//
// style_kernel_conv_bwd_strip_kernel walks down strips of rows. The threads of a strip cover a row, V columns each. A
// row of x is read once and kept for the next K - 1; what a row gives to the gradients of the rows above and below it
// waits in registers. Only the rows next to a strip are read by two of them.
#pragma once
#include "style_kernel_conv_backward_passes.cuh"

namespace stylekern::cuda {

// Whether K taps reach no further than the next thread's V columns, and those that reach over the border no further
// than a thread's own. Then threads exchange by shuffles, and a warp has whole strips; else through shared memory, and
// a block has whole strips of any length.
template <int V, int K>
inline constexpr bool kShuffle = V > K / 2;
// 224 with the 72 registers that they need are four blocks of a multiprocessor; 256 would be three.
template <int V, int K>
inline constexpr int kStripThreads = kShuffle<V, K> ? 128 : 224;
template <class T, int V, int K>
inline constexpr int kStripBlocks = !std::is_same_v<T, double> ? 4
                                    : kShuffle<V, K>           ? 2
                                                               : 1;

// How strips cut [planes, h, w]. `threads` cover as many vectors of a row; where a row has more, `halo` of them at each
// end belong to the neighbouring strips.
struct Strips {
  int threads, halo, rows;
  int64_t planes, count_y, count_x;
  Divisor by_y, by_x;

  STYLEKERN_HD int64_t count() const { return planes * count_y * count_x; }
};

// The fewer rows a strip has, the more warps there are, and the more rows are read twice.
template <int V, int K>
Strips make_strips(int64_t planes, int64_t h, int64_t w) {
  const int64_t vectors = w / V, most = kShuffle<V, K> ? 32 : kStripThreads<V, K> / 2;
  Strips s{};
  s.planes = planes;
  s.halo = vectors > most ? (K / 2 + V - 1) / V : 0;
  s.count_x = (vectors + most - 2 * s.halo - 1) / (most - 2 * s.halo);
  s.threads = int((vectors + s.count_x - 1) / s.count_x) + 2 * s.halo;
  if (kShuffle<V, K>)  // a power of two
    while (s.threads & (s.threads - 1)) ++s.threads;
  for (s.rows = 16;; s.rows /= 2) {
    s.count_y = (h + s.rows - 1) / s.rows;
    if (s.rows == 4 || s.count() * s.threads / 32 >= 2048) break;
  }
  s.by_y = Divisor(s.count_y), s.by_x = Divisor(s.count_x);
  return s;
}

// Of neighbouring lanes. Between strips too, where nothing reads it.
template <class A>
STYLEKERN_DEVICE A from_left(A x) {
  return __shfl_up_sync(kAllLanes, x, 1);
}
template <class A>
STYLEKERN_DEVICE A from_right(A x) {
  return __shfl_down_sync(kAllLanes, x, 1);
}

// What V columns of a row, from column j on, take from those beside them, with hg[b] = h[b] * grad:
//
//   grad_t[j'] = sum over (j,b) with pad(j+b-r) = j' of hg[b,j]
//   window[e]  = t[pad(j+e-r)], of the V columns and r more on each side
template <class T, int V, int K>
struct BesideColumns {
  using A = Acc<T>;
  static constexpr int r = K / 2;
  Vec<A, V> grad_t;
  A window[V + 2 * r];

  static STYLEKERN_DEVICE Vec<A, V> product(const Vec<T, V>& h, const Vec<A, V>& grad) {
    Vec<A, V> hg = zeros<A, V>();
    add_product(hg, to_acc(h), grad);
    return hg;
  }

  // By shuffles: every lane of a warp comes here, and brings zeros where it has no row.
  STYLEKERN_DEVICE void shuffle(const StyleKernelConv& p, int64_t j, const Vec<T, V> (&h)[K], const Vec<A, V>& grad,
                                const Vec<A, V>& t) {
    static_assert(V > r);
    const bool leftmost = j == 0, rightmost = j + V == p.w;
    const bool reflect = p.padding == Padding::kReflect, replicate = p.padding == Padding::kReplicate;
    grad_t = zeros<A, V>();
#pragma unroll
    for (int b = 0; b < K; ++b) {
      const Vec<A, V> hg = product(h[b], grad);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const int from = e + r - b;
        if (from < 0) {
          const A left = from_left(hg[V + from]);
          grad_t[e] += leftmost ? A(0) : left;
        } else if (from >= V) {
          const A right = from_right(hg[from - V]);
          grad_t[e] += rightmost ? A(0) : right;
        } else {
          grad_t[e] += hg[from];
        }
      }
      // what the border rule maps to columns q from an end
#pragma unroll
      for (int q = 1; q <= r; ++q) {
        if (const int from = r - b - q; from >= 0) {
          if (leftmost && reflect) grad_t[q] += hg[from];
          if (leftmost && replicate) grad_t[0] += hg[from];
        }
        if (const int from = V - 1 + r - b + q; from < V) {
          if (rightmost && reflect) grad_t[V - 1 - q] += hg[from];
          if (rightmost && replicate) grad_t[V - 1] += hg[from];
        }
      }
    }
#pragma unroll
    for (int e = 0; e < V; ++e) window[r + e] = t[e];
#pragma unroll
    for (int q = 1; q <= r; ++q) {
      const A left = from_left(t[V - q]), right = from_right(t[q - 1]);
      window[r - q] = !leftmost ? left : reflect ? t[q] : replicate ? t[0] : A(0);
      window[r + V - 1 + q] = !rightmost ? right : reflect ? t[V - 1 - q] : replicate ? t[V - 1] : A(0);
    }
  }

  // Through K rows of the block in shared memory: t, then hg but for the middle tap. Every thread of the block comes
  // here: `there` with a row, and `owns` where that is not of the halo.
  STYLEKERN_DEVICE void share(const StyleKernelConv& p, int64_t j, const Vec<T, V> (&h)[K], const Vec<A, V>& grad,
                              const Vec<A, V>& t, A* shared, bool there, bool owns) {
    A* const t_own = shared + int(threadIdx.x) * V;
    const auto row = [&](int b) { return (b < r ? b + 1 : b) * int(blockDim.x) * V; };
    if (there) {
      store(t_own, t);
#pragma unroll
      for (int b = 0; b < K; ++b)
        if (b != r) store(t_own + row(b), product(h[b], grad));
    }
    __syncthreads();
    if (!owns) return;
    const auto hg_at = [&](int b, int64_t q) { return q < 0 || q >= p.w ? A(0) : t_own[row(b) + q - j]; };
    grad_t = product(h[r], grad);
#pragma unroll
    for (int b = 0; b < K; ++b)
#pragma unroll
      for (int e = 0; e < V; ++e)
        if (b != r) grad_t[e] += hg_at(b, j + e + r - b);
    add_over_border<K>(grad_t, p, j, hg_at);
    window_of<r>(window, p, j, t, t_own);
  }
};

template <class T, int V, int K>
__global__ void __launch_bounds__(kStripThreads<V, K>, kStripBlocks<T, V, K>)
    style_kernel_conv_bwd_strip_kernel(StyleKernelConv p, Strips s, Channels by, Backward<T> d) {
  using A = Acc<T>;
  constexpr int r = K / 2;
  STYLEKERN_SHARED(A, shared);  // two sets of K rows, which take turns
  const int strips = int(blockDim.x) / s.threads, own_strip = int(threadIdx.x) / s.threads;
  const int lane = int(threadIdx.x) - own_strip * s.threads;
  // All threads go through the same steps, so that every shuffle and barrier meets all of them.
  for (int64_t first = int64_t(blockIdx.x) * strips; first < s.count(); first += int64_t(gridDim.x) * strips) {
    int64_t plane = first + own_strip;
    const bool exists = own_strip < strips && plane < s.count();
    const int64_t strip_x = s.by_x.split(plane), top = s.by_y.split(plane) * s.rows;
    const int64_t bottom = top + s.rows < p.h ? top + s.rows : p.h;
    const int64_t j = (strip_x * (s.threads - 2 * s.halo) - s.halo + lane) * V;
    const bool inside = exists && j >= 0 && j < p.w;
    const bool owns = inside && lane >= s.halo && lane < s.threads - s.halo;
    int64_t n = plane;
    const int64_t c = by.channels.split(n);
    const Plane<T> x = exists ? input_plane(p, d.input, d.mean, d.rstd, n, c) : Plane<T>{d.input, 0, A(0), A(1)};

    Vec<A, V> xs[K], grad_x[K];  // of the rows [i - r, i + r]
#pragma unroll
    for (int a = 0; a < K; ++a) {
      xs[a] = grad_x[a] = zeros<A, V>();
      if (a > 0 && inside) xs[a] = x.template row<V>(border_index(top + a - 1 - r, p.h, p.padding), j);
    }
    for (int step = -r; step < s.rows + r; ++step) {
      const int64_t i = top + step;
      const bool there = inside && i >= 0 && i < p.h && i < bottom + r, own = there && step >= 0 && i < bottom;
      const bool edge = i < r || i >= p.h - r;
      Vec<T, V> v[K], h[K];
      Vec<A, V> grad = zeros<A, V>(), t = grad;
#pragma unroll
      for (int k = 0; k < K; ++k) v[k] = h[k] = Vec<T, V>{};
      if (there) {
        const T* filter = filter_at(d.vertical, p.vertical, n, c, i, j);
#pragma unroll
        for (int a = 0; a < K; ++a)
          if (own || edge || (i + a - r >= top && i + a - r < bottom)) v[a] = load<V>(filter + a * p.vertical.tap);
        filter = filter_at(d.horizontal, p.horizontal, n, c, i, j);
#pragma unroll
        for (int b = 0; b < K; ++b) h[b] = load<V>(filter + b * p.horizontal.tap);
        grad = to_acc(load<V>(grad_at(p, d.grad, n, c, i) + j));
      }
      if (own) {
#pragma unroll
        for (int a = 0; a + 1 < K; ++a) xs[a] = xs[a + 1];
        xs[K - 1] = x.template row<V>(border_index(i + r, p.h, p.padding), j);
#pragma unroll
        for (int a = 0; a < K; ++a) add_product(t, to_acc(v[a]), xs[a]);
      }
      BesideColumns<T, V, K> beside;
      if constexpr (kShuffle<V, K>)
        beside.shuffle(p, j, h, grad, t);
      else
        beside.share(p, j, h, grad, t, shared + (step & 1) * K * int(blockDim.x) * V, there, there && owns);

      if (own && owns) {
        const int64_t offset = tap_offset(p, K, plane, i, j);
        if (d.grad_vertical) {
          // grad_v[a,i,j] = grad_t[i,j] * x[pad(i+a-r), j]
#pragma unroll
          for (int a = 0; a < K; ++a) {
            Vec<A, V> y = zeros<A, V>();
            add_product(y, beside.grad_t, xs[a]);
            store_as(d.grad_vertical + offset + a * p.h * p.w, y);
          }
        }
        if (d.grad_horizontal) {
          // grad_h[b,i,j] = grad[i,j] * t[i, pad(j+b-r)]
#pragma unroll
          for (int b = 0; b < K; ++b) {
            Vec<A, V> y;
#pragma unroll
            for (int e = 0; e < V; ++e) y[e] = grad[e] * beside.window[b + e];
            store_as(d.grad_horizontal + offset + b * p.h * p.w, y);
          }
        }
      }

      // grad_x[i',j] = sum over (i,a) with pad(i+a-r) = i' of vertical[a,i,j] * grad_t[i,j]
      if (there && edge) {
#pragma unroll
        for (int a = 0; a < K; ++a) {
          const int64_t to = border_index(i + a - r, p.h, p.padding);
#pragma unroll
          for (int k = 0; k < K; ++k)
            if (to >= 0 && to == i + k - r) add_product(grad_x[k], to_acc(v[a]), beside.grad_t);
        }
      } else if (there) {
#pragma unroll
        for (int a = 0; a < K; ++a) add_product(grad_x[a], to_acc(v[a]), beside.grad_t);
      }
      if (owns && d.grad_input && step >= r && i - r < bottom)
        store_grad_x(d, (plane * p.h + i - r) * p.w + j, grad_x[0]);
#pragma unroll
      for (int a = 0; a + 1 < K; ++a) grad_x[a] = grad_x[a + 1];
      grad_x[K - 1] = zeros<A, V>();
    }
    if constexpr (!kShuffle<V, K>) __syncthreads();  // the next strips write to both sets
  }
}

// Whether strips serve.
inline bool in_strips(const StyleKernelConv& p) {
  return p.composition == Composition::kSequential && p.kv == p.kh && (p.kv == 3 || p.kv == 5) && p.groups == p.c;
}

template <class T, int V, int K>
cudaError_t style_kernel_conv_backward_strips(const StyleKernelConv& p, const Backward<T>& d, cudaStream_t stream) {
  const Strips s = make_strips<V, K>(p.n * p.c, p.h, p.w);
  const int strips = kStripThreads<V, K> / s.threads, threads = (strips * s.threads + 31) / 32 * 32;
  const size_t shared = kShuffle<V, K> ? 0 : sizeof(Acc<T>) * 2 * K * V * threads;
  const auto kernel = style_kernel_conv_bwd_strip_kernel<T, V, K>;
  STYLEKERN_LAUNCH(kernel, grid_of((s.count() + strips - 1) / strips), threads, shared, stream, p, s, Channels(p), d);
  return cudaGetLastError();
}

}  // namespace stylekern::cuda

// adaconv backward on CUDA. Every gradient is gathered in a fixed order: there are no atomics, and the same input gives
// the same bits. Depthwise planes that a block holds go to adaconv_depthwise_backward.cuh.
//
//   adaconv_fwd_kernel        the gradient of the padded x: a correlation of g with the kernels turned by 180 degrees,
//                             in and out exchanged; adaconv_direct_kernel, for the positions that the border rule
//                             mirrors, adds up all that it maps there. Then instance_norm_bwd_kernel.
//   adaconv_bwd_taps_kernel   that of the kernel: a block sums over some rows, for one input and OC output channels
//                             of a group and all taps, in registers and then over its threads. A thread moves
//                             three rows of x down a strip.
//   adaconv_bwd_sum_kernel    where several blocks share the rows: adds their sums in order.
//   adaconv_bwd_bias_kernel   that of the bias, a block a plane.
//
// Fewest bytes, values a value of x, with as many channels out as in: g and x once, grad_input: 3, and 3 more through
// the normalisation. Here g is read once more for the kernel's gradient, and once a further input channel of the group.
#pragma once
#include <utility>

#include "adaconv.cuh"
#include "adaconv_depthwise_backward.cuh"

namespace stylekern::cuda {

// How blocks share the sums over positions. It follows from the sizes alone, so that results do.
struct TapSplit {
  int64_t parts, rows;  // of h, in each part
};

inline int tap_outputs(const AdaConv& p) {
  return p.kh != 3 || p.kw != 3 || p.group_out() < 2 ? 1 : p.group_out() == 2 ? 2 : 4;
}

// Enough blocks for any GPU, each with enough positions to be worth its reduction.
inline TapSplit tap_split(const AdaConv& p) {
  const int64_t outputs = tap_outputs(p), chunks = (p.group_out() + outputs - 1) / outputs;
  const int64_t blocks = p.n * p.groups * chunks * p.group_in(), wanted = (1024 + blocks - 1) / blocks;
  const int64_t most = p.h * p.w / 4096 < p.h ? p.h * p.w / 4096 : p.h;
  const int64_t parts = wanted < most ? wanted : most > 0 ? most : 1, rows = (p.h + parts - 1) / parts;
  return {(p.h + rows - 1) / rows, rows};
}

template <class T, int V, int OC, int K>
__global__ void __launch_bounds__(kAdaConvThreads, OC > 2 ? 1 : 2)
    adaconv_bwd_taps_kernel(AdaConv p, TapSplit split, const T* __restrict__ grad, const T* __restrict__ input,
                            const Acc<T>* __restrict__ mean, const Acc<T>* __restrict__ rstd,
                            Acc<T>* __restrict__ sums_out) {
  using A = Acc<T>;
  constexpr int taps = K > 0 ? K * K : 1;  // at a time
  STYLEKERN_SHARED(A, shared);             // 16 a warp and output channel
  const int thread = threadIdx.y * blockDim.x + threadIdx.x, warps = blockDim.x * blockDim.y / 32;
  const int64_t in = p.group_in(), out = p.group_out(), chunks = (out + OC - 1) / OC, all_taps = int64_t(p.kh) * p.kw;
  const int64_t blocks = p.n * p.groups * chunks * in * split.parts;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t part = block % split.parts, rest = block / split.parts, m = rest % in;
    const int64_t first_out = rest / in % chunks * OC, ng = rest / in / chunks, n = ng / p.groups, g = ng % p.groups;
    const Plane<T> x = normalized_plane(input, p.input, p.c, n, g * in + m, mean, rstd);
    const int64_t first = part * split.rows, last = first + split.rows < p.h ? first + split.rows : p.h;
    const T* gs[OC];
#pragma unroll
    for (int o = 0; o < OC; ++o) {
      const int64_t channel = first_out + o < out ? first_out + o : out - 1;  // summed again, and not written
      gs[o] = grad + n * p.grad.n + (g * out + channel) * p.grad.p;
    }
    for (int64_t tap = 0; tap < all_taps; tap += taps) {
      // grad_kernel[o,m,a,b] = sum over i, j of g[o,i,j] * x[m, pad(i + a - top), pad(j + b - left)]
      Vec<A, 16> sums[OC];
#pragma unroll
      for (int o = 0; o < OC; ++o) sums[o] = zeros<A, 16>();
      const int64_t strip = (last - first + blockDim.y - 1) / blockDim.y;  // rows of a thread
      const int64_t start = first + threadIdx.y * strip, end = start + strip < last ? start + strip : last;
      for (int64_t j = int64_t(threadIdx.x) * V; j < p.w; j += int64_t(blockDim.x) * V) {
        if constexpr (K > 0) {
          constexpr int r = K / 2;
          A window[K][V + K - 1];  // of rows that move on
          const auto fetch = [&](A(&to)[V + K - 1], int64_t q) {
            const int64_t row = border_index(q, p.h, p.padding);
            const Vec<A, V> own = x.template row<V>(row, j);
#pragma unroll
            for (int e = 0; e < V + K - 1; ++e)
              to[e] = e >= r && e < V + r ? own[e - r] : x.at(row, border_index(j + e - r, p.w, p.padding));
          };
          if (start < end)
#pragma unroll
            for (int a = 1; a < K; ++a) fetch(window[a], start + a - 1 - r);
#pragma unroll(OC > 1 ? 1 : 3)
          for (int64_t i = start; i < end; ++i) {
#pragma unroll
            for (int a = 1; a < K; ++a)
#pragma unroll
              for (int e = 0; e < V + K - 1; ++e) window[a - 1][e] = window[a][e];
            fetch(window[K - 1], i + K - 1 - r);
#pragma unroll
            for (int o = 0; o < OC; ++o) {
              const Vec<A, V> values = to_acc(load<V>(gs[o] + i * p.grad.row + j));
#pragma unroll
              for (int a = 0; a < K; ++a)
#pragma unroll
                for (int b = 0; b < K; ++b)
#pragma unroll
                  for (int e = 0; e < V; ++e) sums[o][a * K + b] += values[e] * window[a][e + b];
            }
          }
        } else {
          for (int64_t i = start; i < end; ++i) {
            const int64_t row = border_index(i + tap / p.kw - p.top(), p.h, p.padding);
            const A value = x.at(row, border_index(j + tap % p.kw - p.left(), p.w, p.padding));
#pragma unroll
            for (int o = 0; o < OC; ++o) sums[o][0] += to_acc(gs[o][i * p.grad.row + j]) * value;
          }
        }
      }
#pragma unroll
      for (int o = 0; o < OC; ++o) {
        const A sum = sum_warp(sums[o], thread);
        if (thread % 2 == 0) shared[(thread / 32 * OC + o) * 16 + thread % 32 / 2] = sum;
      }
      __syncthreads();
      for (int k = thread; k < OC * taps; k += blockDim.x * blockDim.y) {
        const int o = k / taps, t = k % taps;
        A sum = 0;
        for (int warp = 0; warp < warps; ++warp) sum += shared[(warp * OC + o) * 16 + t];
        const int64_t row = part * p.n * p.out_c * in + (ng * out + first_out + o) * in + m;
        if (first_out + o < out) sums_out[row * all_taps + tap + t] = sum;
      }
      __syncthreads();  // `shared` may be written again
    }
  }
}

template <class A>
__global__ void __launch_bounds__(kAdaConvThreads)
    adaconv_bwd_sum_kernel(int64_t parts, int64_t count, const A* __restrict__ sums, A* __restrict__ total) {
  for (int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; k < count; k += int64_t(gridDim.x) * blockDim.x) {
    A sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += sums[part * count + k];
    total[k] = sum;
  }
}

// grad_bias[o] = sum over i, j of g[o,i,j]
template <class T, int V>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneBlocks<T>)
    adaconv_bwd_bias_kernel(Planes p, const T* __restrict__ grad, Acc<T>* __restrict__ grad_bias) {
  using A = Acc<T>;
  STYLEKERN_SHARED(A, shared);
  BlockSums<A, 1> sum_block(shared);
  for (int64_t plane = blockIdx.x; plane < p.n * p.c; plane += gridDim.x) {
    const T* g = grad + plane / p.c * p.x.n + plane % p.c * p.x.p;
    A sum = 0;
    for_each_vector<V, 2>(p.h, p.w, [&](int64_t i, int64_t j) {
      const Vec<A, V> values = to_acc(load<V>(g + i * p.x.row + j));
#pragma unroll
      for (int e = 0; e < V; ++e) sum += values[e];
    });
    sum = sum_block(sum);
    if (threadIdx.x == 0 && threadIdx.y == 0) grad_bias[plane] = sum;
  }
}

template <class T>
cudaError_t adaconv_bias_gradient(Planes p, const T* grad, Acc<T>* grad_bias, cudaStream_t stream) {
  if (p.n * p.c == 0) return cudaSuccess;
  if (gapless(p.h, p.w, p.x)) p.w *= p.h, p.h = 1, p.x.row = 0;
  return with_width<T>(p.w % kWide<T> == 0 && wide_rows(grad, p.x), [&](auto width) {
    constexpr int V = decltype(width)::value;
    const dim3 block = plane_block(p.h, p.w, V, kPlaneThreads);
    const auto kernel = adaconv_bwd_bias_kernel<T, V>;
    STYLEKERN_LAUNCH(kernel, grid_of(p.n * p.c), block, (BlockSums<Acc<T>, 1>::bytes(block.x * block.y)), stream, p,
                     grad, grad_bias);
    return cudaGetLastError();
  });
}

// `sums`: a workspace of parts * grad_kernel, where there are several parts.
template <class T>
cudaError_t adaconv_kernel_gradient(const AdaConv& p, const T* grad, const T* input, const Acc<T>* mean,
                                    const Acc<T>* rstd, Acc<T>* grad_kernel, Acc<T>* sums, cudaStream_t stream) {
  using A = Acc<T>;
  if (p.n * p.out_c * p.c == 0) return cudaSuccess;
  const TapSplit split = tap_split(p);
  const int64_t count = p.n * p.out_c * p.group_in() * p.kh * p.kw;
  const auto launch = [&](auto kernel, int v, int outputs) {
    const int64_t vectors = split.rows * ((p.w + v - 1) / v), chunks = (p.group_out() + outputs - 1) / outputs;
    int threads = 32;  // each with a few vectors, where there are enough
    while (threads < kAdaConvThreads && threads * 4 < vectors) threads *= 2;
    dim3 block = plane_block(split.rows, p.w, v, threads);
    while (block.x * block.y < 32) block.y *= 2;  // whole warps
    const unsigned blocks = grid_of(p.n * p.groups * chunks * p.group_in() * split.parts);
    STYLEKERN_LAUNCH(kernel, blocks, block, block.x * block.y / 32 * outputs * 16 * sizeof(A), stream, p, split, grad,
                     input, mean, rstd, split.parts > 1 ? sums : grad_kernel);
    return cudaGetLastError();
  };
  const bool wide = p.w % kWide<T> == 0 && wide_rows(grad, p.grad) && wide_rows(input, p.input);
  const cudaError_t error = with_width<T>(wide, [&](auto width) {
    constexpr int V = decltype(width)::value;
    if (p.kh != 3 || p.kw != 3) return launch(adaconv_bwd_taps_kernel<T, 1, 1, 0>, 1, 1);
    const int outputs = tap_outputs(p);
    return outputs == 4   ? launch(adaconv_bwd_taps_kernel<T, V, 4, 3>, V, 4)
           : outputs == 2 ? launch(adaconv_bwd_taps_kernel<T, V, 2, 3>, V, 2)
                          : launch(adaconv_bwd_taps_kernel<T, V, 1, 3>, V, 1);
  });
  if (error != cudaSuccess || split.parts == 1) return error;
  const auto kernel = adaconv_bwd_sum_kernel<A>;
  STYLEKERN_LAUNCH(kernel, grid_of((count + kAdaConvThreads - 1) / kAdaConvThreads), kAdaConvThreads, 0, stream,
                   split.parts, count, sums, grad_kernel);
  return cudaGetLastError();
}

// Values of the accumulation type that the backward needs beside its outputs: the gradient of the normalised x where
// grad_input cannot hold it, and the sums of the blocks that share the kernel's gradient.
template <class T>
struct AdaConvWorkspace {
  int64_t grad_x = 0, sums = 0;
  AdaConvWorkspace(const AdaConv& p, bool normalize, bool need_input, bool need_kernel) {
    if (depthwise_backward_fits<T>(p)) return;
    if (normalize && need_input && !std::is_same_v<T, Acc<T>>) grad_x = p.n * p.c * p.h * p.w;
    if (!need_kernel || p.n * p.out_c * p.c * p.h * p.w == 0) return;
    const int64_t parts = tap_split(p).parts;
    if (parts > 1) sums = parts * p.n * p.out_c * p.group_in() * p.kh * p.kw;
  }
  int64_t values() const { return grad_x + sums; }
};

// Writes the gradients, contiguous, that are not null; that of the kernel where there are positions. mean and rstd: as
// the forward gave them, null without normalisation. The workspace starts on 16 bytes.
template <class T>
cudaError_t adaconv_backward(const AdaConv& p, const T* grad, const T* input, const Acc<T>* kernel, const Acc<T>* mean,
                             const Acc<T>* rstd, T* grad_input, Acc<T>* grad_kernel, Acc<T>* grad_bias,
                             Acc<T>* workspace, int64_t correction, cudaStream_t stream) {
  using A = Acc<T>;
  if (depthwise_backward_fits<T>(p))
    return depthwise_backward<T>(p,
                                 {unsigned(p.n * p.c), unsigned(p.c), int(p.h), int(p.w), p.padding, p.input, p.grad,
                                  grad, input, kernel, mean, rstd, grad_input, grad_kernel, grad_bias, correction},
                                 stream);
  const AdaConvWorkspace<T> plan(p, mean, grad_input, grad_kernel);
  if (grad_input && p.n * p.c * p.h * p.w > 0) {
    A* grad_x = nullptr;
    if constexpr (std::is_same_v<T, A>)
      grad_x = mean ? grad_input : nullptr;
    else
      grad_x = plan.grad_x ? workspace : nullptr;
    // grad_x[m,i',j'] = sum over (i,a) with pad(i + a - top) = i', (j,b) with pad(j + b - left) = j', and o
    //                   of kernel[o,m,a,b] * g[o,i,j]
    const int64_t taps = int64_t(p.kh) * p.kw;
    const Correlation x{p.n,
                        p.groups,
                        p.group_out(),
                        p.group_in(),
                        p.h,
                        p.w,
                        p.kh,
                        p.kw,
                        p.kh - 1 - p.top(),
                        p.kw - 1 - p.left(),
                        Padding::kZeros,
                        p.padding,
                        p.grad,
                        taps,
                        p.group_in() * taps,
                        true};
    cudaError_t error = correlate_planes<T>(
        x, {grad, nullptr, nullptr, kernel, nullptr, grad_x ? nullptr : grad_input, grad_x}, stream);
    if (error == cudaSuccess && mean)
      error = instance_norm_backward<T>({p.n, p.c, p.h, p.w, p.input}, grad_x, input, mean, rstd, grad_input,
                                        correction, stream);
    if (error != cudaSuccess) return error;
  }
  if (grad_kernel && p.h * p.w > 0) {
    const cudaError_t error =
        adaconv_kernel_gradient<T>(p, grad, input, mean, rstd, grad_kernel, workspace + plan.grad_x, stream);
    if (error != cudaSuccess) return error;
  }
  if (!grad_bias || p.h * p.w == 0) return cudaSuccess;
  return adaconv_bias_gradient<T>({p.n, p.out_c, p.h, p.w, p.grad}, grad, grad_bias, stream);
}

}  // namespace stylekern::cuda

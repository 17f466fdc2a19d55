// What a correlation of adaconv is, and the kernel that makes any of it.
//
//   adaconv_direct_kernel   A value a thread, straight from the caches: for kernels too large for shared memory, and in
//                           the backward for the positions that the border rule mirrors.
#pragma once
#include "../common/adaconv.h"
#include "instance_norm.cuh"

namespace stylekern::cuda {

// y[o,i,j] = bias[o] + sum over m, a, b of kernel[o,m,a,b] * x[m, pad(i + a - top), pad(j + b - left)] within a group,
// summed over the positions (i', j') of the padded y that `fold` maps to (i, j).
struct Correlation {
  int64_t n, groups, in, out;  // samples, groups, channels of a group
  int64_t h, w;
  int kh, kw, top, left;
  Padding padding, fold;
  PlaneStrides x;
  int64_t stride_out, stride_in;  // of the kernel, from channel to channel
  bool turned;                    // the kernel's taps run from the last to the first

  STYLEKERN_HD int taps() const { return kh * kw; }
  STYLEKERN_HD int64_t kernel_offset(int64_t ng, int64_t o, int64_t m, int tap) const {
    return ng * in * out * taps() + o * stride_out + m * stride_in + (turned ? taps() - 1 - tap : tap);
  }
};

// What a correlation reads and writes. Null: not given. One of y and y_acc is not null.
template <class T>
struct CorrelationData {
  const T* x;
  const Acc<T>*mean, *rstd;  // [N, C]
  const Acc<T>*kernel, *bias;
  T* y;
  Acc<T>* y_acc;

  template <int V>
  STYLEKERN_DEVICE void write(int64_t offset, const Vec<Acc<T>, V>& value) const {
    if (y_acc)
      store_global(y_acc + offset, value);
    else
      store_as(y + offset, value);
  }
};

inline constexpr int kAdaConvThreads = 256;

// Rows or columns of [0, size), as two ranges: [first[0], last[0]) and, behind it, [first[1], last[1]).
struct Range {
  int64_t first[2], last[2];

  STYLEKERN_HD int64_t count() const { return last[0] - first[0] + last[1] - first[1]; }
  STYLEKERN_HD int64_t nth(int64_t k) const {
    const int64_t in_first = last[0] - first[0];
    return k < in_first ? first[0] + k : first[1] + k - in_first;
  }
  STYLEKERN_HD int64_t nth_outside(int64_t k) const {
    if (k < first[0]) return k;
    k += last[0] - first[0];
    return k < first[1] ? k : k + last[1] - first[1];
  }
};

inline Range whole(int64_t size) { return {{0, size}, {size, size}}; }

// The positions that the border rule maps something else to than themselves, or a few more.
inline Range mirrored(int64_t size, int before, int after, Padding padding) {
  if (padding == Padding::kReplicate)
    return {{0, after > 0 && size > 1 ? size - 1 : size}, {size > 1 && before == 0 ? 0 : 1, size}};
  if (padding != Padding::kReflect || before + after == 0) return {{size, size}, {size, size}};
  const int64_t low = size - 1 - after, high = before + 1;  // [1, high) mirror the front, [low, size - 1) the back
  return low > high ? Range{{1, low}, {high, size - 1}} : whole(size);
}

// The positions in `rows`, and of the other rows those in `columns`.
struct Positions {
  Range rows, columns;
  int64_t in_rows, count;
  Divisor by_count, by_width, by_columns, by_out, by_groups;

  Positions(const Correlation& p, const Range& of_rows, const Range& of_columns)
      : rows(of_rows),
        columns(of_columns),
        in_rows(rows.count() * p.w),
        count(in_rows + (p.h - rows.count()) * columns.count()),
        by_count(count),
        by_width(p.w),
        by_columns(columns.count()),
        by_out(p.out),
        by_groups(p.groups) {}
};

// Of a kernel of 3 taps: the positions that the border rule maps to `index`, which are itself, one before the picture,
// and one behind it. Returns whether there is such a one.
STYLEKERN_DEVICE bool source_of_three(int64_t index, int64_t size, int which, Padding padding, int64_t& q) {
  const int64_t inner = padding == Padding::kReflect ? 1 : 0;  // from the border to what is read beyond it
  q = which == 0 ? index : which == 1 ? -1 : size;
  if (which == 0) return true;
  return padding != Padding::kZeros && index == (which == 1 ? inner : size - 1 - inner);
}

// Of 3 x 3 taps all are on their way at once.
template <class T, int K>
__global__ void __launch_bounds__(kAdaConvThreads, 2)
    adaconv_direct_kernel(Correlation p, Positions s, CorrelationData<T> d) {
  using A = Acc<T>;
  const int kh = K > 0 ? K : p.kh, kw = K > 0 ? K : p.kw, taps = kh * kw;
  const int64_t total = p.n * p.groups * p.out * s.count, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; k < total; k += step) {
    int64_t channel = k, i, j;
    const int64_t position = s.by_count.split(channel);
    if (position < s.in_rows) {
      i = position, j = s.by_width.split(i), i = s.rows.nth(i);
    } else {
      i = position - s.in_rows, j = s.columns.nth(s.by_columns.split(i)), i = s.rows.nth_outside(i);
    }
    int64_t ng = channel, n;
    const int64_t o = s.by_out.split(ng);
    n = ng;
    const int64_t g = s.by_groups.split(n);
    A sum = d.bias ? d.bias[channel] : A(0);
    for (int64_t m = 0; m < p.in; ++m) {
      const Plane<T> x = normalized_plane(d.x, p.x, p.groups * p.in, n, g * p.in + m, d.mean, d.rstd);
      const A* kernel = d.kernel + p.kernel_offset(ng, o, m, 0);
      const int next = p.turned ? -1 : 1;
      const auto add = [&](int64_t qi, int64_t qj) {
#pragma unroll(K > 0 ? K * K : 1)
        for (int tap = 0; tap < taps; ++tap) {
          const int64_t row = border_index(qi + tap / kw - p.top, p.h, p.padding);
          const A value = x.at(row, border_index(qj + tap % kw - p.left, p.w, p.padding));
          sum += row >= 0 ? kernel[tap * next] * value : A(0);
        }
      };
      if constexpr (K == 3) {
#pragma unroll 1
        for (int which = 0; which < 9; ++which) {
          int64_t qi, qj;
          if (source_of_three(i, p.h, which / 3, p.fold, qi) && source_of_three(j, p.w, which % 3, p.fold, qj))
            add(qi, qj);
        }
      } else {
        for_each_source(i, p.h, kh / 2, (kh - 1) / 2, p.fold, [&](int64_t qi) {
          for_each_source(j, p.w, kw / 2, (kw - 1) / 2, p.fold, [&](int64_t qj) { add(qi, qj); });
        });
      }
    }
    d.write((channel * p.h + i) * p.w + j, Vec<A, 1>{sum});
  }
}

template <class T, int K>
cudaError_t correlate_directly(const Correlation& p, const Range& rows, const Range& columns,
                               const CorrelationData<T>& d, cudaStream_t stream) {
  const Positions positions(p, rows, columns);
  const int64_t values = p.n * p.groups * p.out * positions.count;
  if (values == 0) return cudaSuccess;
  const auto kernel = adaconv_direct_kernel<T, K>;
  STYLEKERN_LAUNCH(kernel, grid_of((values + kAdaConvThreads - 1) / kAdaConvThreads), kAdaConvThreads, 0, stream, p,
                   positions, d);
  return cudaGetLastError();
}

}  // namespace stylekern::cuda

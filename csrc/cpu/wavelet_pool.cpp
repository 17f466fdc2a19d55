// wavelet_pool on the CPU: the torch side. The kernels are in wavelet_pool.h.
#include "dtypes.h"
#include "wavelet_pool_cpu.h"

#define STYLEKERN_KERNELS "wavelet_pool_target.h"
#include "foreach_target.h"
#include "parallel.h"

namespace stylekern {
namespace {

// Whether results that are not streamed bypass the caches by way of blocks. Zen 4, AVX-512 and AVX2: 0.7 to 1.1 of the
// time with bands of 256 to 2,048 bytes a row, 0.9 to 1.3 with 180; with 8 KiB, unpooling takes 1.1 to 1.2. With 16-bit
// values, 1 to 1.3.
template <class T>
bool worth_runs(const WaveletPool& p, int64_t bytes) {
  const int64_t row = p.band_w * int64_t(sizeof(T));
  return sizeof(T) >= 4 && row >= 256 && row <= 2048 && worth_a_run(bytes);
}

}  // namespace

Bands wavelet_pool_cpu(const Tensor& given, OddRule odd) {
  const Tensor picture = with_dense_rows(given);
  const WaveletPool p = make_pooling(picture, odd);
  Bands result = empty_bands(p, picture);
  if (result[0].numel() == 0) return result;
  with_dtype(picture, [&](auto type) {
    using T = decltype(type);
    const T* const from = data<T>(picture);
    T* to[4];
    for (int k = 0; k < 4; ++k) to[k] = mutable_data<T>(result[size_t(k)]);
    const int64_t bytes = 2 * picture.numel() * int64_t(sizeof(T));
    bool streamed = streams_whole_lines();  // to four bands in turn
    for (const T* band : to) streamed &= worth_streaming(band, bytes, p.band_w * int64_t(sizeof(T)));
    const bool in_runs = !streamed && worth_runs<T>(p, bytes);
#define STYLEKERN_CALL(target)                                                    \
  parallel_for(p.planes() * p.band_h, 2 * p.w, [&](int64_t first, int64_t last) { \
    target::WaveletKernels<T>::pool(p, from, to, streamed, in_runs, first, last); \
  })
    STYLEKERN_FOR_TARGET(STYLEKERN_CALL);
#undef STYLEKERN_CALL
  });
  return result;
}

Tensor wavelet_unpool_cpu(const Bands& given, int64_t height, int64_t width, OddRule odd) {
  const Bands bands = with_dense_rows(given[0], given[1], given[2], given[3]);
  const WaveletPool p = make_unpooling(bands, height, width, odd);
  Tensor result = empty_of(bands[0], {p.n, p.c, p.h, p.w});
  if (result.numel() == 0) return result;
  with_dtype(result, [&](auto type) {
    using T = decltype(type);
    const T* from[4];
    for (int k = 0; k < 4; ++k) from[k] = data<T>(bands[size_t(k)]);
    T* const to = mutable_data<T>(result);
    const int64_t bytes = 2 * result.numel() * int64_t(sizeof(T));
    const bool streamed = worth_streaming(to, bytes, p.w * int64_t(sizeof(T)));
    const bool in_runs = !streamed && worth_runs<T>(p, bytes);
#define STYLEKERN_CALL(target)                                                           \
  parallel_for(p.planes() * ((p.h + 1) / 2), 2 * p.w, [&](int64_t first, int64_t last) { \
    target::WaveletKernels<T>::unpool(p, from, to, streamed, in_runs, first, last);      \
  })
    STYLEKERN_FOR_TARGET(STYLEKERN_CALL);
#undef STYLEKERN_CALL
  });
  return result;
}

namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> wavelet_pool(Tensor input, StringHandle odd) {
  return as_tuple(wavelet_pool_cpu(input, parse_odd(odd)));
}

Tensor wavelet_pool_backward(Tensor ll, Tensor lh, Tensor hl, Tensor hh, int64_t height, int64_t width,
                             StringHandle odd) {
  return wavelet_unpool_cpu({ll, lh, hl, hh}, height, width, parse_odd(odd));
}

}  // namespace
}  // namespace stylekern

STABLE_TORCH_LIBRARY_IMPL(stylekern, CPU, m) {
  m.impl("wavelet_pool", TORCH_BOX(&stylekern::wavelet_pool));
  m.impl("wavelet_pool_backward", TORCH_BOX(&stylekern::wavelet_pool_backward));
}

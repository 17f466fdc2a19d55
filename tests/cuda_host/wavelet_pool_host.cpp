// The CUDA kernels of wavelet_pool and wavelet_unpool, on NumPy arrays.
#include <array>

// clang-format off: the harness stands in for nvcc, so it comes before the kernels
#include "host_arrays.h"
#include "../../csrc/cuda/wavelet_unpool.cuh"
// clang-format on

using namespace stylekern;
using namespace cuda_host;

namespace {

using Bands = std::array<py::array, 4>;  // ll, lh, hl, hh

WaveletPool make_problem(const py::array& picture, const Bands& bands, const std::string& odd) {
  WaveletPool p{};
  p.n = picture.shape(0), p.c = picture.shape(1), p.h = picture.shape(2), p.w = picture.shape(3);
  p.band_h = bands[0].shape(2), p.band_w = bands[0].shape(3);
  p.odd = odd == "drop" ? OddRule::kDrop : odd == "repeat" ? OddRule::kRepeat : OddRule::kZero;
  p.picture = strides(picture);
  for (int k = 0; k < 4; ++k) p.bands[k] = strides(bands[size_t(k)]);
  return p;
}

void pool(const std::string& dtype, py::array picture, Bands bands, const std::string& odd, bool in_place) {
  const WaveletPool p = make_problem(picture, bands, odd);
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    Buffers b(in_place);
    cuda::BandPointers<T> out;
    for (size_t k = 0; k < 4; ++k) out.band[k] = b.get<T>(bands[k], true);
    check(cuda::wavelet_pooling<T>(p, b.get<T>(picture), out, nullptr));
    b.write_back();
  });
}

void unpool(const std::string& dtype, Bands bands, py::array picture, const std::string& odd, bool in_place) {
  const WaveletPool p = make_problem(picture, bands, odd);
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    Buffers b(in_place);
    cuda::BandPointers<const T> in;
    for (size_t k = 0; k < 4; ++k) in.band[k] = b.get<T>(bands[k]);
    check(cuda::wavelet_unpooling<T>(p, in, b.get<T>(picture, true), nullptr));
    b.write_back();
  });
}

}  // namespace

PYBIND11_MODULE(STYLEKERN_MODULE, m) {
  m.def("pool", &pool);
  m.def("unpool", &unpool);
  define_settings(m);
}

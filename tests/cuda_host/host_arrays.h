// What the host-run kernels share: NumPy arrays as device buffers. bfloat16 travels as uint16, and `dtype` says so.
//
// Include it after cuda_host.h and before the kernels.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../../csrc/common/planes.h"
#include "cuda_host.h"

namespace py = pybind11;

namespace cuda_host {

// An allocation of exactly the bytes that an array spans, at the array's offset from 16 bytes: the address sanitizer
// sees what lies beyond. With `in_place` the array itself, for those that are too large to copy.
class Buffer {
 public:
  Buffer(const py::array& x, bool in_place) : array_(x) {
    extent_ = x.size() == 0 ? 0 : x.itemsize();
    for (int d = 0; d < x.ndim() && x.size(); ++d) extent_ += (x.shape(d) - 1) * x.strides(d);
    address_ = static_cast<char*>(const_cast<void*>(x.data()));
    if (in_place) return;
    const size_t offset = reinterpret_cast<uintptr_t>(address_) % 16;
    copy_.reset(new char[extent_ + offset]);
    std::memcpy(copy_.get() + offset, address_, extent_);
    address_ = copy_.get() + offset;
  }
  char* get() const { return address_; }
  void write_back() const { std::memcpy(const_cast<void*>(array_.data()), address_, extent_); }

 private:
  py::array array_;
  size_t extent_;
  char* address_;
  std::unique_ptr<char[]> copy_;
};

using Array = std::optional<py::array>;

inline stylekern::PlaneStrides strides(const py::array& x) {  // [N, P, H, W] or [N, P, K, H, W]
  const int d = int(x.ndim());
  const auto s = [&](int i) { return int64_t(x.strides(i) / x.itemsize()); };
  return {s(0), s(1), d == 5 ? s(2) : 0, s(d - 2)};
}

inline stylekern::Padding padding_of(const std::string& name) {
  return name == "reflect"     ? stylekern::Padding::kReflect
         : name == "replicate" ? stylekern::Padding::kReplicate
         : name == "zeros"     ? stylekern::Padding::kZeros
                               : stylekern::Padding::kNone;
}

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error("launch failed");
}

template <class F>
void with_dtype(const std::string& dtype, F f) {
  if (dtype == "float32") return f(float{});
  if (dtype == "float64") return f(double{});
  if (dtype == "float16") return f(__half{});
  if (dtype == "bfloat16") return f(__nv_bfloat16{});
  throw std::invalid_argument(dtype);
}

// The arrays of one call, by address; `null` for those that are not given.
class Buffers {
 public:
  explicit Buffers(bool in_place) : in_place_(in_place) {}
  template <class T>
  T* get(const Array& x, bool written = false) {
    if (!x) return nullptr;
    buffers_.push_back(std::make_unique<Buffer>(*x, in_place_));
    if (written && !in_place_) written_.push_back(buffers_.back().get());
    return reinterpret_cast<T*>(buffers_.back()->get());
  }
  void write_back() const {
    for (const Buffer* b : written_) b->write_back();
  }

 private:
  bool in_place_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::vector<const Buffer*> written_;
};

// A workspace of NaN, that starts on 16 bytes as torch's do.
class Workspace {
 public:
  explicit Workspace(size_t bytes) : memory_(new char[bytes]) { std::memset(memory_.get(), 0xff, bytes); }
  template <class T>
  T* get() const {
    return reinterpret_cast<T*>(memory_.get());
  }

 private:
  std::unique_ptr<char[]> memory_;
};

// Lets a test pick the order of threads and the largest grid.
inline void define_settings(py::module_& m) {
  m.def("set_order", [](const std::string& order, unsigned seed) {
    settings.order = order == "ascending"    ? Order::kAscending
                     : order == "descending" ? Order::kDescending
                                             : Order::kShuffled;
    settings.seed = seed;
  });
  m.def("set_max_blocks", [](unsigned blocks) { settings.max_grid_x = blocks; });
}

}  // namespace cuda_host

// style_kernel_conv: everything that one target compiles. Included by foreach_target.h.
#include "lane_sum.h"
#include "plane_pieces.h"
#include "shift_at_end.h"
// after what it uses
#include "instance_statistics.h"
// after what it uses
#include "instance_norm.h"
#include "style_kernel_conv_3x3.h"
#include "style_kernel_conv_3x3_short.h"
#include "style_kernel_conv_outer.h"
// after what they use
#include "style_kernel_conv.h"
#include "style_kernel_conv_backward.h"

namespace stylekern::STYLEKERN_TARGET {

template <class T>
struct StyleKernelConvKernels {
  static auto forward(const StyleKernelConvArgs<T>& args) { return StyleKernelConvForward<T>(args); }
  static auto backward(const StyleKernelConvBackwardArgs<T>& args) { return StyleKernelConvBackward<T>(args); }
  static void normalize_backward(auto... args) { instance_norm_backward<T>(args...); }
  static void convert(const Acc<T>* from, int64_t size, T* to) {
    for_vectors<Acc<T>>(size, [&](int64_t j, auto n) { store(to + j, load(from + j, n), n); });
  }
};

}  // namespace stylekern::STYLEKERN_TARGET

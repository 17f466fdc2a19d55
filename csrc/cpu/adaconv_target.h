// adaconv: everything that one target compiles. Included by foreach_target.h.
#include "lane_sum.h"
// after what it uses
#include "instance_norm.h"
// after what it uses
#include "adaconv_rows.h"
// after what it uses
#include "adaconv_depthwise_3x3.h"
// after what they use
#include "adaconv.h"
#include "adaconv_backward.h"

namespace stylekern::STYLEKERN_TARGET {

// K: the taps in both directions where they are known when compiling, else 0.
template <class T, int K>
struct AdaConvKernels {
  static auto forward(const AdaConvArgs<T>& args) { return AdaConvForward<T, K>(args); }
  static auto backward_input(const AdaConvBackwardArgs<T>& args) { return AdaConvBackwardInput<T, K>(args); }
  static auto backward_kernel(const AdaConvBackwardArgs<T>& args) { return AdaConvBackwardKernel<T, K>(args); }
};

}  // namespace stylekern::STYLEKERN_TARGET

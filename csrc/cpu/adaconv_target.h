// adaconv: everything that one target compiles. Included by foreach_target.h.
#include "lane_sum.h"
#include "plane_pieces.h"
#include "shift_at_end.h"
// after what it uses
#include "instance_statistics.h"
// after what it uses
#include "instance_norm.h"
// after what it uses
#include "adaconv_rows.h"
#include "streamed_run.h"
// after what it uses
#include "adaconv_depthwise_3x3.h"
// after what they use
#include "adaconv.h"
#include "adaconv_backward.h"

namespace stylekern::STYLEKERN_TARGET {

template <class T>
struct AdaConvKernels {
  static auto forward(const AdaConvArgs<T>& args) { return AdaConvForward<T>(args); }
  static auto backward_input(const AdaConvBackwardArgs<T>& args) { return AdaConvBackwardInput<T>(args); }
  static auto backward_kernel(const AdaConvBackwardArgs<T>& args) { return AdaConvBackwardKernel<T>(args); }
};

}  // namespace stylekern::STYLEKERN_TARGET

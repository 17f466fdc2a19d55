// wavelet_pool and wavelet_unpool: everything that one target compiles. Included by foreach_target.h.
#include "streamed_run.h"
// after what it uses
#include "wavelet_pool.h"

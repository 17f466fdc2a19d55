// min_distances: everything that one target compiles. Included by foreach_target.h.
#include "lane_sum.h"
// after what it uses
#include "min_distances.h"

// cgm_attention: everything that one target compiles. Included by foreach_target.h.
#include "lane_sum.h"
#include "simd_exp.h"
// after what they use
#include "unit_rows.h"
// after what they use
#include "cgm_attention.h"

// adain: everything that one target compiles. Included by foreach_target.h.
#include "lane_sum.h"
#include "plane_pieces.h"
// after what it uses
#include "instance_statistics.h"
// after what it uses
#include "instance_norm.h"
// after what it uses
#include "adain.h"

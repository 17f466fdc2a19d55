// adain: everything that one target compiles. Included by foreach_target.h.
#include "instance_norm.h"
// after what it uses
#include "adain.h"

/* kernels/linear_scalar.c: the fully connected layer for any machine, in vectors of four floats (what a
 * baseline compiler lowers to SSE2, NEON or scalar code). */
#define VL 4
#define MR 4
#define NAME(what) vgg_linear_##what##__scalar
#include "linear_tile.h"

/* kernels/winograd4_scalar.c: Winograd's F(4x4, 3x3) for any machine, in vectors of four floats (what a baseline compiler
 * lowers to SSE2, NEON or scalar code). */
#define VL 4
#define OUT 4
#define NAME(what) vgg_winograd4_##what##__scalar
#include "winograd_tile.h"
#include "winograd_weight_tile.h"

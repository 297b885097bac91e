/* kernels/winograd6_scalar.c: Winograd's F(6x6, 3x3) for any machine, in vectors of four floats (what a baseline compiler
 * lowers to SSE2, NEON or scalar code). */
#define VL 4
#define OUT 6
#define NAME(what) vgg_winograd6_##what##__scalar
#include "winograd_tile.h"
#include "winograd_weight_tile.h"

/* kernels/first_scalar.c: the 3x3 convolution of few channels for any machine, in vectors of four floats (what a baseline
 * compiler lowers to SSE2, NEON or scalar code). */
#define VL 4
#define PIXELS 3
#define NAME(what) vgg_first_##what##__scalar
#include "first_tile.h"

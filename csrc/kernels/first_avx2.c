/* kernels/first_avx2.c: the 3x3 convolution of few channels for AVX2 and FMA: 3 pixels by 4 ymm, 12 accumulators of 16
 * registers. */
#if defined(__x86_64__)
#define VL 8
#define PIXELS 3
#define NAME(what) vgg_first_##what##__avx2
#include "first_tile.h"
#endif

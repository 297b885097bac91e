/* kernels/first_avx512.c: the 3x3 convolution of few channels for AVX-512: 6 pixels by 4 zmm, 24 accumulators of 32
 * registers. */
#if defined(__x86_64__)
#define VL 16
#define PIXELS 6
#define NAME(what) vgg_first_##what##__avx512
#include "first_tile.h"
#endif

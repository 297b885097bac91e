/* kernels/average_avx2.c: the mean of gradients for AVX2. */
#if defined(__x86_64__)
#define LANES 4
#define NAME vgg_average__avx2
#include "average_tile.h"
#endif

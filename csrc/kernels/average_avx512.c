/* kernels/average_avx512.c: the mean of gradients for AVX-512. */
#if defined(__x86_64__)
#define LANES 8
#define NAME vgg_average__avx512
#include "average_tile.h"
#endif

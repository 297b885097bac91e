/* kernels/linear_avx512.c: the fully connected layer for AVX-512. */
#if defined(__x86_64__)
#define VL 16
#define MR 14
#define NAME(what) vgg_linear_##what##__avx512
#include "linear_tile.h"
#endif

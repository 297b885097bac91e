/* kernels/linear_avx2.c: the fully connected layer for AVX2 and FMA. */
#if defined(__x86_64__)
#define VL 8
#define MR 6
#define NAME(what) vgg_linear_##what##__avx2
#include "linear_tile.h"
#endif

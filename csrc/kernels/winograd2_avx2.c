/* kernels/winograd2_avx2.c: Winograd's F(2x2, 3x3) for AVX2 and FMA. */
#if defined(__x86_64__)
#define VL 8
#define OUT 2
#define NAME(what) vgg_winograd2_##what##__avx2
#include "winograd_tile.h"
#endif

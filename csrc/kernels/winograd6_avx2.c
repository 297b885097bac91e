/* kernels/winograd6_avx2.c: Winograd's F(6x6, 3x3) for AVX2 and FMA. */
#if defined(__x86_64__)
#define VL 8
#define OUT 6
#define NAME(what) vgg_winograd6_##what##__avx2
#include "winograd_tile.h"
#include "winograd_weight_tile.h"
#endif

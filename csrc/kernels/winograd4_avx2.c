/* kernels/winograd4_avx2.c: Winograd's F(4x4, 3x3) for AVX2 and FMA. */
#if defined(__x86_64__)
#define VL 8
#define OUT 4
#define NAME(what) vgg_winograd4_##what##__avx2
#include "winograd_tile.h"
#include "winograd_weight_tile.h"
#endif

/* kernels/winograd6_avx512.c: Winograd's F(6x6, 3x3) for AVX-512. */
#if defined(__x86_64__)
#define VL 16
#define OUT 6
#define NAME(what) vgg_winograd6_##what##__avx512
#include "winograd_tile.h"
#include "winograd_weight_tile.h"
#endif

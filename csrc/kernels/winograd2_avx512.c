/* kernels/winograd2_avx512.c: Winograd's F(2x2, 3x3) for AVX-512. */
#if defined(__x86_64__)
#define VL 16
#define OUT 2
#define NAME(what) vgg_winograd2_##what##__avx512
#include "winograd_tile.h"
#endif

/* kernels/winograd4_avx512.c: Winograd's F(4x4, 3x3) for AVX-512. */
#if defined(__x86_64__)
#define VL 16
#define OUT 4
#define NAME(what) vgg_winograd4_##what##__avx512
#include "winograd_tile.h"
#include "winograd_weight_tile.h"
#endif

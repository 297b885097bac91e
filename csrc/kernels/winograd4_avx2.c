/* kernels/winograd4_avx2.c: Winograd's F(4x4, 3x3) for AVX2 and FMA. */
#if defined(__x86_64__)
#define VL 8
#define ENTRY(what) vgg_winograd4_##what##__avx2
#include "winograd4.h"
#include "winograd4_weight.h"
#endif

/* kernels/winograd4_avx512.c: Winograd's F(4x4, 3x3) for AVX-512. */
#if defined(__x86_64__)
#define VL 16
#define ENTRY(what) vgg_winograd4_##what##__avx512
#include "winograd4.h"
#include "winograd4_weight.h"
#endif

/* kernels/peak_avx512.c: the peak loop of avx512. */
#if defined(__x86_64__)
#define VL 16
#define NAME vgg_fma_peak__avx512
#include "peak_tile.h"
#endif

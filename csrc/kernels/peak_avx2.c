/* kernels/peak_avx2.c: the peak loop of avx2. */
#if defined(__x86_64__)
#define VL 8
#define NAME vgg_fma_peak__avx2
#include "peak_tile.h"
#endif

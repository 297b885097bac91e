/* kernels/gemm_avx2.c: the GEMM microkernel for AVX2 and FMA, 6 rows by 2 ymm: 12 accumulators of 16 registers. */
#if defined(__x86_64__)
#define VL 8
#define MR 6
#define NAME vgg_sgemm_6x16__avx2
#include "gemm_tile.h"
#endif

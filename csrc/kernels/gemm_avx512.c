/* kernels/gemm_avx512.c: the GEMM microkernel for AVX-512, 14 rows by 2 zmm: 28 accumulators of 32 registers. */
#if defined(__x86_64__)
#define VL 16
#define MR 14
#define NAME vgg_sgemm_14x32__avx512
#include "gemm_tile.h"
#endif

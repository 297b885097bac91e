/* kernels/gemm_scalar.c: the GEMM microkernel for any machine, 4 rows by 2 vectors of four floats (what a baseline
 * compiler lowers to SSE2, NEON or scalar code): 8 accumulators of 16 registers. */
#define VL 4
#define MR 4
#define NAME vgg_sgemm_4x8__scalar
#include "gemm_tile.h"

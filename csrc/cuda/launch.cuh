/* launch.cuh: how kernels are launched here: blocks of 256 threads, grid-stride loops, 64-bit positions. */
#ifndef VGG_CUDA_LAUNCH_CUH
#define VGG_CUDA_LAUNCH_CUH

#include "cuda.h"

static constexpr unsigned BLOCK = 256;
static constexpr size_t MAX_BLOCKS = 1 << 16; /* enough to fill any device; longer work loops */

static inline unsigned blocks_for(size_t count, size_t per_block = BLOCK)
{
    size_t blocks = count / per_block + (count % per_block != 0);
    return (unsigned)(blocks < MAX_BLOCKS ? blocks : MAX_BLOCKS);
}

/* The positions of this thread: for (size_t i : grid_stride(count)) in words. */
#define GRID_STRIDE(i, count) \
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x, i##_step = (size_t)gridDim.x * blockDim.x; i < (count); \
         i += i##_step)

#endif

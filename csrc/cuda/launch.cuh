/* launch.cuh: how kernels are launched here: blocks of 256 threads, grid-stride loops, 64-bit positions; and how they read and
 * write maps, which are float32 or bfloat16, with all arithmetic in float32. */
#ifndef VGG_CUDA_LAUNCH_CUH
#define VGG_CUDA_LAUNCH_CUH

#include "cuda.h"

#include "../core/bfloat16.h"

static constexpr unsigned BLOCK = 256;
static constexpr size_t MAX_BLOCKS = 1 << 16; /* enough to fill any device; longer work loops */

static inline unsigned blocks_for(size_t count, size_t per_block = BLOCK)
{
    size_t blocks = count / per_block + (count % per_block != 0);
    return (unsigned)(blocks < MAX_BLOCKS ? blocks : MAX_BLOCKS);
}

/* An element of a bfloat16 map. Rounding is by integers, not by the instruction of compute capability 8.0 and later: the
 * kernels wait for memory anyway. */
struct bfloat16 {
    uint16_t bits;
};

__device__ static inline float widen(float value)
{
    return value;
}
__device__ static inline float widen(bfloat16 value)
{
    return __uint_as_float((unsigned)value.bits << 16);
}

/* store(to, value): *to = value, rounded where it must be. */
__device__ static inline void store(float *to, float value)
{
    *to = value;
}
__device__ static inline void store(bfloat16 *to, float value)
{
    to->bits = vgg_round_bfloat16(__float_as_uint(value));
}

/* Runs the statement with T the type of a map's elements. */
#define WITH_TYPE(dtype, T, ...) \
    do { \
        if ((dtype) == VGG_BFLOAT16) { \
            using T = bfloat16; \
            __VA_ARGS__; \
        } else { \
            using T = float; \
            __VA_ARGS__; \
        } \
    } while (0)

/* The positions of this thread: for (size_t i : grid_stride(count)) in words. */
#define GRID_STRIDE(i, count) \
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x, i##_step = (size_t)gridDim.x * blockDim.x; i < (count); \
         i += i##_step)

/* The same, but a thread takes all elements of type T of a word of 4 bytes: for kernels that may work in place, where no thread
 * should write into a word that another one reads. */
#define WORD_STRIDE(T, i, count) \
    GRID_STRIDE(i##_word, words_of<T>(count)) \
        for (size_t i = i##_word * PER_WORD<T>, i##_end = i + PER_WORD<T>; i < i##_end && i < (count); i++)

template <typename T> static constexpr size_t PER_WORD = sizeof(float) / sizeof(T);

template <typename T> __host__ __device__ static inline size_t words_of(size_t count)
{
    return count / PER_WORD<T> + (count % PER_WORD<T> != 0);
}

#endif

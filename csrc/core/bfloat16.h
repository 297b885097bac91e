/* core/bfloat16.h: between float32 and bfloat16, its upper half. */
#ifndef VGG_BFLOAT16_H
#define VGG_BFLOAT16_H

#include <stdint.h>

#ifdef __CUDACC__
#define VGG_BFLOAT16_FUNCTION __host__ __device__ static inline
#else
#define VGG_BFLOAT16_FUNCTION static inline
#endif

/* Of the bits of a float32: rounded to the nearest, even where two are as near. A NaN stays one: its payload loses the low
 * half. */
VGG_BFLOAT16_FUNCTION uint16_t vgg_round_bfloat16(uint32_t bits)
{
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#endif

/* kernels/vectors.h: vectors of VL floats, which the including file defines, for the kernels of every ISA. A mask has all bits
 * of a lane or none. */
#ifndef VGG_VECTORS_H
#define VGG_VECTORS_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX__)
#include <immintrin.h>
#endif

typedef float vec __attribute__((vector_size(VL * 4)));
typedef int32_t mask __attribute__((vector_size(VL * 4)));
typedef uint8_t bytes __attribute__((vector_size(VL)));

#define INLINE inline __attribute__((always_inline))

static INLINE vec load(const float *p)
{
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

static INLINE void store(float *p, vec v)
{
    memcpy(p, &v, sizeof v);
}

/* The first lanes of a vector, fewer than VL where a row ends; the others are 0. */
static INLINE vec load_lanes(const float *p, size_t lanes)
{
    vec v = {0};
    memcpy(&v, p, lanes * sizeof *p);
    return v;
}

static INLINE void store_lanes(float *p, vec v, size_t lanes)
{
    memcpy(p, &v, lanes * sizeof *p);
}

/* v, or 0. */
static INLINE vec keep(mask m, vec v)
{
    return (vec)(m & (mask)v);
}

static INLINE vec choose(mask m, vec yes, vec no)
{
#if VL == 8 && defined(__AVX__)
    return (vec)_mm256_blendv_ps((__m256)no, (__m256)yes, (__m256)m);
#else
    return (vec)((m & (mask)yes) | (~m & (mask)no));
#endif
}

/* max(v, least) that lets NaN through: v < least is false for it. For least 0 or -Inf. */
static INLINE vec at_least(vec v, vec least)
{
    return keep(~(mask)(v < least), v);
}

/* Bytes of index, widened: with an instruction that GCC does not find by itself. */
static INLINE mask places(const uint8_t *index, size_t lanes)
{
    bytes place = {0};
    memcpy(&place, index, lanes);
#if VL == 8 && defined(__AVX2__)
    return (mask)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)&place));
#elif VL == 16 && defined(__AVX512F__)
    return (mask)_mm512_cvtepu8_epi32((__m128i)place);
#else
    return __builtin_convertvector(place, mask);
#endif
}

#endif

/* kernels/peak_tile.h: a loop of independent multiply-adds in registers, for every ISA from one source. The including file
 * defines VL (floats in a vector) and NAME. Twelve chains hide the latency of two units of up to six cycles; with fewer
 * registers than that (or no fused multiply-add) the loop is still what the ISA's best loop looks like. */
#include "kernels.h"

#include "vectors.h"

/* Hides a value from the compiler, which would find twelve equal chains to be one. */
#if defined(__x86_64__)
#define OPAQUE(v) __asm__ volatile("" : "+x"(v));
#elif defined(__aarch64__)
#define OPAQUE(v) __asm__ volatile("" : "+w"(v));
#else
#define OPAQUE(v) __asm__ volatile("" : "+m"(v));
#endif

/* Does steps * 12 * VL multiply-adds; the sum is returned so that nothing is dead code. */
float NAME(size_t steps)
{
    const vec scale = (vec){0} + 0.999f, shift = (vec){0} + 0.001f;
    vec v0 = shift, v1 = shift, v2 = shift, v3 = shift, v4 = shift, v5 = shift;
    vec v6 = shift, v7 = shift, v8 = shift, v9 = shift, v10 = shift, v11 = shift;
    for (; steps != 0; steps--) {
        v0 = v0 * scale + shift, v1 = v1 * scale + shift, v2 = v2 * scale + shift, v3 = v3 * scale + shift;
        v4 = v4 * scale + shift, v5 = v5 * scale + shift, v6 = v6 * scale + shift, v7 = v7 * scale + shift;
        v8 = v8 * scale + shift, v9 = v9 * scale + shift, v10 = v10 * scale + shift, v11 = v11 * scale + shift;
        /* clang-format off */
        OPAQUE(v0) OPAQUE(v1) OPAQUE(v2) OPAQUE(v3) OPAQUE(v4) OPAQUE(v5)
        OPAQUE(v6) OPAQUE(v7) OPAQUE(v8) OPAQUE(v9) OPAQUE(v10) OPAQUE(v11)
        /* clang-format on */
    }
    v0 += v1 + v2 + v3 + v4 + v5 + v6 + v7 + v8 + v9 + v10 + v11;
    return v0[0];
}

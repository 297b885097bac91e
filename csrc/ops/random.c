/* ops/random.c: tensors of random numbers, for initialisation (paper, section 3.1). Contract: vgg.h.
 *
 * Logarithm, sine and cosine are written out here in additions, multiplications, divisions and square roots of float32,
 * which IEEE 754 rounds in one way only. So the same seed gives the same weights with every C library, and a device that
 * does the same steps in the same order (and fuses none) gives the same bits. They also vectorise, as libm's do not. */
#include "../core/philox.h"
#include "cpu.h"

#include <math.h>
#include <string.h>

enum vgg_status vgg_random_check(const char *op, size_t count, float scale, struct vgg_error *error)
{
    if (!isfinite(scale) || scale < 0)
        return vgg_fail(error, VGG_INVALID_ARGUMENT, "%s: scale is %g; expected a number >= 0", op, (double)scale);
    if (count / 4 > UINT32_MAX)
        return vgg_fail(error, VGG_UNSUPPORTED, "%s: x has %zu values; at most 2^34 have random words", op, count);
    return VGG_OK;
}

enum { CHUNK = 1 << 14, BATCH = 512 }; /* values a task; values whose words are on the stack together: multiples of 4 */

struct drawing {
    float *x;
    size_t count;
    float scale;
    uint64_t seed;
    uint32_t purpose;
    void (*turn)(float *x, const uint32_t *words, size_t count, float scale); /* words into values, both BATCH long */
};

static void draw_task(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct drawing *d = argument;
    uint32_t words[BATCH];
    float values[BATCH];
    size_t end, begin = vgg_chunk(&end, task, CHUNK, d->count);
    for (size_t j = begin; j < end; j += BATCH) {
        size_t count = vgg_min_size(BATCH, end - j);
        for (size_t i = 0; i < count; i += 4)
            vgg_philox(words + i, d->seed, 0, d->purpose, (uint32_t)((j + i) / 4));
        d->turn(values, words, vgg_ceil_div(count, 4) * 4, d->scale);
        memcpy(d->x + j, values, count * sizeof(float));
    }
}

static enum vgg_status draw(const struct vgg_context *ctx, struct drawing d)
{
    vgg_parallel_for(ctx->device, vgg_cpu_threads(ctx, d.count * 16), vgg_ceil_div(d.count, CHUNK), draw_task, &d);
    return VGG_OK;
}

/* ------------------------------------------------------------------------------------------------ uniform */

static void uniform(float *restrict x, const uint32_t *restrict words, size_t count, float scale)
{
    for (size_t j = 0; j < count; j++)
        x[j] = ((float)(int32_t)(words[j] >> 8) * 0x1p-23f - 1) * scale;
}

enum vgg_status vgg_cpu_random_uniform(struct vgg_context *ctx, float *x, size_t count, float scale, uint64_t seed,
                                       uint32_t purpose)
{
    return draw(ctx, (struct drawing){x, count, scale, seed, purpose, uniform});
}

/* ------------------------------------------------------------------------------------------------ normal */

/* ln((k + 1) 2^-24), 0 <= k < 2^24: exponent apart, mantissa m in [sqrt(1/2), sqrt(2)), and with t = (m - 1) / (m + 1)
 * ln m = 2 (t + t^3/3 + t^5/5 + t^7/7 + t^9/9), which leaves out less than 3e-9 of it. */
static inline float logarithm(uint32_t k)
{
    float u = (float)(int32_t)(k + 1) * 0x1p-24f, m;
    uint32_t bits;
    memcpy(&bits, &u, sizeof bits);
    const uint32_t root_half = 0x3F3504F3; /* the bits of sqrt(1/2) */
    int32_t exponent = (int32_t)(bits - root_half) >> 23;
    bits -= (uint32_t)exponent << 23;
    memcpy(&m, &bits, sizeof m);
    float t = (m - 1) / (m + 1), tt = t * t;
    float series = t + t * tt * (1.0f / 3 + tt * (1.0f / 5 + tt * (1.0f / 7 + tt * (1.0f / 9))));
    return 2 * series + (float)exponent * 0.693147181f;
}

/* odd ? a : b with the sign bit turned by `sign`; without a branch, which would be a coin's throw. */
static inline float choose(uint32_t odd, float a, float b, uint32_t sign)
{
    uint32_t bits_a, bits_b;
    memcpy(&bits_a, &a, sizeof bits_a);
    memcpy(&bits_b, &b, sizeof bits_b);
    bits_b ^= (bits_a ^ bits_b) & (0u - odd);
    bits_b ^= sign;
    memcpy(&b, &bits_b, sizeof b);
    return b;
}

/* Box-Muller: r (cos a, sin a) with r = sqrt(-2 ln u), u = ((words[0] >> 8) + 1) 2^-24 > 0, a = words[1] 2^-32 turns, so
 * |x| <= 5.8 scale. The turn is brought to an eighth either side of a quarter in integers, so that a's rounding is relative
 * to what is left. */
static void normal(float *restrict x, const uint32_t *restrict words, size_t count, float scale)
{
    for (size_t j = 0; j < count; j += 2) {
        float r = sqrtf(-2 * logarithm(words[j] >> 8)) * scale;
        uint32_t quarter = (words[j + 1] + 0x20000000u) >> 30;
        float a = (float)(int32_t)(words[j + 1] - (quarter << 30)) * 1.46291808e-9f; /* 2 pi 2^-32 */
        float aa = a * a;
        float sine = a + a * aa * (-1.0f / 6 + aa * (1.0f / 120 + aa * (-1.0f / 5040 + aa * (1.0f / 362880))));
        float cosine = 1 + aa * (-0.5f + aa * (1.0f / 24 + aa * (-1.0f / 720 + aa * (1.0f / 40320))));
        /* The cosine is negative in quarters 1 and 2, the sine in 2 and 3. */
        x[j] = r * choose(quarter & 1, sine, cosine, ((quarter + 1) & 2) << 30);
        x[j + 1] = r * choose(quarter & 1, cosine, sine, (quarter & 2) << 30);
    }
}

enum vgg_status vgg_cpu_random_normal(struct vgg_context *ctx, float *x, size_t count, float scale, uint64_t seed,
                                      uint32_t purpose)
{
    return draw(ctx, (struct drawing){x, count, scale, seed, purpose, normal});
}

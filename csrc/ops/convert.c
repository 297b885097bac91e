/* ops/convert.c: float32 to bfloat16 and back. Contract: vgg.h. */
#include "cpu.h"

#include "../core/bfloat16.h"

enum { CHUNK = 1 << 14 }; /* elements a task */

struct conversion {
    void *to;
    const void *from;
    size_t count;
};

static void round_chunk(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct conversion *c = argument;
    const uint32_t *restrict from = c->from;
    uint16_t *restrict to = c->to;
    size_t end, begin = vgg_chunk(&end, task, CHUNK, c->count);
    for (size_t i = begin; i < end; i++)
        to[i] = vgg_round_bfloat16(from[i]);
}

static void widen_chunk(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct conversion *c = argument;
    const uint16_t *restrict from = c->from;
    uint32_t *restrict to = c->to;
    size_t end, begin = vgg_chunk(&end, task, CHUNK, c->count);
    for (size_t i = begin; i < end; i++)
        to[i] = (uint32_t)from[i] << 16;
}

enum vgg_status vgg_cpu_convert(struct vgg_context *ctx, void *to, enum vgg_dtype to_dtype, const void *from, size_t count)
{
    struct conversion c = {to, from, count};
    vgg_parallel_for(ctx->device, vgg_cpu_threads(ctx, count * sizeof(float)), vgg_ceil_div(count, CHUNK),
                     to_dtype == VGG_BFLOAT16 ? round_chunk : widen_chunk, &c);
    return VGG_OK;
}

/* ops/relu.c: ReLU (paper, section 2.1), its gradient, and the sum of two gradients. Contract: vgg.h. */
#include "cpu.h"

enum { CHUNK = 1 << 14 }; /* elements a task: two or three streams of it stay in L2 */

struct elementwise {
    float *out;
    const float *a, *b;
    size_t count;
};

static enum vgg_status run(const struct vgg_context *ctx, void (*body)(void *, size_t, int), struct elementwise e)
{
    vgg_parallel_for(ctx->device, vgg_cpu_threads(ctx, e.count * sizeof(float)), vgg_ceil_div(e.count, CHUNK), body, &e);
    return VGG_OK;
}

/* In place and apart are two loops, so that each can promise the compiler what it aliases. Both keep a NaN. */
static void relu_chunk(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct elementwise *e = argument;
    size_t end, begin = vgg_chunk(&end, task, CHUNK, e->count);
    if (e->out == e->a) {
        float *y = e->out;
        for (size_t j = begin; j < end; j++)
            y[j] = y[j] < 0 ? 0 : y[j];
    } else {
        float *restrict y = e->out;
        const float *restrict x = e->a;
        for (size_t j = begin; j < end; j++)
            y[j] = x[j] < 0 ? 0 : x[j];
    }
}

enum vgg_status vgg_cpu_relu(struct vgg_context *ctx, void *y, const void *x, size_t count, enum vgg_dtype dtype)
{
    (void)dtype; /* float32: the CPU has no bfloat16 maps */
    return run(ctx, relu_chunk, (struct elementwise){.out = y, .a = x, .count = count});
}

static void relu_backward_chunk(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct elementwise *e = argument;
    size_t end, begin = vgg_chunk(&end, task, CHUNK, e->count);
    const float *restrict y = e->b;
    if (e->out == e->a) {
        float *restrict dx = e->out;
        for (size_t j = begin; j < end; j++)
            dx[j] = vgg_keep(y[j] > 0, dx[j]);
    } else {
        float *restrict dx = e->out;
        const float *restrict dy = e->a;
        for (size_t j = begin; j < end; j++)
            dx[j] = vgg_keep(y[j] > 0, dy[j]);
    }
}

enum vgg_status vgg_cpu_relu_backward(struct vgg_context *ctx, void *dx, const void *dy, const void *y, size_t count,
                                      enum vgg_dtype dtype)
{
    (void)dtype; /* float32: the CPU has no bfloat16 maps */
    return run(ctx, relu_backward_chunk, (struct elementwise){.out = dx, .a = dy, .b = y, .count = count});
}

static void add_chunk(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct elementwise *e = argument;
    size_t end, begin = vgg_chunk(&end, task, CHUNK, e->count);
    float *restrict y = e->out;
    const float *restrict x = e->a;
    for (size_t j = begin; j < end; j++)
        y[j] += x[j];
}

enum vgg_status vgg_cpu_add(struct vgg_context *ctx, void *y, const void *x, size_t count, enum vgg_dtype dtype)
{
    (void)dtype; /* float32: the CPU has no bfloat16 maps */
    return run(ctx, add_chunk, (struct elementwise){.out = y, .a = x, .count = count});
}

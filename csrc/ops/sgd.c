/* ops/sgd.c: stochastic gradient descent with momentum and weight decay (paper, section 3.1). Contract: vgg.h. */
#include "cpu.h"

#include <math.h>

enum vgg_status vgg_sgd_check(const struct vgg_sgd *s, struct vgg_error *error)
{
    const struct {
        const char *name;
        float value;
    } options[] = {{"lr", s->lr}, {"momentum", s->momentum}, {"weight_decay", s->weight_decay}};
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        if (!isfinite(options[i].value))
            return vgg_fail(error, VGG_INVALID_ARGUMENT,
                            "sgd_: %s is %g; expected a finite number because every parameter takes it over", options[i].name,
                            (double)options[i].value);
    return VGG_OK;
}

enum { CHUNK = 1 << 13 }; /* parameters a task: three streams of it stay in L2 */

struct descent {
    float *const *param, *const *velocity;
    const float *const *grad;
    const size_t *sizes;
    const struct vgg_sgd *s;
};

static void sgd_task(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct descent *d = argument;
    /* The tensors' chunks are one list; a net has few tensors, so a task walks to its own. */
    size_t t = 0;
    for (size_t chunks; task >= (chunks = vgg_ceil_div(d->sizes[t], CHUNK)); t++)
        task -= chunks;
    size_t end, begin = vgg_chunk(&end, task, CHUNK, d->sizes[t]);
    float *restrict p = d->param[t], *restrict v = d->velocity[t];
    const float *restrict g = d->grad[t];
    float lr = d->s->lr, momentum = d->s->momentum, weight_decay = d->s->weight_decay;
    for (size_t j = begin; j < end; j++) {
        v[j] = momentum * v[j] + lr * (g[j] + weight_decay * p[j]);
        p[j] -= v[j];
    }
}

enum vgg_status vgg_cpu_sgd(struct vgg_context *ctx, float *const *param, float *const *velocity, const float *const *grad,
                            const size_t *sizes, size_t count, const struct vgg_sgd *s)
{
    size_t tasks = 0, total = 0;
    for (size_t t = 0; t < count; t++) {
        tasks += vgg_ceil_div(sizes[t], CHUNK);
        total += sizes[t];
    }
    struct descent d = {param, velocity, grad, sizes, s};
    vgg_parallel_for(ctx->device, vgg_cpu_threads(ctx, total * 3 * sizeof(float)), tasks, sgd_task, &d);
    return VGG_OK;
}

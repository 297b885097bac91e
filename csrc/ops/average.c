/* ops/average.c: the weighted mean of the devices' gradients, on every device (paper, section 3.3). Contract: vgg.h. */
#include "cpu.h"

#include <math.h>

enum { CHUNK = 1 << 10 }; /* elements a task, summed in float64 on the stack */

struct averaging {
    float *const *grad;
    const double *weight;
    double total;
    size_t devices, size;
};

static void average_task(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct averaging *a = argument;
    double sum[CHUNK] = {0};
    size_t end, begin = vgg_chunk(&end, task, CHUNK, a->size), count = end - begin;
    for (size_t d = 0; d < a->devices; d++) {
        const float *restrict grad = a->grad[d] + begin;
        double weight = a->weight[d];
        for (size_t j = 0; j < count; j++)
            sum[j] += weight * (double)grad[j];
    }
    for (size_t d = 0; d < a->devices; d++) {
        float *restrict grad = a->grad[d] + begin;
        for (size_t j = 0; j < count; j++)
            grad[j] = (float)(sum[j] / a->total);
    }
}

enum vgg_status vgg_cpu_average(struct vgg_context *const *ctx, float *const *grad, const double *weight, size_t devices,
                                size_t size)
{
    if (devices == 0) /* no context, so no place for a message */
        return VGG_INVALID_ARGUMENT;
    struct averaging a = {.grad = grad, .weight = weight, .devices = devices, .size = size};
    for (size_t d = 0; d < devices; d++) {
        if (!isfinite(weight[d]) || weight[d] < 0)
            return vgg_fail(ctx[0]->error, VGG_INVALID_ARGUMENT, "average_gradients: weight %zu is %g; expected a number >= 0",
                            d, weight[d]);
        a.total += weight[d];
    }
    if (!(isfinite(a.total) && a.total > 0))
        return vgg_fail(ctx[0]->error, VGG_INVALID_ARGUMENT,
                        "average_gradients: the weights sum to %g; expected a finite sum > 0 because the mean divides by it",
                        a.total);
    vgg_parallel_for(ctx[0]->device, vgg_cpu_threads(ctx[0], devices * size * sizeof(float)), vgg_ceil_div(size, CHUNK),
                     average_task, &a);
    return VGG_OK;
}

/* ops/average.c: the weighted mean of the devices' gradients, on every device (paper, section 3.3). Contract: vgg.h. */
#include "cpu.h"

#include <math.h>

enum vgg_status vgg_average_check(const double *weight, size_t devices, struct vgg_error *error)
{
    double total = 0;
    for (size_t d = 0; d < devices; d++) {
        if (!(weight[d] >= 0)) /* also NaN */
            return vgg_fail(error, VGG_INVALID_ARGUMENT, "average_gradients_: weights[%zu] is %g; expected a number >= 0", d,
                            weight[d]);
        total += weight[d];
    }
    if (!(isfinite(total) && total > 0))
        return vgg_fail(error, VGG_INVALID_ARGUMENT,
                        "average_gradients_: weights sum to %g; expected a finite sum > 0 because the mean divides by it",
                        total);
    return VGG_OK;
}

enum { CHUNK = 1 << 14 }; /* elements a task */

struct averaging {
    const struct vgg_kernel *kernel;
    struct vgg_average whole;
};

static void average_task(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct averaging *a = argument;
    struct vgg_average part = a->whole;
    size_t end;
    part.first = vgg_chunk(&end, task, CHUNK, a->whole.count);
    part.count = end - part.first;
    a->kernel->run.average(&part);
}

enum vgg_status vgg_cpu_average(struct vgg_context *const *ctx, float *const *grad, const double *weight, size_t devices,
                                size_t size)
{
    struct averaging a = {vgg_kernel(VGG_SLOT_AVERAGE), {.grad = grad, .weight = weight, .devices = devices, .count = size}};
    for (size_t d = 0; d < devices; d++)
        a.whole.total += weight[d];
    vgg_kernel_count_use(a.kernel);
    vgg_parallel_for(ctx[0]->device, vgg_cpu_threads(ctx[0], devices * size * sizeof(float)), vgg_ceil_div(size, CHUNK),
                     average_task, &a);
    return VGG_OK;
}

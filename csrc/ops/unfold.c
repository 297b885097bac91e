/* ops/unfold.c: every window as a row, so that fc6 becomes a convolution (paper, section 3.2). Contract: vgg.h. */
#include "cpu.h"

#include <string.h>

enum vgg_status vgg_unfold_check(struct vgg_unfold *s, const struct vgg_array *x, struct vgg_error *error)
{
    VGG_TRY(vgg_expect_map("unfold", "x", x, error));
    VGG_TRY(vgg_expect_ndim("unfold", "x", x, 4, error));
    s->n = x->shape[0];
    s->h = x->shape[1];
    s->w = x->shape[2];
    s->c = x->shape[3];
    s->dtype = x->dtype;
    if (s->size == 0)
        return vgg_fail(error, VGG_INVALID_ARGUMENT, "unfold: size is 0; expected at least 1");
    char text[96];
    if (s->h < s->size || s->w < s->size)
        return vgg_fail(error, VGG_INVALID_ARGUMENT,
                        "unfold: x has shape %s; expected a height and a width of %zu or more because size is %zu",
                        vgg_shape_text(text, sizeof text, x->shape, 4), s->size, s->size);
    size_t result[6] = {s->n, s->h - s->size + 1, s->w - s->size + 1, s->size, s->size, s->c}, bytes;
    if (!vgg_shape_bytes(&bytes, result, 6, sizeof(float)))
        return vgg_fail(error, VGG_INVALID_ARGUMENT, "unfold: the windows of size %zu of x, of shape %s, are too many bytes",
                        s->size, vgg_shape_text(text, sizeof text, x->shape, 4));
    return VGG_OK;
}

struct unfolding {
    float *y;
    const float *x;
    const struct vgg_unfold *s;
    size_t oh, ow;
};

/* The windows of one row of positions. */
static void unfold_task(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct unfolding *u = argument;
    const struct vgg_unfold *s = u->s;
    size_t image = task / u->oh, i = task % u->oh, run = s->size * s->c;
    float *y = u->y + task * u->ow * s->size * run;
    for (size_t j = 0; j < u->ow; j++)
        for (size_t r = 0; r < s->size; r++, y += run)
            memcpy(y, u->x + ((image * s->h + i + r) * s->w + j) * s->c, run * sizeof(float));
}

enum vgg_status vgg_cpu_unfold(struct vgg_context *ctx, void *y, const void *x, const struct vgg_unfold *s)
{
    struct unfolding u = {y, x, s, s->h - s->size + 1, s->w - s->size + 1};
    if (s->c == 0)
        return VGG_OK;
    size_t bytes = s->n * u.oh * u.ow * s->size * s->size * s->c * sizeof(float);
    vgg_parallel_for(ctx->device, vgg_cpu_threads(ctx, bytes), s->n * u.oh, unfold_task, &u);
    return VGG_OK;
}

/* ops/augment.c: crop, mirror, RGB shift and mean subtraction, from uint8 to float32 (paper, section 3.1). Contract: vgg.h. */
#include "cpu.h"

enum vgg_status vgg_augment_check(const struct vgg_augment *s, const struct vgg_crop *crops, struct vgg_error *error)
{
    if (s->c < 1 || s->c > 4)
        return vgg_fail(error, VGG_INVALID_ARGUMENT, "augment: images have %zu channels; expected 1 to 4", s->c);
    if (s->size == 0)
        return vgg_fail(error, VGG_INVALID_ARGUMENT, "augment: size is 0; expected at least 1");
    for (size_t i = 0; i < s->n; i++) {
        const struct vgg_crop *crop = &crops[i];
        if (crop->height < s->size || crop->top > crop->height - s->size || crop->width < s->size ||
            crop->left > crop->width - s->size)
            return vgg_fail(error, VGG_INVALID_ARGUMENT,
                            "augment: crops[%zu] begins at (%zu, %zu); expected its %zu rows and columns to lie inside "
                            "images[%zu], which is %zu by %zu",
                            i, crop->top, crop->left, s->size, i, crop->height, crop->width);
    }
    return VGG_OK;
}

struct augmentation {
    float *x;
    const struct vgg_crop *crops;
    const struct vgg_augment *s;
};

/* One image. */
static void augment_task(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct augmentation *a = argument;
    const struct vgg_augment *s = a->s;
    const struct vgg_crop *crop = &a->crops[task];
    size_t size = s->size, c = s->c;
    float offset[4];
    for (size_t ch = 0; ch < c; ch++)
        offset[ch] = crop->shift[ch] - s->mean[ch];
    float *x = a->x + task * size * size * c;
    for (size_t h = 0; h < size; h++) {
        const uint8_t *pixel = crop->image + ((crop->top + h) * crop->width + crop->left) * c;
        if (crop->mirror)
            pixel += (size - 1) * c;
        ptrdiff_t step = crop->mirror ? -(ptrdiff_t)c : (ptrdiff_t)c;
        for (size_t w = 0; w < size; w++, x += c) {
            for (size_t ch = 0; ch < c; ch++)
                x[ch] = (float)pixel[ch] + offset[ch];
            if (w + 1 < size) /* the mirror of column 0 has no pixel before it */
                pixel += step;
        }
    }
}

enum vgg_status vgg_cpu_augment(struct vgg_context *ctx, float *x, const struct vgg_crop *crops, const struct vgg_augment *s)
{
    struct augmentation a = {x, crops, s};
    vgg_parallel_for(ctx->device, vgg_cpu_threads(ctx, s->n * s->size * s->size * s->c * sizeof(float)), s->n, augment_task,
                     &a);
    return VGG_OK;
}

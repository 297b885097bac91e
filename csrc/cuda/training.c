/* training.c: SGD (paper, section 3.1), the mean of the devices' gradients (3.3), and the training input (3.1). */
#include "host.h"
#include "layers.h"

enum vgg_status vgg_cuda_sgd(struct vgg_context *ctx, float *const *param, float *const *velocity, const float *const *grad,
                             const size_t *sizes, size_t count, const struct vgg_sgd *s)
{
    cudaStream_t stream;
    CUDA_PASS(vgg_cuda_enter(ctx, &stream));
    for (size_t first = 0; first < count; first += VGG_CUDA_SGD_TENSORS) {
        struct vgg_cuda_sgd_list list = {.count = 0};
        for (size_t t = first; t < count && list.count < VGG_CUDA_SGD_TENSORS; t++, list.count++) {
            list.param[list.count] = param[t];
            list.velocity[list.count] = velocity[t];
            list.grad[list.count] = grad[t];
            list.size[list.count] = sizes[t];
        }
        CUDA_TRY(ctx, vgg_cuda_launch_sgd(&list, s, stream));
    }
    return VGG_OK;
}

/* ------------------------------------------------------------------------------------------------ the mean of gradients */

enum vgg_status vgg_cuda_average(struct vgg_context *const *ctx, float *const *grad, const double *weight, size_t devices,
                                 size_t size)
{
    struct vgg_context *first = ctx[0];
    double total = 0;
    for (size_t d = 0; d < devices; d++)
        total += weight[d];
    if (devices > VGG_CUDA_MAX_DEVICES)
        return vgg_fail(first->error, VGG_UNSUPPORTED, "average_gradients: %zu devices; expected at most %d", devices,
                        VGG_CUDA_MAX_DEVICES);
    return vgg_cuda_average_devices(ctx, grad, weight, devices, size);
}

/* ------------------------------------------------------------------------------------------------ the training input */

enum { IMAGES = 256 }; /* crops that are described on the stack and sent together */

static enum vgg_status augment_some(struct vgg_context *ctx, float *x, const struct vgg_crop *crops,
                                    const struct vgg_augment *s, void *scratch, size_t pixels_bytes)
{
    float offset[IMAGES][4] = {{0}};
    uint8_t mirror[IMAGES];
    struct vgg_cuda_rows rows[IMAGES];
    for (size_t i = 0; i < s->n; i++) {
        const struct vgg_crop *crop = &crops[i];
        rows[i] = (struct vgg_cuda_rows){crop->image + (crop->top * crop->width + crop->left) * s->c, s->size, s->size * s->c,
                                         crop->width * s->c};
        for (size_t ch = 0; ch < s->c; ch++)
            offset[i][ch] = crop->shift[ch] - s->mean[ch];
        mirror[i] = crop->mirror;
    }
    unsigned char *pixels = scratch, *tail = pixels + pixels_bytes; /* then offsets, then mirrors */
    const struct vgg_cuda_rows options[] = {{(const unsigned char *)offset, 1, s->n * sizeof offset[0], 0},
                                            {mirror, 1, s->n, 0}};
    CUDA_PASS(vgg_cuda_upload_rows(ctx, pixels, rows, s->n));
    CUDA_PASS(vgg_cuda_upload_rows(ctx, tail, options, 2));
    cudaStream_t stream;
    CUDA_PASS(vgg_cuda_enter(ctx, &stream));
    CUDA_TRY(ctx,
             vgg_cuda_launch_augment(x, pixels, (const float *)(const void *)tail, tail + s->n * sizeof offset[0], s, stream));
    return VGG_OK;
}

enum vgg_status vgg_cuda_augment(struct vgg_context *ctx, float *x, const struct vgg_crop *crops, const struct vgg_augment *s)
{
    size_t image_bytes = s->size * s->size * s->c;
    for (size_t first = 0; first < s->n; first += IMAGES) {
        struct vgg_augment some = *s;
        some.n = vgg_min_size(IMAGES, s->n - first);
        size_t pixels = vgg_align64(some.n * image_bytes), bytes = pixels + some.n * (4 * sizeof(float) + 1);
        void *scratch;
        CUDA_PASS(vgg_cuda_allocate(ctx, &scratch, bytes));
        enum vgg_status status = augment_some(ctx, x + first * image_bytes, crops + first, &some, scratch, pixels);
        vgg_cuda_release(ctx->device, scratch, bytes);
        CUDA_PASS(status);
    }
    return VGG_OK;
}

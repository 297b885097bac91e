/* training.c: SGD and the training input (paper, section 3.1). */
#include "host.h"

enum vgg_status vgg_cuda_sgd(struct vgg_context *ctx, float *const *param, float *const *velocity, const float *const *grad,
                             const size_t *sizes, size_t count, const struct vgg_sgd *s)
{
    cudaStream_t stream;
    if (vgg_cuda_capturing(ctx->device)) /* replays would change weights whose version stays */
        return vgg_cuda_refuse_capture(ctx, "weights are updated");
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

/* ------------------------------------------------------------------------------------------------ the training input */

enum { IMAGES = 256 }; /* crops that are described on the stack and sent together */

static enum vgg_status augment_some(struct vgg_context *ctx, float *x, const struct vgg_crop *crops,
                                    const struct vgg_augment *s)
{
    float offset[IMAGES][4] = {{0}};
    uint8_t mirror[IMAGES];
    size_t offset_bytes = s->n * sizeof offset[0];
    struct vgg_cuda_rows rows[2 + IMAGES] = {{(const unsigned char *)offset, 1, offset_bytes, 0}, {mirror, 1, s->n, 0}};
    for (size_t i = 0; i < s->n; i++) {
        const struct vgg_crop *crop = &crops[i];
        rows[2 + i] = (struct vgg_cuda_rows){crop->image + (crop->top * crop->width + crop->left) * s->c, s->size,
                                             s->size * s->c, crop->width * s->c};
        for (size_t ch = 0; ch < s->c; ch++)
            offset[i][ch] = crop->shift[ch] - s->mean[ch];
        mirror[i] = crop->mirror;
    }
    unsigned char *staged;
    cudaStream_t stream;
    CUDA_PASS(vgg_cuda_enter(ctx, &stream));
    CUDA_PASS(vgg_cuda_stage(ctx, &staged, rows, 2 + s->n));
    cudaError_t error = vgg_cuda_launch_augment(x, staged + offset_bytes + s->n, (const float *)(const void *)staged,
                                                staged + offset_bytes, s, stream);
    enum vgg_status status = vgg_cuda_unstage(ctx);
    CUDA_TRY(ctx, error);
    return status;
}

enum vgg_status vgg_cuda_augment(struct vgg_context *ctx, float *x, const struct vgg_crop *crops, const struct vgg_augment *s)
{
    size_t image_bytes = s->size * s->size * s->c;
    for (size_t first = 0; first < s->n; first += IMAGES) {
        struct vgg_augment some = *s;
        some.n = vgg_min_size(IMAGES, s->n - first);
        CUDA_PASS(augment_some(ctx, x + first * image_bytes, crops + first, &some));
    }
    return VGG_OK;
}

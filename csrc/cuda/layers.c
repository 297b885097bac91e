/* layers.c: the table's entries that are one kernel, or a few. Contract: vgg.h. */
#include "host.h"

/* An entry whose kernel needs nothing but its arguments. */
#define LAUNCH(ctx, name, ...) \
    do { \
        cudaStream_t stream; \
        CUDA_PASS(vgg_cuda_enter(ctx, &stream)); \
        CUDA_TRY(ctx, vgg_cuda_launch_##name(__VA_ARGS__, stream)); \
        return VGG_OK; \
    } while (0)

enum vgg_status vgg_cuda_max_pool2d(struct vgg_context *ctx, void *y, uint8_t *index, const void *x,
                                    const struct vgg_max_pool2d *s)
{
    LAUNCH(ctx, max_pool2d, y, index, x, s);
}

/* An index that points nowhere puts nothing anywhere: to see it, the host would have to wait. */
enum vgg_status vgg_cuda_max_pool2d_backward(struct vgg_context *ctx, void *dx, const void *dy, const uint8_t *index,
                                             const struct vgg_max_pool2d *s)
{
    LAUNCH(ctx, unpool, dx, dy, NULL, index, s);
}

enum vgg_status vgg_cuda_convert(struct vgg_context *ctx, void *to, enum vgg_dtype to_dtype, const void *from, size_t count)
{
    LAUNCH(ctx, convert, to, to_dtype, from, count);
}

enum vgg_status vgg_cuda_relu(struct vgg_context *ctx, void *y, const void *x, size_t count, enum vgg_dtype dtype)
{
    LAUNCH(ctx, relu, y, x, count, dtype);
}

enum vgg_status vgg_cuda_relu_backward(struct vgg_context *ctx, void *dx, const void *dy, const void *y, size_t count,
                                       enum vgg_dtype dtype)
{
    LAUNCH(ctx, relu_backward, dx, dy, y, count, dtype);
}

enum vgg_status vgg_cuda_add(struct vgg_context *ctx, void *y, const void *x, size_t count, enum vgg_dtype dtype)
{
    LAUNCH(ctx, add, y, x, count, dtype);
}

enum vgg_status vgg_cuda_lrn(struct vgg_context *ctx, void *y, const void *x, const struct vgg_lrn *s)
{
    LAUNCH(ctx, lrn, y, x, s);
}

enum vgg_status vgg_cuda_lrn_backward(struct vgg_context *ctx, void *dx, const void *dy, const void *x, const struct vgg_lrn *s)
{
    LAUNCH(ctx, lrn_backward, dx, dy, x, s);
}

enum vgg_status vgg_cuda_softmax(struct vgg_context *ctx, float *y, const float *x, const struct vgg_softmax *s)
{
    LAUNCH(ctx, softmax, y, x, s);
}

enum vgg_status vgg_cuda_cross_entropy(struct vgg_context *ctx, float *loss, float *dlogits, const float *logits,
                                       const int64_t *labels, const struct vgg_softmax *s)
{
    LAUNCH(ctx, cross_entropy, loss, dlogits, logits, labels, s);
}

enum vgg_status vgg_cuda_euclidean_loss(struct vgg_context *ctx, float *loss, float *dx, const float *x, const float *target,
                                        const int64_t *labels, const struct vgg_euclidean *s)
{
    LAUNCH(ctx, euclidean_loss, loss, dx, x, target, labels, s);
}

enum vgg_status vgg_cuda_dropout(struct vgg_context *ctx, void *y, const void *x, const int64_t *rows,
                                 const struct vgg_dropout *s)
{
    if (s->p == 0)
        return y == x ? VGG_OK : vgg_cuda_copy(ctx, y, x, ctx->device, s->n * s->c * vgg_dtype_size(s->dtype));
    LAUNCH(ctx, dropout, y, x, rows, s);
}

enum vgg_status vgg_cuda_unfold(struct vgg_context *ctx, void *y, const void *x, const struct vgg_unfold *s)
{
    LAUNCH(ctx, unfold, y, x, s);
}

enum vgg_status vgg_cuda_random_normal(struct vgg_context *ctx, float *x, size_t count, float scale, uint64_t seed,
                                       uint32_t purpose)
{
    LAUNCH(ctx, random_normal, x, count, scale, seed, purpose);
}

enum vgg_status vgg_cuda_random_uniform(struct vgg_context *ctx, float *x, size_t count, float scale, uint64_t seed,
                                        uint32_t purpose)
{
    LAUNCH(ctx, random_uniform, x, count, scale, seed, purpose);
}

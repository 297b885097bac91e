/* ops/euclidean.c: the Euclidean loss of predicted boxes, with its gradient (paper, appendix A). Contract: vgg.h. */
#include "cpu.h"

#include <math.h>

enum vgg_status vgg_euclidean_loss_check(struct vgg_euclidean *s, const struct vgg_array *x, const struct vgg_array *target,
                                         const struct vgg_array *labels, struct vgg_error *error)
{
    const char *op = "euclidean_loss";
    VGG_TRY(vgg_expect_dtype(op, "x", x, VGG_FLOAT32, error));
    VGG_TRY(vgg_expect_ndim(op, "x", x, 2, error));
    VGG_TRY(vgg_expect_dtype(op, "target", target, VGG_FLOAT32, error));
    VGG_TRY(vgg_expect_ndim(op, "target", target, 2, error));
    s->rows = x->shape[0];
    s->d = target->shape[1];
    if (target->shape[0] != s->rows)
        return vgg_fail(error, VGG_INVALID_ARGUMENT, "%s: target has %zu rows; expected %zu, as x has", op, target->shape[0],
                        s->rows);
    if (labels) {
        if (s->d == 0 || x->shape[1] % s->d != 0)
            return vgg_fail(error, VGG_INVALID_ARGUMENT,
                            "%s: x has %zu columns; expected a multiple of %zu, those of target, because labels are given", op,
                            x->shape[1], s->d);
        VGG_TRY(vgg_expect_dtype(op, "labels", labels, VGG_INT64, error));
        VGG_TRY(vgg_expect_shape(op, "labels", labels, x->shape, 1, "each row of x has one label", error));
        s->c = x->shape[1] / s->d;
    } else {
        if (x->shape[1] != s->d)
            return vgg_fail(error, VGG_INVALID_ARGUMENT,
                            "%s: x has %zu columns, target %zu; expected as many, unless labels are given", op, x->shape[1],
                            s->d);
        s->c = 1;
    }
    if (s->normalizer == 0)
        s->normalizer = s->rows == 0 ? 1 : (double)s->rows;
    if (!isfinite(s->normalizer) || s->normalizer < 0)
        return vgg_fail(error, VGG_INVALID_ARGUMENT, "%s: normalizer is %g; expected a number > 0", op, s->normalizer);
    return VGG_OK;
}

enum vgg_status vgg_cpu_euclidean_loss(struct vgg_context *ctx, float *loss, float *dx, const float *x, const float *target,
                                       const int64_t *labels, const struct vgg_euclidean *s)
{
    for (size_t row = 0; labels && row < s->rows; row++)
        if (labels[row] < 0 || (uint64_t)labels[row] >= s->c)
            return vgg_fail(ctx->error, VGG_INVALID_ARGUMENT,
                            "euclidean_loss: label %zu is %lld; expected 0 <= label < %zu because x has %zu predictions a row",
                            row, (long long)labels[row], s->c, s->c);
    double sum = 0;
    for (size_t row = 0; row < s->rows; row++) {
        size_t own = (row * s->c + (labels ? (size_t)labels[row] : 0)) * s->d;
        for (size_t j = 0; j < s->c * s->d; j++)
            dx[row * s->c * s->d + j] = 0;
        for (size_t j = 0; j < s->d; j++) {
            double difference = (double)x[own + j] - (double)target[row * s->d + j];
            sum += difference * difference;
            dx[own + j] = (float)(difference / s->normalizer);
        }
    }
    *loss = (float)(sum / (2 * s->normalizer));
    return VGG_OK;
}

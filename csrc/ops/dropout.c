/* ops/dropout.c: dropout (paper, section 3.1), keyed by row so that a mask does not depend on the batch. Contract: vgg.h. */
#include "../core/philox.h"
#include "cpu.h"

enum { CHUNK = 1024 }; /* values of one row a task: a multiple of 4, so that a task begins at a block */

enum vgg_status vgg_dropout_check(struct vgg_dropout *s, const struct vgg_array *x, const struct vgg_array *rows,
                                  struct vgg_error *error)
{
    VGG_TRY(vgg_expect_map("dropout", "x", x, error));
    if (x->ndim == 0)
        return vgg_fail(error, VGG_INVALID_ARGUMENT, "dropout: x has shape (); expected (N, ...)");
    VGG_TRY(vgg_expect_dtype("dropout", "rows", rows, VGG_INT64, error));
    VGG_TRY(vgg_expect_shape("dropout", "rows", rows, x->shape, 1, "each row of x has its counter", error));
    if (!(s->p >= 0 && s->p < 1))
        return vgg_fail(error, VGG_INVALID_ARGUMENT, "dropout: p is %g; expected 0 <= p < 1", (double)s->p);
    s->dtype = x->dtype;
    s->n = x->shape[0];
    s->c = 1;
    for (int i = 1; i < x->ndim; i++)
        s->c *= x->shape[i];
    if (s->c / 4 > UINT32_MAX)
        return vgg_fail(error, VGG_UNSUPPORTED, "dropout: a row of x has %zu values; at most 2^34 have random words", s->c);
    return VGG_OK;
}

struct dropping {
    float *y;
    const float *x;
    const int64_t *rows;
    const struct vgg_dropout *s;
    size_t chunks; /* a row's */
};

static void dropout_task(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct dropping *d = argument;
    const struct vgg_dropout *s = d->s;
    size_t row = task / d->chunks, end, begin = vgg_chunk(&end, task % d->chunks, CHUNK, s->c);
    float *y = d->y + row * s->c;
    const float *x = d->x + row * s->c;
    float p = s->p, kept = 1 / (1 - p);
    uint32_t words[CHUNK];
    float values[CHUNK]; /* y may be x, but the stack aliases nothing */
    for (size_t j = begin; j < end; j += 4)
        vgg_philox(words + (j - begin), s->seed, (uint64_t)d->rows[row], s->purpose, (uint32_t)(j / 4));
    for (size_t j = 0; j < end - begin; j++)
        values[j] = vgg_keep((float)(int32_t)(words[j] >> 8) * 0x1p-24f >= p, x[begin + j] * kept);
    memcpy(y + begin, values, (end - begin) * sizeof(float));
}

enum vgg_status vgg_cpu_dropout(struct vgg_context *ctx, void *y, const void *x, const int64_t *rows,
                                const struct vgg_dropout *s)
{
    if (s->p == 0)
        return y == x ? VGG_OK : vgg_cpu_copy(ctx, y, x, 0, s->n * s->c * sizeof(float));
    struct dropping d = {y, x, rows, s, vgg_ceil_div(s->c, CHUNK)};
    /* A block of Philox costs as much as the traffic of some 64 bytes. */
    vgg_parallel_for(ctx->device, vgg_cpu_threads(ctx, s->n * s->c * 16), s->n * d.chunks, dropout_task, &d);
    return VGG_OK;
}

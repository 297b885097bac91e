/* ops/softmax.c: soft-max over the last axis, and cross-entropy with its gradient (paper, section 3.1). Contract: vgg.h. */
#include "cpu.h"

#include <math.h>

enum { ROWS = 256 }; /* rows whose losses wait on the stack for their turn in the sum */

static enum vgg_status rows_check(const char *op, const char *name, struct vgg_softmax *s, const struct vgg_array *x,
                                  struct vgg_error *error)
{
    VGG_TRY(vgg_expect_dtype(op, name, x, VGG_FLOAT32, error));
    if (x->ndim == 0)
        return vgg_fail(error, VGG_INVALID_ARGUMENT, "%s: %s has shape (); expected (..., classes)", op, name);
    s->c = x->shape[x->ndim - 1];
    s->rows = 1;
    for (int i = 0; i + 1 < x->ndim; i++)
        s->rows *= x->shape[i];
    return VGG_OK;
}

enum vgg_status vgg_softmax_check(struct vgg_softmax *s, const struct vgg_array *x, struct vgg_error *error)
{
    return rows_check("softmax", "x", s, x, error);
}

enum vgg_status vgg_cross_entropy_check(struct vgg_softmax *s, const struct vgg_array *logits, const struct vgg_array *labels,
                                        struct vgg_error *error)
{
    const char *op = "cross_entropy";
    VGG_TRY(rows_check(op, "logits", s, logits, error));
    VGG_TRY(vgg_expect_dtype(op, "labels", labels, VGG_INT64, error));
    VGG_TRY(vgg_expect_shape(op, "labels", labels, logits->shape, logits->ndim - 1, "each row of logits has one label", error));
    if (s->normalizer == 0)
        s->normalizer = s->rows == 0 ? 1 : (double)s->rows;
    if (!isfinite(s->normalizer) || s->normalizer < 0)
        return vgg_fail(error, VGG_INVALID_ARGUMENT, "%s: normalizer is %g; expected a number > 0", op, s->normalizer);
    return VGG_OK;
}

/* The row's maximum, NaN left out: a NaN comes back through the exponentials. -inf for c = 0. */
static float maximum(const float *x, size_t c)
{
    float m = -INFINITY;
    for (size_t j = 0; j < c; j++)
        m = x[j] > m ? x[j] : m;
    return m;
}

/* e[j] = exp(x[j] - m); returns their sum. */
static double exponentials(float *restrict e, const float *restrict x, size_t c, float m)
{
    double sum = 0;
    for (size_t j = 0; j < c; j++) {
        e[j] = expf(x[j] - m);
        sum += (double)e[j];
    }
    return sum;
}

static void scale_row(float *e, size_t c, double factor)
{
    for (size_t j = 0; j < c; j++)
        e[j] = (float)((double)e[j] * factor);
}

struct rows {
    float *out;
    const float *x;
    const int64_t *labels;
    size_t rows, rows_per_task;
    const struct vgg_softmax *s;
    double loss[ROWS];
};

/* Rows of about 2048 values together a task. */
static size_t rows_per_task(size_t c)
{
    return vgg_max_size(1, 2048 / vgg_max_size(1, c));
}

/* An exponential costs as much as the traffic of some 16 bytes. */
static int threads_for(const struct vgg_context *ctx, const struct vgg_softmax *s)
{
    return vgg_cpu_threads(ctx, s->rows * s->c * 16);
}

static void softmax_task(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct rows *r = argument;
    size_t c = r->s->c, end, begin = vgg_chunk(&end, task, r->rows_per_task, r->rows);
    for (size_t row = begin; row < end; row++) {
        const float *x = r->x + row * c;
        float *y = r->out + row * c;
        scale_row(y, c, 1 / exponentials(y, x, c, maximum(x, c)));
    }
}

enum vgg_status vgg_cpu_softmax(struct vgg_context *ctx, float *y, const float *x, const struct vgg_softmax *s)
{
    struct rows r = {.out = y, .x = x, .rows = s->rows, .rows_per_task = rows_per_task(s->c), .s = s};
    vgg_parallel_for(ctx->device, threads_for(ctx, s), vgg_ceil_div(s->rows, r.rows_per_task), softmax_task, &r);
    return VGG_OK;
}

static void cross_entropy_task(void *argument, size_t task, int thread)
{
    (void)thread;
    struct rows *r = argument;
    size_t c = r->s->c, end, begin = vgg_chunk(&end, task, r->rows_per_task, r->rows);
    for (size_t row = begin; row < end; row++) {
        const float *x = r->x + row * c;
        float *dx = r->out + row * c;
        size_t label = (size_t)r->labels[row];
        float m = maximum(x, c);
        double sum = exponentials(dx, x, c, m), factor = 1 / (sum * r->s->normalizer);
        /* In float64: near a certain answer, both the loss and p - 1 are differences of almost equal numbers. */
        double p = (double)dx[label] / sum;
        r->loss[row] = log(sum) + ((double)m - (double)x[label]);
        scale_row(dx, c, factor);
        dx[label] = (float)((p - 1) / r->s->normalizer);
    }
}

enum vgg_status vgg_cpu_cross_entropy(struct vgg_context *ctx, float *loss, float *dlogits, const float *logits,
                                      const int64_t *labels, const struct vgg_softmax *s)
{
    for (size_t row = 0; row < s->rows; row++)
        if (labels[row] < 0 || (uint64_t)labels[row] >= s->c)
            return vgg_fail(ctx->error, VGG_INVALID_ARGUMENT,
                            "cross_entropy: label %zu is %lld; expected 0 <= label < %zu because logits has %zu classes", row,
                            (long long)labels[row], s->c, s->c);
    double sum = 0;
    struct rows r = {.rows_per_task = rows_per_task(s->c), .s = s};
    for (size_t first = 0; first < s->rows; first += ROWS) {
        r.out = dlogits + first * s->c;
        r.x = logits + first * s->c;
        r.labels = labels + first;
        r.rows = vgg_min_size(ROWS, s->rows - first);
        vgg_parallel_for(ctx->device, threads_for(ctx, s), vgg_ceil_div(r.rows, r.rows_per_task), cross_entropy_task, &r);
        for (size_t row = 0; row < r.rows; row++)
            sum += r.loss[row];
    }
    *loss = (float)(sum / s->normalizer);
    return VGG_OK;
}

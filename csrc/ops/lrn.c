/* ops/lrn.c: local response normalisation across channels (paper, section 2.1, net A-LRN) and its gradient. Contract: vgg.h.
 *
 * A window's sum is made anew for each channel, of `size` terms: a running sum that adds the entering term and takes off the
 * leaving one would keep the rounding error of a large channel after it has left. Channels are done in blocks on the stack,
 * the loop over a block inside the loop over a window, so that the inner loop is over neighbours in memory. */
#include "cpu.h"

#include <math.h>

enum { BLOCK = 64, SPAN = 2 * BLOCK }; /* channels of an output block; most channels of s in one piece (backward) */

enum vgg_status vgg_lrn_check(struct vgg_lrn *s, const struct vgg_array *x, const struct vgg_array *dy, struct vgg_error *error)
{
    const char *op = dy == NULL ? "lrn" : "lrn_backward";
    VGG_TRY(vgg_expect_map(op, "x", x, error));
    if (x->ndim == 0)
        return vgg_fail(error, VGG_INVALID_ARGUMENT, "%s: x has shape (); expected (..., C) because it normalises channels",
                        op);
    if (dy != NULL) {
        VGG_TRY(vgg_expect_dtype(op, "dy", dy, x->dtype, error));
        VGG_TRY(vgg_expect_shape(op, "dy", dy, x->shape, x->ndim, "that is x's shape", error));
    }
    if (s->size % 2 == 0)
        return vgg_fail(error, VGG_INVALID_ARGUMENT, "%s: size is %zu; expected an odd number because the window is centred",
                        op, s->size);
    if (!isfinite(s->alpha) || s->alpha < 0)
        return vgg_fail(error, VGG_INVALID_ARGUMENT, "%s: alpha is %g; expected a number >= 0", op, (double)s->alpha);
    if (!isfinite(s->beta))
        return vgg_fail(error, VGG_INVALID_ARGUMENT, "%s: beta is %g; expected a finite number", op, (double)s->beta);
    if (!isfinite(s->k) || s->k <= 0)
        return vgg_fail(error, VGG_INVALID_ARGUMENT,
                        "%s: k is %g; expected a number > 0 because it keeps the power of a channel without activity finite",
                        op, (double)s->k);
    s->dtype = x->dtype;
    s->c = x->shape[x->ndim - 1];
    s->rows = 1;
    for (int i = 0; i + 1 < x->ndim; i++)
        s->rows *= x->shape[i];
    return VGG_OK;
}

struct normalisation {
    float *out;
    const float *dy, *x;
    const struct vgg_lrn *s;
    size_t rows_per_task;
};

/* acc[j] += sum over the window of channel begin + j of f(i), for the part of the window in from..to-1; term[i - from] is
 * f(i). Terms are added in the order of their channels, whatever the pieces. */
static void add_windows(float *restrict acc, size_t begin, size_t count, const float *restrict term, size_t from, size_t to,
                        size_t half)
{
    /* Offset i - j of a term from its channel, shifted to be >= 0: those of this piece that any channel of the block has. */
    size_t last = begin + count - 1;
    size_t low = from + half > last ? from + half - last : 0;
    size_t high = vgg_min_size(2 * half, to - 1 + half - begin);
    for (size_t shift = low; shift <= high; shift++) {
        /* channels j with from <= j + shift - half < to */
        size_t first = from + half > shift ? from + half - shift : 0;
        size_t stop = to + half > shift ? to + half - shift : 0;
        first = vgg_max_size(first, begin);
        stop = vgg_min_size(stop, begin + count);
        if (first >= stop)
            continue;
        float *restrict a = acc + (first - begin);
        const float *restrict t = term + (first + shift - half - from);
        for (size_t j = 0; j < stop - first; j++)
            a[j] += t[j];
    }
}

/* s[c] of channels begin..begin+count-1 (count <= SPAN) of one row. */
static void scales(float *restrict scale, const float *restrict x, size_t begin, size_t count, const struct vgg_lrn *s)
{
    float square[SPAN];
    size_t half = vgg_min_size(s->size / 2, s->c);
    size_t from = begin > half ? begin - half : 0, to = vgg_min_size(s->c, begin + count + half);
    for (size_t j = 0; j < count; j++)
        scale[j] = 0;
    for (size_t i = from; i < to; i += SPAN) {
        size_t piece = vgg_min_size(SPAN, to - i);
        for (size_t j = 0; j < piece; j++)
            square[j] = x[i + j] * x[i + j];
        add_windows(scale, begin, count, square, i, i + piece, half);
    }
    for (size_t j = 0; j < count; j++)
        scale[j] = s->k + s->alpha * scale[j];
}

/* power[j] = scale[j]^-beta; the paper's beta by square roots, which are exact to the last bit and vectorise. */
static void negative_powers(float *restrict power, const float *restrict scale, size_t count, float beta)
{
    if (beta == 0.75f)
        for (size_t j = 0; j < count; j++) {
            float root = sqrtf(scale[j]);
            power[j] = 1 / (root * sqrtf(root));
        }
    else
        for (size_t j = 0; j < count; j++)
            power[j] = powf(scale[j], -beta);
}

static void lrn_row(float *restrict y, const float *restrict x, const struct vgg_lrn *s)
{
    float scale[BLOCK], power[BLOCK];
    for (size_t begin = 0; begin < s->c; begin += BLOCK) {
        size_t count = vgg_min_size(BLOCK, s->c - begin);
        scales(scale, x, begin, count, s);
        negative_powers(power, scale, count, s->beta);
        for (size_t j = 0; j < count; j++)
            y[begin + j] = x[begin + j] * power[j];
    }
}

static void lrn_backward_row(float *restrict dx, const float *restrict dy, const float *restrict x, const struct vgg_lrn *s)
{
    float scale[SPAN], power[SPAN], sum[BLOCK], direct[BLOCK];
    size_t half = vgg_min_size(s->size / 2, s->c);
    float factor = 2 * s->alpha * s->beta;
    for (size_t begin = 0; begin < s->c; begin += BLOCK) {
        size_t count = vgg_min_size(BLOCK, s->c - begin);
        size_t from = begin > half ? begin - half : 0, to = vgg_min_size(s->c, begin + count + half);
        for (size_t j = 0; j < count; j++)
            sum[j] = 0;
        for (size_t i = from; i < to; i += SPAN) {
            size_t piece = vgg_min_size(SPAN, to - i);
            scales(scale, x, i, piece, s);
            negative_powers(power, scale, piece, s->beta);
            size_t first = vgg_max_size(i, begin), stop = vgg_min_size(i + piece, begin + count);
            for (size_t j = first; j < stop; j++)
                direct[j - begin] = dy[j] * power[j - i];
            for (size_t j = 0; j < piece; j++)
                scale[j] = dy[i + j] * x[i + j] * (power[j] / scale[j]);
            add_windows(sum, begin, count, scale, i, i + piece, half);
        }
        for (size_t j = 0; j < count; j++)
            dx[begin + j] = direct[j] - factor * x[begin + j] * sum[j];
    }
}

static void rows_task(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct normalisation *n = argument;
    const struct vgg_lrn *s = n->s;
    size_t end, begin = vgg_chunk(&end, task, n->rows_per_task, s->rows);
    for (size_t row = begin; row < end; row++)
        if (n->dy == NULL)
            lrn_row(n->out + row * s->c, n->x + row * s->c, s);
        else
            lrn_backward_row(n->out + row * s->c, n->dy + row * s->c, n->x + row * s->c, s);
}

static enum vgg_status normalise(const struct vgg_context *ctx, float *out, const float *dy, const float *x,
                                 const struct vgg_lrn *s)
{
    size_t work = s->rows * s->c * sizeof(float), row = vgg_max_size(1, s->c);
    struct normalisation n = {out, dy, x, s, vgg_max_size(1, 4096 / row)};
    vgg_parallel_for(ctx->device, vgg_cpu_threads(ctx, 4 * work), vgg_ceil_div(s->rows, n.rows_per_task), rows_task, &n);
    return VGG_OK;
}

enum vgg_status vgg_cpu_lrn(struct vgg_context *ctx, void *y, const void *x, const struct vgg_lrn *s)
{
    return normalise(ctx, y, NULL, x, s);
}

enum vgg_status vgg_cpu_lrn_backward(struct vgg_context *ctx, void *dx, const void *dy, const void *x, const struct vgg_lrn *s)
{
    return normalise(ctx, dx, dy, x, s);
}

/* ops/max_pool2d.c: 2x2 max pooling with stride 2 (paper, section 2.1), and its gradient. Contract: vgg.h. */
#include "cpu.h"
#include "pool_window.h"

#include <string.h>

size_t vgg_pooled(size_t size, bool ceil_mode)
{
    return size / 2 + (ceil_mode ? size % 2 : 0);
}

enum vgg_status vgg_max_pool2d_check(struct vgg_max_pool2d *s, const struct vgg_array *x, struct vgg_error *error)
{
    VGG_TRY(vgg_expect_map("max_pool2d", "x", x, error));
    VGG_TRY(vgg_expect_ndim("max_pool2d", "x", x, 4, error));
    s->n = x->shape[0];
    s->h = x->shape[1];
    s->w = x->shape[2];
    s->c = x->shape[3];
    s->dtype = x->dtype;
    return VGG_OK;
}

enum vgg_status vgg_max_pool2d_backward_check(struct vgg_max_pool2d *s, const struct vgg_array *dy,
                                              const struct vgg_array *index, const size_t *input_shape, struct vgg_error *error)
{
    const char *op = "max_pool2d_backward";
    VGG_TRY(vgg_expect_map(op, "dy", dy, error));
    VGG_TRY(vgg_expect_ndim(op, "dy", dy, 4, error));
    VGG_TRY(vgg_expect_dtype(op, "index", index, VGG_UINT8, error));
    VGG_TRY(vgg_expect_shape(op, "index", index, dy->shape, 4, "every value of dy has one", error));
    size_t bytes;
    if (!vgg_shape_bytes(&bytes, input_shape, 4, sizeof(float)))
        return vgg_fail(error, VGG_INVALID_ARGUMENT, "%s: input_shape has more bytes than an address can count", op);
    s->n = input_shape[0];
    s->h = input_shape[1];
    s->w = input_shape[2];
    s->c = input_shape[3];
    s->dtype = dy->dtype;
    size_t up[4] = {s->n, vgg_pooled(s->h, true), vgg_pooled(s->w, true), s->c};
    size_t down[4] = {s->n, vgg_pooled(s->h, false), vgg_pooled(s->w, false), s->c};
    /* Even sizes pool alike in both modes: they are called floor. */
    s->ceil_mode = memcmp(dy->shape, down, sizeof down) != 0;
    if (!s->ceil_mode || memcmp(dy->shape, up, sizeof up) == 0)
        return VGG_OK;
    char got[56], input[56], down_text[56];
    return vgg_fail(error, VGG_INVALID_ARGUMENT,
                    "%s: dy has shape %s; expected %s, or its odd sides rounded up, because input_shape is %s", op,
                    vgg_shape_text(got, sizeof got, dy->shape, 4), vgg_shape_text(down_text, sizeof down_text, down, 4),
                    vgg_shape_text(input, sizeof input, input_shape, 4));
}

/* ------------------------------------------------------------------------------------------------ forward */

struct pooling {
    float *y;
    uint8_t *index;
    const float *x;
    size_t h, w, c, pooled_h, pooled_w;
};

/* One row of y. */
static void pool_task(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct pooling *p = argument;
    size_t image = task / p->pooled_h, row = 2 * (task % p->pooled_h);
    const float *top = p->x + (image * p->h + row) * p->w * p->c;
    const float *bottom = row + 1 < p->h ? top + p->w * p->c : NULL;
    size_t at = task * p->pooled_w * p->c;
    vgg_pool_row(p->y + at, p->index + at, top, bottom, p->w, p->pooled_w, p->c);
}

enum vgg_status vgg_cpu_max_pool2d(struct vgg_context *ctx, void *y, uint8_t *index, const void *x,
                                   const struct vgg_max_pool2d *s)
{
    struct pooling p = {y, index, x, s->h, s->w, s->c, vgg_pooled(s->h, s->ceil_mode), vgg_pooled(s->w, s->ceil_mode)};
    size_t bytes = s->n * s->h * s->w * s->c * sizeof(float);
    vgg_parallel_for(ctx->device, vgg_cpu_threads(ctx, bytes), s->n * p.pooled_h, pool_task, &p);
    return VGG_OK;
}

/* ------------------------------------------------------------------------------------------------ backward
 *
 * Each place of dx looks whether its window's index names it: every element is written once and nothing else can be,
 * whatever index holds. */

struct unpooling {
    float *dx;
    const float *dy;
    const uint8_t *index;
    size_t h, w, c, pooled_h, pooled_w;
    atomic_bool stray; /* an index named a place that its window does not have */
};

/* dx of place `place` of windows that all have it: `count` values of one window, or of one channel run. */
static void take_winner(float *restrict dx, const float *restrict dy, const uint8_t *restrict index, int place, size_t count)
{
    for (size_t j = 0; j < count; j++)
        dx[j] = vgg_keep(index[j] == place, dy[j]);
}

/* The places that window (i, j) has, as bits. */
static unsigned places(const struct unpooling *p, size_t i, size_t j)
{
    unsigned row = 2 * j + 1 < p->w ? 3 : 1;
    return 2 * i + 1 < p->h ? row | row << 2 : row;
}

static bool strays(const uint8_t *index, size_t count, unsigned places)
{
    unsigned stray = 0;
    if (places == 15)
        for (size_t j = 0; j < count; j++)
            stray |= index[j] & 0xFCu;
    else
        for (size_t j = 0; j < count; j++)
            stray |= index[j] > 3 || !(places >> index[j] & 1);
    return stray != 0;
}

/* Rows 2i and 2i + 1 of one image. Floor pooling has no window over an odd last row or column: those get zeros, here. */
static void unpool_task(void *argument, size_t task, int thread)
{
    (void)thread;
    struct unpooling *p = argument;
    size_t pairs = vgg_ceil_div(p->h, 2), image = task / pairs, i = task % pairs, c = p->c;
    bool stray = false;
    for (size_t row = 2 * i; row < vgg_min_size(2 * i + 2, p->h); row++) {
        float *dx = p->dx + (image * p->h + row) * p->w * c;
        size_t columns = i < p->pooled_h ? p->pooled_w : 0, covered = vgg_min_size(2 * columns, p->w);
        size_t at = (image * p->pooled_h + i) * p->pooled_w * c;
        for (size_t j = 0; j < columns; j++, at += c) {
            int place = (int)(row % 2) * 2;
            for (size_t column = 2 * j; column < vgg_min_size(2 * j + 2, p->w); column++)
                take_winner(dx + column * c, p->dy + at, p->index + at, place++, c);
            if (row % 2 == 0)
                stray |= strays(p->index + at, c, places(p, i, j));
        }
        memset(dx + covered * c, 0, (p->w - covered) * c * sizeof(float));
    }
    if (stray)
        atomic_store_explicit(&p->stray, true, memory_order_relaxed);
}

/* The first bad index again, for the message. */
static enum vgg_status stray_error(const struct unpooling *p, struct vgg_error *error)
{
    size_t at = 0;
    for (size_t row = 0;; row++)
        for (size_t j = 0; j < p->pooled_w; j++)
            for (size_t ch = 0; ch < p->c; ch++, at++)
                if (strays(p->index + at, 1, places(p, row % p->pooled_h, j)))
                    return vgg_fail(error, VGG_INVALID_ARGUMENT,
                                    "max_pool2d_backward: index[%zu, %zu, %zu, %zu] is %d; expected 0 to 3, a place that "
                                    "its window has in an input of height %zu and width %zu",
                                    row / p->pooled_h, row % p->pooled_h, j, ch, p->index[at], p->h, p->w);
}

enum vgg_status vgg_cpu_max_pool2d_backward(struct vgg_context *ctx, void *dx, const void *dy, const uint8_t *index,
                                            const struct vgg_max_pool2d *s)
{
    struct unpooling p = {.dx = dx,
                          .dy = dy,
                          .index = index,
                          .h = s->h,
                          .w = s->w,
                          .c = s->c,
                          .pooled_h = vgg_pooled(s->h, s->ceil_mode),
                          .pooled_w = vgg_pooled(s->w, s->ceil_mode)};
    atomic_init(&p.stray, false);
    size_t bytes = s->n * s->h * s->w * s->c * sizeof(float);
    vgg_parallel_for(ctx->device, vgg_cpu_threads(ctx, bytes), s->n * vgg_ceil_div(s->h, 2), unpool_task, &p);
    return atomic_load(&p.stray) ? stray_error(&p, ctx->error) : VGG_OK;
}

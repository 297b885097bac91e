/* ops/conv2d.c: the convolution's checks, its choice of algorithm, and its entries of the backend table. */
#include "conv2d.h"

#include <string.h>

static const char *const algorithm_names[VGG_ALGORITHM_COUNT] = {
    [VGG_AUTO] = "auto",           [VGG_DIRECT] = "direct",       [VGG_WINOGRAD2] = "winograd2",
    [VGG_WINOGRAD4] = "winograd4", [VGG_WINOGRAD6] = "winograd6",
};

/* ------------------------------------------------------------------------------------------------ checks */

static enum vgg_status expect_map(const char *op, const char *name, const struct vgg_array *a, const struct vgg_conv2d *s,
                                  struct vgg_error *error)
{
    VGG_TRY(vgg_expect_precision(op, name, a, s->precision, error));
    VGG_TRY(vgg_expect_ndim(op, name, a, 4, error));
    for (int i = strcmp(name, "w") != 0 ? 1 : 0; i < 4; i++) /* activations may have no image */
        if (a->shape[i] == 0) {
            char text[80];
            return vgg_fail(error, VGG_INVALID_ARGUMENT, "%s: %s has shape %s; expected no axis of size 0%s", op, name,
                            vgg_shape_text(text, sizeof text, a->shape, a->ndim),
                            strcmp(name, "w") == 0 ? "" : " but the batch");
        }
    return VGG_OK;
}

static enum vgg_status expect_kernel(const char *op, const struct vgg_array *w, const struct vgg_conv2d *s,
                                     struct vgg_error *error)
{
    VGG_TRY(expect_map(op, "w", w, s, error));
    if (w->shape[1] == w->shape[2] && (w->shape[1] == 1 || w->shape[1] == 3))
        return VGG_OK;
    char text[80];
    return vgg_fail(error, VGG_INVALID_ARGUMENT, "%s: w has shape %s; expected (K, 3, 3, C) or (K, 1, 1, C)", op,
                    vgg_shape_text(text, sizeof text, w->shape, w->ndim));
}

enum vgg_status vgg_conv2d_check(struct vgg_conv2d *s, const struct vgg_array *x, const struct vgg_array *w,
                                 const struct vgg_array *b, struct vgg_error *error)
{
    VGG_TRY(expect_map("conv2d", "x", x, s, error));
    VGG_TRY(expect_kernel("conv2d", w, s, error));
    if (w->shape[3] != x->shape[3]) {
        char got[80];
        return vgg_fail(error, VGG_INVALID_ARGUMENT,
                        "conv2d: w has shape %s; expected (K, %zu, %zu, %zu) because x has %zu channels",
                        vgg_shape_text(got, sizeof got, w->shape, w->ndim), w->shape[1], w->shape[2], x->shape[3], x->shape[3]);
    }
    if (b != NULL) {
        VGG_TRY(vgg_expect_dtype("conv2d", "b", b, VGG_FLOAT32, error));
        VGG_TRY(vgg_expect_shape("conv2d", "b", b, w->shape, 1, "w has that many output channels", error));
    }
    s->n = x->shape[0];
    s->h = x->shape[1];
    s->w = x->shape[2];
    s->c = x->shape[3];
    s->k = w->shape[0];
    s->kernel_size = w->shape[1];
    if (s->pool == VGG_POOL_FLOOR && (s->h < 2 || s->w < 2))
        return vgg_fail(error, VGG_INVALID_ARGUMENT,
                        "conv2d: x is %zu x %zu; expected at least 2 x 2 because its output is pooled, rounding down", s->h,
                        s->w);
    return VGG_OK;
}

/* y and index have dy's shape; with index, the input's height and width must pool to dy's: sets s->pool. */
static enum vgg_status check_gradient(const char *op, struct vgg_conv2d *s, const struct vgg_array *dy,
                                      const struct vgg_array *y, const struct vgg_array *index, const char *input,
                                      struct vgg_error *error)
{
    if (y != NULL) {
        VGG_TRY(vgg_expect_precision(op, "y", y, s->precision, error));
        VGG_TRY(vgg_expect_shape(op, "y", y, dy->shape, 4, "dy has that shape", error));
    }
    if (index != NULL) {
        VGG_TRY(vgg_expect_dtype(op, "index", index, VGG_UINT8, error));
        VGG_TRY(vgg_expect_shape(op, "index", index, dy->shape, 4, "dy has that shape", error));
    }
    s->relu = false;
    s->pool = VGG_POOL_NONE;
    size_t oh = dy->shape[1], ow = dy->shape[2];
    if (index == NULL ? oh == s->h && ow == s->w : oh == vgg_pooled(s->h, false) && ow == vgg_pooled(s->w, false)) {
        s->pool = index == NULL ? VGG_POOL_NONE : VGG_POOL_FLOOR;
        return VGG_OK;
    }
    if (index != NULL && oh == vgg_pooled(s->h, true) && ow == vgg_pooled(s->w, true)) {
        s->pool = VGG_POOL_CEIL;
        return VGG_OK;
    }
    char got[72], from[72];
    const size_t shape[] = {s->n, s->h, s->w, s->c};
    return vgg_fail(error, VGG_INVALID_ARGUMENT, "%s: dy has shape %s; expected maps of %s%zu x %zu because %s %s", op,
                    vgg_shape_text(got, sizeof got, dy->shape, dy->ndim), index == NULL ? "" : "half of ", s->h, s->w, input,
                    vgg_shape_text(from, sizeof from, shape, 4));
}

enum vgg_status vgg_conv2d_backward_input_check(struct vgg_conv2d *s, const struct vgg_array *dy, const struct vgg_array *w,
                                                const struct vgg_array *y, const struct vgg_array *index,
                                                const size_t *input_shape, struct vgg_error *error)
{
    static const char op[] = "conv2d_backward_input";
    VGG_TRY(expect_map(op, "dy", dy, s, error));
    VGG_TRY(expect_kernel(op, w, s, error));
    if (w->shape[0] != dy->shape[3]) {
        char got[80];
        return vgg_fail(
            error, VGG_INVALID_ARGUMENT, "%s: w has shape %s; expected (%zu, %zu, %zu, C) because dy has %zu channels", op,
            vgg_shape_text(got, sizeof got, w->shape, w->ndim), dy->shape[3], w->shape[1], w->shape[2], dy->shape[3]);
    }
    if (index != NULL && input_shape == NULL)
        return vgg_fail(error, VGG_INVALID_ARGUMENT,
                        "%s: input_shape is missing; expected (N, H, W, C) because index un-pools dy", op);
    s->n = dy->shape[0];
    s->h = input_shape == NULL ? dy->shape[1] : input_shape[1];
    s->w = input_shape == NULL ? dy->shape[2] : input_shape[2];
    s->c = w->shape[3];
    s->k = w->shape[0];
    s->kernel_size = w->shape[1];
    if (input_shape != NULL && (input_shape[0] != s->n || input_shape[3] != s->c || s->h == 0 || s->w == 0)) {
        char got[80];
        return vgg_fail(error, VGG_INVALID_ARGUMENT,
                        "%s: input_shape is %s; expected (%zu, H, W, %zu) because of dy's batch and w's channels", op,
                        vgg_shape_text(got, sizeof got, input_shape, 4), s->n, s->c);
    }
    return check_gradient(op, s, dy, y, index, "input_shape is", error);
}

enum vgg_status vgg_conv2d_backward_weight_check(struct vgg_conv2d *s, const struct vgg_array *dy, const struct vgg_array *x,
                                                 const struct vgg_array *y, const struct vgg_array *index,
                                                 struct vgg_error *error)
{
    static const char op[] = "conv2d_backward_weight";
    if (s->kernel_size != 1 && s->kernel_size != 3)
        return vgg_fail(error, VGG_INVALID_ARGUMENT, "%s: kernel_size is %zu; expected 1 or 3", op, s->kernel_size);
    VGG_TRY(expect_map(op, "dy", dy, s, error));
    VGG_TRY(expect_map(op, "x", x, s, error));
    if (dy->shape[0] != x->shape[0])
        return vgg_fail(error, VGG_INVALID_ARGUMENT, "%s: dy has %zu images; expected %zu because x has %zu", op, dy->shape[0],
                        x->shape[0], x->shape[0]);
    s->n = x->shape[0];
    s->h = x->shape[1];
    s->w = x->shape[2];
    s->c = x->shape[3];
    s->k = dy->shape[3];
    return check_gradient(op, s, dy, y, index, "x has shape", error);
}

/* ------------------------------------------------------------------------------------------------ the gradient of z */

struct vgg_conv2d_gradient vgg_conv2d_gradient(const struct vgg_conv2d *s, const float *dy, const float *y,
                                               const uint8_t *index)
{
    struct vgg_conv2d_gradient g = {.dy = dy, .y = y, .index = index, .h = s->h, .w = s->w, .k = s->k};
    g.oh = index == NULL ? s->h : vgg_pooled(s->h, s->pool == VGG_POOL_CEIL);
    g.ow = index == NULL ? s->w : vgg_pooled(s->w, s->pool == VGG_POOL_CEIL);
    return g;
}

/* to = from where y > 0 (if y is given) and index == place (if index is given), else 0. The loops load before they choose, so
 * that the choice is a mask and they vectorise; to a branch, signs are a coin's throw. */
static void choose(float *restrict to, const float *restrict from, const float *restrict y, const uint8_t *restrict index,
                   uint8_t place, size_t count)
{
    if (y == NULL && index == NULL)
        memcpy(to, from, count * sizeof *to);
    else if (index == NULL)
        for (size_t j = 0; j < count; j++) {
            float value = from[j];
            to[j] = y[j] > 0 ? value : 0;
        }
    else if (y == NULL)
        for (size_t j = 0; j < count; j++) {
            float value = from[j];
            to[j] = index[j] == place ? value : 0;
        }
    else
        for (size_t j = 0; j < count; j++) {
            float value = from[j];
            value = y[j] > 0 ? value : 0;
            to[j] = index[j] == place ? value : 0;
        }
}

void vgg_conv2d_gradient_row(float *restrict row, const struct vgg_conv2d_gradient *g, size_t n, size_t h)
{
    size_t i = g->index == NULL ? h : h / 2;
    if (i >= g->oh) { /* the odd last row, which floor mode does not pool */
        memset(row, 0, g->w * g->k * sizeof *row);
        return;
    }
    size_t offset = (n * g->oh + i) * g->ow * g->k;
    const float *restrict dy = g->dy + offset, *restrict y = g->y == NULL ? NULL : g->y + offset;
    if (g->index == NULL) {
        choose(row, dy, y, NULL, 0, g->w * g->k);
        return;
    }
    const uint8_t *restrict index = g->index + offset;
    for (size_t column = 0; column < g->w; column++, row += g->k) {
        size_t at = column / 2 * g->k;
        if (column / 2 < g->ow)
            choose(row, dy + at, y == NULL ? NULL : y + at, index + at, (uint8_t)(2 * (h & 1) + (column & 1)), g->k);
        else
            memset(row, 0, g->k * sizeof *row);
    }
}

/* ------------------------------------------------------------------------------------------------ choice and entries */

/* Whether the map is at least half of its tiles of side x side. */
static bool fills_tiles(const struct vgg_conv2d *s, size_t side)
{
    double tiles = (double)vgg_ceil_div(s->h, side) * (double)vgg_ceil_div(s->w, side);
    return 2 * (double)s->h * (double)s->w >= tiles * (double)(side * side);
}

/* What was measured to be the fastest (AVX2; 16 to 512 channels, maps of 2 x 2 to 224 x 224, batches of 1, 2, 4 and 8). A map
 * must be large enough to pay for the transforms of the weights, which a batch shares; the weight gradient's are those of dw,
 * and dearer. Of one image with a small map, weights are most of what is read: F(2x2, 3x3) has the fewest. On large maps
 * F(6x6, 3x3) takes 15 % less time than F(4x4, 3x3), with four times its error, and F(3x3, 6x6) 11 to 16 % less than
 * F(3x3, 4x4); not so with AVX-512, whose products are so fast that transforms count for more. */
enum vgg_algorithm vgg_conv2d_algorithm(const struct vgg_conv2d *s, enum vgg_direction direction)
{
    enum { CHANNELS = 16, SMALL_PIXELS = 8 * 8, LARGE_SIDE = 64 };
    static const size_t least_pixels[VGG_DIRECTION_COUNT][2] = {
        [VGG_FORWARD] = {[true] = 7 * 7, [false] = 3 * 3},
        [VGG_BACKWARD_INPUT] = {[true] = 7 * 7, [false] = 3 * 3},
        [VGG_BACKWARD_WEIGHT] = {[true] = 12 * 12, [false] = 4 * 4},
    };
    if (s->algorithm != VGG_AUTO)
        return s->algorithm;
    double pixels = (double)s->h * (double)s->w;
    if (s->kernel_size != 3 || s->c < CHANNELS || s->k < CHANNELS || !fills_tiles(s, 4) ||
        pixels < (double)least_pixels[direction][s->n == 1])
        return VGG_DIRECT;
    if (direction != VGG_BACKWARD_WEIGHT && s->n == 1 && pixels <= SMALL_PIXELS)
        return VGG_WINOGRAD2;
    bool large = s->h >= LARGE_SIDE && s->w >= LARGE_SIDE;
    return large && vgg_isa_selected() != VGG_ISA_AVX512 ? VGG_WINOGRAD6 : VGG_WINOGRAD4;
}

/* Direct convolution has kernels of its own for inputs of few channels. */
static bool takes_first(enum vgg_algorithm algorithm, const struct vgg_conv2d *s, enum vgg_direction direction)
{
    return algorithm == VGG_DIRECT && vgg_conv2d_first_takes(s, direction);
}

/* What the call takes; VGG_UNSUPPORTED if it cannot do what it was asked for. */
static enum vgg_status take_algorithm(enum vgg_algorithm *algorithm, const struct vgg_context *ctx, const struct vgg_conv2d *s,
                                      enum vgg_direction direction)
{
    *algorithm = vgg_conv2d_algorithm(s, direction);
    if (*algorithm != VGG_DIRECT && s->kernel_size != 3)
        return vgg_fail(ctx->error, VGG_UNSUPPORTED, "conv2d: algorithm '%s' needs 3x3 kernels; w has %zux%zu",
                        algorithm_names[*algorithm], s->kernel_size, s->kernel_size);
    if (direction == VGG_BACKWARD_WEIGHT && *algorithm == VGG_WINOGRAD2)
        return vgg_fail(ctx->error, VGG_UNSUPPORTED,
                        "conv2d_backward_weight: got algorithm 'winograd2'; expected 'auto', 'direct', 'winograd4' or "
                        "'winograd6'");
    return VGG_OK;
}

enum vgg_status vgg_cpu_conv2d_workspace(struct vgg_context *ctx, size_t *bytes, const struct vgg_conv2d *s,
                                         enum vgg_direction direction)
{
    enum vgg_algorithm algorithm;
    VGG_TRY(take_algorithm(&algorithm, ctx, s, direction));
    if (takes_first(algorithm, s, direction))
        return vgg_conv2d_first_workspace(ctx, bytes, s, direction);
    bool direct = algorithm == VGG_DIRECT;
    if (direction == VGG_BACKWARD_WEIGHT)
        return (direct ? vgg_conv2d_weight_workspace : vgg_conv2d_winograd_weight_workspace)(ctx, bytes, s);
    return (direct ? vgg_conv2d_direct_workspace : vgg_conv2d_winograd_workspace)(ctx, bytes, s,
                                                                                  direction == VGG_BACKWARD_INPUT);
}

enum vgg_status vgg_cpu_conv2d_transformed_bytes(struct vgg_context *ctx, size_t *bytes, const struct vgg_conv2d *s)
{
    enum vgg_algorithm algorithm;
    VGG_TRY(take_algorithm(&algorithm, ctx, s, VGG_FORWARD));
    *bytes = 0;
    return algorithm == VGG_DIRECT ? VGG_OK : vgg_conv2d_winograd_transformed_bytes(ctx, bytes, s);
}

enum vgg_status vgg_cpu_conv2d_transform(struct vgg_context *ctx, float *transformed, const float *w,
                                         const struct vgg_conv2d *s)
{
    enum vgg_algorithm algorithm;
    VGG_TRY(take_algorithm(&algorithm, ctx, s, VGG_FORWARD));
    if (algorithm == VGG_DIRECT)
        return vgg_fail(ctx->error, VGG_UNSUPPORTED, "conv2d_transform_weights: algorithm 'direct' takes weights as they are");
    return vgg_conv2d_winograd_transform(ctx, transformed, w, s);
}

enum vgg_status vgg_cpu_conv2d(struct vgg_context *ctx, void *y, uint8_t *index, const void *x, const void *w, const float *b,
                               const struct vgg_conv2d *s)
{
    enum vgg_algorithm algorithm;
    VGG_TRY(take_algorithm(&algorithm, ctx, s, VGG_FORWARD));
    if (takes_first(algorithm, s, VGG_FORWARD))
        return vgg_conv2d_first(ctx, y, index, x, w, b, s);
    return (algorithm == VGG_DIRECT ? vgg_conv2d_direct : vgg_conv2d_winograd)(ctx, y, index, x, NULL, w, b, s);
}

enum vgg_status vgg_cpu_conv2d_backward_input(struct vgg_context *ctx, void *dx, const void *dy, const void *w, const void *y,
                                              const uint8_t *index, const struct vgg_conv2d *s)
{
    enum vgg_algorithm algorithm;
    VGG_TRY(take_algorithm(&algorithm, ctx, s, VGG_BACKWARD_INPUT));
    const struct vgg_conv2d_gradient g = vgg_conv2d_gradient(s, dy, y, index);
    if (takes_first(algorithm, s, VGG_BACKWARD_INPUT))
        return vgg_conv2d_first_input(ctx, dx, &g, w, s);
    return (algorithm == VGG_DIRECT ? vgg_conv2d_direct : vgg_conv2d_winograd)(ctx, dx, NULL, NULL, &g, w, NULL, s);
}

enum vgg_status vgg_cpu_conv2d_backward_weight(struct vgg_context *ctx, float *dw, float *db, const void *dy, const void *x,
                                               const void *y, const uint8_t *index, const struct vgg_conv2d *s, int beta)
{
    enum vgg_algorithm algorithm;
    VGG_TRY(take_algorithm(&algorithm, ctx, s, VGG_BACKWARD_WEIGHT));
    const struct vgg_conv2d_gradient g = vgg_conv2d_gradient(s, dy, y, index);
    if (takes_first(algorithm, s, VGG_BACKWARD_WEIGHT))
        return vgg_conv2d_first_weight(ctx, dw, db, &g, x, s, beta);
    return (algorithm == VGG_DIRECT ? vgg_conv2d_weight : vgg_conv2d_winograd_weight)(ctx, dw, db, &g, x, s, beta);
}

/* ops/linear.c: the fully connected layer and its gradients.
 *
 * fc6's weights are 411 MB, so they are read, and their gradient written, once, where they lie:
 *
 *   forward          few rows of x: w streams past them (the forward kernel); more: rows of the tile are outputs, w is read
 *                    in place as A, x is the small, packed operand, and tiles of y transposed are written back through scratch
 *   input gradient   w is B, in place; few rows of dy: a few rows of w at a time, in long runs
 *   weight gradient  a sum over the batch: both operands are small and packed
 *
 * Sums over inputs and outputs are blocked, always alike, so a row of a result does not depend on the batch. */
#include "panels.h"
#include "workspace.h"

#include <string.h>

enum {
    BLOCK = 1024,       /* of a sum over inputs: a panel of it stays in the L2 cache */
    ROW_BLOCK = 64,     /* outputs of a task of the forward pass, about */
    OUTPUT_BLOCK = 128, /* of a sum over outputs: a panel of it stays in the L1 cache */
    COLUMNS = 1024,     /* inputs of a task of the input gradient */
    FEW_COLUMNS = 3072, /* of them with few rows of dy: rows of w are read in longer runs */
    WEIGHT_PANELS = 64, /* most panels of inputs of a task of the weight gradient */
    STAGGER = 16,       /* floats, a cache line: rows of x lie so much more than their length apart, or those whose length is a
                           * power of two, and those of w, would all fall into one cache set */
    SMALL_WORK = 1 << 20, /* multiply-adds that are not worth waking a thread for */
};

/* ------------------------------------------------------------------------------------------------ checks */

/* Of precision's dtype, or `also`. */
static enum vgg_status expect_matrix(const char *op, const char *name, const struct vgg_array *a, bool batch,
                                     enum vgg_precision precision, enum vgg_dtype also, struct vgg_error *error)
{
    if (a->dtype != also)
        VGG_TRY(vgg_expect_precision(op, name, a, precision, error));
    VGG_TRY(vgg_expect_ndim(op, name, a, 2, error));
    if (a->shape[1] != 0 && (batch || a->shape[0] != 0))
        return VGG_OK;
    char text[80];
    return vgg_fail(error, VGG_INVALID_ARGUMENT, "%s: %s has shape %s; expected no axis of size 0%s", op, name,
                    vgg_shape_text(text, sizeof text, a->shape, a->ndim), batch ? " but the batch" : "");
}

enum vgg_status vgg_linear_check(struct vgg_linear *s, const struct vgg_array *x, const struct vgg_array *w,
                                 const struct vgg_array *b, struct vgg_error *error)
{
    const enum vgg_dtype dtype = vgg_precision_dtype(s->precision);
    VGG_TRY(expect_matrix("linear", "x", x, true, s->precision, dtype, error));
    VGG_TRY(expect_matrix("linear", "w", w, false, s->precision, VGG_BFLOAT16, error));
    if (w->shape[1] != x->shape[1]) {
        char text[80];
        return vgg_fail(error, VGG_INVALID_ARGUMENT, "linear: w has shape %s; expected (out, %zu) because x has %zu features",
                        vgg_shape_text(text, sizeof text, w->shape, w->ndim), x->shape[1], x->shape[1]);
    }
    if (b != NULL) {
        VGG_TRY(vgg_expect_dtype("linear", "b", b, VGG_FLOAT32, error));
        VGG_TRY(vgg_expect_shape("linear", "b", b, w->shape, 1, "w has that many outputs", error));
    }
    s->n = x->shape[0];
    s->in = x->shape[1];
    s->out = w->shape[0];
    s->bfloat16 = w->dtype == VGG_BFLOAT16;
    return VGG_OK;
}

enum vgg_status vgg_linear_backward_input_check(struct vgg_linear *s, const struct vgg_array *dy, const struct vgg_array *w,
                                                struct vgg_error *error)
{
    static const char op[] = "linear_backward_input";
    const enum vgg_dtype dtype = vgg_precision_dtype(s->precision);
    VGG_TRY(expect_matrix(op, "dy", dy, true, s->precision, VGG_FLOAT32, error));
    VGG_TRY(expect_matrix(op, "w", w, false, s->precision, dtype, error));
    if (w->shape[0] != dy->shape[1]) {
        char text[80];
        return vgg_fail(error, VGG_INVALID_ARGUMENT, "%s: w has shape %s; expected (%zu, in) because dy has %zu features", op,
                        vgg_shape_text(text, sizeof text, w->shape, w->ndim), dy->shape[1], dy->shape[1]);
    }
    *s = (struct vgg_linear){
        .n = dy->shape[0], .in = w->shape[1], .out = w->shape[0], .precision = s->precision, .wide = dy->dtype != dtype};
    return VGG_OK;
}

enum vgg_status vgg_linear_backward_weight_check(struct vgg_linear *s, const struct vgg_array *dy, const struct vgg_array *x,
                                                 struct vgg_error *error)
{
    static const char op[] = "linear_backward_weight";
    const enum vgg_dtype dtype = vgg_precision_dtype(s->precision);
    VGG_TRY(expect_matrix(op, "dy", dy, true, s->precision, VGG_FLOAT32, error));
    VGG_TRY(expect_matrix(op, "x", x, true, s->precision, dtype, error));
    if (dy->shape[0] != x->shape[0]) {
        char text[80];
        return vgg_fail(error, VGG_INVALID_ARGUMENT, "%s: dy has shape %s; expected (%zu, out) because x has %zu rows", op,
                        vgg_shape_text(text, sizeof text, dy->shape, dy->ndim), x->shape[0], x->shape[0]);
    }
    *s = (struct vgg_linear){
        .n = x->shape[0], .in = x->shape[1], .out = dy->shape[1], .precision = s->precision, .wide = dy->dtype != dtype};
    return VGG_OK;
}

/* ------------------------------------------------------------------------------------------------ workspace */

struct call {
    struct vgg_linear s;
    const struct vgg_kernel *gemm, *few, *gradient;
    size_t tile, columns;                           /* gradients: rows of a tile, inputs of a task */
    size_t shared_bytes, first_bytes, thread_bytes; /* first_bytes: of the first of two shared parts */
    size_t tiles_bytes;                             /* forward: of the first of two parts of a thread's */
    float *result, *db;
    const float *x, *b, *dy;
    const void *w;
    int beta;
    float *first, *second; /* shared parts */
    char *scratch;
};

/* Rows of w that the input gradient reads at a time: as few as the arithmetic allows, for memory likes long runs; measured. */
static size_t outputs_at_once(const struct call *call)
{
    size_t mr = call->gradient->mr, n = call->s.n;
    return n <= 2 * mr ? 16 : n <= 6 * mr ? 32 : OUTPUT_BLOCK;
}

/* Forward: x packed, or few rows staggered; scratch: a task's tiles of y transposed, and a block of w as float32 if
 * it is bfloat16. Input gradient: dy packed; scratch: a panel of w, and with few
 * rows their sums so far. Weight gradient: dy and x packed. */
static enum vgg_status make_call(struct call *call, struct vgg_context *ctx, const struct vgg_linear *s,
                                 enum vgg_direction direction)
{
    const struct vgg_kernel *gemm = vgg_gemm(), *few = vgg_kernel(VGG_SLOT_LINEAR_FORWARD);
    const struct vgg_kernel *gradient = vgg_kernel(VGG_SLOT_LINEAR_GRADIENT);
    *call = (struct call){.s = *s, .gemm = gemm, .few = few, .gradient = gradient};
    size_t second_bytes = 0, nr = gradient->nr;
    bool fits = true;
    if (direction == VGG_FORWARD && s->n > few->mr) {
        size_t panels = vgg_ceil_div(s->n, gemm->nr);
        fits = vgg_reserve(&call->first_bytes, panels, s->in, gemm->nr) &&
               vgg_reserve(&call->tiles_bytes, panels, ROW_BLOCK + gemm->mr, gemm->nr);
        call->thread_bytes = call->tiles_bytes;
        fits = fits && (!s->bfloat16 || vgg_reserve(&call->thread_bytes, 1, ROW_BLOCK, BLOCK));
    } else if (direction == VGG_FORWARD) {
        fits = vgg_reserve(&call->first_bytes, s->n > 1 ? s->n : 0, s->in + STAGGER, 1);
    } else if (direction == VGG_BACKWARD_INPUT) {
        size_t tiles = vgg_max_size(1, vgg_ceil_div(s->n, gradient->mr));
        call->tile = vgg_ceil_div(s->n, tiles);
        bool few_outputs = outputs_at_once(call) < OUTPUT_BLOCK;
        size_t most = few_outputs ? FEW_COLUMNS : COLUMNS; /* but eight tasks */
        call->columns = vgg_min_size(most, vgg_ceil_div(vgg_ceil_div(s->in, 8), nr) * nr);
        fits = vgg_reserve(&call->first_bytes, tiles, s->out, call->tile) &&
               vgg_reserve(&call->thread_bytes, 1, OUTPUT_BLOCK, nr) &&
               (!few_outputs || vgg_reserve(&call->thread_bytes, 1, s->n, call->columns));
    } else if (direction == VGG_BACKWARD_WEIGHT) {
        call->tile = gradient->mr;
        size_t panels = vgg_l2_bytes() / 4 / (vgg_max_size(1, s->n) * nr * sizeof(float));
        call->columns = nr * vgg_min_size(WEIGHT_PANELS, vgg_max_size(1, vgg_min_size(panels, vgg_ceil_div(s->in, 8 * nr))));
        fits = vgg_reserve(&call->first_bytes, vgg_ceil_div(s->out, call->tile), s->n, call->tile) &&
               vgg_reserve(&second_bytes, vgg_ceil_div(s->in, nr), s->n, nr);
    }
    fits = fits && vgg_add_size(&call->shared_bytes, call->first_bytes, second_bytes);
    return vgg_workspace_fits(ctx, "linear", fits);
}

enum vgg_status vgg_cpu_linear_workspace(struct vgg_context *ctx, size_t *bytes, const struct vgg_linear *s,
                                         enum vgg_direction direction)
{
    struct call call;
    VGG_TRY(make_call(&call, ctx, s, direction));
    return vgg_workspace_bytes(bytes, ctx, "linear", call.shared_bytes, call.thread_bytes);
}

static enum vgg_status begin(struct call *call, struct vgg_context *ctx, const struct vgg_linear *s,
                             enum vgg_direction direction, const char *op, int *threads)
{
    VGG_TRY(make_call(call, ctx, s, direction));
    if (s->n == 0) {
        *threads = 1;
        return VGG_OK;
    }
    VGG_TRY(vgg_workspace_threads(ctx, op, threads, call->shared_bytes, call->thread_bytes));
    call->first = ctx->workspace;
    call->second = (float *)(void *)((char *)ctx->workspace + call->first_bytes);
    call->scratch = (char *)ctx->workspace + call->shared_bytes;
    if ((double)s->n * (double)s->in * (double)s->out < SMALL_WORK)
        *threads = 1;
    vgg_kernel_count_use(direction != VGG_FORWARD ? call->gradient : s->n <= call->few->mr ? call->few : call->gemm);
    return VGG_OK;
}

/* ------------------------------------------------------------------------------------------------ forward */

/* Task (panel, block): first[panel][i][j] = x[panel * NR + j][i] for a BLOCK of i, 0 beyond the batch. */
static void pack_x_task(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct call *call = argument;
    size_t in = call->s.in, nr = call->gemm->nr, blocks = vgg_ceil_div(in, BLOCK);
    size_t row = task / blocks * nr, rows = vgg_min_size(nr, call->s.n - row);
    size_t begin = task % blocks * BLOCK, end = vgg_min_size(in, begin + BLOCK);
    float *to = call->first + (task / blocks * in + begin) * nr;
    vgg_transpose_to_panel(to, call->x + row * in + begin, in, rows, end - begin, nr);
}

/* w[o][i], whatever its type. */
static const void *weights(const struct call *call, size_t o, size_t i)
{
    size_t size = call->s.bfloat16 ? sizeof(uint16_t) : sizeof(float);
    return (const char *)call->w + (o * call->s.in + i) * size;
}

/* Few rows: first[n][i], staggered. */
static void stagger_task(void *argument, size_t n, int thread)
{
    (void)thread;
    const struct call *call = argument;
    size_t in = call->s.in;
    memcpy(call->first + n * (in + STAGGER), call->x + n * in, in * sizeof *call->x);
}

/* Task: a block of outputs, a batch of few rows. */
static void forward_few_task(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct call *call = argument;
    const struct vgg_linear *s = &call->s;
    size_t begin = task * ROW_BLOCK;
    const struct vgg_linear_forward t = {
        .rows = s->n,
        .outputs = vgg_min_size(ROW_BLOCK, s->out - begin),
        .in = s->in,
        .block = BLOCK,
        .w = weights(call, begin, 0),
        .bfloat16 = s->bfloat16,
        .w_row = s->in,
        .x = s->n > 1 ? call->first : call->x,
        .x_row = s->in + STAGGER,
        .bias = call->b == NULL ? NULL : call->b + begin,
        .relu = s->relu,
        .y = call->result + begin,
        .y_row = s->out,
    };
    call->few->run.linear_forward(&t);
}

static void widen(float *restrict to, const uint16_t *restrict from, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = (uint32_t)from[i] << 16;
        memcpy(&to[i], &bits, sizeof bits);
    }
}

/* Task: a block of outputs, all of the batch. tiles[panel][output][j], j a row of x. */
static void forward_task(void *argument, size_t task, int thread)
{
    const struct call *call = argument;
    const struct vgg_linear *s = &call->s;
    const struct vgg_kernel *gemm = call->gemm;
    size_t block = ROW_BLOCK / gemm->mr * gemm->mr, nr = gemm->nr, panels = vgg_ceil_div(s->n, nr);
    size_t begin = task * block, outs = vgg_min_size(block, s->out - begin);
    float *tiles = (float *)(void *)(call->scratch + (size_t)thread * call->thread_bytes);
    float *wide = (float *)(void *)((char *)tiles + call->tiles_bytes);
    struct vgg_gemm t = {.rows = outs, .nr = nr, .runs = 1, .a_row = s->bfloat16 ? BLOCK : s->in, .a_col = 1, .c_row = nr};
    for (size_t i = 0; i < s->in; i += BLOCK) {
        t.k = vgg_min_size(BLOCK, s->in - i);
        t.beta = i != 0;
        for (size_t row = 0; s->bfloat16 && row < outs; row++)
            widen(wide + row * BLOCK, weights(call, begin + row, i), t.k);
        const float *w = s->bfloat16 ? wide : weights(call, begin, i);
        for (size_t panel = 0; panel < panels; panel++) {
            t.b = call->first + (panel * s->in + i) * nr;
            t.a = w;
            t.c = tiles + panel * block * nr;
            gemm->run.gemm(&t);
        }
    }
    for (size_t n = 0; n < s->n; n++) {
        const float *z = tiles + n / nr * block * nr + n % nr;
        float *y = call->result + n * s->out + begin;
        for (size_t o = 0; o < outs; o++) {
            float value = z[o * nr] + (call->b == NULL ? 0 : call->b[begin + o]);
            y[o] = s->relu && value < 0 ? 0 : value; /* NaN goes through */
        }
    }
}

enum vgg_status vgg_cpu_linear(struct vgg_context *ctx, void *y, const void *x, const void *w, const float *b,
                               const struct vgg_linear *s)
{
    struct call call;
    int threads = 1;
    VGG_TRY(begin(&call, ctx, s, VGG_FORWARD, "linear", &threads));
    call.result = y;
    call.x = x;
    call.w = w;
    call.b = b;
    if (s->n == 0)
        return VGG_OK;
    if (s->n <= call.few->mr) {
        if (s->n > 1)
            vgg_parallel_for(ctx->device, threads, s->n, stagger_task, &call);
        vgg_parallel_for(ctx->device, threads, vgg_ceil_div(s->out, ROW_BLOCK), forward_few_task, &call);
        return VGG_OK;
    }
    size_t block = ROW_BLOCK / call.gemm->mr * call.gemm->mr;
    vgg_parallel_for(ctx->device, threads, vgg_ceil_div(s->n, call.gemm->nr) * vgg_ceil_div(s->in, BLOCK), pack_x_task, &call);
    vgg_parallel_for(ctx->device, threads, vgg_ceil_div(s->out, block), forward_task, &call);
    return VGG_OK;
}

/* ------------------------------------------------------------------------------------------------ input gradient */

/* Task: a tile of rows of dy, to first[tile][o][row]. */
static void pack_dy_task(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct call *call = argument;
    const struct vgg_linear *s = &call->s;
    size_t row = task * call->tile, rows = vgg_min_size(call->tile, s->n - row);
    vgg_transpose_to_panel(call->first + row * s->out, call->dy + row * s->out, s->out, rows, s->out, call->tile);
}

/* Task: some of the inputs, all of the batch. An OUTPUT_BLOCK of rows of w is one chain; where fewer are read at a
 * time, sums[row][column] is carried on. */
static void backward_input_task(void *argument, size_t task, int thread)
{
    const struct call *call = argument;
    const struct vgg_linear *s = &call->s;
    const struct vgg_kernel *gradient = call->gradient;
    size_t first = task * call->columns, run = outputs_at_once(call);
    float *packed = (float *)(void *)(call->scratch + (size_t)thread * call->thread_bytes);
    float *sums = packed + OUTPUT_BLOCK * gradient->nr;
    struct vgg_linear_gradient t = {
        .rows = s->n,
        .tile = call->tile,
        .columns = vgg_min_size(call->columns, s->in - first),
        .a_tile = s->out * call->tile,
        .b_row = s->in,
        .b_panel = gradient->nr,
        .packed = packed,
        .carry_row = call->columns,
    };
    for (size_t o = 0; o < s->out; o += t.k) {
        t.k = vgg_min_size(run, s->out - o);
        bool begins = o % OUTPUT_BLOCK == 0, ends = (o + t.k) % OUTPUT_BLOCK == 0 || o + t.k == s->out;
        t.a = call->first + o * call->tile;
        t.b = (const float *)call->w + o * s->in + first;
        t.next = o + 2 * t.k <= s->out ? t.b + t.k * s->in : t.b;
        t.carry = begins ? NULL : sums;
        t.c = ends ? call->result + first : sums;
        t.c_row = ends ? s->in : call->columns;
        t.beta = ends && o >= OUTPUT_BLOCK;
        gradient->run.linear_gradient(&t);
    }
}

enum vgg_status vgg_cpu_linear_backward_input(struct vgg_context *ctx, void *dx, const void *dy, const void *w,
                                              const struct vgg_linear *s)
{
    struct call call;
    int threads = 1;
    VGG_TRY(begin(&call, ctx, s, VGG_BACKWARD_INPUT, "linear_backward_input", &threads));
    call.result = dx;
    call.dy = dy;
    call.w = w;
    if (s->n == 0)
        return VGG_OK;
    vgg_parallel_for(ctx->device, threads, vgg_ceil_div(s->n, call.tile), pack_dy_task, &call);
    vgg_parallel_for(ctx->device, threads, vgg_ceil_div(s->in, call.columns), backward_input_task, &call);
    return VGG_OK;
}

/* ------------------------------------------------------------------------------------------------ weight gradient */

/* Task: a row of dy and of x, to first[panel][n][MR] and second[panel][n][NR]. */
static void pack_batch_task(void *argument, size_t n, int thread)
{
    (void)thread;
    const struct call *call = argument;
    const struct vgg_linear *s = &call->s;
    size_t mr = call->tile, nr = call->gradient->nr;
    vgg_to_panels(call->first + n * mr, s->n * mr, call->dy + n * s->out, s->out, 1, s->out, mr);
    vgg_to_panels(call->second + n * nr, s->n * nr, call->x + n * s->in, s->in, 1, s->in, nr);
}

/* Task: some of the inputs, all outputs. dw is written in runs of a row. */
static void backward_weight_task(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct call *call = argument;
    const struct vgg_linear *s = &call->s;
    size_t first = task * call->columns;
    struct vgg_linear_gradient t = {
        .tile = call->tile,
        .k = s->n,
        .columns = vgg_min_size(call->columns, s->in - first),
        .b = call->second + first * s->n,
        .b_row = call->gradient->nr,
        .b_panel = s->n * call->gradient->nr,
        .c_row = s->in,
        .beta = call->beta != 0,
    };
    t.next = t.b;
    for (size_t o = 0; o < s->out; o += t.rows) {
        t.rows = vgg_min_size(t.tile, s->out - o);
        t.a = call->first + o * s->n;
        t.c = call->result + o * s->in + first;
        call->gradient->run.linear_gradient(&t);
    }
}

/* Task: a BLOCK of outputs. */
static void bias_task(void *argument, size_t task, int thread)
{
    (void)thread;
    enum { WIDTH = 64 };
    const struct call *call = argument;
    const struct vgg_linear *s = &call->s;
    for (size_t o = task * BLOCK; o < vgg_min_size(s->out, (task + 1) * BLOCK); o += WIDTH) {
        size_t count = vgg_min_size(WIDTH, s->out - o);
        double sums[WIDTH] = {0};
        for (size_t n = 0; n < s->n; n++)
            for (size_t j = 0; j < count; j++)
                sums[j] += (double)call->dy[n * s->out + o + j];
        for (size_t j = 0; j < count; j++)
            call->db[o + j] = (float)(sums[j] + (call->beta != 0 ? (double)call->db[o + j] : 0));
    }
}

enum vgg_status vgg_cpu_linear_backward_weight(struct vgg_context *ctx, float *dw, float *db, const void *dy, const void *x,
                                               const struct vgg_linear *s, int beta)
{
    struct call call;
    int threads = 1;
    VGG_TRY(begin(&call, ctx, s, VGG_BACKWARD_WEIGHT, "linear_backward_weight", &threads));
    call.result = dw;
    call.db = db;
    call.dy = dy;
    call.x = x;
    call.beta = beta;
    if (s->n == 0 && beta == 0)
        memset(dw, 0, s->out * s->in * sizeof *dw);
    if (s->n != 0) {
        vgg_parallel_for(ctx->device, threads, s->n, pack_batch_task, &call);
        vgg_parallel_for(ctx->device, threads, vgg_ceil_div(s->in, call.columns), backward_weight_task, &call);
    }
    vgg_parallel_for(ctx->device, threads, vgg_ceil_div(s->out, BLOCK), bias_task, &call);
    return VGG_OK;
}

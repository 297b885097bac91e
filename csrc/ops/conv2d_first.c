/* ops/conv2d_first.c: direct 3x3 convolution of inputs of few channels, and both gradients: a net's first layer. Where a window
 * has 27 numbers, staging them for the GEMM microkernel costs as much as the sums; the kernels of kernels/first_tile.h read
 * the map itself, in rows with a border of zeros.
 *
 *   forward          tasks are bands of rows of an image: stage x, then one call of the kernel makes the band's y
 *   input gradient   likewise; g, masked and un-pooled, is staged row by row in a ring of three
 *   weight gradient  tasks are runs of the batch's rows, cut by shape alone. A block of pixels of g is made and summed while it
 *                    is in L1, in registers, then added to the task's sums; these are in float32 for some blocks and in
 *                    float64 beyond, as is the sum over tasks, in their order */
#include "conv2d.h"

#include <string.h>

/* BLOCK_PIXELS was measured (AVX2, 3 -> 64 channels, 224 x 224): blocks of 32 and 128 pixels take 5 % longer. */
enum {
    FEW = 4,                 /* channels, at most */
    FORWARD_ROWS = 8,        /* of a task; even, so that windows do not cross */
    INPUT_ROWS = 16,         /* of a task; two more are staged */
    WEIGHT_ROWS = 8,         /* of x that are staged at a time */
    BLOCK_PIXELS = 64,       /* whose g stays in L1; the longest sum in registers */
    BLOCKS = 4,              /* added in float32, before float64 */
    TASK_PIXELS = 1024,      /* of the weight gradient, at least: their sums cost less than they do */
    TASKS = 128,             /* of the weight gradient, at most: their sums take memory */
    STREAM_BYTES = 24 << 20, /* of y: more than a last-level cache keeps for the next layer */
    SMALL_WORK = 1 << 20     /* multiply-adds that are not worth waking a thread for */
};

/* Forward, a panel must be full (AVX2, 3 -> 16 channels, 32 x 32: 0.028 ms an image against the GEMM's 0.012). */
bool vgg_conv2d_first_takes(const struct vgg_conv2d *s, enum vgg_direction direction)
{
    bool full = direction != VGG_FORWARD || s->k >= vgg_kernel(VGG_SLOT_FIRST_FORWARD)->nr;
    return s->kernel_size == 3 && s->c <= FEW && full;
}

struct plan {
    enum vgg_direction direction;
    size_t n, h, w, c, k;
    const struct vgg_kernel *kernel, *gradient;
    size_t bands, tasks;         /* of an image; of the call */
    size_t rows;                 /* of x or g that are staged at a time, beside the border's */
    size_t x_row, k_row;         /* floats of a row of staged x; k, rounded up to vectors */
    size_t panels, panel_floats; /* forward */
    size_t g_row;                /* input gradient */
    size_t sums;                 /* weight gradient */
    size_t shared_bytes, thread_bytes;
    size_t staged_bytes, block_bytes; /* of thread_bytes */
};

static enum vgg_status make_plan(struct plan *p, const struct vgg_context *ctx, const struct vgg_conv2d *s,
                                 enum vgg_direction direction)
{
    static const enum vgg_slot slots[] = {[VGG_FORWARD] = VGG_SLOT_FIRST_FORWARD,
                                          [VGG_BACKWARD_INPUT] = VGG_SLOT_FIRST_INPUT,
                                          [VGG_BACKWARD_WEIGHT] = VGG_SLOT_FIRST_WEIGHT};
    *p = (struct plan){.direction = direction,
                       .n = s->n,
                       .h = s->h,
                       .w = s->w,
                       .c = s->c,
                       .k = s->k,
                       .kernel = vgg_kernel(slots[direction]),
                       .gradient = vgg_kernel(VGG_SLOT_FIRST_GRADIENT)};
    size_t vl = p->gradient->nr, rows, pixels;
    bool fits =
        vgg_mul_size(&rows, p->n, p->h) && vgg_mul_size(&pixels, rows, p->w) && p->k <= PTRDIFF_MAX && p->w <= PTRDIFF_MAX;
    if (fits) {
        p->k_row = vgg_ceil_div(p->k, vl) * vl;
        p->sums = (9 * p->c + 1) * p->k_row;
        p->panels = vgg_ceil_div(p->k, p->kernel->nr);
        p->panel_floats = (9 * p->c + 1) * p->kernel->nr;
    }
    if (fits && direction == VGG_FORWARD) {
        p->rows = vgg_min_size(FORWARD_ROWS, p->h);
        p->x_row = (p->w + 2 + 2 * p->kernel->mr) * p->c;
        fits = vgg_reserve(&p->shared_bytes, p->panels, p->panel_floats, 1) &&
               vgg_reserve(&p->staged_bytes, p->rows + 2, p->x_row, 1);
    } else if (fits && direction == VGG_BACKWARD_INPUT) {
        p->rows = vgg_min_size(INPUT_ROWS, p->h);
        fits = vgg_mul_size(&p->g_row, p->w + 2 + p->kernel->mr, p->k_row) &&
               vgg_reserve(&p->shared_bytes, 9 * p->c, p->k_row, 1) && vgg_reserve(&p->staged_bytes, 4, p->g_row, 1);
    } else if (fits) {
        p->rows = vgg_min_size(vgg_max_size(WEIGHT_ROWS, BLOCK_PIXELS / p->w), p->h);
        p->x_row = (p->w + 2) * p->c;
        p->tasks = vgg_min_size(vgg_min_size(rows, TASKS), vgg_max_size(pixels / TASK_PIXELS, 1));
        fits = vgg_reserve(&p->shared_bytes, p->tasks, p->sums, sizeof(double) / sizeof(float)) &&
               vgg_reserve(&p->staged_bytes, p->rows + 2, p->x_row, 1) &&
               vgg_reserve(&p->block_bytes, BLOCK_PIXELS, p->k_row, 1) && vgg_reserve(&p->thread_bytes, p->sums, 1, 1);
    }
    if (fits && direction != VGG_BACKWARD_WEIGHT) {
        p->bands = vgg_ceil_div(p->h, p->rows);
        p->tasks = p->n * p->bands;
    }
    fits = fits && vgg_add_size(&p->thread_bytes, p->thread_bytes, p->staged_bytes) &&
           vgg_add_size(&p->thread_bytes, p->thread_bytes, p->block_bytes);
    return vgg_workspace_fits(ctx, "conv2d", fits);
}

enum vgg_status vgg_conv2d_first_workspace(struct vgg_context *ctx, size_t *bytes, const struct vgg_conv2d *s,
                                           enum vgg_direction direction)
{
    struct plan p;
    VGG_TRY(make_plan(&p, ctx, s, direction));
    return vgg_workspace_bytes(bytes, ctx, "conv2d", p.shared_bytes, p.thread_bytes);
}

struct call {
    struct plan p;
    float *y; /* or dx or dw */
    uint8_t *index;
    const float *x, *w, *b;
    const struct vgg_conv2d_gradient *g;
    float *db;
    bool relu, pool, stream;
    int beta;
    size_t oh, ow;
    float *packed;
    double *partial; /* [task][9 c + 1][k_row] */
    char *scratch;   /* thread_bytes for each thread */
};

/* Plan, workspace and threads of a call. */
static enum vgg_status start(struct call *call, int *threads, struct vgg_context *ctx, const struct vgg_conv2d *s,
                             enum vgg_direction direction, const char *op)
{
    struct plan *p = &call->p;
    VGG_TRY(make_plan(p, ctx, s, direction));
    VGG_TRY(vgg_workspace_threads(ctx, op, threads, p->shared_bytes, p->thread_bytes));
    call->packed = ctx->workspace;
    call->partial = ctx->workspace;
    call->scratch = (char *)ctx->workspace + p->shared_bytes;
    if ((double)(p->n * p->h * p->w) * (double)(9 * p->c * p->k) < SMALL_WORK)
        *threads = 1;
    vgg_kernel_count_use(p->kernel);
    if (direction != VGG_FORWARD)
        vgg_kernel_count_use(p->gradient);
    return VGG_OK;
}

/* staged[i][(j + 1) * c + ..]: rows row - 1 .. row + rows of image n, zeros beyond its edges. */
static void stage_x(float *staged, const struct call *call, size_t n, size_t row, size_t rows)
{
    const struct plan *p = &call->p;
    size_t inner = p->w * p->c;
    for (size_t i = 0; i < rows + 2; i++, staged += p->x_row) {
        size_t h = row + i - 1; /* wraps above the map: then it is past the end too */
        if (h >= p->h) {
            memset(staged, 0, p->x_row * sizeof *staged);
            continue;
        }
        memset(staged, 0, p->c * sizeof *staged);
        memcpy(staged + p->c, call->x + (n * p->h + h) * inner, inner * sizeof *staged);
        memset(staged + p->c + inner, 0, (p->x_row - p->c - inner) * sizeof *staged);
    }
}

/* ------------------------------------------------------------------------------------------------ forward */

static void pack_panel(void *argument, size_t panel, int thread)
{
    (void)thread;
    const struct call *call = argument;
    const struct plan *p = &call->p;
    size_t nr = p->kernel->nr, depth = 9 * p->c;
    float *to = call->packed + panel * p->panel_floats;
    for (size_t j = 0; j < nr; j++) {
        size_t k = panel * nr + j;
        to[j] = call->b != NULL && k < p->k ? call->b[k] : 0;
        for (size_t q = 0; q < depth; q++)
            to[(1 + q) * nr + j] = k < p->k ? call->w[k * depth + q] : 0;
    }
}

static void forward_task(void *argument, size_t task, int thread)
{
    const struct call *call = argument;
    const struct plan *p = &call->p;
    size_t n = task / p->bands, row = task % p->bands * p->rows, rows = vgg_min_size(p->rows, p->h - row);
    float *staged = (float *)(void *)(call->scratch + (size_t)thread * p->thread_bytes);
    stage_x(staged, call, n, row, rows);
    struct vgg_first_forward t = {.x = staged,
                                  .x_row = p->x_row,
                                  .c = p->c,
                                  .panels = call->packed,
                                  .relu = call->relu,
                                  .pool = call->pool,
                                  .stream = call->stream,
                                  .rows = rows,
                                  .w = p->w,
                                  .k = p->k,
                                  .ow = call->ow};
    size_t at = (n * p->h + row) * p->w * p->k;
    if (call->pool) {
        t.oh = row / 2 < call->oh ? vgg_min_size(vgg_ceil_div(rows, 2), call->oh - row / 2) : 0;
        at = (n * call->oh + row / 2) * call->ow * p->k;
    }
    t.y = call->y + at;
    t.index = call->index == NULL ? NULL : call->index + at;
    p->kernel->run.first_forward(&t);
}

enum vgg_status vgg_conv2d_first(struct vgg_context *ctx, float *y, uint8_t *index, const float *x, const float *w,
                                 const float *b, const struct vgg_conv2d *s)
{
    struct call call = {.y = y, .index = index, .x = x, .w = w, .b = b, .relu = s->relu, .pool = s->pool != VGG_POOL_NONE};
    int threads = 1;
    VGG_TRY(start(&call, &threads, ctx, s, VGG_FORWARD, "conv2d"));
    const struct plan *p = &call.p;
    call.oh = vgg_pooled(p->h, s->pool == VGG_POOL_CEIL);
    call.ow = vgg_pooled(p->w, s->pool == VGG_POOL_CEIL);
    call.stream = !call.pool && p->k % 16 == 0 && (uintptr_t)y % 64 == 0 &&
                  (double)(p->n * p->h * p->w) * (double)(p->k * sizeof *y) > STREAM_BYTES;
    vgg_parallel_for(ctx->device, threads, p->panels, pack_panel, &call);
    vgg_parallel_for(ctx->device, threads, p->tasks, forward_task, &call);
    return VGG_OK;
}

/* ------------------------------------------------------------------------------------------------ the gradient of z */

/* `columns` pixels of g from (row, column) of image n on. */
static void make_gradient(float *g, const struct call *call, size_t n, size_t row, size_t column, size_t columns)
{
    const struct vgg_conv2d_gradient *from = call->g;
    size_t image = n * from->oh * from->ow * from->k;
    const struct vgg_first_gradient t = {.dy = from->dy + image,
                                         .y = from->y == NULL ? NULL : from->y + image,
                                         .index = from->index == NULL ? NULL : from->index + image,
                                         .oh = from->oh,
                                         .ow = from->ow,
                                         .k = from->k,
                                         .row = row,
                                         .column = column,
                                         .columns = columns,
                                         .g = g,
                                         .g_pixel = call->p.k_row};
    call->p.gradient->run.first_gradient(&t);
}

/* ------------------------------------------------------------------------------------------------ input gradient */

/* Tap by tap, turned by half a turn: [tap][vector][c][lane]. */
static void pack_tap(void *argument, size_t tap, int thread)
{
    (void)thread;
    const struct call *call = argument;
    const struct plan *p = &call->p;
    size_t vl = p->kernel->nr;
    float *to = call->packed + tap * p->c * p->k_row;
    for (size_t k = 0; k < p->k_row; k++)
        for (size_t c = 0; c < p->c; c++)
            to[(k / vl * p->c + c) * vl + k % vl] = k < p->k ? call->w[(k * 9 + 8 - tap) * p->c + c] : 0;
}

static void input_task(void *argument, size_t task, int thread)
{
    const struct call *call = argument;
    const struct plan *p = &call->p;
    size_t n = task / p->bands, row = task % p->bands * p->rows, end = vgg_min_size(row + p->rows, p->h);
    float *zeros = (float *)(void *)(call->scratch + (size_t)thread * p->thread_bytes), *ring = zeros + p->g_row;
    memset(zeros, 0, 4 * p->g_row * sizeof *zeros);
    struct vgg_first_input t = {.g_pixel = p->k_row, .weights = call->packed, .w = p->w, .c = p->c};
    for (size_t h = row - 1; h != end + 1; h++) { /* row - 1 wraps above the map: then it is past the end too */
        float *g = zeros;
        if (h < p->h) {
            g = ring + h % 3 * p->g_row;
            make_gradient(g + p->k_row, call, n, h, 0, p->w);
        }
        t.g[0] = t.g[1];
        t.g[1] = t.g[2];
        t.g[2] = g;
        if (h + 1 < row + 2)
            continue;
        t.dx = call->y + (n * p->h + h - 1) * p->w * p->c;
        p->kernel->run.first_input(&t);
    }
}

enum vgg_status vgg_conv2d_first_input(struct vgg_context *ctx, float *dx, const struct vgg_conv2d_gradient *g, const float *w,
                                       const struct vgg_conv2d *s)
{
    struct call call = {.y = dx, .w = w, .g = g};
    int threads = 1;
    VGG_TRY(start(&call, &threads, ctx, s, VGG_BACKWARD_INPUT, "conv2d_backward_input"));
    vgg_parallel_for(ctx->device, threads, 9, pack_tap, &call);
    vgg_parallel_for(ctx->device, threads, call.p.tasks, input_task, &call);
    return VGG_OK;
}

/* ------------------------------------------------------------------------------------------------ weight gradient */

static void add_sums(double *partial, float *sums, size_t count)
{
    for (size_t i = 0; i < count; i++)
        partial[i] += (double)sums[i];
    memset(sums, 0, count * sizeof *sums);
}

static void weight_task(void *argument, size_t task, int thread)
{
    const struct call *call = argument;
    const struct plan *p = &call->p;
    size_t all = p->n * p->h, row = task * (all / p->tasks) + vgg_min_size(task, all % p->tasks);
    size_t end = row + all / p->tasks + (task < all % p->tasks);
    char *scratch = call->scratch + (size_t)thread * p->thread_bytes;
    float *x = (float *)(void *)scratch, *g = (float *)(void *)(scratch + p->staged_bytes);
    float *sums = (float *)(void *)(scratch + p->staged_bytes + p->block_bytes);
    double *partial = call->partial + task * p->sums;
    memset(partial, 0, p->sums * sizeof *partial);
    memset(sums, 0, p->sums * sizeof *sums);

    /* A block is some rows, or a part of a row. */
    size_t block_rows = vgg_max_size(BLOCK_PIXELS / p->w, 1);
    size_t columns = vgg_ceil_div(p->w, vgg_ceil_div(p->w, BLOCK_PIXELS)), blocks = 0;
    while (row < end) {
        size_t n = row / p->h, h = row % p->h, rows = vgg_min_size(vgg_min_size(p->rows, p->h - h), end - row);
        stage_x(x, call, n, h, rows);
        for (size_t i = 0; i < rows; i += block_rows)
            for (size_t j = 0; j < p->w; j += columns) {
                struct vgg_first_weight t = {.x = x + i * p->x_row + j * p->c,
                                             .x_row = p->x_row,
                                             .c = p->c,
                                             .g = g,
                                             .g_pixel = p->k_row,
                                             .rows = vgg_min_size(block_rows, rows - i),
                                             .columns = vgg_min_size(columns, p->w - j),
                                             .sums = sums};
                for (size_t r = 0; r < t.rows; r++)
                    make_gradient(g + r * t.columns * p->k_row, call, n, h + i + r, j, t.columns);
                size_t pixels = t.rows * t.columns, next = (row + i) * p->w + j + pixels;
                bool more = call->g->index == NULL && next + pixels <= all * p->w;
                t.ahead[0] = more ? call->g->dy + next * p->k : g;
                t.ahead[1] = more && call->g->y != NULL ? call->g->y + next * p->k : t.ahead[0];
                t.ahead_bytes = more ? pixels * p->k * sizeof *g : 0;
                p->kernel->run.first_weight(&t);
                if (++blocks % BLOCKS == 0)
                    add_sums(partial, sums, p->sums);
            }
        row += rows;
    }
    add_sums(partial, sums, p->sums);
}

/* dw[.][q], or db for the last q: the sum over tasks. */
static void reduce_task(void *argument, size_t q, int thread)
{
    (void)thread;
    const struct call *call = argument;
    const struct plan *p = &call->p;
    size_t depth = 9 * p->c;
    for (size_t k = 0; k < p->k; k++) {
        float *to = q < depth ? call->y + k * depth + q : call->db + k;
        double sum = call->beta != 0 ? (double)*to : 0;
        for (size_t task = 0; task < p->tasks; task++)
            sum += call->partial[task * p->sums + q * p->k_row + k];
        *to = (float)sum;
    }
}

enum vgg_status vgg_conv2d_first_weight(struct vgg_context *ctx, float *dw, float *db, const struct vgg_conv2d_gradient *g,
                                        const float *x, const struct vgg_conv2d *s, int beta)
{
    struct call call = {.y = dw, .db = db, .x = x, .g = g, .beta = beta};
    int threads = 1;
    VGG_TRY(start(&call, &threads, ctx, s, VGG_BACKWARD_WEIGHT, "conv2d_backward_weight"));
    vgg_parallel_for(ctx->device, threads, call.p.tasks, weight_task, &call);
    vgg_parallel_for(ctx->device, threads, 9 * call.p.c + 1, reduce_task, &call);
    return VGG_OK;
}

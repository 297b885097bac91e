/* ops/conv2d_weight.c: the convolution's gradients with respect to its weights and bias.
 *
 * dw[k][r][s][c] is a sum over pixels, so the microkernel's columns are input channels, its rows output channels, and its
 * sum runs over the pixels of a band. The batch is taken in chunks of pixels that fit the caches:
 *
 *   1. stage     (parallel over rows) g, masked and un-pooled, to panels [k / MR][pixel][MR], and x to panels
 *                [c / NR][row][w + 2][NR] with a border of zeros: one copy serves all nine taps, a tap being an offset
 *   2. multiply  (parallel over panels) for each band of the chunk, each tile of dw and each tap: one call of the
 *                microkernel, which adds the band's sum, formed in registers, to dw
 *
 * So a long sum is blocked, and its order depends on shapes alone: chunks and bands come in order, and a tile is one
 * task's. Where rows are short (small maps), x is expanded to the ks * ks * c floats of each pixel's window instead, and the
 * convolution is a 1x1 one with that many channels; dw's layout is the same. */
#include "conv2d.h"
#include "panels.h"

#include <string.h>

enum {
    NARROW = 12,           /* maps narrower than this are expanded */
    CHUNK_BYTES = 2 << 20, /* of staged panels, about */
    CHUNK_PIXELS = 256,    /* but not fewer: dw is read and written once a chunk */
    BAND_PIXELS = 512,     /* of a sum in registers, at most (but a row) */
    STRIDE_PAD = 16,       /* floats between panels; keeps them off the same cache sets */
    TASKS_A_THREAD = 8,    /* for balance */
    SMALL_WORK = 1 << 20   /* multiply-adds that are not worth waking a thread for */
};

struct plan {
    size_t n, h, w, c, k, ks;
    const struct vgg_kernel *gemm;
    bool flat;           /* 1x1, or expanded to 1x1 */
    size_t border;       /* of the staged x; 0 where flat */
    size_t taps_side;    /* ks, or 1 where flat */
    size_t columns;      /* of a tap's x: c, or ks * ks * c where expanded */
    size_t images, rows; /* of a chunk; one of them is all or 1 */
    size_t chunks_an_image, chunks;
    size_t x_row, x_panel, x_panels; /* floats of a panel's row and of a panel; panels */
    size_t g_panel, g_panels;
    size_t x_bytes, g_bytes, db_bytes, shared_bytes, thread_bytes;
};

static enum vgg_status make_plan(struct plan *p, struct vgg_context *ctx, const struct vgg_conv2d *s)
{
    const struct vgg_kernel *gemm = vgg_gemm();
    *p = (struct plan){.n = s->n, .h = s->h, .w = s->w, .c = s->c, .k = s->k, .ks = s->kernel_size, .gemm = gemm};
    p->flat = p->ks == 1 || p->w < NARROW;
    p->border = p->flat ? 0 : (p->ks - 1) / 2;
    p->taps_side = p->flat ? 1 : p->ks;
    p->g_panels = vgg_ceil_div(p->k, gemm->mr);

    size_t area, pixel;
    bool fits = vgg_mul_size(&area, p->h, p->w) && vgg_mul_size(&p->columns, p->flat ? p->ks * p->ks : 1, p->c) &&
                vgg_add_size(&pixel, p->k, p->columns) && vgg_mul_size(&pixel, pixel, sizeof(float));
    if (fits) {
        p->x_panels = vgg_ceil_div(p->columns, gemm->nr);
        size_t pixels = vgg_max_size(CHUNK_BYTES / pixel, CHUNK_PIXELS);
        p->images = area < pixels ? vgg_min_size(pixels / area, vgg_max_size(p->n, 1)) : 1;
        p->rows = vgg_ceil_div(p->h, vgg_ceil_div(area, vgg_max_size(pixels, p->w)));
        p->chunks_an_image = vgg_ceil_div(p->h, p->rows);
        p->chunks = p->images > 1 ? vgg_ceil_div(p->n, p->images) : p->n * p->chunks_an_image;
        p->x_row = (p->w + 2 * p->border) * gemm->nr;
        size_t row = p->w * vgg_max_size(p->k, 1);
        fits = vgg_mul_size(&p->x_panel, p->images * (p->rows + 2 * p->border), p->x_row) &&
               vgg_mul_size(&p->g_panel, p->images * p->rows * p->w, gemm->mr);
        p->x_panel += STRIDE_PAD;
        p->g_panel = (p->g_panel + 15) / 16 * 16 + STRIDE_PAD;
        fits = fits && vgg_reserve(&p->x_bytes, p->x_panels, p->x_panel, 1) &&
               vgg_reserve(&p->g_bytes, p->g_panels, p->g_panel, 1) && vgg_reserve(&p->db_bytes, p->k, 2, 1) &&
               vgg_reserve(&p->thread_bytes, vgg_max_size(row, p->flat ? p->columns : 0), 1, 1) &&
               vgg_add_size(&p->shared_bytes, p->x_bytes, p->g_bytes) &&
               vgg_add_size(&p->shared_bytes, p->shared_bytes, p->db_bytes);
    }
    return vgg_workspace_fits(ctx, "conv2d_backward_weight", fits);
}

enum vgg_status vgg_conv2d_weight_workspace(struct vgg_context *ctx, size_t *bytes, const struct vgg_conv2d *s)
{
    struct plan p;
    VGG_TRY(make_plan(&p, ctx, s));
    return vgg_workspace_bytes(bytes, ctx, "conv2d_backward_weight", p.shared_bytes, p.thread_bytes);
}

struct call {
    struct plan p;
    float *dw, *db;
    const float *x;
    const struct vgg_conv2d_gradient *g;
    int beta;
    size_t image, images, row, rows; /* the chunk */
    size_t groups, group_panels;     /* panels of g in a task */
    float *x_panels, *g_panels;
    double *db_sums;
    char *scratch;
};

/* ------------------------------------------------------------------------------------------------ staging */

/* The window of pixel (h, w) of image n, ks * ks * c floats, zeros outside the map. */
static void window(float *restrict to, const struct plan *p, const float *restrict x, size_t n, size_t h, size_t w)
{
    size_t border = (p->ks - 1) / 2, run = p->ks * p->c;
    size_t left = w < border ? (border - w) * p->c : 0;
    size_t right = w + border >= p->w ? (w + border + 1 - p->w) * p->c : 0;
    for (size_t r = 0; r < p->ks; r++, to += run) {
        size_t row = h + r - border; /* wraps above the map: then it is past the end too */
        if (row >= p->h) {
            memset(to, 0, run * sizeof *to);
            continue;
        }
        const float *from = x + (((n * p->h + row) * p->w + w - border) * p->c + left);
        memset(to, 0, left * sizeof *to);
        memcpy(to + left, from, (run - left - right) * sizeof *to);
        memset(to + run - right, 0, right * sizeof *to);
    }
}

static void stage_x(const struct call *call, size_t image, size_t row, float *scratch)
{
    const struct plan *p = &call->p;
    size_t n = call->image + image, staged_rows = call->rows + 2 * p->border, h = call->row + row - p->border;
    float *to = call->x_panels + (image * staged_rows + row) * p->x_row;
    const float *from = call->x + (n * p->h + h) * p->w * p->c;
    if (p->flat && p->ks > 1) {
        for (size_t w = 0; w < p->w; w++, to += p->gemm->nr) {
            window(scratch, p, call->x, n, h, w);
            vgg_to_panels(to, p->x_panel, scratch, p->columns, 1, p->columns, p->gemm->nr);
        }
        return;
    }
    size_t edge = p->border * p->gemm->nr;
    for (size_t panel = 0; panel < p->x_panels && p->border != 0; panel++) {
        float *line = to + panel * p->x_panel;
        memset(line, 0, (h < p->h ? edge : p->x_row) * sizeof *line);
        memset(line + p->x_row - edge, 0, edge * sizeof *line);
    }
    if (h < p->h)
        vgg_to_panels(to + edge, p->x_panel, from, p->c, p->w, p->c, p->gemm->nr);
}

static void stage_task(void *argument, size_t task, int thread)
{
    const struct call *call = argument;
    const struct plan *p = &call->p;
    float *scratch = (float *)(void *)(call->scratch + (size_t)thread * p->thread_bytes);
    size_t g_tasks = call->images * call->rows, x_rows = call->rows + 2 * p->border;
    if (task >= g_tasks) {
        stage_x(call, (task - g_tasks) / x_rows, (task - g_tasks) % x_rows, scratch);
        return;
    }
    vgg_conv2d_gradient_row(scratch, call->g, call->image + task / call->rows, call->row + task % call->rows);
    vgg_to_panels(call->g_panels + task * p->w * p->gemm->mr, p->g_panel, scratch, p->k, p->w, p->k, p->gemm->mr);
}

/* ------------------------------------------------------------------------------------------------ products */

/* One band of the chunk, as the microkernel sees it: `runs` rows of `k` pixels. */
struct band {
    size_t runs, k, a_run, b_run;
    size_t g_offset, x_offset; /* floats from the start of a panel, tap (0, 0) */
};

/* All tiles of dw of one x panel and a group of g panels. */
static void multiply_band(const struct call *call, const struct band *band, size_t x_panel, size_t g_begin, size_t g_end,
                          bool beta)
{
    const struct plan *p = &call->p;
    const struct vgg_kernel *gemm = p->gemm;
    size_t taps = p->taps_side * p->taps_side, column = x_panel * gemm->nr, depth = taps * p->columns;
    struct vgg_gemm t = {.nr = vgg_min_size(gemm->nr, p->columns - column),
                         .runs = band->runs,
                         .k = band->k,
                         .a_run = band->a_run,
                         .a_row = 1,
                         .a_col = gemm->mr,
                         .b_run = band->b_run,
                         .c_row = depth,
                         .beta = beta};
    const float *x = call->x_panels + x_panel * p->x_panel + band->x_offset;
    for (size_t panel = g_begin; panel < g_end; panel++) {
        size_t k = panel * gemm->mr;
        t.rows = vgg_min_size(gemm->mr, p->k - k);
        t.a = call->g_panels + panel * p->g_panel + band->g_offset;
        for (size_t tap = 0; tap < taps; tap++) {
            t.b = x + tap / p->taps_side * p->x_row + tap % p->taps_side * gemm->nr;
            t.c = call->dw + k * depth + tap * p->columns + column;
            gemm->run.gemm(&t);
        }
    }
}

static void sum_bias(const struct call *call, size_t panel)
{
    const struct plan *p = &call->p;
    size_t mr = p->gemm->mr, k = panel * mr, count = vgg_min_size(mr, p->k - k);
    const float *g = call->g_panels + panel * p->g_panel;
    size_t pixels = call->images * call->rows * p->w;
    vgg_sum_columns(call->db_sums + k, g, mr, pixels, count, mr);
}

static void multiply_task(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct call *call = argument;
    const struct plan *p = &call->p;
    size_t mr = p->gemm->mr, nr = p->gemm->nr;
    size_t x_panel = task / call->groups, g_begin = task % call->groups * call->group_panels;
    size_t g_end = vgg_min_size(p->g_panels, g_begin + call->group_panels);
    for (size_t panel = g_begin; x_panel == 0 && panel < g_end; panel++)
        sum_bias(call, panel);

    bool beta = call->beta != 0 || call->image != 0 || call->row != 0;
    if (p->flat) {
        size_t pixels = call->images * call->rows * p->w;
        size_t step = vgg_ceil_div(pixels, vgg_ceil_div(pixels, BAND_PIXELS));
        for (size_t pixel = 0; pixel < pixels; pixel += step, beta = true) {
            struct band band = {
                .runs = 1, .k = vgg_min_size(step, pixels - pixel), .g_offset = pixel * mr, .x_offset = pixel * nr};
            multiply_band(call, &band, x_panel, g_begin, g_end, beta);
        }
        return;
    }
    size_t step = vgg_max_size(BAND_PIXELS / p->w, 1), x_rows = call->rows + 2 * p->border;
    step = vgg_ceil_div(call->rows, vgg_ceil_div(call->rows, step));
    for (size_t image = 0; image < call->images; image++)
        for (size_t row = 0; row < call->rows; row += step, beta = true) {
            struct band band = {.runs = vgg_min_size(step, call->rows - row),
                                .k = p->w,
                                .a_run = p->w * mr,
                                .b_run = p->x_row,
                                .g_offset = (image * call->rows + row) * p->w * mr,
                                .x_offset = (image * x_rows + row) * p->x_row};
            multiply_band(call, &band, x_panel, g_begin, g_end, beta);
        }
}

enum vgg_status vgg_conv2d_weight(struct vgg_context *ctx, float *dw, float *db, const struct vgg_conv2d_gradient *g,
                                  const float *x, const struct vgg_conv2d *s, int beta)
{
    struct call call = {.dw = dw, .db = db, .x = x, .g = g, .beta = beta};
    struct plan *p = &call.p;
    int threads = 1;
    VGG_TRY(make_plan(p, ctx, s));
    VGG_TRY(vgg_workspace_threads(ctx, "conv2d_backward_weight", &threads, p->shared_bytes, p->thread_bytes));
    char *workspace = ctx->workspace;
    call.db_sums = ctx->workspace;
    call.x_panels = (float *)(void *)(workspace + p->db_bytes);
    call.g_panels = (float *)(void *)(workspace + p->db_bytes + p->x_bytes);
    call.scratch = workspace + p->shared_bytes;
    if ((double)(p->n * p->h * p->w) * (double)(p->c * p->k * p->ks * p->ks) < SMALL_WORK)
        threads = 1;
    size_t wanted = threads == 1 ? 1 : vgg_ceil_div(TASKS_A_THREAD * (size_t)threads, p->x_panels);
    call.group_panels = vgg_ceil_div(p->g_panels, vgg_min_size(wanted, p->g_panels));
    call.groups = vgg_ceil_div(p->g_panels, call.group_panels);

    vgg_kernel_count_use(p->gemm);
    for (size_t k = 0; k < p->k; k++)
        call.db_sums[k] = 0;
    if (p->n == 0 && beta == 0)
        memset(dw, 0, p->k * p->ks * p->ks * p->c * sizeof *dw);
    for (size_t chunk = 0; chunk < p->chunks; chunk++) {
        call.image = chunk / p->chunks_an_image * p->images;
        call.images = vgg_min_size(p->images, p->n - call.image);
        call.row = chunk % p->chunks_an_image * p->rows;
        call.rows = vgg_min_size(p->rows, p->h - call.row);
        size_t stage_tasks = call.images * (2 * call.rows + 2 * p->border);
        vgg_parallel_for(ctx->device, threads, stage_tasks, stage_task, &call);
        vgg_parallel_for(ctx->device, threads, p->x_panels * call.groups, multiply_task, &call);
    }
    for (size_t k = 0; k < p->k; k++)
        db[k] = (float)(call.db_sums[k] + (beta != 0 ? (double)db[k] : 0));
    return VGG_OK;
}

/* ops/conv2d_direct.c: direct convolution, forward and input gradient, as one engine around the GEMM microkernel.
 *
 * The input gradient is the convolution of g with the kernels rotated by half a turn and with their channels exchanged, so
 * both directions are: in[n][h][w][ci] to out[n][h][w][co]. A task takes a band of the map (some rows of an image, or some
 * whole small images) and a group of weight panels:
 *
 *   1. stage    the band's rows, with the ReLU mask and un-pooling applied on the way and a border of p zero pixels around,
 *               so that nothing after it knows of edges
 *   2. gather   (small maps) the window of each pixel to a row of ks * ks * ci floats
 *   3. multiply for each panel of NR output channels, for each tile of up to MR pixels: one call of the microkernel, with
 *               bias and ReLU in its epilogue
 *   4. pool     the band's rows from scratch to y and index
 *
 * NHWC makes the ks pixels of a kernel row contiguous, so the microkernel reads the staged band in place: a run of ks * ci
 * for each kernel row, pixels ci apart. Only where a map is narrower than a few tiles are windows gathered, so that a tile
 * spans rows and images. The order of a sum is (kernel row, kernel column, channel) in either form and in any tile, so a
 * result depends neither on bands and groups nor on the batch. */
#include "conv2d.h"
#include "panels.h"
#include "pool_window.h"

#include <string.h>

enum {
    NARROW = 12,         /* maps narrower than this are gathered */
    FLAT_PIXELS = 48,    /* pixels of a gathered band, about */
    STRIDE_PAD = 16,     /* floats; keeps the rows of a tile off the same cache sets */
    TASKS_A_THREAD = 6,  /* for balance */
    SMALL_WORK = 1 << 20 /* multiply-adds that are not worth waking a thread for */
};

struct plan {
    size_t n, h, w, ci, co, ks, border;
    const struct vgg_kernel *gemm;
    bool flat;             /* a band's pixels are one sequence of rows of `flat_row` floats; else windows in staged rows */
    bool gather;           /* flat and windows are more than a pixel */
    size_t images, rows;   /* of a band; one of them is all or 1 */
    size_t bands_an_image; /* 1 where a band has several images */
    size_t bands;
    size_t panels, panel_floats;
    size_t staged_row, staged_image, flat_row; /* floats */
    size_t packed_bytes, staged_bytes, gathered_bytes, unpooled_bytes;
    size_t shared_bytes, thread_bytes;
};

static enum vgg_status make_plan(struct plan *p, struct vgg_context *ctx, const struct vgg_conv2d *s, bool backward)
{
    const struct vgg_kernel *gemm = vgg_gemm();
    *p = (struct plan){.n = s->n,
                       .h = s->h,
                       .w = s->w,
                       .ci = backward ? s->k : s->c,
                       .co = backward ? s->c : s->k,
                       .ks = s->kernel_size,
                       .border = (s->kernel_size - 1) / 2,
                       .gemm = gemm};
    bool pool = !backward && s->pool != VGG_POOL_NONE;
    p->gather = p->ks > 1 && p->w < NARROW;
    p->flat = p->ks == 1 || p->gather;
    p->panels = vgg_ceil_div(p->co, gemm->nr);

    size_t area;
    bool fits = vgg_mul_size(&area, p->h, p->w) && vgg_mul_size(&p->panel_floats, p->ks * p->ks * gemm->nr, p->ci) &&
                vgg_mul_size(&p->staged_row, p->w + 2 * p->border, p->ci);
    if (fits) {
        if (p->flat) {
            p->images = area < FLAT_PIXELS ? FLAT_PIXELS / area : 1;
            p->rows = vgg_ceil_div(p->h, vgg_ceil_div(area, 4 * FLAT_PIXELS / 3));
        } else {
            /* What is left of the L2 cache beside a panel; with two rows half of what is staged is staged twice. */
            size_t room = vgg_l2_bytes() / 4 * 3 / sizeof(float);
            size_t used = p->panel_floats + 2 * p->border * p->staged_row;
            size_t most = room > used ? (room - used) / (p->staged_row + (pool ? p->w * p->co : 0)) : 0;
            most = vgg_max_size(most, 2);
            p->images = 1;
            p->rows = vgg_ceil_div(p->h, vgg_ceil_div(p->h, vgg_min_size(most, p->h)));
        }
        if (pool) /* windows do not cross bands */
            p->rows = vgg_min_size(p->h, p->rows + p->rows % 2);
        p->bands_an_image = vgg_ceil_div(p->h, p->rows);
        p->bands = p->images > 1 ? vgg_ceil_div(p->n, p->images) : p->n * p->bands_an_image;
        p->staged_image = (p->rows + 2 * p->border) * p->staged_row;
        p->flat_row = p->gather ? p->ks * p->ks * p->ci + STRIDE_PAD : p->ci;
        size_t pixels = p->images * p->rows * p->w;
        bool staged = backward || p->ks > 1; /* a forward 1x1 convolution reads x in place */
        fits = vgg_reserve(&p->packed_bytes, p->panels, p->panel_floats, 1) &&
               vgg_reserve(&p->staged_bytes, staged ? p->images : 0, p->rows + 2 * p->border, p->staged_row) &&
               vgg_reserve(&p->gathered_bytes, p->gather ? pixels : 0, p->flat_row, 1) &&
               vgg_reserve(&p->unpooled_bytes, pool ? pixels : 0, p->co, 1) &&
               vgg_add_size(&p->thread_bytes, p->staged_bytes, p->gathered_bytes) &&
               vgg_add_size(&p->thread_bytes, p->thread_bytes, p->unpooled_bytes);
        p->shared_bytes = p->packed_bytes;
    }
    return vgg_workspace_fits(ctx, "conv2d", fits);
}

enum vgg_status vgg_conv2d_direct_workspace(struct vgg_context *ctx, size_t *bytes, const struct vgg_conv2d *s, bool backward)
{
    struct plan p;
    VGG_TRY(make_plan(&p, ctx, s, backward));
    return vgg_workspace_bytes(bytes, ctx, "conv2d", p.shared_bytes, p.thread_bytes);
}

struct call {
    struct plan p;
    float *y;
    uint8_t *index;
    const float *x, *w, *b;
    const struct vgg_conv2d_gradient *g;
    bool relu, pool;
    size_t oh, ow;
    size_t groups, group_panels;
    float *packed;
    char *scratch; /* thread_bytes for each thread */
};

/* ------------------------------------------------------------------------------------------------ weight panels
 *
 * panel[(r * ks + s) * ci + i][j]: weight of input channel i for output channel panel * NR + j; 0 beyond the last. */

/* Input gradient: w[i][r][s][c], rotated: panel row (r, s, i) is nr channels of w[i][ks - 1 - r][ks - 1 - s]. */
static void pack_rotated(float *restrict panel, const float *restrict w, size_t outs, const struct plan *p)
{
    size_t nr = p->gemm->nr, taps = p->ks * p->ks;
    for (size_t tap = 0; tap < taps; tap++)
        vgg_to_panels(panel + tap * p->ci * nr, 0, w + (taps - 1 - tap) * p->co, taps * p->co, p->ci, outs, nr);
}

static void pack_task(void *argument, size_t panel, int thread)
{
    (void)thread;
    const struct call *call = argument;
    const struct plan *p = &call->p;
    size_t first = panel * p->gemm->nr, outs = vgg_min_size(p->gemm->nr, p->co - first);
    float *to = call->packed + panel * p->panel_floats;
    if (call->g == NULL) { /* w[k][q], q = (r, s, c), transposed */
        size_t depth = p->ks * p->ks * p->ci;
        vgg_transpose_to_panel(to, call->w + first * depth, depth, outs, depth, p->gemm->nr);
    } else {
        pack_rotated(to, call->w + first, outs, p);
    }
}

/* ------------------------------------------------------------------------------------------------ a band */

struct band {
    size_t image, images; /* first, count */
    size_t row, rows;
};

static struct band band_of(const struct plan *p, size_t task)
{
    struct band band = {.image = task / p->bands_an_image * p->images, .row = task % p->bands_an_image * p->rows};
    band.images = vgg_min_size(p->images, p->n - band.image);
    band.rows = vgg_min_size(p->rows, p->h - band.row);
    return band;
}

/* staged[image][row][w + 2 border][ci], rows from border above the band to border below it. */
static void stage(float *staged, const struct call *call, const struct band *band)
{
    const struct plan *p = &call->p;
    size_t edge = p->border * p->ci, inner = p->w * p->ci;
    for (size_t image = 0; image < band->images; image++)
        for (size_t row = 0; row < band->rows + 2 * p->border; row++) {
            float *to = staged + image * p->staged_image + row * p->staged_row;
            size_t h = band->row + row - p->border; /* wraps above the map: then it is past the end too */
            if (h >= p->h) {
                memset(to, 0, p->staged_row * sizeof *to);
                continue;
            }
            memset(to, 0, edge * sizeof *to);
            if (call->g == NULL)
                memcpy(to + edge, call->x + ((band->image + image) * p->h + h) * inner, inner * sizeof *to);
            else
                vgg_conv2d_gradient_row(to + edge, call->g, band->image + image, h);
            memset(to + edge + inner, 0, edge * sizeof *to);
        }
}

static void gather(float *gathered, const float *staged, const struct plan *p, const struct band *band)
{
    size_t run = p->ks * p->ci;
    for (size_t image = 0; image < band->images; image++)
        for (size_t row = 0; row < band->rows; row++)
            for (size_t column = 0; column < p->w; column++, gathered += p->flat_row)
                for (size_t r = 0; r < p->ks; r++)
                    memcpy(gathered + r * run, staged + image * p->staged_image + (row + r) * p->staged_row + column * p->ci,
                           run * sizeof *gathered);
}

static void pool(const struct call *call, const float *unpooled, const struct band *band, size_t first, size_t channels)
{
    const struct plan *p = &call->p;
    for (size_t image = 0; image < band->images; image++)
        for (size_t i = band->row / 2; i < call->oh && 2 * i < band->row + band->rows; i++) {
            const float *top = unpooled + (image * band->rows + 2 * i - band->row) * p->w * channels;
            const float *bottom = 2 * i + 1 < p->h ? top + p->w * channels : NULL;
            size_t to = ((band->image + image) * call->oh + i) * call->ow * p->co + first;
            /* Window by window: y's pixels are co apart, the group's are `channels`. */
            for (size_t j = 0; j < call->ow; j++)
                vgg_pool_row(call->y + to + j * p->co, call->index == NULL ? NULL : call->index + to + j * p->co,
                             top + 2 * j * channels, bottom == NULL ? NULL : bottom + 2 * j * channels,
                             vgg_min_size(2, p->w - 2 * j), 1, channels);
        }
}

static void band_task(void *argument, size_t task, int thread)
{
    const struct call *call = argument;
    const struct plan *p = &call->p;
    const struct vgg_kernel *gemm = p->gemm;
    const struct band band = band_of(p, task / call->groups);
    size_t panel0 = task % call->groups * call->group_panels;
    size_t panel1 = vgg_min_size(p->panels, panel0 + call->group_panels);
    size_t first = panel0 * gemm->nr, channels = vgg_min_size(p->co, panel1 * gemm->nr) - first;

    char *scratch = call->scratch + (size_t)thread * p->thread_bytes;
    float *staged = (float *)(void *)scratch, *gathered = (float *)(void *)(scratch + p->staged_bytes);
    float *unpooled = (float *)(void *)(scratch + p->staged_bytes + p->gathered_bytes);
    size_t pixel = (band.image * p->h + band.row) * p->w; /* the band's first; its pixels are contiguous in in and out */
    const float *a = staged;
    if (p->staged_bytes == 0)
        a = call->x + pixel * p->ci;
    else
        stage(staged, call, &band);
    if (p->gather) {
        gather(gathered, staged, p, &band);
        a = gathered;
    }

    /* Lines of pixels: the whole band, or a row. */
    size_t lines = p->flat ? 1 : band.rows, length = p->flat ? band.images * band.rows * p->w : p->w;
    struct vgg_gemm t = {.rows = length,
                         .runs = p->flat ? 1 : p->ks,
                         .k = p->flat ? p->ks * p->ks * p->ci : p->ks * p->ci,
                         .a_run = p->staged_row,
                         .a_row = p->flat ? p->flat_row : p->ci,
                         .a_col = 1,
                         .b_run = p->ks * p->ci * gemm->nr,
                         .c_row = call->pool ? channels : p->co,
                         .relu = call->relu};
    for (size_t panel = panel0; panel < panel1; panel++) {
        size_t column = panel * gemm->nr;
        t.nr = vgg_min_size(gemm->nr, p->co - column);
        t.b = call->packed + panel * p->panel_floats;
        t.bias = call->b == NULL ? NULL : call->b + column;
        t.c = call->pool ? unpooled + (column - first) : call->y + pixel * p->co + column;
        t.a = a;
        for (size_t line = 0; line < lines; line++, t.a += p->staged_row, t.c += length * t.c_row)
            gemm->run.gemm(&t);
    }
    if (call->pool)
        pool(call, unpooled, &band, first, channels);
}

enum vgg_status vgg_conv2d_direct(struct vgg_context *ctx, float *y, uint8_t *index, const float *x,
                                  const struct vgg_conv2d_gradient *g, const float *w, const float *b,
                                  const struct vgg_conv2d *s)
{
    struct call call = {.y = y, .index = index, .x = x, .w = w, .b = b, .g = g, .relu = g == NULL && s->relu};
    struct plan *p = &call.p;
    int threads = 1;
    VGG_TRY(make_plan(p, ctx, s, g != NULL));
    VGG_TRY(
        vgg_workspace_threads(ctx, g == NULL ? "conv2d" : "conv2d_backward_input", &threads, p->shared_bytes, p->thread_bytes));
    if (p->n == 0)
        return VGG_OK;
    call.pool = g == NULL && s->pool != VGG_POOL_NONE;
    call.oh = vgg_pooled(p->h, s->pool == VGG_POOL_CEIL);
    call.ow = vgg_pooled(p->w, s->pool == VGG_POOL_CEIL);
    call.packed = ctx->workspace;
    call.scratch = (char *)ctx->workspace + p->shared_bytes;
    if ((double)(p->n * p->h * p->w) * (double)(p->ci * p->co * p->ks * p->ks) < SMALL_WORK)
        threads = 1;
    /* Where there are few bands, panels are split among threads too; a group that is staged again has at least two. */
    size_t wanted = threads == 1 ? 1 : vgg_ceil_div(TASKS_A_THREAD * (size_t)threads, p->bands);
    call.group_panels = vgg_max_size(vgg_ceil_div(p->panels, wanted), vgg_min_size(2, p->panels));
    call.groups = vgg_ceil_div(p->panels, call.group_panels);

    vgg_kernel_count_use(p->gemm);
    vgg_parallel_for(ctx->device, threads, p->panels, pack_task, &call);
    vgg_parallel_for(ctx->device, threads, p->bands * call.groups, band_task, &call);
    return VGG_OK;
}

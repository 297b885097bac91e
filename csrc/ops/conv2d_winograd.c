/* ops/conv2d_winograd.c: Winograd's F(4x4, 3x3), forward and input gradient, as one engine around the GEMM microkernel.
 *
 * The input gradient is the convolution of g with the kernels rotated by half a turn and with their channels exchanged, so
 * both directions are: in[n][h][w][ci] to out[n][h][w][co]. Four by four outputs are a tile. For each of the 36 elements e of a
 * transformed tile, m[e] = v[e] u[e] is a product of matrices, tiles by ci times ci by co:
 *
 *   v[e][depth][tile][width]     transformed input, in blocks of `width` input channels (the sums' depth)
 *   u[e][panel][ci][NR]          transformed weights, in panels
 *   m[e][tile][channel]          sums, which the output transform turns into pixels, with bias, ReLU and pooling
 *
 * Where there are many tiles, u is made first, by all threads, and a task takes a block of tiles through all three stages,
 * with v and m in scratch of its own. Where there are few, u would be read about once, so it never goes to memory: v of all
 * tiles is made first, and a task takes a panel of output channels: a block of u at a time in scratch, multiplied at once.
 *
 * A sum runs through a block of `width` channels in one accumulator, and block is added to block, in either form, so a result
 * depends neither on blocks of tiles nor on the batch. */
#include "conv2d.h"
#include "panels.h"

#include <string.h>

enum {
    ELEMENTS = 36,
    PANEL_FLOATS = 4096, /* of a panel's block of input channels, at most: it stays in L1 */
    PACK_ROWS = 128,     /* input channels whose weights are laid out, then transformed, at once */
    LINE = 16,           /* floats of a cache line */
    PAD = 16,            /* floats; keeps the 36 elements of a tile off the same cache sets */
    FEW_TILES = 100,     /* up to this many, weights are transformed where they are used */
    BLOCK_TILES = 84,    /* of a block otherwise: u is read from L3 or memory once for so many */
    INPUT_TILES = 4,     /* of a task of the first stage where tiles are few */
    SMALL_WORK = 1 << 18 /* multiplications that are not worth waking a thread for */
};

struct plan {
    size_t n, h, w, ci, co;
    const struct vgg_kernel *gemm, *input, *weights, *output;
    size_t tiles_h, tiles_w, tiles;
    bool few;
    size_t blocks, block; /* of tiles: how many, and the largest's */
    size_t panels, width, depths;
    size_t v_depth, v_element, u_panel, u_element, m_tile, m_element; /* floats */
    size_t u_bytes, v_bytes, m_bytes, taps_bytes;
    size_t shared_bytes, thread_bytes;
};

static size_t round_up(size_t size, size_t unit)
{
    return vgg_ceil_div(size, unit) * unit;
}

static enum vgg_status make_plan(struct plan *p, const struct vgg_context *ctx, const struct vgg_conv2d *s, bool backward)
{
    *p = (struct plan){.n = s->n,
                       .h = s->h,
                       .w = s->w,
                       .ci = backward ? s->k : s->c,
                       .co = backward ? s->c : s->k,
                       .gemm = vgg_gemm(),
                       .input = vgg_kernel(VGG_SLOT_WINOGRAD4_INPUT),
                       .weights = vgg_kernel(VGG_SLOT_WINOGRAD4_WEIGHTS),
                       .output = vgg_kernel(VGG_SLOT_WINOGRAD4_OUTPUT),
                       .tiles_h = vgg_ceil_div(s->h, 4),
                       .tiles_w = vgg_ceil_div(s->w, 4)};
    size_t nr = p->gemm->nr;
    p->panels = vgg_ceil_div(p->co, nr);
    p->depths = vgg_ceil_div(p->ci, PANEL_FLOATS / nr);
    p->width = round_up(vgg_ceil_div(p->ci, p->depths), 16);
    size_t outs; /* co with its padding */
    bool fits = vgg_mul_size(&p->tiles, p->tiles_h, p->tiles_w) && vgg_mul_size(&p->tiles, p->tiles, p->n) &&
                vgg_mul_size(&outs, p->panels, nr);
    if (fits) {
        p->few = p->tiles <= FEW_TILES;
        p->blocks = p->few ? 1 : round_up(vgg_ceil_div(p->tiles, BLOCK_TILES), (size_t)ctx->threads);
        p->block = vgg_ceil_div(p->tiles, p->blocks);
        p->m_tile = p->few ? nr : outs;
        size_t rows = p->few ? p->width : p->ci; /* of u's panel */
        fits = vgg_mul_size(&p->v_depth, p->block, p->width) && vgg_mul_size(&p->v_element, p->v_depth, p->depths) &&
               vgg_add_size(&p->v_element, p->v_element, PAD) && vgg_mul_size(&p->m_element, p->block, p->m_tile) &&
               vgg_add_size(&p->m_element, p->m_element, PAD) && vgg_mul_size(&p->u_panel, rows, nr) &&
               vgg_mul_size(&p->u_element, p->u_panel, p->few ? 1 : p->panels) &&
               vgg_add_size(&p->u_element, p->u_element, PAD) && vgg_reserve(&p->v_bytes, p->v_element, ELEMENTS, 1) &&
               vgg_reserve(&p->m_bytes, p->m_element, ELEMENTS, 1) && vgg_reserve(&p->u_bytes, p->u_element, ELEMENTS, 1) &&
               vgg_reserve(&p->taps_bytes, 9, PACK_ROWS, nr);
    }
    p->shared_bytes = p->few ? p->v_bytes : p->u_bytes;
    fits = fits && vgg_add_size(&p->thread_bytes, p->few ? p->u_bytes : p->v_bytes, p->m_bytes) &&
           vgg_add_size(&p->thread_bytes, p->thread_bytes, p->taps_bytes);
    return vgg_workspace_fits(ctx, "conv2d", fits);
}

enum vgg_status vgg_conv2d_winograd_workspace(struct vgg_context *ctx, size_t *bytes, const struct vgg_conv2d *s, bool backward)
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
    float *shared; /* u, or v where tiles are few */
    char *scratch; /* thread_bytes for each thread: v or u, m, taps */
};

struct scratch {
    float *own; /* v, or u where tiles are few */
    float *m, *taps;
};

static struct scratch scratch_of(const struct call *call, int thread)
{
    const struct plan *p = &call->p;
    char *at = call->scratch + (size_t)thread * p->thread_bytes;
    size_t own_bytes = p->few ? p->u_bytes : p->v_bytes;
    return (struct scratch){.own = (float *)(void *)at,
                            .m = (float *)(void *)(at + own_bytes),
                            .taps = (float *)(void *)(at + own_bytes + p->m_bytes)};
}

/* ------------------------------------------------------------------------------------------------ weights */

/* u[e * u_element + row * NR + j] of input channels begin .. begin + rows, for output channels panel * NR + j. */
static void transform_weights(float *u, float *taps, const struct call *call, size_t panel, size_t begin, size_t rows)
{
    const struct plan *p = &call->p;
    size_t nr = p->gemm->nr, first = panel * nr, outs = vgg_min_size(nr, p->co - first);
    struct vgg_winograd4_weights t = {.taps = taps, .tap = PACK_ROWS * nr, .u = u, .u_element = p->u_element};
    for (size_t end = begin + rows; begin < end; begin += rows, t.u += rows * nr) {
        rows = vgg_min_size(PACK_ROWS, end - begin);
        for (size_t tap = 0; tap < 9; tap++) {
            float *to = taps + tap * t.tap;
            if (call->g == NULL) /* w[k][tap][c], transposed */
                vgg_transpose_to_panel(to, call->w + (first * 9 + tap) * p->ci + begin, 9 * p->ci, outs, rows, nr);
            else /* w[k][8 - tap][c], k being the input */
                vgg_to_panels(to, 0, call->w + (begin * 9 + 8 - tap) * p->co + first, 9 * p->co, rows, outs, nr);
        }
        t.count = rows * nr;
        p->weights->run.winograd4_weights(&t);
    }
}

static void weights_task(void *argument, size_t task, int thread)
{
    const struct call *call = argument;
    const struct plan *p = &call->p;
    size_t panel = task / p->depths, begin = task % p->depths * p->width;
    transform_weights(call->shared + panel * p->u_panel + begin * p->gemm->nr, scratch_of(call, thread).taps, call, panel,
                      begin, vgg_min_size(p->width, p->ci - begin));
}

/* ------------------------------------------------------------------------------------------------ tiles */

/* Part of a tile row: tiles from `first` on that lie in one. */
struct run {
    size_t image, row, column, tiles;
};

static struct run run_of(const struct plan *p, size_t first, size_t tiles)
{
    size_t line = first / p->tiles_w, column = first % p->tiles_w;
    return (struct run){line / p->tiles_h, line % p->tiles_h, column, vgg_min_size(tiles, p->tiles_w - column)};
}

/* v of tiles first .. first + tiles. */
static void transform_input(float *v, const struct call *call, size_t first, size_t tiles)
{
    const struct plan *p = &call->p;
    const struct vgg_conv2d_gradient *g = call->g;
    struct vgg_winograd4_input t = {
        .h = p->h,
        .w = p->w,
        .c = p->ci,
        .oh = g == NULL ? p->h : g->oh,
        .ow = g == NULL ? p->w : g->ow,
        .v_element = p->v_element,
        .v_panel = p->v_depth,
        .v_tile = p->width,
        .width = p->width,
    };
    for (; tiles != 0; tiles -= t.tiles, first += t.tiles, v += t.tiles * p->width) {
        struct run run = run_of(p, first, tiles);
        size_t offset = run.image * t.oh * t.ow * t.c;
        t.x = (g == NULL ? call->x : g->dy) + offset;
        t.y = g == NULL || g->y == NULL ? NULL : g->y + offset;
        t.index = g == NULL || g->index == NULL ? NULL : g->index + offset;
        t.row = run.row;
        t.column = run.column;
        t.tiles = run.tiles;
        t.v = v;
        p->input->run.winograd4_input(&t);
    }
}

/* Pixels of tiles first .. first + tiles from m, whose first channel is `channel`. */
static void transform_output(const struct call *call, const float *m, size_t first, size_t tiles, size_t channel,
                             size_t channels)
{
    const struct plan *p = &call->p;
    struct vgg_winograd4_output t = {
        .m_element = p->m_element,
        .m_tile = p->m_tile,
        .bias = call->b == NULL ? NULL : call->b + channel,
        .relu = call->relu,
        .pool = call->pool,
        .h = p->h,
        .w = p->w,
        .k = p->co,
        .oh = call->oh,
        .ow = call->ow,
        .channels = channels,
    };
    for (; tiles != 0; tiles -= t.tiles, first += t.tiles, m += t.tiles * p->m_tile) {
        struct run run = run_of(p, first, tiles);
        size_t offset = run.image * t.oh * t.ow * t.k + channel;
        t.m = m;
        t.y = call->y + offset;
        t.index = call->index == NULL ? NULL : call->index + offset;
        t.row = run.row;
        t.column = run.column;
        t.tiles = run.tiles;
        p->output->run.winograd4_output(&t);
    }
}

/* m (+)= v u for a block of input channels, a panel of output channels and all tiles of the block. next: the block of u that
 * comes after this one, where it is far away, or NULL. */
static void multiply(const struct plan *p, float *m, const float *v, const float *u, size_t tiles, size_t depth,
                     const float *next)
{
    const struct vgg_kernel *gemm = p->gemm;
    size_t calls = vgg_ceil_div(tiles, gemm->mr), longer = tiles % calls; /* split evenly: 16 = 6 + 5 + 5 */
    struct vgg_gemm_tile t = {.nr = gemm->nr,
                              .runs = 1,
                              .k = vgg_min_size(p->width, p->ci - depth * p->width),
                              .a = v,
                              .a_row = p->width,
                              .a_col = 1,
                              .b = u,
                              .c = m,
                              .c_row = p->m_tile,
                              .beta = depth != 0};
    size_t lines = t.k * t.nr / LINE;
    for (size_t call = 0; call < calls; call++) {
        t.mr = tiles / calls + (call < longer);
        if (next != NULL)
            t.next = next + lines * call / calls * LINE;
        gemm->run.gemm(&t);
        t.a += t.mr * t.a_row;
        t.c += t.mr * t.c_row;
    }
}

static void block_task(void *argument, size_t task, int thread)
{
    const struct call *call = argument;
    const struct plan *p = &call->p;
    const struct scratch scratch = scratch_of(call, thread);
    size_t tiles = p->tiles / p->blocks, longer = p->tiles % p->blocks; /* of all blocks; some have one more */
    size_t first = task * tiles + vgg_min_size(task, longer), nr = p->gemm->nr;
    tiles += task < longer;
    transform_input(scratch.own, call, first, tiles);
    for (size_t e = 0; e < ELEMENTS; e++)
        for (size_t depth = 0; depth < p->depths; depth++)
            for (size_t panel = 0; panel < p->panels; panel++) {
                const float *u = call->shared + e * p->u_element + panel * p->u_panel + depth * p->width * nr;
                multiply(p, scratch.m + e * p->m_element + panel * nr, scratch.own + e * p->v_element + depth * p->v_depth, u,
                         tiles, depth, panel + 1 < p->panels ? u + p->u_panel : NULL);
            }
    transform_output(call, scratch.m, first, tiles, 0, p->co);
}

static void input_task(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct call *call = argument;
    size_t first = task * INPUT_TILES;
    transform_input(call->shared + first * call->p.width, call, first, vgg_min_size(INPUT_TILES, call->p.tiles - first));
}

static void panel_task(void *argument, size_t panel, int thread)
{
    const struct call *call = argument;
    const struct plan *p = &call->p;
    const struct scratch scratch = scratch_of(call, thread);
    size_t first = panel * p->gemm->nr;
    for (size_t depth = 0; depth < p->depths; depth++) {
        size_t begin = depth * p->width;
        transform_weights(scratch.own, scratch.taps, call, panel, begin, vgg_min_size(p->width, p->ci - begin));
        for (size_t e = 0; e < ELEMENTS; e++)
            multiply(p, scratch.m + e * p->m_element, call->shared + e * p->v_element + depth * p->v_depth,
                     scratch.own + e * p->u_element, p->tiles, depth, NULL);
    }
    transform_output(call, scratch.m, 0, p->tiles, first, vgg_min_size(p->gemm->nr, p->co - first));
}

enum vgg_status vgg_conv2d_winograd(struct vgg_context *ctx, float *y, uint8_t *index, const float *x,
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
    call.oh = call.pool ? vgg_pooled(p->h, s->pool == VGG_POOL_CEIL) : p->h;
    call.ow = call.pool ? vgg_pooled(p->w, s->pool == VGG_POOL_CEIL) : p->w;
    call.shared = ctx->workspace;
    call.scratch = (char *)ctx->workspace + p->shared_bytes;
    if ((double)p->tiles * ELEMENTS * (double)p->ci * (double)p->co < SMALL_WORK)
        threads = 1;

    vgg_kernel_count_use(p->gemm);
    vgg_kernel_count_use(p->input);
    vgg_kernel_count_use(p->weights);
    vgg_kernel_count_use(p->output);
    if (p->few) {
        vgg_parallel_for(threads, vgg_ceil_div(p->tiles, INPUT_TILES), input_task, &call);
        vgg_parallel_for(threads, p->panels, panel_task, &call);
    } else {
        vgg_parallel_for(threads, p->panels * p->depths, weights_task, &call);
        vgg_parallel_for(threads, p->blocks, block_task, &call);
    }
    return VGG_OK;
}

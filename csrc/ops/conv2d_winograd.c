/* ops/conv2d_winograd.c: Winograd's F(2x2, 3x3), F(4x4, 3x3) and F(6x6, 3x3), forward and input gradient, as one engine
 * around the GEMM microkernel.
 *
 * The input gradient is the convolution of g with the kernels rotated by half a turn and with their channels exchanged, so
 * both directions are: in[n][h][w][ci] to out[n][h][w][co]. Two by two, four by four or six by six outputs are a tile. For each
 * of the 16, 36 or 64 elements e of a transformed tile, m[e] = v[e] u[e] is a product of matrices, tiles by ci times ci by co:
 *
 *   v[e][depth][tile][width]         transformed input, in blocks of `width` input channels (the sums' depth)
 *   u[panel][depth][e][width][NR]    transformed weights, in panels of NR output channels
 *   m[e][tile][channel]              sums, which the output transform turns into pixels, with bias, ReLU and pooling
 *
 * Where there are many tiles, a task takes a block of them through all three stages, with v and m in scratch of its own; u is
 * given (inference keeps it) or made first, by all threads. v and m share their memory: m begins so far before v that m[e] ends
 * where v[e] begins at the latest, so it falls on elements of v that were read, and a block takes half of the cache. Where
 * there are few, v of all tiles is made first, and a task takes some panels of output channels. u would be read about once
 * then, so unless it is given it never goes to memory: a block of it at a time is made in scratch and multiplied at once.
 *
 * A sum runs through a block of `width` channels in one accumulator, and block is added to block, in either form, so a result
 * depends neither on blocks of tiles nor on the batch. */
#include "conv2d.h"
#include "panels.h"

#include <string.h>

enum {
    PANEL_FLOATS = 4096,   /* of a panel's block of input channels, at most: it stays in L1 */
    PACK_ROWS = 32,        /* input channels whose weights are laid out, then transformed, at once */
    MAX_NR = 32,           /* of the GEMM microkernels */
    LINE = 16,             /* floats of a cache line */
    PAD = 16,              /* floats; keeps what is used together off the same cache sets */
    FEW_ELEMENTS = 3600,   /* tiles times elements: up to so many, tasks are panels */
    BLOCK_ELEMENTS = 3024, /* of a block of tiles otherwise: u is read from L3 or memory once for so many */
    INPUT_TILES = 4,       /* of a task of the first stage where tiles are few */
    GROUP_PANELS = 4,      /* of a task of the second, at most: v is read from L3 once for so many */
    SMALL_WORK = 1 << 18   /* multiplications that are not worth waking a thread for */
};

/* The algorithms: outputs of a tile's side, elements of a transformed tile, kernels. */
struct variant {
    size_t side, elements;
    enum vgg_slot input, weights, output;
};

static const struct variant variants[] = {
    [VGG_WINOGRAD2] = {2, 16, VGG_SLOT_WINOGRAD2_INPUT, VGG_SLOT_WINOGRAD2_WEIGHTS, VGG_SLOT_WINOGRAD2_OUTPUT},
    [VGG_WINOGRAD4] = {4, 36, VGG_SLOT_WINOGRAD4_INPUT, VGG_SLOT_WINOGRAD4_WEIGHTS, VGG_SLOT_WINOGRAD4_OUTPUT},
    [VGG_WINOGRAD6] = {6, 64, VGG_SLOT_WINOGRAD6_INPUT, VGG_SLOT_WINOGRAD6_WEIGHTS, VGG_SLOT_WINOGRAD6_OUTPUT},
};

struct plan {
    size_t n, h, w, ci, co;
    size_t elements; /* of a transformed tile */
    const struct vgg_kernel *gemm, *input, *weights, *output;
    size_t tiles_h, tiles_w, tiles;
    bool few, given;      /* given: u is the caller's */
    size_t blocks, block; /* of tiles: how many, and the largest's */
    size_t panels, width, depths;
    size_t groups, group;                                                      /* of panels: how many, and one's */
    size_t v_depth, v_element, u_element, u_depth, u_panel, m_tile, m_element; /* floats */
    size_t v_behind; /* floats from m to v where they share a block's memory */
    size_t u_bytes, v_bytes, m_bytes, block_bytes;
    size_t shared_bytes, thread_bytes;
};

static size_t round_up(size_t size, size_t unit)
{
    return vgg_ceil_div(size, unit) * unit;
}

/* The layout of u, which depends on channels and kernels alone. */
static bool u_layout(struct plan *p)
{
    return vgg_mul_size(&p->u_element, p->width, p->gemm->nr) && vgg_add_size(&p->u_element, p->u_element, PAD) &&
           vgg_mul_size(&p->u_depth, p->u_element, p->elements) && vgg_mul_size(&p->u_panel, p->u_depth, p->depths);
}

static enum vgg_status make_plan(struct plan *p, const struct vgg_context *ctx, const struct vgg_conv2d *s, bool backward)
{
    const struct variant *variant = &variants[vgg_conv2d_algorithm(s, backward ? VGG_BACKWARD_INPUT : VGG_FORWARD)];
    *p = (struct plan){.n = s->n,
                       .h = s->h,
                       .w = s->w,
                       .ci = backward ? s->k : s->c,
                       .co = backward ? s->c : s->k,
                       .gemm = vgg_gemm(),
                       .elements = variant->elements,
                       .input = vgg_kernel(variant->input),
                       .weights = vgg_kernel(variant->weights),
                       .output = vgg_kernel(variant->output),
                       .tiles_h = vgg_ceil_div(s->h, variant->side),
                       .tiles_w = vgg_ceil_div(s->w, variant->side)};
    size_t nr = p->gemm->nr;
    p->panels = vgg_ceil_div(p->co, nr);
    p->depths = vgg_ceil_div(p->ci, PANEL_FLOATS / nr);
    p->width = round_up(vgg_ceil_div(p->ci, p->depths), 16);
    size_t outs, wider, narrower; /* channels of m; an element of v or m, whichever is larger, and the other */
    bool fits = vgg_mul_size(&p->tiles, p->tiles_h, p->tiles_w) && vgg_mul_size(&p->tiles, p->tiles, p->n) &&
                vgg_mul_size(&outs, p->panels, nr);
    if (fits) {
        size_t threads = (size_t)ctx->threads;
        p->given = s->transformed && !backward;
        p->few = p->tiles <= FEW_ELEMENTS / p->elements;
        /* The layout of the workspace does not depend on the threads, but on the least number of tasks. */
        p->blocks = p->few ? 1 : vgg_ceil_div(p->tiles, BLOCK_ELEMENTS / p->elements);
        p->block = vgg_ceil_div(p->tiles, p->blocks);
        p->blocks = p->few ? 1 : round_up(p->blocks, threads);
        size_t group = p->given ? vgg_min_size(GROUP_PANELS, p->panels) : 1;
        p->group = vgg_max_size(1, vgg_min_size(group, p->panels / (2 * threads)));
        p->groups = vgg_ceil_div(p->panels, p->group);
        p->m_tile = p->few ? group * nr : outs;
        bool made = !p->given, whole = made && !p->few; /* u is made here; all of it */
        fits = vgg_mul_size(&p->v_depth, p->block, p->width) && vgg_mul_size(&p->v_element, p->v_depth, p->depths) &&
               vgg_add_size(&p->v_element, p->v_element, PAD) && vgg_mul_size(&p->m_element, p->block, p->m_tile) &&
               vgg_add_size(&p->m_element, p->m_element, PAD) && u_layout(p) &&
               vgg_reserve(&p->v_bytes, p->v_element, p->elements, 1) &&
               vgg_reserve(&p->m_bytes, p->m_element, p->elements, 1) &&
               vgg_reserve(&p->u_bytes, whole ? p->panels : made, whole ? p->u_panel : p->u_depth, 1);
        wider = vgg_max_size(p->v_element, p->m_element);
        narrower = vgg_min_size(p->v_element, p->m_element);
        fits = fits && vgg_reserve(&p->block_bytes, p->elements, wider, 1) && vgg_reserve(&p->block_bytes, narrower, 1, 1);
        p->v_behind = p->elements * (wider - p->v_element) + narrower;
    }
    p->shared_bytes = p->few ? p->v_bytes : p->u_bytes;
    p->thread_bytes = p->block_bytes;
    fits = fits && (!p->few || vgg_add_size(&p->thread_bytes, p->u_bytes, p->m_bytes));
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
    float *u;      /* NULL: made where it is used */
    float *v;      /* of all tiles, where they are few */
    char *scratch; /* thread_bytes for each thread: v or u, m */
};

struct scratch {
    float *own; /* v, or u where tiles are few */
    float *m;
};

static struct scratch scratch_of(const struct call *call, int thread)
{
    const struct plan *p = &call->p;
    char *at = call->scratch + (size_t)thread * p->thread_bytes;
    if (p->few)
        return (struct scratch){.own = (float *)(void *)at, .m = (float *)(void *)(at + p->u_bytes)};
    return (struct scratch){.own = (float *)(void *)at + p->v_behind, .m = (float *)(void *)at};
}

/* ------------------------------------------------------------------------------------------------ weights */

/* u[e * u_element + row * NR + j] of the input channels of a depth, for output channels panel * NR + j. */
static void transform_weights(float *u, const struct call *call, size_t panel, size_t depth)
{
    const struct plan *p = &call->p;
    size_t nr = p->gemm->nr, first = panel * nr, outs = vgg_min_size(nr, p->co - first);
    size_t begin = depth * p->width, end = vgg_min_size(p->ci, begin + p->width), rows;
    _Alignas(64) float taps[9 * PACK_ROWS * MAX_NR];
    struct vgg_winograd_weights t = {.taps = taps, .tap = PACK_ROWS * nr, .u = u, .u_element = p->u_element};
    for (; begin < end; begin += rows, t.u += rows * nr) {
        rows = vgg_min_size(PACK_ROWS, end - begin);
        for (size_t tap = 0; tap < 9; tap++) {
            float *to = taps + tap * t.tap;
            if (call->g == NULL) /* w[k][tap][c], transposed */
                vgg_transpose_to_panel(to, call->w + (first * 9 + tap) * p->ci + begin, 9 * p->ci, outs, rows, nr);
            else /* w[k][8 - tap][c], k being the input */
                vgg_to_panels(to, 0, call->w + (begin * 9 + 8 - tap) * p->co + first, 9 * p->co, rows, outs, nr);
        }
        t.count = rows * nr;
        p->weights->run.winograd_weights(&t);
    }
}

/* Task (panel, depth), to the whole u. */
static void weights_task(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct call *call = argument;
    const struct plan *p = &call->p;
    size_t depth = task % p->depths, used = vgg_min_size(p->width, p->ci - depth * p->width) * p->gemm->nr;
    float *u = call->u + task * p->u_depth;
    transform_weights(u, call, task / p->depths, depth);
    for (size_t e = 0; e < p->elements; e++) /* what is kept has no undefined bytes */
        memset(u + e * p->u_element + used, 0, (p->u_element - used) * sizeof *u);
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
    struct vgg_winograd_input t = {
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
        p->input->run.winograd_input(&t);
    }
}

/* Pixels of tiles first .. first + tiles from m, whose first channel is `channel`. */
static void transform_output(const struct call *call, const float *m, size_t first, size_t tiles, size_t channel,
                             size_t channels)
{
    const struct plan *p = &call->p;
    struct vgg_winograd_output t = {
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
        p->output->run.winograd_output(&t);
    }
}

/* m (+)= v u for a block of input channels, a panel of output channels and all tiles of the block. next: the block of u that
 * comes after this one. */
static void multiply(const struct plan *p, float *m, const float *v, const float *u, size_t tiles, size_t depth,
                     const float *next)
{
    size_t nr = p->gemm->nr, channels = vgg_min_size(p->width, p->ci - depth * p->width);
    const struct vgg_gemm t = {.rows = tiles,
                               .nr = nr,
                               .runs = 1,
                               .k = channels,
                               .a = v,
                               .a_row = p->width,
                               .a_col = 1,
                               .b = u,
                               .c = m,
                               .c_row = p->m_tile,
                               .beta = depth != 0,
                               .next = next,
                               .next_lines = channels * nr / LINE};
    p->gemm->run.gemm(&t);
}

/* Many tiles: task is a block of them. */
static void block_task(void *argument, size_t task, int thread)
{
    const struct call *call = argument;
    const struct plan *p = &call->p;
    const struct scratch scratch = scratch_of(call, thread);
    size_t tiles = p->tiles / p->blocks, longer = p->tiles % p->blocks; /* of all blocks; some have one more */
    size_t first = task * tiles + vgg_min_size(task, longer), nr = p->gemm->nr;
    tiles += task < longer;
    transform_input(scratch.own, call, first, tiles);
    for (size_t e = 0; e < p->elements; e++)
        for (size_t depth = 0; depth < p->depths; depth++)
            for (size_t panel = 0; panel < p->panels; panel++) {
                const float *u = call->u + panel * p->u_panel + depth * p->u_depth + e * p->u_element;
                multiply(p, scratch.m + e * p->m_element + panel * nr, scratch.own + e * p->v_element + depth * p->v_depth, u,
                         tiles, depth, panel + 1 < p->panels ? u + p->u_panel : u + p->u_element - panel * p->u_panel);
            }
    transform_output(call, scratch.m, first, tiles, 0, p->co);
}

/* Few tiles: the input of some. */
static void input_task(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct call *call = argument;
    size_t first = task * INPUT_TILES;
    transform_input(call->v + first * call->p.width, call, first, vgg_min_size(INPUT_TILES, call->p.tiles - first));
}

/* Then: task is a group of panels; of one, where u is made here. */
static void panels_task(void *argument, size_t task, int thread)
{
    const struct call *call = argument;
    const struct plan *p = &call->p;
    const struct scratch scratch = scratch_of(call, thread);
    size_t nr = p->gemm->nr, begin = task * p->group, panels = vgg_min_size(p->group, p->panels - begin);
    for (size_t depth = 0; depth < p->depths; depth++) {
        const float *u = scratch.own;
        if (p->given)
            u = call->u + begin * p->u_panel + depth * p->u_depth;
        else
            transform_weights(scratch.own, call, begin, depth);
        for (size_t e = 0; e < p->elements; e++)
            for (size_t panel = 0; panel < panels; panel++) {
                const float *this = u + panel * p->u_panel + e * p->u_element;
                const float *next = panel + 1 < panels ? this + p->u_panel : u + (e + 1) * p->u_element;
                multiply(p, scratch.m + e * p->m_element + panel * nr, call->v + e * p->v_element + depth * p->v_depth, this,
                         p->tiles, depth, next);
            }
    }
    transform_output(call, scratch.m, 0, p->tiles, begin * nr, vgg_min_size(panels * nr, p->co - begin * nr));
}

/* ------------------------------------------------------------------------------------------------ entries */

enum vgg_status vgg_conv2d_winograd_transformed_bytes(struct vgg_context *ctx, size_t *bytes, const struct vgg_conv2d *s)
{
    struct plan p;
    VGG_TRY(make_plan(&p, ctx, s, false));
    return vgg_workspace_fits(ctx, "conv2d_transform_weights", vgg_reserve(bytes, p.panels, p.u_panel, 1));
}

enum vgg_status vgg_conv2d_winograd_transform(struct vgg_context *ctx, float *u, const float *w, const struct vgg_conv2d *s)
{
    struct call call = {.w = w, .u = u};
    VGG_TRY(make_plan(&call.p, ctx, s, false));
    vgg_kernel_count_use(call.p.weights);
    vgg_parallel_for(ctx->device, ctx->threads, call.p.panels * call.p.depths, weights_task, &call);
    return VGG_OK;
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
    if (p->given)
        call.u = (float *)(uintptr_t)w; /* read only */
    else if (!p->few)
        call.u = ctx->workspace;
    call.v = p->few ? ctx->workspace : NULL;
    call.scratch = (char *)ctx->workspace + p->shared_bytes;
    if ((double)(p->tiles * p->elements) * (double)p->ci * (double)p->co < SMALL_WORK)
        threads = 1;

    vgg_kernel_count_use(p->gemm);
    vgg_kernel_count_use(p->input);
    vgg_kernel_count_use(p->output);
    if (!p->given)
        vgg_kernel_count_use(p->weights);
    if (p->few) {
        vgg_parallel_for(ctx->device, threads, vgg_ceil_div(p->tiles, INPUT_TILES), input_task, &call);
        vgg_parallel_for(ctx->device, threads, p->groups, panels_task, &call);
    } else {
        if (!p->given)
            vgg_parallel_for(ctx->device, threads, p->panels * p->depths, weights_task, &call);
        vgg_parallel_for(ctx->device, threads, p->blocks, block_task, &call);
    }
    return VGG_OK;
}

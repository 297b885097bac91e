/* ops/conv2d_winograd_weight.c: the weight gradient of a 3x3 convolution by Winograd's F(3x3, 4x4) and F(3x3, 6x6).
 *
 * dw[k][r][s][c] is a sum over pixels of g times x shifted by (r, s). Cut the map into tiles of 4x4 pixels of g; each meets
 * 6x6 pixels of x, and gives all nine taps with 36 products instead of 144 (of 6x6: 8x8, and 64 instead of 324):
 *
 *   dw = A' [ sum over tiles of (G g G') * (B' x B) ] A
 *
 * with G and A' of kernels/winograd_weight_tile.h. The sum over tiles is a matrix product for each of the elements, of
 * K x C and as long as there are tiles. The batch is taken in chunks of rows of tiles, whose panels fit the caches:
 *
 *   1. transform  (parallel over rows of tiles) g, masked and un-pooled, to panels [element][k / width][tile][width], where
 *                 width is whole vectors and whole tiles of the microkernel, and x to panels [element][c / NR][tile][NR]
 *   2. multiply   for each of the elements, each strip of tiles of the microkernel: one call, which adds the chunk's sum,
 *                 formed in registers, to sums [c / NR][element][k / MR][MR][NR]
 *   3. finish     A' sums A to dw
 *
 * So a long sum is blocked, and its order depends on shapes alone: chunks come in order, and a tile is one task's. A task of
 * multiply is an element, whose panels stay in the cache, and finish comes last. But where one chunk has all tiles, a
 * task is a block of K x C with all its elements, and is finished while its sums are in the cache: with few tiles, to write and
 * read them would take longer than to make them. The transform of g has the sum of the tile as one element more: db is made
 * from its panels. */
#include "conv2d.h"
#include "panels.h"

#include <string.h>

enum {
    CHUNK_TILES = 128,   /* of a sum in registers, at most (but a row); more leave the cache, fewer add to sums too often */
    RUN_TILES = 16,      /* of a task of the transform, about */
    BLOCK_C = 2,         /* panels of x in a block */
    STRIDE_PAD = 16,     /* floats between panels; keeps them off the same cache sets */
    PAGE = 1024,         /* floats; elements are a few lines more than whole pages apart, */
    ELEMENT_PAD = 48,    /* so that a tile's lines fall into different cache sets */
    TASKS_A_THREAD = 4,  /* for balance */
    SMALL_WORK = 1 << 20 /* multiply-adds that are not worth waking a thread for */
};

/* The algorithms: pixels of a tile of g's side, elements of a transformed tile, kernels. */
struct variant {
    size_t side, elements;
    enum vgg_slot input, gradient, output;
};

static const struct variant variants[] = {
    [VGG_WINOGRAD4] = {4, 36, VGG_SLOT_WINOGRAD4_INPUT, VGG_SLOT_WINOGRAD4_GRADIENT, VGG_SLOT_WINOGRAD4_SUMS},
    [VGG_WINOGRAD6] = {6, 64, VGG_SLOT_WINOGRAD6_INPUT, VGG_SLOT_WINOGRAD6_GRADIENT, VGG_SLOT_WINOGRAD6_SUMS},
};

struct plan {
    size_t n, h, w, c, k;
    size_t elements; /* of a transformed tile */
    const struct vgg_kernel *gemm, *input, *gradient, *output;
    size_t rows_an_image, tiles;                 /* rows of tiles; tiles of a row */
    size_t runs;                                 /* parts of a row of tiles, for the transform */
    size_t rows, chunks;                         /* rows of a chunk */
    bool by_blocks;                              /* one chunk */
    size_t x_panel, x_panels, x_element;         /* floats of a panel; panels; floats of an element's panels */
    size_t g_width, g_panel, g_element, g_tiles; /* tiles of the microkernel */
    size_t sums;                                 /* floats of the elements of one tile of the microkernel */
    size_t block_k, block_c;                     /* of a block, at most: tiles of the microkernel, panels of x */
    size_t db_bytes, x_bytes, g_bytes, sums_bytes, shared_bytes, thread_bytes;
};

/* Floats from one element's panels to the next's. */
static bool element_size(size_t *element, size_t panels, size_t panel)
{
    if (!vgg_mul_size(element, panels, panel) || !vgg_add_size(element, *element, PAGE + ELEMENT_PAD))
        return false;
    *element = *element / PAGE * PAGE + ELEMENT_PAD;
    return true;
}

/* The least multiple of a and b. */
static size_t common_multiple(size_t a, size_t b)
{
    size_t multiple = a;
    while (multiple % b != 0)
        multiple += a;
    return multiple;
}

static enum vgg_status make_plan(struct plan *p, struct vgg_context *ctx, const struct vgg_conv2d *s)
{
    const struct vgg_kernel *gemm = vgg_gemm();
    const struct variant *variant = &variants[vgg_conv2d_algorithm(s, VGG_BACKWARD_WEIGHT)];
    *p = (struct plan){.n = s->n, .h = s->h, .w = s->w, .c = s->c, .k = s->k, .elements = variant->elements, .gemm = gemm};
    p->input = vgg_kernel(variant->input);
    p->gradient = vgg_kernel(variant->gradient);
    p->output = vgg_kernel(variant->output);
    p->rows_an_image = vgg_ceil_div(p->h, variant->side);
    p->tiles = vgg_ceil_div(p->w, variant->side);
    p->x_panels = vgg_ceil_div(p->c, gemm->nr);
    p->g_tiles = vgg_ceil_div(p->k, gemm->mr);
    p->g_width = common_multiple(gemm->mr, gemm->nr / 2);
    p->sums = p->elements * gemm->mr * gemm->nr;
    p->block_c = BLOCK_C;
    p->block_k = vgg_max_size(vgg_l2_bytes() / 2 / sizeof(float) / p->sums / BLOCK_C, 1);

    size_t all_rows, g_panels = vgg_ceil_div(p->k, p->g_width);
    bool fits = vgg_mul_size(&all_rows, p->n, p->rows_an_image);
    if (fits) {
        p->chunks = vgg_max_size(vgg_ceil_div(all_rows, vgg_max_size(CHUNK_TILES / p->tiles, 1)), 1);
        p->rows = vgg_ceil_div(all_rows, p->chunks);
        p->by_blocks = p->chunks == 1;
        p->runs = vgg_ceil_div(p->tiles, RUN_TILES);
        fits = vgg_mul_size(&p->x_panel, p->rows * p->tiles, gemm->nr) &&
               vgg_mul_size(&p->g_panel, p->rows * p->tiles, p->g_width) && vgg_add_size(&p->x_panel, p->x_panel, STRIDE_PAD) &&
               vgg_add_size(&p->g_panel, p->g_panel, STRIDE_PAD) && element_size(&p->x_element, p->x_panels, p->x_panel) &&
               element_size(&p->g_element, g_panels, p->g_panel) &&
               vgg_reserve(&p->db_bytes, p->k, sizeof(double) / sizeof(float), 1) &&
               vgg_reserve(&p->x_bytes, p->elements, p->x_element, 1) &&
               vgg_reserve(&p->g_bytes, p->elements + 1, p->g_element, 1) &&
               vgg_reserve(&p->sums_bytes, p->by_blocks ? 0 : p->sums, p->x_panels, p->g_tiles) &&
               vgg_reserve(&p->thread_bytes, p->by_blocks ? p->block_k * p->block_c : 0, p->sums, 1) &&
               vgg_add_size(&p->shared_bytes, p->db_bytes, p->x_bytes) &&
               vgg_add_size(&p->shared_bytes, p->shared_bytes, p->g_bytes) &&
               vgg_add_size(&p->shared_bytes, p->shared_bytes, p->sums_bytes);
    }
    return vgg_workspace_fits(ctx, "conv2d_backward_weight", fits);
}

enum vgg_status vgg_conv2d_winograd_weight_workspace(struct vgg_context *ctx, size_t *bytes, const struct vgg_conv2d *s)
{
    struct plan p;
    VGG_TRY(make_plan(&p, ctx, s));
    return vgg_workspace_bytes(bytes, ctx, "conv2d_backward_weight", p.shared_bytes, p.thread_bytes);
}

struct call {
    struct plan p;
    float *dw;
    const float *x;
    const struct vgg_conv2d_gradient *g;
    int beta;
    size_t chunk, row, rows; /* the chunk: its first row of tiles, counted through the batch, and how many */
    size_t block_k, blocks_k, block_c, blocks_c; /* blocks of K x C, as the threads want them */
    size_t split_k, splits;                      /* tiles of the microkernel in a task of one element, and such tasks */
    float *x_panels, *g_panels, *sums;
    double *db_sums;
    char *scratch;
};

/* ------------------------------------------------------------------------------------------------ transforms */

/* A part of a row of tiles of the chunk: of g if `task` is even, of x if it is odd. */
static void transform_task(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct call *call = argument;
    const struct plan *p = &call->p;
    size_t row = task / 2 / p->runs, length = vgg_ceil_div(p->tiles, p->runs), column = task / 2 % p->runs * length;
    if (column >= p->tiles)
        return;
    size_t n = (call->row + row) / p->rows_an_image;
    struct vgg_winograd_input run = {.h = p->h,
                                     .w = p->w,
                                     .row = (call->row + row) % p->rows_an_image,
                                     .column = column,
                                     .tiles = vgg_min_size(length, p->tiles - column)};
    if (task % 2 == 0) {
        const struct vgg_conv2d_gradient *g = call->g;
        size_t image = n * g->oh * g->ow * p->k;
        run.x = g->dy + image;
        run.y = g->y == NULL ? NULL : g->y + image;
        run.index = g->index == NULL ? NULL : g->index + image;
        run.oh = g->oh;
        run.ow = g->ow;
        run.c = p->k;
        run.v = call->g_panels + (row * p->tiles + column) * p->g_width;
        run.v_element = p->g_element;
        run.v_panel = p->g_panel;
        run.v_tile = run.width = p->g_width;
        p->gradient->run.winograd_gradient(&run);
    } else {
        run.x = call->x + n * p->h * p->w * p->c;
        run.oh = p->h;
        run.ow = p->w;
        run.c = p->c;
        run.v = call->x_panels + (row * p->tiles + column) * p->gemm->nr;
        run.v_element = p->x_element;
        run.v_panel = p->x_panel;
        run.v_tile = run.width = p->gemm->nr;
        p->input->run.winograd_input(&run);
    }
}

/* ------------------------------------------------------------------------------------------------ products */

/* Elements, tiles of the microkernel and panels of x: from, and up to. And their sums [c / NR][element][k / MR][MR][NR], of
 * which the first is of panel sums_c and tile sums_k, and which have sums_tiles tiles. */
struct block {
    size_t element, element_end, k, k_end, c, c_end;
    float *sums;
    size_t sums_c, sums_k, sums_tiles;
};

static float *sums_of(const struct plan *p, const struct block *block, size_t c, size_t element, size_t k)
{
    size_t tile = ((c - block->sums_c) * p->elements + element) * block->sums_tiles + k - block->sums_k;
    return block->sums + tile * p->gemm->mr * p->gemm->nr;
}

static void multiply(const struct call *call, const struct block *block)
{
    const struct plan *p = &call->p;
    size_t mr = p->gemm->mr, nr = p->gemm->nr, strip = p->g_width / mr; /* tiles */
    struct vgg_gemm t = {.nr = nr,
                         .runs = 1,
                         .k = call->rows * p->tiles,
                         .a_row = 1,
                         .a_col = p->g_width,
                         .c_row = nr,
                         .beta = call->chunk != 0};
    for (size_t element = block->element; element < block->element_end; element++)
        for (size_t c = block->c; c < block->c_end; c++) {
            t.b = call->x_panels + element * p->x_element + c * p->x_panel;
            for (size_t tile = block->k, end; tile < block->k_end; tile = end) {
                end = vgg_min_size(block->k_end, (tile / strip + 1) * strip); /* of the panel of g */
                size_t k = tile * mr;
                t.rows = vgg_min_size(end * mr, p->k) - k;
                t.a = call->g_panels + element * p->g_element + k / p->g_width * p->g_panel + k % p->g_width;
                t.c = sums_of(p, block, c, element, tile);
                if (t.beta) /* the next strip's */
                    for (size_t i = t.rows * nr; i < 2 * t.rows * nr; i += 16)
                        __builtin_prefetch(t.c + i, 1);
                p->gemm->run.gemm(&t);
            }
        }
}

static void finish(const struct call *call, const struct block *block)
{
    const struct plan *p = &call->p;
    size_t mr = p->gemm->mr, nr = p->gemm->nr;
    for (size_t c = block->c; c < block->c_end; c++)
        for (size_t tile = block->k; tile < block->k_end; tile++) {
            const struct vgg_winograd_sums sums = {.m = sums_of(p, block, c, 0, tile),
                                                   .m_element = block->sums_tiles * mr * nr,
                                                   .m_row = nr,
                                                   .dw = call->dw + tile * mr * 9 * p->c + c * nr,
                                                   .dw_row = 9 * p->c,
                                                   .dw_tap = p->c,
                                                   .rows = vgg_min_size(mr, p->k - tile * mr),
                                                   .columns = vgg_min_size(nr, p->c - c * nr),
                                                   .beta = call->beta != 0};
            p->output->run.winograd_sums(&sums);
        }
}

static void sum_bias(const struct call *call)
{
    const struct plan *p = &call->p;
    size_t mr = p->gemm->mr;
    for (size_t k = 0; k < p->k; k += mr) {
        const float *g = call->g_panels + p->elements * p->g_element + k / p->g_width * p->g_panel + k % p->g_width;
        vgg_sum_columns(call->db_sums + k, g, p->g_width, call->rows * p->tiles, vgg_min_size(mr, p->k - k), mr);
    }
}

/* All elements of the task's block of K x C, among the sums of all K x C. */
static struct block block_of(const struct call *call, size_t task)
{
    struct block block = {.element_end = call->p.elements,
                          .k = task % call->blocks_k * call->block_k,
                          .c = task / call->blocks_k * call->block_c,
                          .sums = call->sums,
                          .sums_tiles = call->p.g_tiles};
    block.k_end = vgg_min_size(block.k + call->block_k, call->p.g_tiles);
    block.c_end = vgg_min_size(block.c + call->block_c, call->p.x_panels);
    return block;
}

/* By blocks: task 0 is db, the others are blocks. */
static void multiply_and_finish_task(void *argument, size_t task, int thread)
{
    const struct call *call = argument;
    if (task == 0) {
        sum_bias(call);
        return;
    }
    struct block block = block_of(call, task - 1);
    block.sums = (float *)(void *)(call->scratch + (size_t)thread * call->p.thread_bytes);
    block.sums_c = block.c;
    block.sums_k = block.k;
    block.sums_tiles = block.k_end - block.k;
    multiply(call, &block);
    finish(call, &block);
}

/* By elements: task 0 is db, the others are an element of some or all tiles of the microkernel. */
static void multiply_task(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct call *call = argument;
    if (task == 0) {
        sum_bias(call);
        return;
    }
    size_t element = (task - 1) / call->splits, k = (task - 1) % call->splits * call->split_k;
    const struct block block = {.element = element,
                                .element_end = element + 1,
                                .k = k,
                                .k_end = vgg_min_size(k + call->split_k, call->p.g_tiles),
                                .c_end = call->p.x_panels,
                                .sums = call->sums,
                                .sums_tiles = call->p.g_tiles};
    multiply(call, &block);
}

static void finish_task(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct block block = block_of(argument, task);
    finish(argument, &block);
}

/* Cuts `all` into *count even parts of *size: at most `most`, and so small that there are `wanted` if possible. */
static void cut(size_t *size, size_t *count, size_t all, size_t most, size_t wanted)
{
    *size = vgg_ceil_div(all, vgg_min_size(all, vgg_max_size(vgg_ceil_div(all, most), wanted)));
    *count = vgg_ceil_div(all, *size);
}

static void make_tasks(struct call *call, int threads)
{
    const struct plan *p = &call->p;
    size_t wanted = threads == 1 ? 1 : TASKS_A_THREAD * (size_t)threads;
    cut(&call->block_c, &call->blocks_c, p->x_panels, p->block_c, 1);
    cut(&call->block_k, &call->blocks_k, p->g_tiles, p->block_k, vgg_ceil_div(wanted, call->blocks_c));
    /* Half of the L2 cache for an element's panels of g. */
    size_t most = vgg_l2_bytes() / 2 / sizeof(float) / (vgg_max_size(p->rows, 1) * p->tiles * p->gemm->mr);
    cut(&call->split_k, &call->splits, p->g_tiles, vgg_max_size(most, 1), vgg_ceil_div(wanted, p->elements));
}

enum vgg_status vgg_conv2d_winograd_weight(struct vgg_context *ctx, float *dw, float *db, const struct vgg_conv2d_gradient *g,
                                           const float *x, const struct vgg_conv2d *s, int beta)
{
    struct call call = {.dw = dw, .x = x, .g = g, .beta = beta};
    struct plan *p = &call.p;
    int threads = 1;
    VGG_TRY(make_plan(p, ctx, s));
    VGG_TRY(vgg_workspace_threads(ctx, "conv2d_backward_weight", &threads, p->shared_bytes, p->thread_bytes));
    char *workspace = ctx->workspace;
    call.db_sums = ctx->workspace;
    call.x_panels = (float *)(void *)(workspace + p->db_bytes);
    call.g_panels = (float *)(void *)(workspace + p->db_bytes + p->x_bytes);
    call.sums = (float *)(void *)(workspace + p->db_bytes + p->x_bytes + p->g_bytes);
    call.scratch = workspace + p->shared_bytes;
    if ((double)(p->n * p->h * p->w) * (double)(p->c * p->k * 9) < SMALL_WORK)
        threads = 1;
    make_tasks(&call, threads);

    const struct vgg_kernel *const used[] = {p->gemm, p->input, p->gradient, p->output};
    for (size_t i = 0; i < sizeof used / sizeof *used; i++)
        vgg_kernel_count_use(used[i]);
    for (size_t k = 0; k < p->k; k++)
        call.db_sums[k] = 0;
    if (p->n == 0 && beta == 0)
        memset(dw, 0, p->k * 9 * p->c * sizeof *dw);
    size_t blocks = call.blocks_c * call.blocks_k;
    for (call.chunk = 0; p->n != 0 && call.chunk < p->chunks; call.chunk++) {
        call.row = call.chunk * p->rows;
        call.rows = vgg_min_size(p->rows, p->n * p->rows_an_image - call.row);
        vgg_parallel_for(ctx->device, threads, 2 * call.rows * p->runs, transform_task, &call);
        if (p->by_blocks)
            vgg_parallel_for(ctx->device, threads, 1 + blocks, multiply_and_finish_task, &call);
        else
            vgg_parallel_for(ctx->device, threads, 1 + p->elements * call.splits, multiply_task, &call);
    }
    if (!p->by_blocks)
        vgg_parallel_for(ctx->device, threads, blocks, finish_task, &call);
    for (size_t k = 0; k < p->k; k++)
        db[k] = (float)(call.db_sums[k] + (beta != 0 ? (double)db[k] : 0));
    return VGG_OK;
}

/* vgg_internal.h: what the C rings share among themselves. Nothing here is for a caller of vgg.h. */
#ifndef VGG_INTERNAL_H
#define VGG_INTERNAL_H

#include "vgg.h"

#include <stdatomic.h>

/* ------------------------------------------------------------------------------------------------ status (core/status.c) */

/* Fills *error (if not NULL) and returns status, so a check reads `return vgg_fail(error, VGG_INVALID_ARGUMENT, "...")`. */
enum vgg_status vgg_fail(struct vgg_error *error, enum vgg_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#define VGG_TRY(expr) \
    do { \
        enum vgg_status vgg_try_status = (expr); \
        if (vgg_try_status != VGG_OK) \
            return vgg_try_status; \
    } while (0)

/* "(2, 3, 4)" into text[size]; returns text. Long shapes are cut with "...". */
char *vgg_shape_text(char *text, size_t size, const size_t *shape, int ndim);

/* Each check names the operation and the argument in its message. */
enum vgg_status vgg_expect_dtype(const char *op, const char *name, const struct vgg_array *a, enum vgg_dtype dtype,
                                 struct vgg_error *error);
/* The dtype of precision's maps. */
enum vgg_status vgg_expect_precision(const char *op, const char *name, const struct vgg_array *a, enum vgg_precision precision,
                                     struct vgg_error *error);
/* A map of whatever precision: float32 or bfloat16, which a backend that lacks it does not meet (vgg.h). */
enum vgg_status vgg_expect_map(const char *op, const char *name, const struct vgg_array *a, struct vgg_error *error);
enum vgg_status vgg_expect_ndim(const char *op, const char *name, const struct vgg_array *a, int ndim, struct vgg_error *error);
/* `because` completes "expected (...) because ...". */
enum vgg_status vgg_expect_shape(const char *op, const char *name, const struct vgg_array *a, const size_t *shape, int ndim,
                                 const char *because, struct vgg_error *error);
const char *vgg_dtype_name(enum vgg_dtype dtype);
size_t vgg_dtype_size(enum vgg_dtype dtype);

/* ------------------------------------------------------------------------------------------------ sizes (header only) */

static inline bool vgg_mul_size(size_t *out, size_t a, size_t b)
{
    return !__builtin_mul_overflow(a, b, out);
}
static inline bool vgg_add_size(size_t *out, size_t a, size_t b)
{
    return !__builtin_add_overflow(a, b, out);
}
/* The product of a shape times an element size; false on overflow of ptrdiff_t. */
bool vgg_shape_bytes(size_t *bytes, const size_t *shape, int ndim, size_t element_size);
static inline size_t vgg_ceil_div(size_t a, size_t b)
{
    return a / b + (a % b != 0);
}
static inline size_t vgg_min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}
static inline size_t vgg_max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}
static inline size_t vgg_align64(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

/* ------------------------------------------------------------------------------------------------ memory (core/memory.c) */

/* The one place that takes memory from the system: 64-byte aligned, counted. NULL when it fails (or was told to). */
void *vgg_allocate(size_t bytes);
void vgg_release(void *data, size_t bytes); /* the bytes that were asked for */
/* From the first `true` to the last `false` large blocks that are released serve the next request of as many bytes. */
void vgg_keep_large(bool on);
void vgg_allocation_stats(struct vgg_memory_stats *stats);
void vgg_allocation_reset_peak(void);
/* Test hook: the n-th allocation from now (1 is the next) fails, once; 0 switches it off. */
void vgg_fail_allocation(size_t n);

/* ------------------------------------------------------------------------------------------------ threads (core/threads.c) */

/* CPU devices: threads of their own, one memory. */
enum { VGG_CPU_DEVICES = 64, VGG_EVERY_DEVICE = -1 };

/* Runs body(argument, task, thread) for each task in 0..tasks-1 on at most `threads` threads, thread in 0..threads-1 being
 * this call's own number of the thread. Which thread takes which task is not fixed: a result must not depend on it. Returns
 * when all are done. Tasks may not call vgg_parallel_for. Each CPU device has a pool of threads, started when they are first
 * needed. Callers from several threads are served one at a time by a device's pool; a caller that finds it busy runs its tasks
 * itself. Idle threads sleep. Works in a child after fork. */
void vgg_parallel_for(int device, int threads, size_t tasks, void (*body)(void *argument, size_t task, int thread),
                      void *argument);
/* Threads (>= 1) that calls on a CPU device may use. Setting it for VGG_EVERY_DEVICE takes back what one was given; getting it
 * tells what was last set for all. Default: VGGNET_NUM_THREADS, else the CPUs this process may run on. */
void vgg_set_num_threads(int threads, int device);
int vgg_get_num_threads(int device);

/* ------------------------------------------------------------------------------------------------ CPU (core/cpu.c) */

enum vgg_isa { VGG_ISA_SCALAR, VGG_ISA_AVX2, VGG_ISA_AVX512, VGG_ISA_COUNT };
const char *vgg_isa_name(enum vgg_isa isa);
enum vgg_isa vgg_isa_best(void); /* what CPUID and XGETBV allow */
size_t vgg_l2_bytes(void);       /* of one core; a default where the system does not say */

/* ------------------------------------------------------------------------------------------------ kernels (kernels.c) */

/* One call of the GEMM microkernel: a strip of C, any number of rows by nr columns (the kernel's, or fewer). The kernel takes
 * the rows in tiles of at most its mr, as even as they can be: 16 = 6 + 5 + 5.
 *
 *   acc[i][j] = sum over run t < runs, p < k of a[t * a_run + i * a_row + p * a_col] * b[t * b_run + p * NR + j]
 *   c[i * c_row + j] = epilogue(acc[i][j] + (beta ? c[i * c_row + j] : 0) + (bias ? bias[j] : 0))
 *   epilogue = relu ? max(., 0) : .
 *
 * B is packed in panels of NR columns, rows of a panel NR floats apart; all NR columns are readable (zero-padded), whatever
 * nr is. A is read in place through strides, so an image row, a weight matrix and a packed panel all serve as A. */
struct vgg_gemm {
    size_t rows, nr;
    size_t runs, k;
    const float *a;
    size_t a_run, a_row, a_col;
    const float *b;
    size_t b_run;
    float *c;
    size_t c_row;
    const float *bias; /* nr values, or NULL */
    bool beta, relu;
    const float *next; /* what is read soon after this call and lies far away: so many lines from here on are fetched, */
    size_t next_lines; /* but 2 at most for 16 of k of a tile */
};

/* The kernels of Winograd's F(OUT x OUT, 3x3), OUT 2, 4 or 6, of one image's maps. The mathematics is in
 * kernels/winograd_tile.h. A run of `tiles` tiles lies in tile row `row` from tile column `column` on; tile (i, j) has the
 * outputs from pixel (OUT i, OUT j) and reads IN x IN pixels, IN = OUT + 2, from (OUT i - 1, OUT j - 1), zeros beyond the map's
 * edges. Element e = IN i + j of a transformed tile is 0..IN^2 - 1. */

/* v[e * v_element + ch / width * v_panel + tile * v_tile + ch % width] = (B^T x B)[e] of the run's tiles, for every channel
 * ch < c, and zeros up to the next multiple of the kernel's nr. width is a multiple of that, or at least c: then there is one
 * panel.
 * With y, x counts where y > 0 and is 0 elsewhere; with index, x, y and index are pooled maps of oh by ow, and x is put where
 * index says. */
struct vgg_winograd_input {
    const float *x;
    const float *y;       /* or NULL */
    const uint8_t *index; /* or NULL */
    size_t h, w, c;
    size_t oh, ow; /* of x: pooled with index, else h and w */
    size_t row, column, tiles;
    float *v;
    size_t v_element, v_panel, v_tile, width;
};

/* u[e * u_element + j] = (G t G^T)[e], where t[r][s] = taps[(3 r + s) * tap + j], for j < count, a multiple of the
 * kernel's nr. */
struct vgg_winograd_weights {
    const float *taps;
    size_t tap, count;
    float *u;
    size_t u_element;
};

/* The tiles of the run, A^T m A + bias, of element e = m[e * m_element + tile * m_tile + ch], go to the map y[h][w][k] (or,
 * pooled, y[oh][ow][k] and index) for ch < channels; y, index, bias and m begin at the first of these channels. m is read up
 * to the next multiple of the kernel's nr. */
struct vgg_winograd_output {
    const float *m;
    size_t m_element, m_tile;
    const float *bias; /* or NULL */
    bool relu, pool;
    float *y;
    uint8_t *index; /* or NULL; pool only */
    size_t h, w, k; /* of the map before pooling; k: floats from pixel to pixel */
    size_t oh, ow;  /* of y */
    size_t channels;
    size_t row, column, tiles;
};

/* The weight gradient's F(3x3, OUT x OUT), OUT 4 or 6; x is transformed as for the forward convolution. The gradient kernel
 * takes the input kernel's struct; tile (i, j) has the OUT x OUT pixels from (OUT i, OUT j), elements 0..IN^2 - 1 are
 * G g G^T, and element IN^2 is the sum of the tile's pixels. Of the sums over tiles, m[e * m_element + row * m_row + j], the
 * taps are
 *
 *   dw[row * dw_row + tap * dw_tap + j] = (A^T m A)[tap]     (beta: added)     row < rows, j < columns, tap = 0..8
 *
 * m is read up to the next multiple of the kernel's nr columns. */
struct vgg_winograd_sums {
    const float *m;
    size_t m_element, m_row;
    float *dw;
    size_t dw_row, dw_tap;
    size_t rows, columns;
    bool beta;
};

/* The fully connected layer for few rows of x: at most the kernel's mr, and any number of outputs.
 *
 *   y[n * y_row + o] = epilogue(sum over i of x[n * x_row + i] * w[o * w_row + i] + (bias ? bias[o] : 0))
 *   epilogue = relu ? max(., 0) : .
 *
 * The sum over `block` inputs at a time is one chain in order, blocks are added one after the other: the bits are those of
 * struct vgg_gemm's sums over blocks. w is float, or bfloat16 (the upper halves of floats). */
struct vgg_linear_forward {
    size_t rows, outputs, in, block; /* block: a multiple of 8 */
    const void *w;
    bool bfloat16;
    size_t w_row;
    const float *x;
    size_t x_row;
    const float *bias; /* or NULL */
    bool relu;
    float *y;
    size_t y_row;
};

/* The gradients of the fully connected layer: rows of c, `tile` of them (at most the kernel's mr) at a time, `columns` wide.
 *
 *   c[r * c_row + j] = (carry ? carry[r * carry_row + j] : 0) + sum over p < k of a[r][p] * b[p][j]
 *                      + (beta ? c[r * c_row + j] : 0)
 *   a[r][p] = a[r / tile * a_tile + p * tile + r % tile]
 *   b[p][j] = b[j / nr * b_panel + p * b_row + j % nr]
 *
 * carry, then the terms, are one chain in order. With `packed`, scratch of k * nr floats, b is a matrix in place (b_panel is
 * nr), read once, and what begins at `next` is fetched ahead: rows like b's. Without, b's last panel has all its columns.
 * Columns of carry are readable up to a multiple of nr. */
struct vgg_linear_gradient {
    size_t rows, tile, k, columns;
    const float *a;
    size_t a_tile;
    const float *b, *next;
    size_t b_row, b_panel;
    float *packed;      /* or NULL */
    const float *carry; /* or NULL */
    size_t carry_row;
    float *c;
    size_t c_row;
    bool beta;
};

/* The kernels of a 3x3 convolution of few channels, a net's first layer. The input is staged with a border of zeros: an image's
 * pixel (i, j) at x[(i + 1) * x_row + (j + 1) * c]. */

/* `rows` rows of the map, or `oh` rows of the pooled one; x, y and index begin at the first of them, x with the row above.
 * A panel has nr output channels (zeros beyond k): the bias in row 0, the weights w[.][r][s][c] in row 1 + (3 r + s) c + c'.
 * Up to 2 mr pixels beyond the end of a row of x are read. */
struct vgg_first_forward {
    const float *x;
    size_t x_row, c;
    const float *panels; /* [k / nr][1 + 9 c][nr] */
    bool relu, pool;
    bool stream; /* y may go past the caches: it is aligned to 64 bytes, and k a multiple of 16 */
    float *y;
    uint8_t *index; /* or NULL; pool only */
    size_t rows, w, k;
    size_t oh, ow; /* pool only */
};

/* g[j * g_pixel + k'] = the gradient of z at pixel (row, column + j), j < columns; zeros from k up to g_pixel, which is a
 * multiple of the kernel's nr. dy, y and index are one image's; with index they are pooled maps of oh by ow. */
struct vgg_first_gradient {
    const float *dy, *y;  /* y or NULL */
    const uint8_t *index; /* or NULL */
    size_t oh, ow, k;
    size_t row, column, columns;
    float *g;
    size_t g_pixel;
};

/* A row of dx, w by c. g[r] begins at pixel (row + r - 1, -1); mr pixels beyond the end of a row are read.
 * The weights are those of the kernel's taps turned by half a turn: weights[((3 r + s) * g_pixel / nr + v) * c + c'][nr]. */
struct vgg_first_input {
    const float *g[3];
    size_t g_pixel;
    const float *weights;
    float *dx;
    size_t w, c; /* c <= 4 */
};

/* sums[q][k'] += sum over the block's pixels of g[.][k'] * x[.][q], where q = (3 r + s) c + c' is the pixel's neighbour and
 * channel; sums[9 c][k'] += sum of g[.][k']. A block's sum is made before it is added. The block has rows of `columns` pixels,
 * which follow each other in g and are x_row apart in x; x begins with the first pixel's neighbours. g_pixel is a multiple of
 * the kernel's nr. Meanwhile ahead_bytes from either address in `ahead` are fetched, for the next block. */
struct vgg_first_weight {
    const float *x;
    size_t x_row, c;
    const float *g;
    size_t g_pixel;
    size_t rows, columns;
    float *sums; /* [9 c + 1][g_pixel] */
    const float *ahead[2];
    size_t ahead_bytes; /* may be 0 */
};

/* grad[d][j] = sum over d' of weight[d'] grad[d'][j] / total, summed in device order in float64, for j = first .. first +
 * count - 1 and each of the devices. Every ISA gives the same bits. */
struct vgg_average {
    float *const *grad;
    const double *weight;
    double total;
    size_t devices, first, count;
};

/* What kernels do: SLOT(enumerator, name). */
#define VGG_EACH_SLOT(SLOT) \
    SLOT(GEMM, gemm) \
    SLOT(WINOGRAD2_INPUT, winograd2_input) \
    SLOT(WINOGRAD2_WEIGHTS, winograd2_weights) \
    SLOT(WINOGRAD2_OUTPUT, winograd2_output) \
    SLOT(WINOGRAD4_INPUT, winograd4_input) \
    SLOT(WINOGRAD4_WEIGHTS, winograd4_weights) \
    SLOT(WINOGRAD4_OUTPUT, winograd4_output) \
    SLOT(WINOGRAD4_GRADIENT, winograd4_gradient) \
    SLOT(WINOGRAD4_SUMS, winograd4_sums) \
    SLOT(WINOGRAD6_INPUT, winograd6_input) \
    SLOT(WINOGRAD6_WEIGHTS, winograd6_weights) \
    SLOT(WINOGRAD6_OUTPUT, winograd6_output) \
    SLOT(WINOGRAD6_GRADIENT, winograd6_gradient) \
    SLOT(WINOGRAD6_SUMS, winograd6_sums) \
    SLOT(LINEAR_FORWARD, linear_forward) \
    SLOT(LINEAR_GRADIENT, linear_gradient) \
    SLOT(FIRST_FORWARD, first_forward) \
    SLOT(FIRST_GRADIENT, first_gradient) \
    SLOT(FIRST_INPUT, first_input) \
    SLOT(FIRST_WEIGHT, first_weight) \
    SLOT(AVERAGE, average)

#define VGG_SLOT_ENUMERATOR(enumerator, name) VGG_SLOT_##enumerator,
enum vgg_slot { VGG_EACH_SLOT(VGG_SLOT_ENUMERATOR) VGG_SLOT_COUNT };

typedef void vgg_gemm_run(const struct vgg_gemm *);
typedef void vgg_winograd_input_run(const struct vgg_winograd_input *);
typedef void vgg_winograd_weights_run(const struct vgg_winograd_weights *);
typedef void vgg_winograd_output_run(const struct vgg_winograd_output *);
typedef void vgg_winograd_gradient_run(const struct vgg_winograd_input *);
typedef void vgg_winograd_sums_run(const struct vgg_winograd_sums *);
typedef void vgg_linear_forward_run(const struct vgg_linear_forward *);
typedef void vgg_linear_gradient_run(const struct vgg_linear_gradient *);
typedef void vgg_first_forward_run(const struct vgg_first_forward *);
typedef void vgg_first_gradient_run(const struct vgg_first_gradient *);
typedef void vgg_first_input_run(const struct vgg_first_input *);
typedef void vgg_first_weight_run(const struct vgg_first_weight *);
typedef void vgg_average_run(const struct vgg_average *);

/* A row of kernels.def: the kernel, its ISA and its tile. */
struct vgg_kernel {
    const char *name; /* "vgg_sgemm_6x16__avx2" */
    enum vgg_slot slot;
    enum vgg_isa isa;
    size_t mr, nr; /* Winograd: pixels and channels at once; linear_forward: most rows of x, outputs at once */
    union {
        vgg_gemm_run *gemm;
        vgg_winograd_input_run *winograd_input;
        vgg_winograd_weights_run *winograd_weights;
        vgg_winograd_output_run *winograd_output;
        vgg_winograd_gradient_run *winograd_gradient;
        vgg_winograd_sums_run *winograd_sums;
        vgg_linear_forward_run *linear_forward;
        vgg_linear_gradient_run *linear_gradient;
        vgg_first_forward_run *first_forward;
        vgg_first_gradient_run *first_gradient;
        vgg_first_input_run *first_input;
        vgg_first_weight_run *first_weight;
        vgg_average_run *average;
    } run;
};

/* The kernel in use: chosen once by vgg_kernels_init, before anything else. */
const struct vgg_kernel *vgg_kernel(enum vgg_slot slot);
static inline const struct vgg_kernel *vgg_gemm(void)
{
    return vgg_kernel(VGG_SLOT_GEMM);
}
enum vgg_isa vgg_isa_selected(void);
/* Caps the choice. "" or NULL: the best. VGG_INVALID_ARGUMENT for an unknown name, VGG_UNSUPPORTED for one the CPU lacks. */
enum vgg_status vgg_kernels_init(const char *isa, struct vgg_error *error);
const char *vgg_slot_name(enum vgg_slot slot);
/* The whole table, for build_info and the tests; *count rows. Operations count their use of a kernel in `uses`. */
const struct vgg_kernel *vgg_kernels(size_t *count);
size_t vgg_kernel_uses(const struct vgg_kernel *kernel);
void vgg_kernel_count_use(const struct vgg_kernel *kernel);
/* The selected ISA's multiply-add rate on `threads` threads, in float32 operations a second: what benchmarks call the peak. */
double vgg_fma_peak(int threads);
/* Rates of plain streams through `bytes` (more than any cache holds) at `data` on `threads` threads, in bytes a second: reads,
 * writes, and updates in place, which count both. */
struct vgg_memory_bandwidth {
    double read, write, update;
};
struct vgg_memory_bandwidth vgg_memory_bandwidth(int threads, void *data, size_t bytes);

/* ------------------------------------------------------------------------------------------------ Philox (core/philox.h) */

#endif

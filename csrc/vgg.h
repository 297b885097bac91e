/* vgg.h: the book. The contract of every operation of vggnet in plain C11: formula, shapes, aliasing, workspace, statuses.
 *
 * Rings: csrc/py -> csrc/ops -> csrc/kernels. A backend is a table of the functions below (struct vgg_backend); the CPU's
 * is vgg_cpu_backend, and every call from Python goes through a table, so a device is added by registering another one.
 *
 * Conventions
 *   Index notation: y[n][h][w][k] is C-contiguous, last index fastest. n image, h row, w column, c input channel,
 *   k output channel, r kernel row, s kernel column. Activations are NHWC, convolution weights KRSC, linear weights
 *   (out, in). Sizes are counted in elements unless a name ends in _bytes.
 *   Argument order: context, outputs, inputs, shape, options. A pointer documented "or NULL" may be absent.
 *   Outputs are overwritten and their old contents are never read, unless `beta` is 1, which adds to them.
 *   Outputs must not overlap inputs unless "may alias" is written. Inputs are never written.
 *   Any pointer may have the natural alignment of its type; storages made by a backend are 64-byte aligned.
 *   Zero-sized batches (n == 0) are valid and write nothing but sums (dw, db, loss), which become 0 (beta 0).
 *   Results are bit-equal for any number of threads and any split of a batch (for conv2d's VGG_AUTO: into parts of 2 and more).
 *   NaN and Inf propagate as IEEE 754 has it (Winograd: see convolution).
 *   Maps (activations and their gradients) and the weights that are multiplied with them are given as `void *`: float32, or
 *   bfloat16 where a shape's dtype or precision says so. All arithmetic is float32's: a bfloat16 is widened, exactly, when it
 *   is read, and a result is rounded, to the nearest, even where two are as near, when it is written. Biases, gradients of
 *   parameters, logits and losses are float32 always. A backend whose `bfloat16` is false is never given bfloat16 maps.
 */
#ifndef VGG_H
#define VGG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VGG_MAX_NDIM 8

/* ------------------------------------------------------------------------------------------------ statuses */

enum vgg_status {
    VGG_OK,
    VGG_INVALID_ARGUMENT, /* the caller's fault: a shape, a size, a value */
    VGG_UNSUPPORTED,      /* valid, but this build or device cannot do it */
    VGG_OUT_OF_MEMORY,
    VGG_DEVICE,   /* the device or its driver failed */
    VGG_INTERNAL, /* ours */
};

/* Owned by the caller; written only when a function returns something other than VGG_OK. */
struct vgg_error {
    enum vgg_status status;
    char msg[256]; /* "conv2d: w has shape (64, 3, 3, 4); expected (K, 3, 3, 3) because x has 3 channels" */
};

/* ------------------------------------------------------------------------------------------------ arrays */

/* bfloat16 is the upper half of a float32: for storage only, no arithmetic is done in it. */
enum vgg_dtype { VGG_FLOAT32, VGG_INT64, VGG_UINT8, VGG_BFLOAT16, VGG_DTYPE_COUNT };

/* How exactly convolutions and linear layers multiply; sums are float32 always.
 *
 * TF32: the factors of products may be rounded to TF32 (float32 with 10 bits of fraction instead of 23). It is leave, not
 * order: a backend without such arithmetic, as the CPU's, goes on in float32.
 * BF16: maps and weights are stored as bfloat16, so the factors have 8 bits.
 *
 * It is an option of the call rather than of the context because results depend on it, as on relu, and not on where or when
 * it runs. */
enum vgg_precision { VGG_PRECISION_FLOAT32, VGG_PRECISION_TF32, VGG_PRECISION_BF16, VGG_PRECISION_COUNT };

/* Of maps, and of the weights that they are multiplied with. */
static inline enum vgg_dtype vgg_precision_dtype(enum vgg_precision precision)
{
    return precision == VGG_PRECISION_BF16 ? VGG_BFLOAT16 : VGG_FLOAT32;
}

/* Borrows for the length of a call: data stays the owner's. Always C-contiguous. */
struct vgg_array {
    void *data;
    enum vgg_dtype dtype;
    int ndim;
    size_t shape[VGG_MAX_NDIM];
};

/* Borrows everything it points to for the length of a call. */
struct vgg_context {
    const struct vgg_backend *backend;
    int device;             /* index within the backend */
    int threads;            /* most CPU threads the call may use, >= 1 */
    void *stream;           /* the device's stream; NULL on the CPU */
    void *workspace;        /* 64-byte aligned scratch of the device, or NULL */
    size_t workspace_bytes; /* with less than the operation's *_workspace function says, it uses fewer threads or fails */
    struct vgg_error *error;
};

/* ------------------------------------------------------------------------------------------------ convolution
 *
 * (paper, section 2.1) Stride 1, padding (kernel_size - 1) / 2, so height and width are kept:
 *
 *   z[n][h][w][k] = b[k] + sum over r, s, c of x[n][h + r - p][w + s - p][c] * w[k][r][s][c],   p = (kernel_size - 1) / 2
 *   a = relu ? max(z, 0) : z
 *   y = pool ? max_pool2d(a) : a                  (see max_pool2d for index)
 *
 * Backward, for the same shape, with g the gradient with respect to z:
 *
 *   g  = dy                                       without y and index
 *   g  = dy where y > 0, else 0                   with y: the output of a fused ReLU; same shape as dy
 *   g  = that, put where index says, else 0       with index: dy, y and index have the pooled shape
 *   dx[n][h][w][c] = sum over r, s, k of g[n][h - r + p][w - s + p][k] * w[k][r][s][c]
 *   dw[k][r][s][c] = sum over n, h, w of g[n][h][w][k] * x[n][h + r - p][w + s - p][c]
 *   db[k]          = sum over n, h, w of g[n][h][w][k]
 *
 * Algorithms: `direct` adds the terms above. `winograd2`, `winograd4` and `winograd6` (3x3 kernels) make y and dx in tiles of
 * 2x2, 4x4 and 6x6 pixels that begin at pixel (0, 0), F(2x2, 3x3) and so on, with 1/2.25, 1/4 and 1/5.06 of the
 * multiplications; winograd4 and winograd6 make dw from tiles of g of the same size, F(3x3, 4x4) and F(3x3, 6x6). Each errs by
 * at most k eps32 times the sum of the terms' absolute values, of which a winograd takes the largest in the tile (for dw: of
 * the nine taps): k is 4 for direct, 32, 64 and 256 for the winograds, 16 and 64 for the dw of the latter two. Of a winograd, a
 * NaN or Inf in an input reaches, as NaN or Inf, at least every output that it is a term of, and at most the other pixels of
 * their tiles (for dw: the other taps). What `auto` takes may differ between one image and several; else a result's bits depend
 * on its own image alone.
 */
enum vgg_algorithm { VGG_AUTO, VGG_DIRECT, VGG_WINOGRAD2, VGG_WINOGRAD4, VGG_WINOGRAD6, VGG_ALGORITHM_COUNT };
enum vgg_direction { VGG_FORWARD, VGG_BACKWARD_INPUT, VGG_BACKWARD_WEIGHT, VGG_DIRECTION_COUNT };
enum vgg_pool { VGG_POOL_NONE, VGG_POOL_FLOOR, VGG_POOL_CEIL };

struct vgg_conv2d {
    size_t n, h, w, c, k;
    size_t kernel_size; /* 1 or 3 */
    bool relu;          /* forward only */
    enum vgg_pool pool; /* forward: fused max pooling; backward: not VGG_POOL_NONE when index is given */
    enum vgg_algorithm algorithm;
    bool transformed;             /* forward: w points to what conv2d_transform made of it for the same algorithm, c and k */
    enum vgg_precision precision; /* BF16: x, w, y, dx and dy are bfloat16 */
};

/* Fill *s, whose precision is set before, from the arrays and check them; b, y and index or NULL. backward_input takes the
 * height and width of the convolution's input from input_shape (N, H, W, C) or NULL (then they are dy's; needed with index).
 * In backward, s->pool is what makes dy's height and width from the input's. VGG_INVALID_ARGUMENT names the argument. */
enum vgg_status vgg_conv2d_check(struct vgg_conv2d *s, const struct vgg_array *x, const struct vgg_array *w,
                                 const struct vgg_array *b, struct vgg_error *error);
enum vgg_status vgg_conv2d_backward_input_check(struct vgg_conv2d *s, const struct vgg_array *dy, const struct vgg_array *w,
                                                const struct vgg_array *y, const struct vgg_array *index,
                                                const size_t *input_shape, struct vgg_error *error);
enum vgg_status vgg_conv2d_backward_weight_check(struct vgg_conv2d *s, const struct vgg_array *dy, const struct vgg_array *x,
                                                 const struct vgg_array *y, const struct vgg_array *index,
                                                 struct vgg_error *error);

/* What VGG_AUTO takes: a pure function of per-image shape, direction, ISA and whether n is 1. */
enum vgg_algorithm vgg_conv2d_algorithm(const struct vgg_conv2d *s, enum vgg_direction direction);

/* ------------------------------------------------------------------------------------------------ max pooling
 *
 * (paper, section 2.1) 2x2 window, stride 2. y has height h / 2 rounded down (floor) or up (ceil: Caffe's; a window that
 * hangs over the edge has the elements that exist). index[n][i][j][c] in 0..3 is row-major in the window. The first
 * maximum wins; if there is a NaN, the first NaN wins. backward: dx[winner] = dy, 0 elsewhere (gathers; no races).
 */
struct vgg_max_pool2d {
    size_t n, h, w, c;
    bool ceil_mode;
    enum vgg_dtype dtype; /* of x and y, dx and dy */
};
size_t vgg_pooled(size_t size, bool ceil_mode); /* size / 2, rounded; 0 only for size 0 or (floor) 1 */
enum vgg_status vgg_max_pool2d_check(struct vgg_max_pool2d *s, const struct vgg_array *x, struct vgg_error *error);
/* input_shape (N, H, W, C); ceil_mode is told by dy's shape. An index above 3, or one that points outside the input, is
 * treated as VGG_INVALID_ARGUMENT at run time, and nothing is written out of bounds. */
enum vgg_status vgg_max_pool2d_backward_check(struct vgg_max_pool2d *s, const struct vgg_array *dy,
                                              const struct vgg_array *index, const size_t *input_shape,
                                              struct vgg_error *error);

/* ------------------------------------------------------------------------------------------------ LRN
 *
 * (paper, section 2.1, A-LRN; Krizhevsky et al. 2012, section 3.3) over channels, window of `size` (odd) centred on c:
 *
 *   s[c] = k + alpha * sum over c' in [c - size/2, c + size/2] of x[c']^2        (the plain sum, not the mean)
 *   y[c] = x[c] * s[c]^-beta
 *   dx[c] = dy[c] * s[c]^-beta - 2 alpha beta x[c] * sum over the window of dy[c'] x[c'] s[c']^(-beta - 1)
 */
struct vgg_lrn {
    size_t rows, c; /* rows = n * h * w */
    size_t size;    /* odd */
    float alpha, beta, k;
    enum vgg_dtype dtype; /* of x and y, dx and dy */
};
enum vgg_status vgg_lrn_check(struct vgg_lrn *s, const struct vgg_array *x, const struct vgg_array *dy /* or NULL */,
                              struct vgg_error *error); /* size, alpha, beta, k are filled by the caller before */

/* ------------------------------------------------------------------------------------------------ linear
 *
 *   z[n][o] = b[o] + sum over i of x[n][i] * w[o][i];   y = relu ? max(z, 0) : z
 *   dx[n][i] = sum over o of dy[n][o] * w[o][i]
 *   dw[o][i] = sum over n of dy[n][o] * x[n][i];   db[o] = sum over n of dy[n][o]
 *
 * In the forward pass w may be bfloat16 on any backend: each weight is widened, exactly, to the float32 that is multiplied and
 * added.
 */
struct vgg_linear {
    size_t n, in, out;
    bool relu;                    /* forward only */
    bool bfloat16;                /* forward only: what w is, else float32 */
    enum vgg_precision precision; /* BF16: x, w, y, dx and dy are bfloat16 */
    bool wide;                    /* BF16: y or dy is float32, as logits are; dy is rounded before it is multiplied */
};
enum vgg_status vgg_linear_check(struct vgg_linear *s, const struct vgg_array *x, const struct vgg_array *w,
                                 const struct vgg_array *b, struct vgg_error *error);
enum vgg_status vgg_linear_backward_input_check(struct vgg_linear *s, const struct vgg_array *dy, const struct vgg_array *w,
                                                struct vgg_error *error);
enum vgg_status vgg_linear_backward_weight_check(struct vgg_linear *s, const struct vgg_array *dy, const struct vgg_array *x,
                                                 struct vgg_error *error);

/* ------------------------------------------------------------------------------------------------ soft-max
 *
 *   softmax:        y[n][j] = exp(x[n][j] - m[n]) / sum over j' of exp(x[n][j'] - m[n]),   m[n] = max over j
 *   cross_entropy:  loss = 1 / normalizer * sum over n of (log sum over j of exp(x[n][j] - m[n]) + m[n] - x[n][label[n]])
 *                   dlogits[n][j] = (softmax(x)[n][j] - [j == label[n]]) / normalizer
 *
 * Stable for logits of any finite size. A label outside 0..c-1 is VGG_INVALID_ARGUMENT; nothing is written then.
 */
struct vgg_softmax {
    size_t rows, c;
    double normalizer; /* cross_entropy only, > 0 */
};
enum vgg_status vgg_softmax_check(struct vgg_softmax *s, const struct vgg_array *x, struct vgg_error *error);
enum vgg_status vgg_cross_entropy_check(struct vgg_softmax *s, const struct vgg_array *logits, const struct vgg_array *labels,
                                        struct vgg_error *error); /* normalizer is filled by the caller; 0 means rows */

/* ------------------------------------------------------------------------------------------------ Euclidean loss
 *
 *   loss        = 1 / (2 normalizer) * sum over n and j of (x[n][k[n]][j] - target[n][j])^2
 *   dx[n][k][j] = k == k[n] ? (x[n][k][j] - target[n][j]) / normalizer : 0
 *
 * x (rows, c * d): c predictions of d numbers a row, one of which counts: k[n] = labels[n]. Without labels c = 1, k[n] = 0.
 * Boxes (paper, appendix A): d is 4; one box for all classes has no labels, one per class has c = classes. A label outside
 * 0..c-1 is VGG_INVALID_ARGUMENT; nothing is written then. Nothing may alias.
 */
struct vgg_euclidean {
    size_t rows, c, d;
    double normalizer; /* > 0 */
};
enum vgg_status vgg_euclidean_loss_check(struct vgg_euclidean *s, const struct vgg_array *x, const struct vgg_array *target,
                                         const struct vgg_array *labels /* or NULL */,
                                         struct vgg_error *error); /* normalizer as for cross_entropy */

/* ------------------------------------------------------------------------------------------------ random numbers
 *
 * Philox4x32-10 (Salmon et al., SC'11). Key: seed (low word, high word). Counter: { block, purpose, low word of row, high
 * word of row }; block b gives words 4b .. 4b+3 of (seed, row, purpose). So any number is known from (seed, row, purpose,
 * position) alone: no generator state, on any device, in any order.
 * Uniform in [0, 1): (word >> 8) * 2^-24.
 *
 *   dropout: y[n][j] = word j of (seed, rows[n], purpose), uniform, < p ? 0 : x[n][j] * (1 / (1 - p));   y may alias x
 *            backward is the same function of dy. 0 <= p < 1; p == 0 copies. The factor is rounded to float32 before.
 *   random_uniform: x[j] = ((word >> 8) * 2^-23 - 1) * scale of word j of (seed, 0, purpose): in [-scale, scale)
 *   random_normal:  Box-Muller over words 2i and 2i + 1 of (seed, 0, purpose), whatever count is:
 *            r = sqrt(-2 ln u) * scale,   u = ((word 2i >> 8) + 1) * 2^-24,   a = word 2i+1 * 2^-32 * 2 pi
 *            x[2i] = r cos a,   x[2i + 1] = r sin a
 *            ln, cos and sin are the polynomials of ops/random.c in float32, every operation rounded, in its order.
 */
struct vgg_dropout {
    size_t n, c;
    float p;
    uint64_t seed;
    uint32_t purpose;
    enum vgg_dtype dtype; /* of x and y */
};
enum vgg_status vgg_dropout_check(struct vgg_dropout *s, const struct vgg_array *x, const struct vgg_array *rows,
                                  struct vgg_error *error); /* p, seed, purpose are filled by the caller */
enum vgg_status vgg_random_check(const char *op, size_t count, float scale, struct vgg_error *error);

/* ------------------------------------------------------------------------------------------------ SGD
 *
 * (paper, section 3.1; Caffe's rule) for each of `count` parameters:   v = momentum v + lr (g + weight_decay p);   p -= v
 */
struct vgg_sgd {
    float lr, momentum, weight_decay;
};
enum vgg_status vgg_sgd_check(const struct vgg_sgd *s, struct vgg_error *error); /* all are finite */

/* ------------------------------------------------------------------------------------------------ the mean of gradients
 *
 * (paper, section 3.3) grad[d][j] = sum over d' of weight[d'] grad[d'][j] / sum of weights, summed in device order in float64
 */
enum vgg_status vgg_average_check(const double *weight, size_t devices, struct vgg_error *error); /* >= 0, a finite sum > 0 */

/* ------------------------------------------------------------------------------------------------ augmentation
 *
 * (paper, section 3.1) image[i], uint8 (height, width, c), to x[i][h][w][c], float32 (size, size):
 *   x[i][h][w][ch] = image[top + h][left + (mirror ? size - 1 - w : w)][ch] + (shift[ch] - mean[ch])
 */
struct vgg_crop {
    const uint8_t *image; /* host memory, C-contiguous (height, width, c) */
    size_t height, width; /* of the image */
    size_t top, left;     /* of the crop; top + size <= height, left + size <= width */
    bool mirror;
    float shift[4]; /* added to each channel */
};
struct vgg_augment {
    size_t n, size, c; /* size >= 1, c 1..4 */
    float mean[4];
};
enum vgg_status vgg_augment_check(const struct vgg_augment *s, const struct vgg_crop *crops, struct vgg_error *error);

/* ------------------------------------------------------------------------------------------------ unfold
 *
 * Every size x size window (stride 1, no padding) as a row, so that fc6 becomes a convolution (paper, section 3.2):
 *   y[(n * oh + i) * ow + j][(r * size + s) * c + ch] = x[n][i + r][j + s][ch],   oh = h - size + 1, ow = w - size + 1
 */
struct vgg_unfold {
    size_t n, h, w, c, size;
    enum vgg_dtype dtype; /* of x and y */
};
enum vgg_status vgg_unfold_check(struct vgg_unfold *s, const struct vgg_array *x, struct vgg_error *error);

/* ------------------------------------------------------------------------------------------------ the backend table */

struct vgg_memory_stats {
    size_t current_bytes, peak_bytes; /* exactly the bytes asked for, without rounding */
    size_t allocations;               /* successful ones since the start */
    size_t free_bytes, total_bytes;   /* of the device, whoever uses it; total_bytes 0: unknown */
};

/* Every function returns VGG_OK or fills ctx->error and returns its status. Functions may be called from several threads.
 * *_workspace functions tell bytes and cannot fail but by overflow. No entry may be NULL.
 *
 * A device that works while the host goes on, such as cuda, never makes the host wait to look at values: a label outside
 * 0..c-1 makes the loss, and its row of the gradient, NaN; an index that points nowhere puts nothing anywhere. Such a device
 * may have no conv2d algorithm but `auto`, may not give the same bits for another split of a batch, and where its engines
 * are Winograd's NaN and Inf go as far as winograd6's. */
struct vgg_backend {
    const char *name; /* "cpu", "cuda": the device's name in Python */
    bool host;        /* data pointers may be read and written by the host */
    bool bfloat16;    /* maps may be bfloat16 */
    int dlpack_type;  /* DLPack's number of this kind of device; 0: it has none, and its memory can't be shared */
    int (*device_count)(void);

    /* memory: 64-byte aligned; bytes may be 0 (then *data is NULL); contents undefined. release takes what allocate got. */
    enum vgg_status (*allocate)(struct vgg_context *ctx, void **data, size_t bytes);
    void (*release)(int device, void *data, size_t bytes);
    enum vgg_status (*upload)(struct vgg_context *ctx, void *to, const void *from_host, size_t bytes);
    enum vgg_status (*download)(struct vgg_context *ctx, void *to_host, const void *from, size_t bytes); /* waits */
    /* From a device of the same backend, after everything that was queued there; what is queued there later waits for it. */
    enum vgg_status (*copy)(struct vgg_context *ctx, void *to, const void *from, int from_device, size_t bytes);
    enum vgg_status (*zero)(struct vgg_context *ctx, void *data, size_t bytes);
    /* float32 to bfloat16, rounded to the nearest, even where two are as near (a NaN stays one); or bfloat16 to float32. */
    enum vgg_status (*convert)(struct vgg_context *ctx, void *to, enum vgg_dtype to_dtype, const void *from, size_t count);
    enum vgg_status (*synchronize)(struct vgg_context *ctx);
    /* Streams by DLPack's numbers: of CUDA 1 is the default stream, other numbers are handles. `stream` tells the calling
     * thread's. `order`: what is queued on `after` from now on waits for what `before` holds now; both are of ctx's device. */
    intptr_t (*stream)(int device);
    enum vgg_status (*order)(struct vgg_context *ctx, intptr_t before, intptr_t after);
    void (*memory_stats)(int device, struct vgg_memory_stats *stats);
    void (*reset_peak)(int device); /* peak_bytes becomes current_bytes */

    enum vgg_status (*conv2d_workspace)(struct vgg_context *ctx, size_t *bytes, const struct vgg_conv2d *s,
                                        enum vgg_direction direction);
    /* Weights in the form that the forward pass of s takes (whatever its n, h and w, as long as the algorithm is the same), so
     * that inference transforms them once. 0 bytes: it takes w as it is, and conv2d_transform must not be called. */
    enum vgg_status (*conv2d_transformed_bytes)(struct vgg_context *ctx, size_t *bytes, const struct vgg_conv2d *s);
    enum vgg_status (*conv2d_transform)(struct vgg_context *ctx, float *transformed, const float *w,
                                        const struct vgg_conv2d *s);
    enum vgg_status (*conv2d)(struct vgg_context *ctx, void *y, uint8_t *index /* or NULL */, const void *x, const void *w,
                              const float *b /* or NULL */, const struct vgg_conv2d *s);
    enum vgg_status (*conv2d_backward_input)(struct vgg_context *ctx, void *dx, const void *dy, const void *w,
                                             const void *y /* or NULL */, const uint8_t *index /* or NULL */,
                                             const struct vgg_conv2d *s);
    enum vgg_status (*conv2d_backward_weight)(struct vgg_context *ctx, float *dw, float *db, const void *dy, const void *x,
                                              const void *y /* or NULL */, const uint8_t *index /* or NULL */,
                                              const struct vgg_conv2d *s, int beta);

    enum vgg_status (*max_pool2d)(struct vgg_context *ctx, void *y, uint8_t *index, const void *x,
                                  const struct vgg_max_pool2d *s);
    enum vgg_status (*max_pool2d_backward)(struct vgg_context *ctx, void *dx, const void *dy, const uint8_t *index,
                                           const struct vgg_max_pool2d *s);

    enum vgg_status (*relu)(struct vgg_context *ctx, void *y, const void *x, size_t count,
                            enum vgg_dtype dtype); /* y may alias x */
    /* dx = y > 0 ? dy : 0; dx may alias dy */
    enum vgg_status (*relu_backward)(struct vgg_context *ctx, void *dx, const void *dy, const void *y, size_t count,
                                     enum vgg_dtype dtype);

    /* y[j] += x[j]: where two gradients meet */
    enum vgg_status (*add)(struct vgg_context *ctx, void *y, const void *x, size_t count, enum vgg_dtype dtype);

    enum vgg_status (*lrn)(struct vgg_context *ctx, void *y, const void *x, const struct vgg_lrn *s);
    enum vgg_status (*lrn_backward)(struct vgg_context *ctx, void *dx, const void *dy, const void *x, const struct vgg_lrn *s);

    enum vgg_status (*linear_workspace)(struct vgg_context *ctx, size_t *bytes, const struct vgg_linear *s,
                                        enum vgg_direction direction);
    enum vgg_status (*linear)(struct vgg_context *ctx, void *y, const void *x, const void *w, const float *b /* or NULL */,
                              const struct vgg_linear *s);
    enum vgg_status (*linear_backward_input)(struct vgg_context *ctx, void *dx, const void *dy, const void *w,
                                             const struct vgg_linear *s);
    enum vgg_status (*linear_backward_weight)(struct vgg_context *ctx, float *dw, float *db, const void *dy, const void *x,
                                              const struct vgg_linear *s, int beta);

    enum vgg_status (*softmax)(struct vgg_context *ctx, float *y, const float *x, const struct vgg_softmax *s);
    enum vgg_status (*cross_entropy)(struct vgg_context *ctx, float *loss, float *dlogits, const float *logits,
                                     const int64_t *labels, const struct vgg_softmax *s);
    enum vgg_status (*euclidean_loss)(struct vgg_context *ctx, float *loss, float *dx, const float *x, const float *target,
                                      const int64_t *labels /* or NULL */, const struct vgg_euclidean *s);

    enum vgg_status (*dropout)(struct vgg_context *ctx, void *y, const void *x, const int64_t *rows,
                               const struct vgg_dropout *s);

    enum vgg_status (*sgd)(struct vgg_context *ctx, float *const *param, float *const *velocity, const float *const *grad,
                           const size_t *sizes, size_t count, const struct vgg_sgd *s);

    /* On every one of the `devices` contexts, all of this backend. */
    enum vgg_status (*average)(struct vgg_context *const *ctx, float *const *grad, const double *weight, size_t devices,
                               size_t size);

    enum vgg_status (*augment)(struct vgg_context *ctx, float *x, const struct vgg_crop *crops, const struct vgg_augment *s);
    enum vgg_status (*unfold)(struct vgg_context *ctx, void *y, const void *x, const struct vgg_unfold *s);

    /* x[j] from words of (seed, row 0, purpose): normal (mean 0, deviation scale) or uniform in [-scale, scale); see "random
     * numbers" above. */
    enum vgg_status (*random_normal)(struct vgg_context *ctx, float *x, size_t count, float scale, uint64_t seed,
                                     uint32_t purpose);
    enum vgg_status (*random_uniform)(struct vgg_context *ctx, float *x, size_t count, float scale, uint64_t seed,
                                      uint32_t purpose);
};

/* X(entry) for every one of them, so that a backend whose functions are called prefix_entry need not list them:
 *   #define X(entry) __typeof__(*vgg_cpu_backend.entry) prefix_##entry;
 * declares them, and in the table's initializer
 *   #define X(entry) .entry = prefix_##entry,
 * fills them in. */
#define VGG_BACKEND_ENTRIES(X) \
    X(device_count) \
    X(allocate) \
    X(release) \
    X(upload) \
    X(download) \
    X(copy) \
    X(zero) \
    X(convert) \
    X(synchronize) \
    X(stream) \
    X(order) \
    X(memory_stats) \
    X(reset_peak) \
    X(conv2d_workspace) \
    X(conv2d_transformed_bytes) \
    X(conv2d_transform) \
    X(conv2d) \
    X(conv2d_backward_input) \
    X(conv2d_backward_weight) \
    X(max_pool2d) \
    X(max_pool2d_backward) \
    X(relu) \
    X(relu_backward) \
    X(add) \
    X(lrn) \
    X(lrn_backward) \
    X(linear_workspace) \
    X(linear) \
    X(linear_backward_input) \
    X(linear_backward_weight) \
    X(softmax) \
    X(cross_entropy) \
    X(euclidean_loss) \
    X(dropout) \
    X(sgd) \
    X(average) \
    X(augment) \
    X(unfold) \
    X(random_normal) \
    X(random_uniform)

extern const struct vgg_backend vgg_cpu_backend;

#endif

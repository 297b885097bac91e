/* logging_backend.c: a second backend, for the tests: it proves that everything goes through the table.
 *
 * Two devices "test:0" and "test:1" whose memory the host can't touch: a device address is a host address plus FAR, so it
 * faults wherever something reads or writes it without asking the backend. Each call is logged, its pointers are checked to
 * lie, with all their bytes, inside one live block of the call's device, outputs and workspace are filled with NaN, and the
 * arithmetic is left to the CPU's table. Blocks are born full of NaN, have guard bytes on both sides, and are overwritten
 * before they go. What is not in order is counted as a violation, with its message.
 *
 * Plain C11 and csrc/vgg.h, nothing else: what a backend outside of vggnet needs. */
#include "vgg.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

enum { DEVICES = 2, GUARD = 64, RING = 4096 };
enum { NAN_BYTE = 0xFF, FREED_BYTE = 0xA5, GUARD_BYTE = 0x5C };
static const uintptr_t FAR = (uintptr_t)1 << 62;

enum entry {
#define X(name) ENTRY_##name,
    VGG_BACKEND_ENTRIES(X)
#undef X
        ENTRY_COUNT
};

static const char *const entry_names[ENTRY_COUNT] = {
#define X(name) #name,
    VGG_BACKEND_ENTRIES(X)
#undef X
};

/* ------------------------------------------------------------------------------------------------ state, under one lock */

struct block {
    struct block *next;
    unsigned char *raw; /* guard, data, guard */
    size_t bytes;
    int device;
};

static const struct vgg_backend table;
static const struct vgg_backend *cpu;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct block *blocks;
static struct vgg_memory_stats memory[DEVICES];
static size_t counts[ENTRY_COUNT], logged, violations;
static enum entry ring[RING];
static char first_violation[200];
static enum vgg_status planned = VGG_OK; /* what the next call with a context fails with */

static void violation(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void violation(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (violations++ == 0)
        (void)vsnprintf(first_violation, sizeof first_violation, format, arguments);
    va_end(arguments);
}

static void note(enum entry entry)
{
    pthread_mutex_lock(&lock);
    counts[entry]++;
    ring[logged++ % RING] = entry;
    pthread_mutex_unlock(&lock);
}

/* ------------------------------------------------------------------------------------------------ one call */

struct call {
    enum entry entry;
    struct vgg_context context; /* the CPU's: its workspace is a host address */
    enum vgg_status status;
};

static enum vgg_status fail(struct call *c, enum vgg_status status, const char *what)
{
    c->status = status;
    c->context.error->status = status;
    (void)snprintf(c->context.error->msg, sizeof c->context.error->msg, "test backend: %s: %s", entry_names[c->entry], what);
    return status;
}

/* The host's address of `bytes` bytes that must lie in one live block of the call's device; NULL and a violation if not. */
static void *in(struct call *c, const char *name, const void *data, size_t bytes)
{
    if (bytes == 0)
        return NULL;
    uintptr_t begin = (uintptr_t)data - FAR;
    pthread_mutex_lock(&lock);
    const struct block *b = blocks;
    while (b && !(b->device == c->context.device && begin >= (uintptr_t)(b->raw + GUARD) &&
                  begin + bytes <= (uintptr_t)(b->raw + GUARD + b->bytes)))
        b = b->next;
    if (!b) {
        violation("%s: %s, %zu bytes at %p, lies in no block of test:%d", entry_names[c->entry], name, bytes, data,
                  c->context.device);
        fail(c, VGG_INTERNAL, name);
    }
    pthread_mutex_unlock(&lock);
    return b ? (unsigned char *)b->raw + (begin - (uintptr_t)b->raw) : NULL;
}

/* The same for memory that is only written: what it held is gone before. */
static void *out(struct call *c, const char *name, void *data, size_t bytes)
{
    void *host = in(c, name, data, bytes);
    if (host)
        memset(host, NAN_BYTE, bytes);
    return host;
}

/* A pointer that must be the host's. */
static const void *host(struct call *c, const char *name, const void *data)
{
    if ((uintptr_t)data < FAR)
        return data;
    pthread_mutex_lock(&lock);
    violation("%s: %s is a device address; expected the host's", entry_names[c->entry], name);
    pthread_mutex_unlock(&lock);
    fail(c, VGG_INTERNAL, name);
    return NULL;
}

static struct call begin(struct vgg_context *ctx, enum entry entry)
{
    note(entry);
    struct call c = {.entry = entry, .context = *ctx, .status = VGG_OK};
    pthread_mutex_lock(&lock);
    if (ctx->backend != &table || ctx->device < 0 || ctx->device >= DEVICES || ctx->threads < 1 || !ctx->error)
        violation("%s: the context is not the test backend's", entry_names[entry]);
    if ((uintptr_t)ctx->workspace % 64 != 0)
        violation("%s: the workspace is not 64-byte aligned", entry_names[entry]);
    enum vgg_status status = planned;
    planned = VGG_OK;
    pthread_mutex_unlock(&lock);
    if (status != VGG_OK)
        fail(&c, status, "told to fail");
    c.context.backend = cpu;
    c.context.workspace = ctx->workspace ? out(&c, "workspace", ctx->workspace, ctx->workspace_bytes) : NULL;
    return c;
}

/* Ends a call: the CPU does it, unless the call has failed already. */
static struct vgg_context *on_cpu(struct call *c)
{
    c->context.device = 0;
    return &c->context;
}
#define FINISH(c, entry, ...) return (c).status != VGG_OK ? (c).status : cpu->entry(on_cpu(&(c)), __VA_ARGS__)

/* ------------------------------------------------------------------------------------------------ memory */

static int test_device_count(void)
{
    note(ENTRY_device_count);
    return DEVICES;
}

static enum vgg_status test_allocate(struct vgg_context *ctx, void **data, size_t bytes)
{
    struct call c = begin(ctx, ENTRY_allocate);
    *data = NULL;
    if (c.status != VGG_OK || bytes == 0)
        return c.status;
    struct block *b = malloc(sizeof *b);
    unsigned char *raw = b ? aligned_alloc(64, (bytes + 2 * GUARD + 63) / 64 * 64) : NULL;
    if (!raw) {
        free(b);
        return fail(&c, VGG_OUT_OF_MEMORY, "no memory");
    }
    memset(raw, GUARD_BYTE, bytes + 2 * GUARD);
    memset(raw + GUARD, NAN_BYTE, bytes);
    pthread_mutex_lock(&lock);
    *b = (struct block){blocks, raw, bytes, ctx->device};
    blocks = b;
    struct vgg_memory_stats *m = &memory[ctx->device];
    m->allocations++;
    m->current_bytes += bytes;
    if (m->peak_bytes < m->current_bytes)
        m->peak_bytes = m->current_bytes;
    pthread_mutex_unlock(&lock);
    *data = (void *)((uintptr_t)(raw + GUARD) + FAR);
    return VGG_OK;
}

static void test_release(int device, void *data, size_t bytes)
{
    note(ENTRY_release);
    if (!data && bytes == 0)
        return;
    pthread_mutex_lock(&lock);
    struct block **link = &blocks;
    while (*link && (uintptr_t)((*link)->raw + GUARD) + FAR != (uintptr_t)data)
        link = &(*link)->next;
    struct block *b = *link;
    if (!b || b->bytes != bytes || b->device != device)
        violation("release: %zu bytes at %p are no block of test:%d", bytes, data, device);
    if (b) {
        for (size_t i = 0; i < GUARD; i++)
            if (b->raw[i] != GUARD_BYTE || b->raw[GUARD + b->bytes + i] != GUARD_BYTE) {
                violation("release: something wrote beside a block of %zu bytes", b->bytes);
                break;
            }
        *link = b->next;
        memory[b->device].current_bytes -= b->bytes;
        memset(b->raw, FREED_BYTE, b->bytes + 2 * GUARD);
        free(b->raw);
        free(b);
    }
    pthread_mutex_unlock(&lock);
}

static enum vgg_status test_upload(struct vgg_context *ctx, void *to, const void *from_host, size_t bytes)
{
    struct call c = begin(ctx, ENTRY_upload);
    void *to_host = out(&c, "to", to, bytes);
    from_host = host(&c, "from_host", from_host);
    FINISH(c, upload, to_host, from_host, bytes);
}

static enum vgg_status test_download(struct vgg_context *ctx, void *to_host, const void *from, size_t bytes)
{
    struct call c = begin(ctx, ENTRY_download);
    const void *from_host = in(&c, "from", from, bytes);
    (void)host(&c, "to_host", to_host);
    FINISH(c, download, to_host, from_host, bytes);
}

static enum vgg_status test_copy(struct vgg_context *ctx, void *to, const void *from, int from_device, size_t bytes)
{
    struct call c = begin(ctx, ENTRY_copy);
    void *to_host = out(&c, "to", to, bytes);
    c.context.device = from_device;
    const void *from_host = in(&c, "from", from, bytes);
    FINISH(c, copy, to_host, from_host, 0, bytes);
}

static enum vgg_status test_zero(struct vgg_context *ctx, void *data, size_t bytes)
{
    struct call c = begin(ctx, ENTRY_zero);
    void *data_host = out(&c, "data", data, bytes);
    FINISH(c, zero, data_host, bytes);
}

static enum vgg_status test_convert(struct vgg_context *ctx, void *to, enum vgg_dtype to_dtype, const void *from, size_t count)
{
    struct call c = begin(ctx, ENTRY_convert);
    const size_t half = count * sizeof(uint16_t), whole = count * sizeof(float);
    to = out(&c, "to", to, to_dtype == VGG_BFLOAT16 ? half : whole);
    from = in(&c, "from", from, to_dtype == VGG_BFLOAT16 ? whole : half);
    FINISH(c, convert, to, to_dtype, from, count);
}

static enum vgg_status test_synchronize(struct vgg_context *ctx)
{
    return begin(ctx, ENTRY_synchronize).status;
}

static intptr_t test_stream(int device)
{
    note(ENTRY_stream);
    return 1000 + device;
}

static enum vgg_status test_order(struct vgg_context *ctx, intptr_t before, intptr_t after)
{
    struct call c = begin(ctx, ENTRY_order);
    if (before != 1000 + ctx->device || after < 1)
        return fail(&c, VGG_INVALID_ARGUMENT, "the stream before is not the device's, or the one after is none");
    return c.status;
}

static void test_memory_stats(int device, struct vgg_memory_stats *stats)
{
    note(ENTRY_memory_stats);
    pthread_mutex_lock(&lock);
    *stats = memory[device];
    pthread_mutex_unlock(&lock);
}

static void test_reset_peak(int device)
{
    note(ENTRY_reset_peak);
    pthread_mutex_lock(&lock);
    memory[device].peak_bytes = memory[device].current_bytes;
    pthread_mutex_unlock(&lock);
}

/* ------------------------------------------------------------------------------------------------ operations
 *
 * Each says how many bytes of each argument it may touch, by the contract in vgg.h, and no more than those are there: F
 * counts float32. An output that may alias an input, or is added to, is not cleared. */
#define F(count) ((count) * sizeof(float))
#define IN(name, bytes) in(&c, #name, name, bytes)
#define OUT(name, bytes) out(&c, #name, name, bytes)
#define MAYBE(name, bytes) (name ? in(&c, #name, name, bytes) : NULL)

static size_t pooled(size_t size, enum vgg_pool pool)
{
    return pool == VGG_POOL_NONE ? size : pool == VGG_POOL_FLOOR ? size / 2 : size / 2 + size % 2;
}

/* Elements of a convolution's arrays. */
static size_t conv_x(const struct vgg_conv2d *s)
{
    return s->n * s->h * s->w * s->c;
}
static size_t conv_w(const struct vgg_conv2d *s)
{
    return s->k * s->kernel_size * s->kernel_size * s->c;
}
static size_t conv_y(const struct vgg_conv2d *s)
{
    return s->n * pooled(s->h, s->pool) * pooled(s->w, s->pool) * s->k;
}

static enum vgg_status test_conv2d_workspace(struct vgg_context *ctx, size_t *bytes, const struct vgg_conv2d *s,
                                             enum vgg_direction direction)
{
    struct call c = begin(ctx, ENTRY_conv2d_workspace);
    FINISH(c, conv2d_workspace, bytes, s, direction);
}

static enum vgg_status test_conv2d_transformed_bytes(struct vgg_context *ctx, size_t *bytes, const struct vgg_conv2d *s)
{
    struct call c = begin(ctx, ENTRY_conv2d_transformed_bytes);
    FINISH(c, conv2d_transformed_bytes, bytes, s);
}

/* Bytes of the weights that conv2d reads. */
static size_t conv_weights(const struct vgg_conv2d *s)
{
    struct vgg_context ctx = {.backend = cpu, .threads = 1};
    size_t bytes = F(conv_w(s));
    if (s->transformed)
        (void)cpu->conv2d_transformed_bytes(&ctx, &bytes, s);
    return bytes;
}

static enum vgg_status test_conv2d_transform(struct vgg_context *ctx, float *transformed, const float *w,
                                             const struct vgg_conv2d *s)
{
    struct call c = begin(ctx, ENTRY_conv2d_transform);
    struct vgg_conv2d read = *s;
    read.transformed = true;
    transformed = OUT(transformed, conv_weights(&read));
    w = IN(w, F(conv_w(s)));
    FINISH(c, conv2d_transform, transformed, w, s);
}

static enum vgg_status test_conv2d(struct vgg_context *ctx, void *y, uint8_t *index, const void *x, const void *w,
                                   const float *b, const struct vgg_conv2d *s)
{
    struct call c = begin(ctx, ENTRY_conv2d);
    y = OUT(y, F(conv_y(s)));
    index = index ? OUT(index, conv_y(s)) : NULL;
    x = IN(x, F(conv_x(s)));
    w = IN(w, conv_weights(s));
    b = MAYBE(b, F(s->k));
    FINISH(c, conv2d, y, index, x, w, b, s);
}

static enum vgg_status test_conv2d_backward_input(struct vgg_context *ctx, void *dx, const void *dy, const void *w,
                                                  const void *y, const uint8_t *index, const struct vgg_conv2d *s)
{
    struct call c = begin(ctx, ENTRY_conv2d_backward_input);
    dx = OUT(dx, F(conv_x(s)));
    dy = IN(dy, F(conv_y(s)));
    w = IN(w, F(conv_w(s)));
    y = MAYBE(y, F(conv_y(s)));
    index = MAYBE(index, conv_y(s));
    FINISH(c, conv2d_backward_input, dx, dy, w, y, index, s);
}

static enum vgg_status test_conv2d_backward_weight(struct vgg_context *ctx, float *dw, float *db, const void *dy, const void *x,
                                                   const void *y, const uint8_t *index, const struct vgg_conv2d *s, int beta)
{
    struct call c = begin(ctx, ENTRY_conv2d_backward_weight);
    dw = beta ? IN(dw, F(conv_w(s))) : OUT(dw, F(conv_w(s)));
    db = beta ? IN(db, F(s->k)) : OUT(db, F(s->k));
    dy = IN(dy, F(conv_y(s)));
    x = IN(x, F(conv_x(s)));
    y = MAYBE(y, F(conv_y(s)));
    index = MAYBE(index, conv_y(s));
    FINISH(c, conv2d_backward_weight, dw, db, dy, x, y, index, s, beta);
}

static size_t pool_y(const struct vgg_max_pool2d *s)
{
    enum vgg_pool pool = s->ceil_mode ? VGG_POOL_CEIL : VGG_POOL_FLOOR;
    return s->n * pooled(s->h, pool) * pooled(s->w, pool) * s->c;
}

static enum vgg_status test_max_pool2d(struct vgg_context *ctx, void *y, uint8_t *index, const void *x,
                                       const struct vgg_max_pool2d *s)
{
    struct call c = begin(ctx, ENTRY_max_pool2d);
    y = OUT(y, F(pool_y(s)));
    index = OUT(index, pool_y(s));
    x = IN(x, F(s->n * s->h * s->w * s->c));
    FINISH(c, max_pool2d, y, index, x, s);
}

static enum vgg_status test_max_pool2d_backward(struct vgg_context *ctx, void *dx, const void *dy, const uint8_t *index,
                                                const struct vgg_max_pool2d *s)
{
    struct call c = begin(ctx, ENTRY_max_pool2d_backward);
    dx = OUT(dx, F(s->n * s->h * s->w * s->c));
    dy = IN(dy, F(pool_y(s)));
    index = IN(index, pool_y(s));
    FINISH(c, max_pool2d_backward, dx, dy, index, s);
}

static enum vgg_status test_relu(struct vgg_context *ctx, void *y, const void *x, size_t count, enum vgg_dtype dtype)
{
    struct call c = begin(ctx, ENTRY_relu);
    y = y == x ? IN(y, F(count)) : OUT(y, F(count));
    x = IN(x, F(count));
    FINISH(c, relu, y, x, count, dtype);
}

static enum vgg_status test_relu_backward(struct vgg_context *ctx, void *dx, const void *dy, const void *y, size_t count,
                                          enum vgg_dtype dtype)
{
    struct call c = begin(ctx, ENTRY_relu_backward);
    dx = dx == dy ? IN(dx, F(count)) : OUT(dx, F(count));
    dy = IN(dy, F(count));
    y = IN(y, F(count));
    FINISH(c, relu_backward, dx, dy, y, count, dtype);
}

static enum vgg_status test_add(struct vgg_context *ctx, void *y, const void *x, size_t count, enum vgg_dtype dtype)
{
    struct call c = begin(ctx, ENTRY_add);
    y = IN(y, F(count));
    x = IN(x, F(count));
    FINISH(c, add, y, x, count, dtype);
}

static enum vgg_status test_lrn(struct vgg_context *ctx, void *y, const void *x, const struct vgg_lrn *s)
{
    struct call c = begin(ctx, ENTRY_lrn);
    y = OUT(y, F(s->rows * s->c));
    x = IN(x, F(s->rows * s->c));
    FINISH(c, lrn, y, x, s);
}

static enum vgg_status test_lrn_backward(struct vgg_context *ctx, void *dx, const void *dy, const void *x,
                                         const struct vgg_lrn *s)
{
    struct call c = begin(ctx, ENTRY_lrn_backward);
    dx = OUT(dx, F(s->rows * s->c));
    dy = IN(dy, F(s->rows * s->c));
    x = IN(x, F(s->rows * s->c));
    FINISH(c, lrn_backward, dx, dy, x, s);
}

static enum vgg_status test_linear_workspace(struct vgg_context *ctx, size_t *bytes, const struct vgg_linear *s,
                                             enum vgg_direction direction)
{
    struct call c = begin(ctx, ENTRY_linear_workspace);
    FINISH(c, linear_workspace, bytes, s, direction);
}

static enum vgg_status test_linear(struct vgg_context *ctx, void *y, const void *x, const void *w, const float *b,
                                   const struct vgg_linear *s)
{
    struct call c = begin(ctx, ENTRY_linear);
    y = OUT(y, F(s->n * s->out));
    x = IN(x, F(s->n * s->in));
    w = IN(w, s->bfloat16 ? s->out * s->in * sizeof(uint16_t) : F(s->out * s->in));
    b = MAYBE(b, F(s->out));
    FINISH(c, linear, y, x, w, b, s);
}

static enum vgg_status test_linear_backward_input(struct vgg_context *ctx, void *dx, const void *dy, const void *w,
                                                  const struct vgg_linear *s)
{
    struct call c = begin(ctx, ENTRY_linear_backward_input);
    dx = OUT(dx, F(s->n * s->in));
    dy = IN(dy, F(s->n * s->out));
    w = IN(w, F(s->out * s->in));
    FINISH(c, linear_backward_input, dx, dy, w, s);
}

static enum vgg_status test_linear_backward_weight(struct vgg_context *ctx, float *dw, float *db, const void *dy, const void *x,
                                                   const struct vgg_linear *s, int beta)
{
    struct call c = begin(ctx, ENTRY_linear_backward_weight);
    dw = beta ? IN(dw, F(s->out * s->in)) : OUT(dw, F(s->out * s->in));
    db = beta ? IN(db, F(s->out)) : OUT(db, F(s->out));
    dy = IN(dy, F(s->n * s->out));
    x = IN(x, F(s->n * s->in));
    FINISH(c, linear_backward_weight, dw, db, dy, x, s, beta);
}

static enum vgg_status test_softmax(struct vgg_context *ctx, float *y, const float *x, const struct vgg_softmax *s)
{
    struct call c = begin(ctx, ENTRY_softmax);
    y = OUT(y, F(s->rows * s->c));
    x = IN(x, F(s->rows * s->c));
    FINISH(c, softmax, y, x, s);
}

static enum vgg_status test_cross_entropy(struct vgg_context *ctx, float *loss, float *dlogits, const float *logits,
                                          const int64_t *labels, const struct vgg_softmax *s)
{
    struct call c = begin(ctx, ENTRY_cross_entropy);
    loss = OUT(loss, F(1));
    dlogits = OUT(dlogits, F(s->rows * s->c));
    logits = IN(logits, F(s->rows * s->c));
    labels = IN(labels, s->rows * sizeof *labels);
    FINISH(c, cross_entropy, loss, dlogits, logits, labels, s);
}

static enum vgg_status test_euclidean_loss(struct vgg_context *ctx, float *loss, float *dx, const float *x, const float *target,
                                           const int64_t *labels, const struct vgg_euclidean *s)
{
    struct call c = begin(ctx, ENTRY_euclidean_loss);
    loss = OUT(loss, F(1));
    dx = OUT(dx, F(s->rows * s->c * s->d));
    x = IN(x, F(s->rows * s->c * s->d));
    target = IN(target, F(s->rows * s->d));
    labels = MAYBE(labels, s->rows * sizeof *labels);
    FINISH(c, euclidean_loss, loss, dx, x, target, labels, s);
}

static enum vgg_status test_dropout(struct vgg_context *ctx, void *y, const void *x, const int64_t *rows,
                                    const struct vgg_dropout *s)
{
    struct call c = begin(ctx, ENTRY_dropout);
    y = y == x ? IN(y, F(s->n * s->c)) : OUT(y, F(s->n * s->c));
    x = IN(x, F(s->n * s->c));
    rows = IN(rows, s->n * sizeof *rows);
    FINISH(c, dropout, y, x, rows, s);
}

/* The three lists of pointers are the host's, what they point to is the device's. */
static enum vgg_status test_sgd(struct vgg_context *ctx, float *const *param, float *const *velocity, const float *const *grad,
                                const size_t *sizes, size_t count, const struct vgg_sgd *s)
{
    struct call c = begin(ctx, ENTRY_sgd);
    float **p = malloc(3 * (count + 1) * sizeof *p), **v = p + count, **g = v + count;
    if (!p)
        return fail(&c, VGG_OUT_OF_MEMORY, "no memory");
    for (size_t t = 0; t < count; t++) {
        p[t] = in(&c, "param", param[t], F(sizes[t]));
        v[t] = in(&c, "velocity", velocity[t], F(sizes[t]));
        g[t] = in(&c, "grad", grad[t], F(sizes[t]));
    }
    enum vgg_status status = c.status;
    if (status == VGG_OK)
        status = cpu->sgd(on_cpu(&c), p, v, (const float *const *)g, sizes, count, s);
    free(p);
    return status;
}

static enum vgg_status test_average(struct vgg_context *const *ctx, float *const *grad, const double *weight, size_t devices,
                                    size_t size)
{
    struct call c[DEVICES];
    struct vgg_context *contexts[DEVICES];
    float *grads[DEVICES];
    enum vgg_status status = VGG_OK;
    if (devices == 0 || devices > DEVICES)
        return VGG_INVALID_ARGUMENT;
    for (size_t d = 0; d < devices; d++) {
        c[d] = begin(ctx[d], ENTRY_average);
        grads[d] = in(&c[d], "grad", grad[d], F(size));
        contexts[d] = on_cpu(&c[d]);
        if (status == VGG_OK && c[d].status != VGG_OK) {
            *ctx[0]->error = *c[d].context.error;
            status = c[d].status;
        }
    }
    return status != VGG_OK ? status : cpu->average(contexts, grads, weight, devices, size);
}

static enum vgg_status test_augment(struct vgg_context *ctx, float *x, const struct vgg_crop *crops,
                                    const struct vgg_augment *s)
{
    struct call c = begin(ctx, ENTRY_augment);
    x = OUT(x, F(s->n * s->size * s->size * s->c));
    for (size_t i = 0; i < s->n; i++)
        (void)host(&c, "image", crops[i].image);
    FINISH(c, augment, x, crops, s);
}

static enum vgg_status test_unfold(struct vgg_context *ctx, void *y, const void *x, const struct vgg_unfold *s)
{
    struct call c = begin(ctx, ENTRY_unfold);
    y = OUT(y, F(s->n * (s->h - s->size + 1) * (s->w - s->size + 1) * s->size * s->size * s->c));
    x = IN(x, F(s->n * s->h * s->w * s->c));
    FINISH(c, unfold, y, x, s);
}

static enum vgg_status test_random_normal(struct vgg_context *ctx, float *x, size_t count, float scale, uint64_t seed,
                                          uint32_t purpose)
{
    struct call c = begin(ctx, ENTRY_random_normal);
    x = OUT(x, F(count));
    FINISH(c, random_normal, x, count, scale, seed, purpose);
}

static enum vgg_status test_random_uniform(struct vgg_context *ctx, float *x, size_t count, float scale, uint64_t seed,
                                           uint32_t purpose)
{
    struct call c = begin(ctx, ENTRY_random_uniform);
    x = OUT(x, F(count));
    FINISH(c, random_uniform, x, count, scale, seed, purpose);
}

#define X(entry) .entry = test_##entry,
static const struct vgg_backend table = {
    .name = "test", .host = false, .dlpack_type = 12 /* an extension's */, VGG_BACKEND_ENTRIES(X)};
#undef X

/* ------------------------------------------------------------------------------------------------ for the tests (ctypes) */

/* The table, for a capsule; cpu_table does the arithmetic. */
EXPORT const struct vgg_backend *logging_backend(const struct vgg_backend *cpu_table);
EXPORT const char *logging_backend_entry(size_t i);               /* name of entry i, NULL after the last */
EXPORT size_t logging_backend_calls(size_t i);                    /* of entry i, since the start */
EXPORT size_t logging_backend_logged(void);                       /* calls of all entries, since the start */
EXPORT size_t logging_backend_call(size_t number);                /* entry of a call, one of the last RING */
EXPORT size_t logging_backend_blocks(void);                       /* live */
EXPORT size_t logging_backend_violations(const char **first);     /* how many, and the first one's message */
EXPORT void logging_backend_plan_failure(enum vgg_status status); /* of the next call that has a context */

const struct vgg_backend *logging_backend(const struct vgg_backend *cpu_table)
{
    cpu = cpu_table;
    return &table;
}

const char *logging_backend_entry(size_t i)
{
    return i < ENTRY_COUNT ? entry_names[i] : NULL;
}

size_t logging_backend_calls(size_t i)
{
    return counts[i];
}

size_t logging_backend_logged(void)
{
    return logged;
}

size_t logging_backend_call(size_t number)
{
    return (size_t)ring[number % RING];
}

size_t logging_backend_blocks(void)
{
    size_t count = 0;
    pthread_mutex_lock(&lock);
    for (const struct block *b = blocks; b; b = b->next)
        count++;
    pthread_mutex_unlock(&lock);
    return count;
}

size_t logging_backend_violations(const char **first)
{
    *first = first_violation;
    return violations;
}

void logging_backend_plan_failure(enum vgg_status status)
{
    planned = status;
}

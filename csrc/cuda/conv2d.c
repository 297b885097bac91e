/* conv2d.c: convolution through cuDNN's graphs (paper, section 2.1), with our kernels around them: pooling with its index,
 * the gradient's mask and un-pooling, and the bias gradient. Contract: vgg.h.
 *
 * What cuDNN's engines refuse is asked for once more in parts: bias and ReLU apart from the convolution, a bfloat16 gradient of
 * the weights which is widened after it, and channels filled up with zeros to a multiple of 16 bytes. The choice is made when
 * the workspace is planned and is the same when the call runs: so a call without a bias has the graph of one, and zeros. */
#include "host.h"

enum { CHANNEL_BYTES = 16 }; /* a multiple of which engines may ask for */

/* How one call is carried out: the graph, and the parts of the workspace. */
struct call {
    struct vgg_cuda_graph graph;
    bool padded; /* c is graph.c, filled up */
    bool apart;  /* forward: bias and ReLU by our kernel; backward_weight: dw comes as bfloat16 */
    enum vgg_dtype dtype;
    size_t maps;     /* n * h * w */
    size_t weights;  /* k * kernel_size^2: rows of c values */
    void *map;       /* forward: before pooling; backward: the gradient of z */
    void *x, *w;     /* padded twins; backward_weight: w is float32 */
    float *zeros;    /* forward: k of them, the bias of a call that has none */
    float *sum;      /* backward_weight: dw before it is added or cut back */
    void *narrow;    /* backward_weight: dw as it comes when `apart` */
    void *partial;   /* backward_weight: of the bias gradient */
    void *workspace; /* cuDNN's */
    size_t workspace_bytes;
    struct vgg_cuda_parts parts;
};

static enum vgg_cuda_graph_kind kind_of(enum vgg_direction direction, bool relu, bool apart)
{
    if (direction == VGG_BACKWARD_INPUT)
        return VGG_CUDA_BACKWARD_INPUT;
    if (direction == VGG_BACKWARD_WEIGHT)
        return apart ? VGG_CUDA_BACKWARD_WEIGHT_BF16 : VGG_CUDA_BACKWARD_WEIGHT;
    return apart ? VGG_CUDA_CONVOLUTION : relu ? VGG_CUDA_CONVOLUTION_BIAS_RELU : VGG_CUDA_CONVOLUTION_BIAS;
}

/* The first form of the graph that an engine takes. */
static enum vgg_status choose(struct vgg_context *ctx, struct call *call, enum vgg_direction direction, bool relu)
{
    const size_t c = call->graph.c, multiple = CHANNEL_BYTES / vgg_dtype_size(call->dtype);
    const size_t full = vgg_ceil_div(c, multiple) * multiple;
    const bool divisible =
        direction == VGG_FORWARD || (direction == VGG_BACKWARD_WEIGHT && call->graph.precision == VGG_PRECISION_BF16);
    enum vgg_status status = VGG_UNSUPPORTED;
    for (int form = 0; form < 4 && status == VGG_UNSUPPORTED; form++) {
        call->apart = form & 1;
        call->padded = form & 2;
        if ((call->apart && !divisible) || (call->padded && full == c))
            continue;
        call->graph.kind = kind_of(direction, relu, call->apart);
        call->graph.c = call->padded ? full : c;
        status = vgg_cuda_graph_workspace(ctx, &call->workspace_bytes, &call->graph);
    }
    if (status == VGG_UNSUPPORTED)
        vgg_cuda_graph_forget_refusals(ctx);
    return status;
}

/* With base NULL, the parts are only counted. `masked`: the gradient of z is not dy itself. */
static enum vgg_status plan(struct vgg_context *ctx, struct call *call, char *base, const struct vgg_conv2d *s,
                            enum vgg_direction direction, bool masked)
{
    size_t r2 = s->kernel_size * s->kernel_size;
    *call = (struct call){
        .graph = {.n = s->n,
                  .h = s->h,
                  .w = s->w,
                  .c = s->c,
                  .k = s->k,
                  .kernel_size = s->kernel_size,
                  .aligned = true,
                  .precision = s->precision},
        .dtype = vgg_precision_dtype(s->precision),
        .maps = s->n * s->h * s->w,
        .weights = s->k * r2,
        .parts = {.base = base},
    };
    CUDA_PASS(vgg_cuda_expect_precision(ctx, "conv2d", s->precision));
    CUDA_PASS(choose(ctx, call, direction, s->relu));
    struct vgg_cuda_parts *parts = &call->parts;
    const size_t c = call->graph.c, size = vgg_dtype_size(call->dtype);
    const bool weight = direction == VGG_BACKWARD_WEIGHT;
    if (direction == VGG_FORWARD ? s->pool != VGG_POOL_NONE : masked)
        call->map = vgg_cuda_part(parts, call->maps * s->k, size);
    if (call->padded) {
        call->x = vgg_cuda_part(parts, call->maps * c, size);
        call->w = vgg_cuda_part(parts, call->weights * c, weight ? sizeof(float) : size);
    }
    if (direction == VGG_FORWARD)
        call->zeros = vgg_cuda_part(parts, s->k, sizeof(float));
    if (weight) {
        call->sum = vgg_cuda_part(parts, call->weights * s->c, sizeof(float));
        call->partial = vgg_cuda_part(parts, vgg_cuda_column_sums_bytes(call->maps, s->k), 1);
        if (call->apart)
            call->narrow = vgg_cuda_part(parts, call->weights * c, size);
    }
    return VGG_OK;
}

/* What our own parts leave of the workspace is cuDNN's. It is too little for pointers that are not aligned, which have a plan
 * of their own: vgg_cuda_graph_run then takes more. */
static enum vgg_status share_workspace(struct vgg_context *ctx, const char *op, struct call *call)
{
    CUDA_PASS(vgg_cuda_parts_fit(ctx, op, &call->parts));
    call->workspace = ctx->workspace ? (char *)ctx->workspace + call->parts.bytes : NULL;
    call->workspace_bytes = ctx->workspace ? ctx->workspace_bytes - call->parts.bytes : 0;
    return VGG_OK;
}

enum vgg_status vgg_cuda_conv2d_workspace(struct vgg_context *ctx, size_t *bytes, const struct vgg_conv2d *s,
                                          enum vgg_direction direction)
{
    struct call call;
    *bytes = 0;
    if (s->n == 0 || s->h == 0 || s->w == 0)
        return VGG_OK;
    CUDA_PASS(plan(ctx, &call, NULL, s, direction, true));
    (void)vgg_cuda_part(&call.parts, call.workspace_bytes, 1);
    if (call.parts.overflow)
        return vgg_fail(ctx->error, VGG_INVALID_ARGUMENT, "conv2d: the size of the workspace overflows");
    *bytes = call.parts.bytes;
    return VGG_OK;
}

enum vgg_status vgg_cuda_conv2d_transformed_bytes(struct vgg_context *ctx, size_t *bytes, const struct vgg_conv2d *s)
{
    (void)ctx, (void)s;
    *bytes = 0; /* cuDNN takes weights as they are */
    return VGG_OK;
}

enum vgg_status vgg_cuda_conv2d_transform(struct vgg_context *ctx, float *transformed, const float *w,
                                          const struct vgg_conv2d *s)
{
    (void)transformed, (void)w, (void)s;
    return vgg_fail(ctx->error, VGG_UNSUPPORTED, "conv2d_transform: device cuda takes weights as they are");
}

/* cuDNN chooses by itself: only `auto` can be promised. */
static enum vgg_status check_algorithm(struct vgg_context *ctx, const char *op, const struct vgg_conv2d *s)
{
    return s->algorithm == VGG_AUTO ? VGG_OK
                                    : vgg_fail(ctx->error, VGG_UNSUPPORTED,
                                               "%s: device cuda has algorithm \"auto\" only: cuDNN chooses its own", op);
}

static struct vgg_max_pool2d pool_of(const struct vgg_conv2d *s)
{
    return (struct vgg_max_pool2d){s->n, s->h, s->w, s->k, s->pool == VGG_POOL_CEIL, vgg_precision_dtype(s->precision)};
}

enum vgg_status vgg_cuda_conv2d(struct vgg_context *ctx, void *y, uint8_t *index, const void *x, const void *w, const float *b,
                                const struct vgg_conv2d *s)
{
    struct call call;
    cudaStream_t stream;
    CUDA_PASS(check_algorithm(ctx, "conv2d", s));
    if (s->n == 0 || s->h == 0 || s->w == 0)
        return VGG_OK;
    CUDA_PASS(vgg_cuda_enter(ctx, &stream));
    CUDA_PASS(plan(ctx, &call, ctx->workspace, s, VGG_FORWARD, false));
    CUDA_PASS(share_workspace(ctx, "conv2d", &call));
    if (call.padded) {
        CUDA_TRY(ctx, vgg_cuda_launch_pad(call.x, x, call.maps, s->c, call.graph.c, call.dtype, stream));
        CUDA_TRY(ctx, vgg_cuda_launch_pad(call.w, w, call.weights, s->c, call.graph.c, call.dtype, stream));
    }
    void *map = s->pool == VGG_POOL_NONE ? y : call.map;
    if (!b && !call.apart)
        CUDA_TRY(ctx, cudaMemsetAsync(call.zeros, 0, s->k * sizeof(float), stream));
    const void *bias = b ? b : call.zeros;
    const void *tensors[4] = {call.padded ? call.x : x, call.padded ? call.w : w, call.apart ? map : bias, map};
    CUDA_PASS(vgg_cuda_graph_run(ctx, &call.graph, tensors, call.workspace, call.workspace_bytes, stream));
    if (call.apart)
        CUDA_TRY(ctx, vgg_cuda_launch_bias_relu(map, call.dtype, map, call.dtype, b, call.maps, s->k, s->relu, stream));
    if (s->pool != VGG_POOL_NONE) {
        struct vgg_max_pool2d pool = pool_of(s);
        CUDA_TRY(ctx, vgg_cuda_launch_max_pool2d(y, index, map, &pool, stream));
    }
    return VGG_OK;
}

/* *g: the gradient of z: dy itself, or made in call->map. */
static enum vgg_status upstream(struct vgg_context *ctx, const void **g, const struct call *call, const void *dy, const void *y,
                                const uint8_t *index, const struct vgg_conv2d *s, cudaStream_t stream)
{
    *g = dy;
    if (!y && !index)
        return VGG_OK;
    if (index) {
        struct vgg_max_pool2d pool = pool_of(s);
        CUDA_TRY(ctx, vgg_cuda_launch_unpool(call->map, dy, y, index, &pool, stream));
    } else
        CUDA_TRY(ctx, vgg_cuda_launch_relu_backward(call->map, dy, y, call->maps * s->k, call->dtype, stream));
    *g = call->map;
    return VGG_OK;
}

enum vgg_status vgg_cuda_conv2d_backward_input(struct vgg_context *ctx, void *dx, const void *dy, const void *w, const void *y,
                                               const uint8_t *index, const struct vgg_conv2d *s)
{
    struct call call;
    cudaStream_t stream;
    const void *g;
    CUDA_PASS(check_algorithm(ctx, "conv2d_backward_input", s));
    if (s->n == 0 || s->h == 0 || s->w == 0)
        return VGG_OK;
    CUDA_PASS(vgg_cuda_enter(ctx, &stream));
    CUDA_PASS(plan(ctx, &call, ctx->workspace, s, VGG_BACKWARD_INPUT, y || index));
    CUDA_PASS(share_workspace(ctx, "conv2d_backward_input", &call));
    CUDA_PASS(upstream(ctx, &g, &call, dy, y, index, s, stream));
    if (call.padded)
        CUDA_TRY(ctx, vgg_cuda_launch_pad(call.w, w, call.weights, s->c, call.graph.c, call.dtype, stream));
    const void *tensors[3] = {g, call.padded ? call.w : w, call.padded ? call.x : dx};
    CUDA_PASS(vgg_cuda_graph_run(ctx, &call.graph, tensors, call.workspace, call.workspace_bytes, stream));
    if (call.padded)
        CUDA_TRY(ctx, vgg_cuda_launch_unpad(dx, call.x, call.maps, s->c, call.graph.c, call.dtype, stream));
    return VGG_OK;
}

enum vgg_status vgg_cuda_conv2d_backward_weight(struct vgg_context *ctx, float *dw, float *db, const void *dy, const void *x,
                                                const void *y, const uint8_t *index, const struct vgg_conv2d *s, int beta)
{
    struct call call;
    cudaStream_t stream;
    const void *g;
    CUDA_PASS(check_algorithm(ctx, "conv2d_backward_weight", s));
    CUDA_PASS(vgg_cuda_enter(ctx, &stream));
    size_t count = s->k * s->kernel_size * s->kernel_size * s->c;
    if (s->n == 0 || s->h == 0 || s->w == 0) { /* sums of nothing */
        if (!beta) {
            CUDA_TRY(ctx, cudaMemsetAsync(dw, 0, count * sizeof(float), stream));
            CUDA_TRY(ctx, cudaMemsetAsync(db, 0, s->k * sizeof(float), stream));
        }
        return VGG_OK;
    }
    CUDA_PASS(plan(ctx, &call, ctx->workspace, s, VGG_BACKWARD_WEIGHT, y || index));
    CUDA_PASS(share_workspace(ctx, "conv2d_backward_weight", &call));
    CUDA_PASS(upstream(ctx, &g, &call, dy, y, index, s, stream));
    CUDA_TRY(ctx, vgg_cuda_launch_column_sums(db, g, call.dtype, call.partial, call.maps, s->k, beta, stream));
    if (call.padded)
        CUDA_TRY(ctx, vgg_cuda_launch_pad(call.x, x, call.maps, s->c, call.graph.c, call.dtype, stream));
    float *sum = beta ? call.sum : dw, *full = call.padded ? call.w : sum;
    const void *tensors[3] = {g, call.padded ? call.x : x, call.apart ? call.narrow : full};
    CUDA_PASS(vgg_cuda_graph_run(ctx, &call.graph, tensors, call.workspace, call.workspace_bytes, stream));
    if (call.apart)
        CUDA_TRY(ctx, vgg_cuda_launch_convert(full, VGG_FLOAT32, call.narrow, call.weights * call.graph.c, stream));
    if (call.padded)
        CUDA_TRY(ctx, vgg_cuda_launch_unpad(sum, full, call.weights, s->c, call.graph.c, VGG_FLOAT32, stream));
    if (beta)
        CUDA_TRY(ctx, vgg_cuda_launch_add(dw, sum, count, VGG_FLOAT32, stream));
    return VGG_OK;
}

/* conv2d.c: convolution through cuDNN's graphs (paper, section 2.1), with our kernels around them: pooling with its index,
 * the gradient's mask and un-pooling, and the bias gradient. Contract: vgg.h.
 *
 * What cuDNN's engines refuse is asked for once more in parts: bias and ReLU apart from the convolution, and channels filled up
 * to a multiple of 4 with zeros. The choice is made when the workspace is planned and is the same when the call runs. */
#include "host.h"

enum { CHANNELS = 4 }; /* a multiple of which engines may ask for */

/* How one call is carried out: the graph, and the parts of the workspace. */
struct call {
    struct vgg_cuda_graph graph;
    bool padded;     /* c is graph.c, filled up */
    bool epilogue;   /* bias and ReLU by our kernel */
    size_t maps;     /* n * h * w */
    size_t weights;  /* k * kernel_size^2: rows of c values */
    float *map;      /* forward: before pooling; backward: the gradient of z */
    float *x, *w;    /* padded twins */
    float *sum;      /* backward_weight: dw before it is added or cut back */
    void *partial;   /* backward_weight: of the bias gradient */
    void *workspace; /* cuDNN's */
    size_t workspace_bytes;
    struct vgg_cuda_parts parts;
};

static enum vgg_cuda_graph_kind forward_kind(bool bias, bool relu)
{
    return bias ? (relu ? VGG_CUDA_CONVOLUTION_BIAS_RELU : VGG_CUDA_CONVOLUTION_BIAS)
                : (relu ? VGG_CUDA_CONVOLUTION_RELU : VGG_CUDA_CONVOLUTION);
}

/* The first form of the graph that an engine takes. */
static enum vgg_status choose(struct vgg_context *ctx, struct call *call, bool bias, bool relu)
{
    const size_t c = call->graph.c, full = vgg_ceil_div(c, CHANNELS) * CHANNELS;
    const bool fusable = call->graph.kind == VGG_CUDA_CONVOLUTION && (bias || relu);
    enum vgg_status status = VGG_UNSUPPORTED;
    for (int form = 0; form < 4 && status == VGG_UNSUPPORTED; form++) {
        call->epilogue = form & 1;
        call->padded = form & 2;
        if ((call->epilogue && !fusable) || (call->padded && full == c))
            continue;
        if (fusable)
            call->graph.kind = call->epilogue ? VGG_CUDA_CONVOLUTION : forward_kind(bias, relu);
        call->graph.c = call->padded ? full : c;
        status = vgg_cuda_graph_workspace(ctx, &call->workspace_bytes, &call->graph);
    }
    if (status == VGG_UNSUPPORTED)
        vgg_cuda_graph_forget_refusals(ctx);
    return status;
}

/* With base NULL, the parts are only counted. `masked`: the gradient of z is not dy itself. */
static enum vgg_status plan(struct vgg_context *ctx, struct call *call, char *base, const struct vgg_conv2d *s,
                            enum vgg_direction direction, bool bias, bool masked)
{
    size_t r2 = s->kernel_size * s->kernel_size;
    *call = (struct call){
        .graph = {.kind = direction == VGG_FORWARD          ? VGG_CUDA_CONVOLUTION
                          : direction == VGG_BACKWARD_INPUT ? VGG_CUDA_BACKWARD_INPUT
                                                            : VGG_CUDA_BACKWARD_WEIGHT,
                  .n = s->n,
                  .h = s->h,
                  .w = s->w,
                  .c = s->c,
                  .k = s->k,
                  .kernel_size = s->kernel_size,
                  .aligned = true,
                  .tf32 = s->tf32},
        .maps = s->n * s->h * s->w,
        .weights = s->k * r2,
        .parts = {.base = base},
    };
    CUDA_PASS(choose(ctx, call, bias, s->relu));
    struct vgg_cuda_parts *parts = &call->parts;
    size_t c = call->graph.c;
    if (direction == VGG_FORWARD ? s->pool != VGG_POOL_NONE : masked)
        call->map = vgg_cuda_part(parts, call->maps * s->k, sizeof(float));
    if (call->padded) {
        call->x = vgg_cuda_part(parts, call->maps * c, sizeof(float));
        call->w = vgg_cuda_part(parts, call->weights * c, sizeof(float));
    }
    if (direction == VGG_BACKWARD_WEIGHT) {
        call->sum = vgg_cuda_part(parts, call->weights * s->c, sizeof(float));
        call->partial = vgg_cuda_part(parts, vgg_cuda_column_sums_bytes(call->maps, s->k), 1);
    }
    return VGG_OK;
}

/* What our own parts leave of the workspace is cuDNN's. The bytes were planned without knowing whether there is a bias or a
 * ReLU, so it may be too little for this graph: vgg_cuda_graph_run then takes more. */
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
    CUDA_PASS(plan(ctx, &call, NULL, s, direction, true, true));
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
    return (struct vgg_max_pool2d){s->n, s->h, s->w, s->k, s->pool == VGG_POOL_CEIL};
}

enum vgg_status vgg_cuda_conv2d(struct vgg_context *ctx, float *y, uint8_t *index, const float *x, const float *w,
                                const float *b, const struct vgg_conv2d *s)
{
    struct call call;
    cudaStream_t stream;
    CUDA_PASS(check_algorithm(ctx, "conv2d", s));
    if (s->n == 0 || s->h == 0 || s->w == 0)
        return VGG_OK;
    CUDA_PASS(vgg_cuda_enter(ctx, &stream));
    CUDA_PASS(plan(ctx, &call, ctx->workspace, s, VGG_FORWARD, b != NULL, false));
    CUDA_PASS(share_workspace(ctx, "conv2d", &call));
    if (call.padded) {
        CUDA_TRY(ctx, vgg_cuda_launch_pad(call.x, x, call.maps, s->c, call.graph.c, stream));
        CUDA_TRY(ctx, vgg_cuda_launch_pad(call.w, w, call.weights, s->c, call.graph.c, stream));
    }
    float *map = s->pool == VGG_POOL_NONE ? y : call.map;
    const bool bias = b && !call.epilogue;
    const void *tensors[4] = {call.padded ? call.x : x, call.padded ? call.w : w, bias ? (const void *)b : map, map};
    CUDA_PASS(vgg_cuda_graph_run(ctx, &call.graph, tensors, call.workspace, call.workspace_bytes, stream));
    if (call.epilogue)
        CUDA_TRY(ctx, vgg_cuda_launch_bias_relu(map, b, call.maps, s->k, s->relu, stream));
    if (s->pool != VGG_POOL_NONE) {
        struct vgg_max_pool2d pool = pool_of(s);
        CUDA_TRY(ctx, vgg_cuda_launch_max_pool2d(y, index, map, &pool, stream));
    }
    return VGG_OK;
}

/* *g: the gradient of z: dy itself, or made in call->map. */
static enum vgg_status upstream(struct vgg_context *ctx, const float **g, const struct call *call, const float *dy,
                                const float *y, const uint8_t *index, const struct vgg_conv2d *s, cudaStream_t stream)
{
    *g = dy;
    if (!y && !index)
        return VGG_OK;
    if (index) {
        struct vgg_max_pool2d pool = pool_of(s);
        CUDA_TRY(ctx, vgg_cuda_launch_unpool(call->map, dy, y, index, &pool, stream));
    } else
        CUDA_TRY(ctx, vgg_cuda_launch_relu_backward(call->map, dy, y, call->maps * s->k, stream));
    *g = call->map;
    return VGG_OK;
}

enum vgg_status vgg_cuda_conv2d_backward_input(struct vgg_context *ctx, float *dx, const float *dy, const float *w,
                                               const float *y, const uint8_t *index, const struct vgg_conv2d *s)
{
    struct call call;
    cudaStream_t stream;
    const float *g;
    CUDA_PASS(check_algorithm(ctx, "conv2d_backward_input", s));
    if (s->n == 0 || s->h == 0 || s->w == 0)
        return VGG_OK;
    CUDA_PASS(vgg_cuda_enter(ctx, &stream));
    CUDA_PASS(plan(ctx, &call, ctx->workspace, s, VGG_BACKWARD_INPUT, false, y || index));
    CUDA_PASS(share_workspace(ctx, "conv2d_backward_input", &call));
    CUDA_PASS(upstream(ctx, &g, &call, dy, y, index, s, stream));
    if (call.padded)
        CUDA_TRY(ctx, vgg_cuda_launch_pad(call.w, w, call.weights, s->c, call.graph.c, stream));
    const void *tensors[3] = {g, call.padded ? call.w : w, call.padded ? call.x : dx};
    CUDA_PASS(vgg_cuda_graph_run(ctx, &call.graph, tensors, call.workspace, call.workspace_bytes, stream));
    if (call.padded)
        CUDA_TRY(ctx, vgg_cuda_launch_unpad(dx, call.x, call.maps, s->c, call.graph.c, stream));
    return VGG_OK;
}

enum vgg_status vgg_cuda_conv2d_backward_weight(struct vgg_context *ctx, float *dw, float *db, const float *dy, const float *x,
                                                const float *y, const uint8_t *index, const struct vgg_conv2d *s, int beta)
{
    struct call call;
    cudaStream_t stream;
    const float *g;
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
    CUDA_PASS(plan(ctx, &call, ctx->workspace, s, VGG_BACKWARD_WEIGHT, false, y || index));
    CUDA_PASS(share_workspace(ctx, "conv2d_backward_weight", &call));
    CUDA_PASS(upstream(ctx, &g, &call, dy, y, index, s, stream));
    CUDA_TRY(ctx, vgg_cuda_launch_column_sums(db, g, call.partial, call.maps, s->k, beta, stream));
    if (call.padded)
        CUDA_TRY(ctx, vgg_cuda_launch_pad(call.x, x, call.maps, s->c, call.graph.c, stream));
    float *sum = beta ? call.sum : dw;
    const void *tensors[3] = {g, call.padded ? call.x : x, call.padded ? call.w : sum};
    CUDA_PASS(vgg_cuda_graph_run(ctx, &call.graph, tensors, call.workspace, call.workspace_bytes, stream));
    if (call.padded)
        CUDA_TRY(ctx, vgg_cuda_launch_unpad(sum, call.w, call.weights, s->c, call.graph.c, stream));
    if (beta)
        CUDA_TRY(ctx, vgg_cuda_launch_add(dw, sum, count, stream));
    return VGG_OK;
}

/* graph.c: cuDNN's graph API: one convolution, forward with bias and ReLU fused, or one of its gradients, as an execution plan.
 *
 * Engines are taken in the order of cuDNN's heuristics; left out are those that note other results from run to run
 * (atomics) and those that round inputs to fewer bits than they have, but for TF32 where the caller allows it. Plans are
 * kept, the most recent ones: dense evaluation meets many image sizes. */
#include "host.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { PLANS = 512, CONFIGS = 32, TENSORS = 4 };

static struct plan {
    struct vgg_cuda_graph graph;
    int device;
    cudnnBackendDescriptor_t plan; /* NULL: no engine takes the graph */
    size_t workspace;
    uint64_t used; /* counts up; 0: the place is free */
    bool captured; /* in a CUDA graph, whose kernels may be the plan's: it stays */
} plans[PLANS];
static uint64_t uses;
static pthread_mutex_t plans_lock = PTHREAD_MUTEX_INITIALIZER; /* taken inside the device's library lock */

/* ------------------------------------------------------------------------------------------------ descriptors */

/* A graph in the making: descriptors that go when it is done, and the first failure. */
struct builder {
    cudnnBackendDescriptor_t made[16];
    int count;
    bool aligned; /* the tensors, to 16 bytes; else each to its elements */
    cudnnStatus_t status;
    const char *what;
};

static bool note(struct builder *b, cudnnStatus_t status, const char *what)
{
    if (b->status == CUDNN_STATUS_SUCCESS && status != CUDNN_STATUS_SUCCESS) {
        b->status = status;
        b->what = what;
    }
    return b->status == CUDNN_STATUS_SUCCESS;
}

static cudnnBackendDescriptor_t make(struct builder *b, cudnnBackendDescriptorType_t type)
{
    cudnnBackendDescriptor_t d = NULL;
    if (note(b, vgg_cudnn.cudnnBackendCreateDescriptor(type, &d), "cudnnBackendCreateDescriptor"))
        b->made[b->count++] = d;
    return d;
}

static void set(struct builder *b, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t count, const void *values)
{
    if (b->status == CUDNN_STATUS_SUCCESS)
        note(b, vgg_cudnn.cudnnBackendSetAttribute(d, name, type, count, values), "cudnnBackendSetAttribute");
}

#define SET1(b, d, name, type, value) set(b, d, name, type, 1, &(value))

static void finalize(struct builder *b, cudnnBackendDescriptor_t d, const char *what)
{
    if (b->status == CUDNN_STATUS_SUCCESS)
        note(b, vgg_cudnn.cudnnBackendFinalize(d), what);
}

static void give_back(struct builder *b)
{
    while (b->count)
        (void)vgg_cudnn.cudnnBackendDestroyDescriptor(b->made[--b->count]);
}

/* (a, channels, rows, columns) as cuDNN orders sizes, in memory (a, rows, columns, channels). uid 0..3; virtual from 100. */
static cudnnBackendDescriptor_t tensor(struct builder *b, int64_t uid, cudnnDataType_t type, size_t a, size_t channels,
                                       size_t rows, size_t columns)
{
    cudnnBackendDescriptor_t d = make(b, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    int64_t c = (int64_t)channels, w = (int64_t)columns, h = (int64_t)rows;
    int64_t alignment = b->aligned ? 16 : type == CUDNN_DATA_BFLOAT16 ? 2 : 4;
    int64_t sizes[4] = {(int64_t)a, c, h, w}, strides[4] = {h * w * c, 1, w * c, c};
    SET1(b, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, type);
    set(b, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, sizes);
    set(b, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides);
    SET1(b, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, uid);
    SET1(b, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, alignment);
    if (uid >= 100) {
        bool is_virtual = true;
        SET1(b, d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, is_virtual);
    }
    finalize(b, d, "a tensor");
    return d;
}

static cudnnBackendDescriptor_t convolution(struct builder *b, size_t kernel_size)
{
    cudnnBackendDescriptor_t d = make(b, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
    cudnnDataType_t type = CUDNN_DATA_FLOAT;
    cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    int64_t axes = 2, ones[2] = {1, 1}, pad = (int64_t)(kernel_size / 2), pads[2] = {pad, pad};
    SET1(b, d, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, type);
    SET1(b, d, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, mode);
    SET1(b, d, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, axes);
    set(b, d, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, ones);
    set(b, d, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, ones);
    set(b, d, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, pads);
    set(b, d, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, pads);
    finalize(b, d, "a convolution");
    return d;
}

/* What an operation of each direction calls its parts: its type, the convolution, three tensors in the order of a graph's. */
static const struct {
    cudnnBackendDescriptorType_t type;
    cudnnBackendAttributeName_t convolution, tensor[3], alpha, beta;
} operations[] = {
    [VGG_FORWARD] = {CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
                     CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
                     {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
                      CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y},
                     CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
                     CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA},
    [VGG_BACKWARD_INPUT] = {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
                            CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
                            {CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
                             CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX},
                            CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
                            CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA},
    [VGG_BACKWARD_WEIGHT] = {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
                             CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
                             {CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
                              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW},
                             CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
                             CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA},
};

static cudnnBackendDescriptor_t pointwise(struct builder *b, cudnnPointwiseMode_t mode, cudnnBackendDescriptor_t x,
                                          cudnnBackendDescriptor_t second, cudnnBackendDescriptor_t y)
{
    cudnnBackendDescriptor_t kind = make(b, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    cudnnDataType_t type = CUDNN_DATA_FLOAT;
    SET1(b, kind, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, mode);
    SET1(b, kind, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, type);
    if (mode == CUDNN_POINTWISE_RELU_FWD) {
        cudnnNanPropagation_t nan = CUDNN_PROPAGATE_NAN;
        SET1(b, kind, CUDNN_ATTR_POINTWISE_NAN_PROPAGATION, CUDNN_TYPE_NAN_PROPOGATION, nan);
    }
    finalize(b, kind, "a pointwise operation");
    cudnnBackendDescriptor_t d = make(b, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    SET1(b, d, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, CUDNN_TYPE_BACKEND_DESCRIPTOR, kind);
    SET1(b, d, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, x);
    if (second)
        SET1(b, d, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, second);
    SET1(b, d, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, y);
    finalize(b, d, "a pointwise operation");
    return d;
}

static int tensors_of(enum vgg_cuda_graph_kind kind)
{
    return kind == VGG_CUDA_CONVOLUTION_BIAS || kind == VGG_CUDA_CONVOLUTION_BIAS_RELU ? 4 : 3;
}

/* The operation graph. Unique ids are the places of the tensors in the order of enum vgg_cuda_graph_kind. */
static cudnnBackendDescriptor_t operation_graph(struct builder *b, const struct vgg_cuda_graph *g, cudnnHandle_t handle)
{
    const bool bias = tensors_of(g->kind) == 4;
    const bool relu = g->kind == VGG_CUDA_CONVOLUTION_BIAS_RELU;
    const enum vgg_direction direction = g->kind == VGG_CUDA_BACKWARD_INPUT    ? VGG_BACKWARD_INPUT
                                         : g->kind >= VGG_CUDA_BACKWARD_WEIGHT ? VGG_BACKWARD_WEIGHT
                                                                               : VGG_FORWARD;
    const int64_t last = tensors_of(g->kind) - 1;
    /* Biases and what lies between two operations are float32. */
    const cudnnDataType_t wide = CUDNN_DATA_FLOAT;
    const cudnnDataType_t map = g->precision == VGG_PRECISION_BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
    size_t n = g->n, h = g->h, w = g->w, c = g->c, k = g->k, r = g->kernel_size;
    cudnnBackendDescriptor_t t[3]; /* of the convolution: two inputs and the output */
    switch (direction) {
    case VGG_BACKWARD_INPUT:
        t[0] = tensor(b, 0, map, n, k, h, w);
        t[1] = tensor(b, 1, map, k, c, r, r);
        t[2] = tensor(b, 2, map, n, c, h, w);
        break;
    case VGG_BACKWARD_WEIGHT:
        t[0] = tensor(b, 0, map, n, k, h, w);
        t[1] = tensor(b, 1, map, n, c, h, w);
        t[2] = tensor(b, 2, g->kind == VGG_CUDA_BACKWARD_WEIGHT ? wide : map, k, c, r, r);
        break;
    default:
        t[0] = tensor(b, 0, map, n, c, h, w);
        t[1] = tensor(b, 1, map, k, c, r, r);
        t[2] = tensor(b, bias ? 100 : 2, bias ? wide : map, n, k, h, w);
    }
    cudnnBackendDescriptor_t ops[3], conv = convolution(b, r);
    int64_t count = 0;
    float one = 1, zero = 0;
    cudnnBackendDescriptor_t d = ops[count++] = make(b, operations[direction].type);
    SET1(b, d, operations[direction].convolution, CUDNN_TYPE_BACKEND_DESCRIPTOR, conv);
    for (int i = 0; i < 3; i++)
        SET1(b, d, operations[direction].tensor[i], CUDNN_TYPE_BACKEND_DESCRIPTOR, t[i]);
    SET1(b, d, operations[direction].alpha, CUDNN_TYPE_FLOAT, one);
    SET1(b, d, operations[direction].beta, CUDNN_TYPE_FLOAT, zero);
    finalize(b, d, "an operation");
    cudnnBackendDescriptor_t y = t[2];
    if (bias) {
        y = tensor(b, relu ? 101 : last, relu ? wide : map, n, k, h, w);
        ops[count++] = pointwise(b, CUDNN_POINTWISE_ADD, t[2], tensor(b, 2, wide, 1, k, 1, 1), y);
    }
    if (relu)
        ops[count++] = pointwise(b, CUDNN_POINTWISE_RELU_FWD, y, NULL, tensor(b, last, map, n, k, h, w));
    cudnnBackendDescriptor_t graph = make(b, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    SET1(b, graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, handle);
    set(b, graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, count, ops);
    finalize(b, graph, "an operation graph");
    return graph;
}

/* ------------------------------------------------------------------------------------------------ choosing an engine */

/* Whether an engine gives results of the precision, and the same every time. */
static bool acceptable(cudnnBackendDescriptor_t config, enum vgg_precision precision)
{
    cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    cudnnBackendDescriptor_t engine = NULL;
    int64_t count = 0, note_count = 0;
    if (vgg_cudnn.cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &engine) != CUDNN_STATUS_SUCCESS)
        return false;
    bool good = vgg_cudnn.cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                                   &count, &engine) == CUDNN_STATUS_SUCCESS &&
                vgg_cudnn.cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                                   CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &note_count, notes) == CUDNN_STATUS_SUCCESS;
    for (int64_t i = 0; good && i < note_count; i++)
        good = notes[i] != CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC &&
               (precision != VGG_PRECISION_FLOAT32 || notes[i] != CUDNN_NUMERICAL_NOTE_TENSOR_CORE) &&
               notes[i] != CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS &&
               notes[i] != CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION;
    (void)vgg_cudnn.cudnnBackendDestroyDescriptor(engine);
    return good;
}

static bool lacks_memory(cudnnStatus_t status)
{
    return status == CUDNN_STATUS_ALLOC_FAILED || status == CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED;
}

/* The first engine configuration of one heuristic that is acceptable and becomes a plan with a workspace of at most `most`
 * bytes. When there is none: CUDNN_STATUS_ALLOC_FAILED if memory was too little for one, else NOT_SUPPORTED, whatever an engine
 * gives as its reason: some look at a shape, or compile, no earlier than here. */
static cudnnStatus_t try_heuristic(struct plan *p, cudnnBackendDescriptor_t graph, cudnnBackendHeurMode_t mode,
                                   cudnnHandle_t handle, size_t most)
{
    cudnnBackendDescriptor_t configs[CONFIGS] = {NULL};
    struct builder b = {.status = CUDNN_STATUS_SUCCESS};
    cudnnBackendDescriptor_t heuristic = make(&b, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    SET1(&b, heuristic, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, graph);
    SET1(&b, heuristic, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, mode);
    finalize(&b, heuristic, "a heuristic");
    int64_t count = 0;
    int made = 0;
    while (b.status == CUDNN_STATUS_SUCCESS && made < CONFIGS &&
           note(&b, vgg_cudnn.cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, &configs[made]), "a config"))
        made++;
    if (b.status == CUDNN_STATUS_SUCCESS)
        note(&b,
             vgg_cudnn.cudnnBackendGetAttribute(heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                                CONFIGS, &count, configs),
             "heuristics");
    cudnnStatus_t status = b.status == CUDNN_STATUS_SUCCESS ? CUDNN_STATUS_NOT_SUPPORTED : b.status;
    for (int64_t i = 0; b.status == CUDNN_STATUS_SUCCESS && i < count && !p->plan; i++) {
        if (!acceptable(configs[i], p->graph.precision))
            continue;
        struct builder one = {.status = CUDNN_STATUS_SUCCESS};
        cudnnBackendDescriptor_t plan = make(&one, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
        int64_t bytes = 0, got = 0;
        SET1(&one, plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, handle);
        SET1(&one, plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, configs[i]);
        finalize(&one, plan, "a plan");
        if (one.status == CUDNN_STATUS_SUCCESS)
            note(&one,
                 vgg_cudnn.cudnnBackendGetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &got,
                                                    &bytes),
                 "a plan's workspace");
        if (one.status == CUDNN_STATUS_SUCCESS && (uint64_t)bytes <= most) {
            p->plan = plan;
            p->workspace = (size_t)bytes;
            one.count = 0; /* it stays */
            status = CUDNN_STATUS_SUCCESS;
        } else if (one.status == CUDNN_STATUS_SUCCESS || lacks_memory(one.status))
            status = CUDNN_STATUS_ALLOC_FAILED;
        give_back(&one);
    }
    while (made)
        (void)vgg_cudnn.cudnnBackendDestroyDescriptor(configs[--made]);
    give_back(&b);
    return status;
}

static enum vgg_status build(struct vgg_context *ctx, struct plan *p, cudnnHandle_t handle)
{
    static const cudnnBackendHeurMode_t modes[] = {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_B, CUDNN_HEUR_MODE_FALLBACK};
    size_t free_bytes = 0, total = 0;
    CUDA_TRY(ctx, vgg_cuda_free_memory(ctx->device, &free_bytes, &total));
    struct builder b = {.status = CUDNN_STATUS_SUCCESS, .aligned = p->graph.aligned};
    cudnnBackendDescriptor_t graph = operation_graph(&b, &p->graph, handle);
    cudnnStatus_t status = b.status;
    for (size_t i = 0; b.status == CUDNN_STATUS_SUCCESS && !p->plan && i < sizeof modes / sizeof *modes; i++) {
        cudnnStatus_t found = try_heuristic(p, graph, modes[i], handle, free_bytes / 2);
        status = status == CUDNN_STATUS_ALLOC_FAILED ? status : found;
    }
    if (status / 1000 == CUDNN_STATUS_BAD_PARAM / 1000) /* types or sizes that no graph has: another form may be taken */
        status = CUDNN_STATUS_NOT_SUPPORTED;
    enum vgg_status ours = p->plan ? VGG_OK : vgg_cudnn_fail(ctx, status, b.what ? b.what : "the choice of an engine");
    give_back(&b);
    return ours;
}

/* ------------------------------------------------------------------------------------------------ kept plans */

static bool same_graph(const struct vgg_cuda_graph *a, const struct vgg_cuda_graph *b)
{
    return a->kind == b->kind && a->n == b->n && a->h == b->h && a->w == b->w && a->c == b->c && a->k == b->k &&
           a->kernel_size == b->kernel_size && a->aligned == b->aligned && a->precision == b->precision;
}

/* The plan for *graph, made if it is not there; under the device's library lock and plans_lock. */
static enum vgg_status find(struct vgg_context *ctx, struct plan **found, const struct vgg_cuda_graph *graph,
                            cudnnHandle_t handle)
{
    struct plan *oldest = NULL;
    for (struct plan *p = plans; p < plans + PLANS; p++) {
        if (p->used && p->device == ctx->device && same_graph(&p->graph, graph)) {
            p->used = ++uses;
            *found = p;
            return p->plan ? VGG_OK
                           : vgg_fail(ctx->error, VGG_UNSUPPORTED, "cuda:%d: no engine of cuDNN takes it", ctx->device);
        }
        if (!p->captured && (!oldest || p->used < oldest->used))
            oldest = p;
    }
    if (!oldest)
        return vgg_fail(ctx->error, VGG_UNSUPPORTED, "cuda:%d: CUDA graphs hold %d plans of cuDNN, the most there can be",
                        ctx->device, (int)PLANS);
    struct plan fresh = {.graph = *graph, .device = ctx->device, .used = ++uses};
    enum vgg_status status = build(ctx, &fresh, handle);
    if (status != VGG_OK && status != VGG_UNSUPPORTED)
        return status;
    if (oldest->plan)
        (void)vgg_cudnn.cudnnBackendDestroyDescriptor(oldest->plan);
    *oldest = fresh;
    *found = oldest;
    return status;
}

enum vgg_status vgg_cuda_graph_workspace(struct vgg_context *ctx, size_t *bytes, const struct vgg_cuda_graph *graph)
{
    cudaStream_t stream;
    cudnnHandle_t handle;
    struct plan *plan;
    *bytes = 0;
    CUDA_PASS(vgg_cuda_enter(ctx, &stream));
    CUDA_PASS(vgg_cuda_lock_cudnn(ctx, &handle, stream));
    pthread_mutex_lock(&plans_lock);
    enum vgg_status status = find(ctx, &plan, graph, handle);
    if (status == VGG_OK)
        *bytes = plan->workspace;
    pthread_mutex_unlock(&plans_lock);
    vgg_cuda_unlock(ctx);
    return status;
}

void vgg_cuda_graph_forget_refusals(struct vgg_context *ctx)
{
    pthread_mutex_lock(&plans_lock);
    for (struct plan *p = plans; p < plans + PLANS; p++)
        if (p->device == ctx->device && !p->plan)
            p->used = 0;
    pthread_mutex_unlock(&plans_lock);
}

static enum vgg_status execute(struct vgg_context *ctx, const struct plan *plan, const void *const *tensors, void *workspace,
                               cudnnHandle_t handle)
{
    static const int64_t ids[TENSORS] = {0, 1, 2, 3};
    struct builder b = {.status = CUDNN_STATUS_SUCCESS};
    int64_t count = tensors_of(plan->graph.kind);
    cudnnBackendDescriptor_t pack = make(&b, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    set(&b, pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, ids);
    set(&b, pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, tensors);
    SET1(&b, pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, workspace);
    finalize(&b, pack, "a variant pack");
    if (b.status == CUDNN_STATUS_SUCCESS)
        note(&b, vgg_cudnn.cudnnBackendExecute(handle, plan->plan, pack), "cudnnBackendExecute");
    enum vgg_status status = b.status == CUDNN_STATUS_SUCCESS ? VGG_OK : vgg_cudnn_fail(ctx, b.status, b.what);
    give_back(&b);
    return status;
}

enum vgg_status vgg_cuda_graph_run(struct vgg_context *ctx, const struct vgg_cuda_graph *graph, const void *const *tensors,
                                   void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
    struct vgg_cuda_graph aligned = *graph;
    for (int i = 0; i < tensors_of(graph->kind); i++)
        aligned.aligned = aligned.aligned && (uintptr_t)tensors[i] % 16 == 0;
    cudnnHandle_t handle;
    struct plan *plan;
    void *more = NULL;
    size_t more_bytes = 0;
    CUDA_PASS(vgg_cuda_lock_cudnn(ctx, &handle, stream));
    pthread_mutex_lock(&plans_lock);
    enum vgg_status status = find(ctx, &plan, &aligned, handle);
    /* Of another plan than the workspace was made for: pointers are not aligned, or it had to go and came anew. */
    if (status == VGG_OK && plan->workspace > workspace_bytes) {
        more_bytes = plan->workspace;
        status = vgg_cuda_allocate(ctx, &more, more_bytes);
        workspace = more;
    }
    if (status == VGG_OK)
        status = execute(ctx, plan, tensors, workspace, handle);
    if (status == VGG_OK && vgg_cuda_capturing(ctx->device))
        plan->captured = true;
    pthread_mutex_unlock(&plans_lock);
    vgg_cuda_unlock(ctx);
    vgg_cuda_release(ctx->device, more, more_bytes);
    return status;
}

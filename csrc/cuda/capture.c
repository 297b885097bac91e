/* capture.c: what a thread queues on a device, recorded as a CUDA graph and queued again as a whole. Contract: host.h.
 *
 * While a thread captures, its stream of the device is a non-blocking one of the capture's, which no other is ordered with: so
 * memory may be taken and given back on the default stream meanwhile. What is taken then is the graph's while it lives, since
 * each replay writes there; what is given back during the capture serves later requests of the same size. A tensor may
 * outlive its graph: its memory then goes when it does. */
#include "host.h"

enum { BLOCKS = 1024 }; /* pieces of memory of all graphs together; a pass takes about ten */

static struct block {
    void *data; /* NULL: the place is vacant */
    size_t bytes;
    int device;
    bool used;                            /* by a tensor */
    const struct vgg_cuda_capture *owner; /* NULL: the graph is gone */
} blocks[BLOCKS];
static size_t taken;                                                          /* of BLOCKS */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;                      /* of the two above */
static pthread_mutex_t replay_lock = PTHREAD_MUTEX_INITIALIZER;               /* a graph is launched by one thread at a time */
static _Thread_local struct vgg_cuda_capture *captures[VGG_CUDA_MAX_DEVICES]; /* the calling thread's, while they go on */

bool vgg_cuda_capturing(int device)
{
    return captures[device];
}

bool vgg_cuda_captured(int device, cudaStream_t stream)
{
    return captures[device] && captures[device]->stream == stream;
}

cudaStream_t vgg_cuda_stream_beneath(int device)
{
    return captures[device] ? captures[device]->beneath : vgg_cuda_current_stream(device);
}

enum vgg_status vgg_cuda_refuse_capture(struct vgg_context *ctx, const char *what)
{
    return vgg_fail(ctx->error, VGG_INVALID_ARGUMENT,
                    "cuda:%d: %s while a CUDA graph is captured; expected it before, or after a replay", ctx->device, what);
}

/* ------------------------------------------------------------------------------------------------ memory */

static struct block *block_of(const void *data) /* NULL: a vacant place */
{
    for (struct block *b = blocks; b < blocks + BLOCKS; b++)
        if (b->data == data)
            return b;
    return NULL;
}

static struct block *unused(const struct vgg_cuda_capture *owner, size_t bytes)
{
    for (struct block *b = blocks; b < blocks + BLOCKS; b++)
        if (b->data && b->owner == owner && !b->used && b->bytes == bytes)
            return b;
    return NULL;
}

enum vgg_status vgg_cuda_capture_allocate(struct vgg_context *ctx, void **data, size_t bytes)
{
    const struct vgg_cuda_capture *c = captures[ctx->device];
    enum vgg_status status = VGG_OK;
    *data = NULL;
    pthread_mutex_lock(&lock);
    struct block *b = unused(c, bytes), *vacant = b ? NULL : block_of(NULL);
    if (!b && !vacant) {
        status = vgg_fail(ctx->error, VGG_UNSUPPORTED, "cuda:%d: CUDA graphs hold %d pieces of memory, the most there can be",
                          ctx->device, (int)BLOCKS);
    } else if (!b) {
        status = vgg_cuda_pool_allocate(ctx, data, bytes);
        if (status == VGG_OK) {
            *vacant = (struct block){*data, bytes, ctx->device, true, c};
            taken++;
        }
    } else {
        b->used = true;
        *data = b->data;
    }
    pthread_mutex_unlock(&lock);
    return status;
}

static void vacate(struct block *b)
{
    *b = (struct block){0};
    taken--;
}

bool vgg_cuda_capture_keeps(const void *data)
{
    bool kept = false;
    pthread_mutex_lock(&lock);
    struct block *b = taken ? block_of(data) : NULL;
    if (b) {
        kept = b->owner;
        b->used = false;
        if (!kept)
            vacate(b);
    }
    pthread_mutex_unlock(&lock);
    return kept;
}

enum vgg_status vgg_cuda_capture_cublas(struct vgg_context *ctx, void **workspace, size_t *bytes)
{
    struct vgg_cuda_capture *c = captures[ctx->device];
    int major = 0;
    CUDA_TRY(ctx, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ctx->device));
    *bytes = (size_t)(major == 9 || major == 10 ? 32 : major == 12 ? 12 : 4) << 20; /* as cuBLAS takes by itself */
    if (!c->workspace)
        CUDA_PASS(vgg_cuda_capture_allocate(ctx, &c->workspace, *bytes));
    *workspace = c->workspace;
    return VGG_OK;
}

/* ------------------------------------------------------------------------------------------------ graphs */

static enum vgg_status begin(struct vgg_context *ctx, struct vgg_cuda_capture *c)
{
    CUDA_TRY(ctx, cudaSetDevice(ctx->device));
    CUDA_TRY(ctx, cudaEventCreateWithFlags(&c->replayed, cudaEventDisableTiming));
    CUDA_TRY(ctx, cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking));
    /* Relaxed: this thread takes memory meanwhile, and the other threads' calls have nothing to do with it. */
    CUDA_TRY(ctx, cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeRelaxed));
    return VGG_OK;
}

enum vgg_status vgg_cuda_capture_begin(struct vgg_context *ctx, struct vgg_cuda_capture *c)
{
    if (vgg_cuda_capturing(ctx->device))
        return vgg_cuda_refuse_capture(ctx, "another capture");
    *c = (struct vgg_cuda_capture){.device = ctx->device, .beneath = vgg_cuda_current_stream(ctx->device)};
    enum vgg_status status = begin(ctx, c);
    if (status != VGG_OK) {
        vgg_cuda_capture_free(c);
        return status;
    }
    captures[ctx->device] = c;
    vgg_cuda_set_stream(ctx->device, c->stream);
    return VGG_OK;
}

enum vgg_status vgg_cuda_capture_end(struct vgg_context *ctx, struct vgg_cuda_capture *c)
{
    cudaGraph_t graph = NULL;
    captures[c->device] = NULL;
    vgg_cuda_set_stream(c->device, c->beneath);
    if (c->workspace)
        (void)vgg_cuda_capture_keeps(c->workspace);
    CUDA_TRY(ctx, cudaStreamEndCapture(c->stream, &graph)); /* an error when something in between spoilt it */
    cudaError_t error = cudaGraphInstantiate(&c->graph, graph, 0);
    (void)cudaGraphDestroy(graph);
    if (error != cudaSuccess)
        c->graph = NULL;
    CUDA_TRY(ctx, error);
    CUDA_TRY(ctx, cudaEventRecord(c->replayed, NULL)); /* the memory was taken on the default stream */
    return VGG_OK;
}

static enum vgg_status replay(struct vgg_context *ctx, struct vgg_cuda_capture *c, cudaStream_t stream)
{
    CUDA_TRY(ctx, cudaStreamWaitEvent(stream, c->replayed, 0)); /* replays write to the same memory */
    CUDA_TRY(ctx, cudaGraphLaunch(c->graph, stream));
    CUDA_TRY(ctx, cudaEventRecord(c->replayed, stream));
    return VGG_OK;
}

enum vgg_status vgg_cuda_capture_replay(struct vgg_context *ctx, struct vgg_cuda_capture *c)
{
    cudaStream_t stream;
    if (vgg_cuda_capturing(ctx->device))
        return vgg_cuda_refuse_capture(ctx, "a replay");
    CUDA_PASS(vgg_cuda_enter(ctx, &stream));
    pthread_mutex_lock(&replay_lock);
    enum vgg_status status = replay(ctx, c, stream);
    pthread_mutex_unlock(&replay_lock);
    return status;
}

void vgg_cuda_capture_free(struct vgg_cuda_capture *c)
{
    int previous;
    bool on_device = cudaGetDevice(&previous) == cudaSuccess && cudaSetDevice(c->device) == cudaSuccess;
    if (c->replayed)
        (void)cudaStreamWaitEvent(NULL, c->replayed, 0); /* memory goes back on the default stream */
    if (c->graph)
        (void)cudaGraphExecDestroy(c->graph);
    pthread_mutex_lock(&lock);
    for (struct block *b = blocks; b < blocks + BLOCKS; b++)
        if (b->data && b->owner == c) {
            b->owner = NULL;
            if (!b->used) {
                vgg_cuda_pool_release(b->device, b->data, b->bytes);
                vacate(b);
            }
        }
    pthread_mutex_unlock(&lock);
    if (c->stream)
        (void)cudaStreamDestroy(c->stream);
    if (c->replayed)
        (void)cudaEventDestroy(c->replayed);
    if (on_device)
        (void)cudaSetDevice(previous);
    (void)cudaGetLastError();
    *c = (struct vgg_cuda_capture){.device = c->device};
}

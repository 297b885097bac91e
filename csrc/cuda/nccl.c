/* nccl.c: the mean of the gradients of several devices (paper, section 3.3), of one process or of many, by NCCL.
 *
 * NCCL gathers every rank's values on every device, and a kernel of ours sums them in the order of the ranks in float64: the
 * same bits on every rank, and for any topology and any version of NCCL. A sum by ncclAllReduce would be in NCCL's order.
 * The price is traffic: each device takes in size - 1 times the gradients, where all-reduce takes 2 (size - 1) / size.
 *
 * Tensors go in pieces, so that what is gathered never takes more than GATHERED bytes of a device; the pieces of one group
 * are one launch of NCCL's. Everything is queued on streams of the communicator's own. */
#define _POSIX_C_SOURCE 200809L /* pthread_mutex_timedlock */
#include "host.h"

#include <string.h>
#include <time.h>

enum { GATHERED = 64 << 20, PIECES = 64, ALIGN = 64 /* floats */ };

#ifdef VGGNET_NCCL

/* ------------------------------------------------------------------------------------------------ errors */

static enum vgg_status nccl_fail(struct vgg_context *ctx, ncclResult_t result, const char *what)
{
    (void)cudaGetLastError();
    return vgg_fail(ctx->error, VGG_DEVICE, "cuda:%d: NCCL: %s in %s: %s", ctx->device, vgg_nccl.ncclGetErrorString(result),
                    what, vgg_nccl.ncclGetLastError(NULL));
}

#define NCCL_TRY(ctx, function, ...) \
    do { \
        ncclResult_t nccl_try_result = vgg_nccl.function(__VA_ARGS__); \
        if (nccl_try_result != ncclSuccess) \
            return nccl_fail(ctx, nccl_try_result, #function); \
    } while (0)

static enum vgg_status open_library(struct vgg_context *ctx)
{
    char reason[512];
    const char *failure = vgg_cuda_open_nccl(reason, sizeof reason);
    return failure ? vgg_fail(ctx->error, VGG_DEVICE, "averaging over several devices needs NCCL: %s", failure) : VGG_OK;
}

/* ------------------------------------------------------------------------------------------------ communicators */

enum vgg_status vgg_cuda_nccl_id(struct vgg_context *ctx, char id[VGG_CUDA_NCCL_ID_BYTES])
{
    ncclUniqueId unique;
    _Static_assert(sizeof unique == VGG_CUDA_NCCL_ID_BYTES, "NCCL's id has another size");
    CUDA_PASS(open_library(ctx));
    NCCL_TRY(ctx, ncclGetUniqueId, &unique);
    memcpy(id, &unique, sizeof unique);
    return VGG_OK;
}

static void abort_all(struct vgg_cuda_communicator *c)
{
    for (int r = 0; r < c->count; r++) {
        if (c->local[r].comm)
            (void)vgg_nccl.ncclCommAbort(c->local[r].comm);
        c->local[r].comm = NULL;
    }
}

void vgg_cuda_communicator_abort(struct vgg_cuda_communicator *c)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec++;
    /* A thread that has the lock for longer hangs in NCCL, and aborting is what frees it. */
    int locked = pthread_mutex_timedlock(&c->lock, &until);
    abort_all(c);
    if (locked == 0)
        pthread_mutex_unlock(&c->lock);
}

void vgg_cuda_communicator_close(struct vgg_cuda_communicator *c)
{
    pthread_mutex_lock(&c->lock);
    bool idle = true;
    for (int r = 0; r < c->count; r++)
        idle = idle && c->local[r].stream && cudaStreamQuery(c->local[r].stream) == cudaSuccess;
    for (int r = 0; r < c->count && idle; r++) {
        if (c->local[r].comm)
            (void)vgg_nccl.ncclCommDestroy(c->local[r].comm);
        c->local[r].comm = NULL;
    }
    abort_all(c);
    for (int r = 0; r < c->count; r++) {
        if (!c->local[r].stream || cudaSetDevice(c->local[r].device) != cudaSuccess)
            continue;
        if (c->local[r].gathered)
            (void)cudaFreeAsync(c->local[r].gathered, c->local[r].stream);
        (void)cudaStreamSynchronize(c->local[r].stream);
        (void)cudaStreamDestroy(c->local[r].stream);
    }
    (void)cudaGetLastError();
    pthread_mutex_unlock(&c->lock);
    pthread_mutex_destroy(&c->lock);
    *c = (struct vgg_cuda_communicator){.count = 0};
}

static enum vgg_status join(struct vgg_context *ctx, struct vgg_cuda_communicator *c, const char *id, int first)
{
    ncclUniqueId unique;
    memcpy(&unique, id, sizeof unique);
    NCCL_TRY(ctx, ncclGroupStart);
    ncclResult_t result = ncclSuccess;
    cudaError_t error = cudaSuccess;
    for (int r = 0; r < c->count && result == ncclSuccess && error == cudaSuccess; r++) {
        error = cudaSetDevice(c->local[r].device);
        if (error == cudaSuccess)
            result = vgg_nccl.ncclCommInitRank(&c->local[r].comm, c->size, unique, first + r);
    }
    ncclResult_t ended = vgg_nccl.ncclGroupEnd();
    CUDA_TRY(ctx, error);
    if (result != ncclSuccess || ended != ncclSuccess)
        return nccl_fail(ctx, result != ncclSuccess ? result : ended, "ncclCommInitRank");
    for (int r = 0; r < c->count; r++) {
        CUDA_TRY(ctx, cudaSetDevice(c->local[r].device));
        CUDA_TRY(ctx, cudaStreamCreateWithFlags(&c->local[r].stream, cudaStreamNonBlocking));
    }
    return VGG_OK;
}

enum vgg_status vgg_cuda_communicator_open(struct vgg_context *ctx, struct vgg_cuda_communicator *c, const char *id,
                                           const int *devices, int count, int first, int size)
{
    *c = (struct vgg_cuda_communicator){.count = 0};
    CUDA_PASS(open_library(ctx));
    pthread_mutex_init(&c->lock, NULL);
    c->size = size;
    c->count = count;
    for (int r = 0; r < count; r++)
        c->local[r].device = devices[r];
    enum vgg_status status = join(ctx, c, id, first);
    if (status != VGG_OK)
        vgg_cuda_communicator_close(c);
    return status;
}

enum vgg_status vgg_cuda_communicator_check(struct vgg_context *ctx, struct vgg_cuda_communicator *c)
{
    enum vgg_status status = VGG_OK;
    pthread_mutex_lock(&c->lock);
    for (int r = 0; r < c->count && status == VGG_OK; r++) {
        ncclResult_t result = ncclSuccess, asked;
        if (!c->local[r].comm) {
            status = vgg_fail(ctx->error, VGG_DEVICE, "cuda:%d: NCCL: the communicator was aborted", ctx->device);
            break;
        }
        asked = vgg_nccl.ncclCommGetAsyncError(c->local[r].comm, &result);
        if (asked != ncclSuccess || result != ncclSuccess)
            status = nccl_fail(ctx, asked != ncclSuccess ? asked : result, "an average");
    }
    if (status != VGG_OK)
        abort_all(c);
    pthread_mutex_unlock(&c->lock);
    return status;
}

/* ------------------------------------------------------------------------------------------------ the mean */

/* `size` floats from `from` on of a tensor; of what is gathered they are at `at` times the ranks. */
struct piece {
    size_t tensor, from, size, at;
};

static enum vgg_status make_room(struct vgg_context *ctx, struct vgg_cuda_communicator *c, size_t bytes)
{
    if (bytes <= c->gathered_bytes)
        return VGG_OK;
    c->gathered_bytes = 0;
    for (int r = 0; r < c->count; r++) {
        cudaStream_t stream = c->local[r].stream;
        CUDA_TRY(ctx, cudaSetDevice(c->local[r].device));
        if (c->local[r].gathered)
            CUDA_TRY(ctx, cudaFreeAsync(c->local[r].gathered, stream));
        c->local[r].gathered = NULL;
        CUDA_TRY(ctx, cudaMallocAsync((void **)&c->local[r].gathered, bytes, stream));
    }
    c->gathered_bytes = bytes;
    return VGG_OK;
}

static enum vgg_status gather(struct vgg_context *ctx, struct vgg_cuda_communicator *c, const struct piece *pieces, int count,
                              float *const *tensors)
{
    NCCL_TRY(ctx, ncclGroupStart);
    ncclResult_t result = ncclSuccess;
    for (const struct piece *p = pieces; p < pieces + count; p++)
        for (int r = 0; r < c->count && result == ncclSuccess; r++)
            result = vgg_nccl.ncclAllGather(tensors[p->tensor * (size_t)c->count + (size_t)r] + p->from,
                                            c->local[r].gathered + p->at * (size_t)c->size, p->size, ncclFloat32,
                                            c->local[r].comm, c->local[r].stream);
    ncclResult_t ended = vgg_nccl.ncclGroupEnd();
    if (result != ncclSuccess || ended != ncclSuccess)
        return nccl_fail(ctx, result != ncclSuccess ? result : ended, "ncclAllGather");
    return VGG_OK;
}

static enum vgg_status sum(struct vgg_context *ctx, struct vgg_cuda_communicator *c, const struct piece *pieces, int count,
                           float *const *tensors, struct vgg_cuda_average_list *list)
{
    for (int r = 0; r < c->count; r++) {
        CUDA_TRY(ctx, cudaSetDevice(c->local[r].device));
        for (const struct piece *p = pieces; p < pieces + count; p++) {
            for (int d = 0; d < c->size; d++)
                list->in[d] = c->local[r].gathered + p->at * (size_t)c->size + (size_t)d * p->size;
            float *out = tensors[p->tensor * (size_t)c->count + (size_t)r] + p->from;
            CUDA_TRY(ctx, vgg_cuda_launch_average(out, list, p->size, c->local[r].stream));
        }
    }
    return VGG_OK;
}

static enum vgg_status mean(struct vgg_context *ctx, struct vgg_cuda_communicator *c, float *const *tensors,
                            const size_t *sizes, size_t count, const double *weight)
{
    struct vgg_cuda_average_list list = {.total = 0, .count = c->size};
    for (int d = 0; d < c->size; d++) {
        list.weight[d] = weight[d];
        list.total += weight[d];
    }
    for (int r = 0; r < c->count; r++) {
        int device = c->local[r].device;
        if (!c->local[r].comm)
            return vgg_fail(ctx->error, VGG_DEVICE, "cuda:%d: NCCL: the communicator was aborted", device);
        CUDA_PASS(vgg_cuda_wait(ctx, device, c->local[r].stream, device, vgg_cuda_current_stream(device)));
    }
    size_t room = GATHERED / sizeof(float) / (size_t)c->size / ALIGN * ALIGN, all = 0; /* floats of each rank */
    for (size_t t = 0; t < count && all < room; t++)
        all += vgg_min_size(room, (sizes[t] + ALIGN - 1) / ALIGN * ALIGN);
    CUDA_PASS(make_room(ctx, c, vgg_min_size(all, room) * (size_t)c->size * sizeof(float)));
    for (size_t t = 0, from = 0; t < count;) {
        struct piece pieces[PIECES];
        int filled = 0;
        for (size_t at = 0; t < count && filled < PIECES && at < room;) {
            size_t size = vgg_min_size(sizes[t] - from, room - at);
            if (size)
                pieces[filled++] = (struct piece){t, from, size, at};
            at += (size + ALIGN - 1) / ALIGN * ALIGN;
            from += size;
            if (from == sizes[t]) {
                t++;
                from = 0;
            }
        }
        CUDA_PASS(gather(ctx, c, pieces, filled, tensors));
        CUDA_PASS(sum(ctx, c, pieces, filled, tensors, &list));
    }
    return VGG_OK;
}

enum vgg_status vgg_cuda_communicator_mean(struct vgg_context *ctx, struct vgg_cuda_communicator *c, float *const *tensors,
                                           const size_t *sizes, size_t count, const double *weight)
{
    pthread_mutex_lock(&c->lock);
    enum vgg_status status = mean(ctx, c, tensors, sizes, count, weight);
    if (status != VGG_OK) {
        abort_all(c);
        for (int r = 0; r < c->count; r++) /* nothing may go on writing to the tensors */
            (void)cudaStreamSynchronize(c->local[r].stream);
        (void)cudaGetLastError();
    }
    pthread_mutex_unlock(&c->lock);
    return status;
}

/* ------------------------------------------------------------------------------------------------ devices of one process */

static pthread_mutex_t devices_lock = PTHREAD_MUTEX_INITIALIZER;
static struct vgg_cuda_communicator among_devices; /* count 0: there is none */

/* The communicator of these devices, in this order; another one's place is taken. Under devices_lock. */
static enum vgg_status open_devices(struct vgg_context *const *ctx, int count)
{
    int devices[VGG_CUDA_MAX_DEVICES];
    bool same = among_devices.count == count;
    for (int d = 0; d < count; d++) {
        devices[d] = ctx[d]->device;
        same = same && among_devices.local[d].device == devices[d];
    }
    if (same)
        return VGG_OK;
    if (among_devices.count)
        vgg_cuda_communicator_close(&among_devices);
    char id[VGG_CUDA_NCCL_ID_BYTES];
    CUDA_PASS(vgg_cuda_nccl_id(ctx[0], id));
    return vgg_cuda_communicator_open(ctx[0], &among_devices, id, devices, count, 0, count);
}

static enum vgg_status average_by_nccl(struct vgg_context *const *ctx, float *const *grad, const double *weight, int count,
                                       size_t size)
{
    pthread_mutex_lock(&devices_lock);
    enum vgg_status status = open_devices(ctx, count);
    if (status == VGG_OK) {
        status = vgg_cuda_communicator_mean(ctx[0], &among_devices, grad, &size, 1, weight);
        for (int d = 0; d < count && status == VGG_OK; d++) {
            int device = ctx[d]->device;
            status = vgg_cuda_wait(ctx[0], device, vgg_cuda_current_stream(device), device, among_devices.local[d].stream);
        }
        if (status != VGG_OK)
            vgg_cuda_communicator_close(&among_devices);
    }
    pthread_mutex_unlock(&devices_lock);
    return status;
}

#else /* built without NCCL */

static enum vgg_status without(struct vgg_context *ctx)
{
    char reason[512];
    return vgg_fail(ctx->error, VGG_DEVICE, "averaging over several devices needs NCCL: %s",
                    vgg_cuda_open_nccl(reason, sizeof reason));
}

enum vgg_status vgg_cuda_nccl_id(struct vgg_context *ctx, char id[VGG_CUDA_NCCL_ID_BYTES])
{
    (void)id;
    return without(ctx);
}

enum vgg_status vgg_cuda_communicator_open(struct vgg_context *ctx, struct vgg_cuda_communicator *c, const char *id,
                                           const int *devices, int count, int first, int size)
{
    (void)c, (void)id, (void)devices, (void)count, (void)first, (void)size;
    return without(ctx);
}

enum vgg_status vgg_cuda_communicator_mean(struct vgg_context *ctx, struct vgg_cuda_communicator *c, float *const *tensors,
                                           const size_t *sizes, size_t count, const double *weight)
{
    (void)c, (void)tensors, (void)sizes, (void)count, (void)weight;
    return without(ctx);
}

enum vgg_status vgg_cuda_communicator_check(struct vgg_context *ctx, struct vgg_cuda_communicator *c)
{
    (void)c;
    return without(ctx);
}

void vgg_cuda_communicator_abort(struct vgg_cuda_communicator *c)
{
    (void)c;
}

void vgg_cuda_communicator_close(struct vgg_cuda_communicator *c)
{
    (void)c;
}

static enum vgg_status average_by_nccl(struct vgg_context *const *ctx, float *const *grad, const double *weight, int count,
                                       size_t size)
{
    (void)grad, (void)weight, (void)count, (void)size;
    return without(ctx[0]);
}

#endif

/* Gradients that lie on one device. */
static enum vgg_status average_here(struct vgg_context *ctx, float *const *grad, const double *weight, int count, size_t size)
{
    struct vgg_cuda_average_list list = {.total = 0, .count = count};
    cudaStream_t stream;
    CUDA_PASS(vgg_cuda_enter(ctx, &stream));
    for (int d = 0; d < count; d++) {
        list.in[d] = grad[d];
        list.weight[d] = weight[d];
        list.total += weight[d];
    }
    CUDA_TRY(ctx, vgg_cuda_launch_average(grad[0], &list, size, stream));
    for (int d = 1; d < count; d++)
        CUDA_TRY(ctx, cudaMemcpyAsync(grad[d], grad[0], size * sizeof(float), cudaMemcpyDeviceToDevice, stream));
    return VGG_OK;
}

enum vgg_status vgg_cuda_average(struct vgg_context *const *ctx, float *const *grad, const double *weight, size_t devices,
                                 size_t size)
{
    size_t different = 0;
    if (devices > VGG_CUDA_MAX_DEVICES)
        return vgg_fail(ctx[0]->error, VGG_UNSUPPORTED, "average_gradients: %zu lists; expected at most %d", devices,
                        VGG_CUDA_MAX_DEVICES);
    for (size_t d = 0; d < devices; d++) {
        bool seen = false;
        for (size_t e = 0; e < d; e++)
            seen = seen || ctx[e]->device == ctx[d]->device;
        different += !seen;
    }
    if (different == 1)
        return average_here(ctx[0], grad, weight, (int)devices, size);
    if (different < devices)
        return vgg_fail(ctx[0]->error, VGG_UNSUPPORTED,
                        "average_gradients: %zu lists are on %zu devices; expected each on a "
                        "device of its own, or all on one",
                        devices, different);
    return average_by_nccl(ctx, grad, weight, (int)devices, size);
}

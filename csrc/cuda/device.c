/* device.c: devices, streams, memory and the ways between host and device. Contract: vgg.h.
 *
 * Memory is the runtime's stream-ordered pool, taken and given back on the legacy default stream, so that nothing has to be
 * remembered about who used what. A thread whose stream is another one waits for the default stream after it has taken
 * memory, and the default stream for it before memory goes back. The pool keeps what comes back for the next tensors, also
 * when the device is waited for. Counters are our own and exact.
 *
 * An upload copies into a ring of pinned memory and returns; the device fetches it when its turn comes. The host waits only
 * when the ring is full of bytes that are still on their way. Training images are fetched on a stream of their own into one of
 * two stages, so that those of the next step arrive while this one computes: the copy waits only for what read the stage two
 * fetches before, and what reads it waits for the copy. Stages are kept: memory of the pool would tie the two together. */
#include "host.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STAGES = 2 };
enum { SLOTS = 8, SLOT_BYTES = 8 << 20 }; /* the pinned ring of a device: 64 MiB, a batch of 256 crops of 224 x 224 fits */

static struct device {
    pthread_mutex_t lock; /* of everything below; never held while the device is waited for, but by upload_rows */
    size_t current, peak, allocations;
    cudaMemPool_t pool;  /* NULL before the first allocation */
    unsigned char *ring; /* pinned, SLOTS * SLOT_BYTES; made at the first upload */
    cudaEvent_t fetched[SLOTS];
    int slot;
    pthread_mutex_t stage_lock; /* of the stages; taken before `lock` */
    cudaStream_t copies;        /* non-blocking; made with the first stage */
    struct {
        unsigned char *data;
        size_t bytes;
        cudaEvent_t sent, read; /* read: what was queued before unstage */
    } stages[STAGES];
    int stage;
    pthread_mutex_t library_lock;
    cublasHandle_t cublas;
    cudnnHandle_t cudnn;
} devices[VGG_CUDA_MAX_DEVICES];
static int device_count;
static _Thread_local cudaStream_t streams[VGG_CUDA_MAX_DEVICES];

/* ------------------------------------------------------------------------------------------------ errors */

enum vgg_status vgg_cuda_fail(struct vgg_context *ctx, cudaError_t error, const char *what)
{
    (void)cudaGetLastError(); /* what can be forgotten is forgotten; a broken context says so again */
    enum vgg_status status = error == cudaErrorMemoryAllocation ? VGG_OUT_OF_MEMORY : VGG_DEVICE;
    return vgg_fail(ctx->error, status, "cuda:%d: %s (%s) in %s", ctx->device, cudaGetErrorString(error),
                    cudaGetErrorName(error), what);
}

enum vgg_status vgg_cublas_fail(struct vgg_context *ctx, cublasStatus_t status, const char *what)
{
    enum vgg_status ours = status == CUBLAS_STATUS_ALLOC_FAILED ? VGG_OUT_OF_MEMORY : VGG_DEVICE;
    return vgg_fail(ctx->error, ours, "cuda:%d: cuBLAS: %s in %s", ctx->device, vgg_cublas.cublasGetStatusString(status), what);
}

enum vgg_status vgg_cudnn_fail(struct vgg_context *ctx, cudnnStatus_t status, const char *what)
{
    char words[120] = "";
    vgg_cudnn.cudnnGetLastErrorString(words, sizeof words);
    enum vgg_status ours = status / 1000 == 3 ? VGG_UNSUPPORTED : VGG_DEVICE; /* CUDNN_STATUS_NOT_SUPPORTED and its kind */
    if (status == CUDNN_STATUS_ALLOC_FAILED)
        ours = VGG_OUT_OF_MEMORY;
    return vgg_fail(ctx->error, ours, "cuda:%d: cuDNN: %s in %s: %s", ctx->device, vgg_cudnn.cudnnGetErrorString(status), what,
                    words);
}

/* ------------------------------------------------------------------------------------------------ devices and streams */

const char *vgg_cuda_find_devices(int *count, char *reason, size_t size)
{
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    int driver = 0, runtime = 0;
    cudaError_t error = cudaGetDeviceCount(count);
    if (error == cudaSuccess && *count > 0)
        return NULL;
    (void)cudaGetLastError();
    (void)cudaDriverGetVersion(&driver); /* 0: there is none */
    (void)cudaRuntimeGetVersion(&runtime);
    if (error == cudaSuccess || error == cudaErrorNoDevice)
        (void)snprintf(reason, size, visible ? "no GPU is visible: CUDA_VISIBLE_DEVICES is \"%s\"" : "no GPU is visible",
                       visible);
    else if (error == cudaErrorInsufficientDriver && driver == 0)
        (void)snprintf(reason, size, "there is no NVIDIA driver");
    else if (error == cudaErrorInsufficientDriver)
        (void)snprintf(reason, size, "the NVIDIA driver is too old: it knows CUDA %d.%d, and %d.%d is needed", driver / 1000,
                       driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    else
        (void)snprintf(reason, size, "the driver fails: %s (%s)", cudaGetErrorString(error), cudaGetErrorName(error));
    return reason;
}

const char *vgg_cuda_open(const char *cublas, const char *cudnn, char *reason, size_t size)
{
    int count = 0;
    const char *failure = vgg_cuda_find_devices(&count, reason, size);
    if (!failure)
        failure = vgg_cuda_open_libraries(cublas, cudnn, reason, size);
    if (failure)
        return failure;
    count = count < VGG_CUDA_MAX_DEVICES ? count : VGG_CUDA_MAX_DEVICES;
    for (int i = 0; i < count; i++) {
        pthread_mutex_init(&devices[i].lock, NULL);
        pthread_mutex_init(&devices[i].stage_lock, NULL);
        pthread_mutex_init(&devices[i].library_lock, NULL);
    }
    device_count = count;
    return NULL;
}

int vgg_cuda_device_count(void)
{
    return device_count;
}

cudaStream_t vgg_cuda_current_stream(int device)
{
    return streams[device];
}

void vgg_cuda_set_stream(int device, cudaStream_t stream)
{
    streams[device] = stream;
}

enum vgg_status vgg_cuda_wait(struct vgg_context *ctx, int device, cudaStream_t stream, int awaited_device,
                              cudaStream_t awaited)
{
    cudaEvent_t event;
    if (vgg_cuda_captured(device, stream) || vgg_cuda_captured(awaited_device, awaited))
        return vgg_cuda_refuse_capture(ctx, "one stream waits for another");
    CUDA_TRY(ctx, cudaSetDevice(awaited_device));
    CUDA_TRY(ctx, cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    cudaError_t error = cudaEventRecord(event, awaited);
    if (error == cudaSuccess)
        error = cudaSetDevice(device);
    if (error == cudaSuccess)
        error = cudaStreamWaitEvent(stream, event, 0);
    (void)cudaEventDestroy(event); /* goes when it has happened */
    CUDA_TRY(ctx, error);
    return VGG_OK;
}

intptr_t vgg_cuda_stream(int device)
{
    return streams[device] ? (intptr_t)streams[device] : (intptr_t)cudaStreamLegacy;
}

enum vgg_status vgg_cuda_order(struct vgg_context *ctx, intptr_t before, intptr_t after)
{
    /* The legacy and the per-thread default streams have DLPack's numbers, 1 and 2, as handles. */
    return before == after ? VGG_OK : vgg_cuda_wait(ctx, ctx->device, (cudaStream_t)after, ctx->device, (cudaStream_t)before);
}

enum vgg_status vgg_cuda_enter(struct vgg_context *ctx, cudaStream_t *stream)
{
    *stream = streams[ctx->device];
    CUDA_TRY(ctx, cudaSetDevice(ctx->device));
    return VGG_OK;
}

/* ------------------------------------------------------------------------------------------------ library handles */

void vgg_cuda_unlock(struct vgg_context *ctx)
{
    pthread_mutex_unlock(&devices[ctx->device].library_lock);
}

enum vgg_status vgg_cuda_expect_precision(struct vgg_context *ctx, const char *op, enum vgg_precision precision)
{
    int major = 0, minor = 0;
    if (precision != VGG_PRECISION_BF16)
        return VGG_OK;
    CUDA_TRY(ctx, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ctx->device));
    CUDA_TRY(ctx, cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ctx->device));
    if (major >= 8)
        return VGG_OK;
    return vgg_fail(ctx->error, VGG_UNSUPPORTED,
                    "%s: precision \"bf16\" needs a GPU of compute capability 8.0 or later; cuda:%d has %d.%d: use \"float32\"",
                    op, ctx->device, major, minor);
}

enum vgg_status vgg_cuda_lock_cublas(struct vgg_context *ctx, cublasHandle_t *handle, cudaStream_t stream,
                                     enum vgg_precision precision)
{
    /* float32 and nothing less; factors as narrow as they are stored, but sums in float32 */
    static const cublasMath_t modes[VGG_PRECISION_COUNT] = {CUBLAS_PEDANTIC_MATH, CUBLAS_TF32_TENSOR_OP_MATH,
                                                            CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION};
    struct device *d = &devices[ctx->device];
    pthread_mutex_lock(&d->library_lock);
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
    if (!d->cublas) {
        status = vgg_cublas.cublasCreate_v2(&d->cublas);
        if (status != CUBLAS_STATUS_SUCCESS)
            d->cublas = NULL;
    }
    if (status == CUBLAS_STATUS_SUCCESS)
        status = vgg_cublas.cublasSetMathMode(d->cublas, modes[precision]);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = vgg_cublas.cublasSetStream_v2(d->cublas, stream);
    *handle = d->cublas;
    enum vgg_status ours = status == CUBLAS_STATUS_SUCCESS ? VGG_OK : vgg_cublas_fail(ctx, status, "cublasCreate");
    if (ours == VGG_OK && vgg_cuda_capturing(ctx->device)) { /* until the next cublasSetStream */
        void *workspace;
        size_t bytes;
        ours = vgg_cuda_capture_cublas(ctx, &workspace, &bytes);
        if (ours == VGG_OK && (status = vgg_cublas.cublasSetWorkspace_v2(d->cublas, workspace, bytes)) != CUBLAS_STATUS_SUCCESS)
            ours = vgg_cublas_fail(ctx, status, "cublasSetWorkspace");
    }
    if (ours != VGG_OK)
        vgg_cuda_unlock(ctx);
    return ours;
}

enum vgg_status vgg_cuda_lock_cudnn(struct vgg_context *ctx, cudnnHandle_t *handle, cudaStream_t stream)
{
    struct device *d = &devices[ctx->device];
    pthread_mutex_lock(&d->library_lock);
    cudnnStatus_t status = CUDNN_STATUS_SUCCESS;
    if (!d->cudnn) {
        status = vgg_cudnn.cudnnCreate(&d->cudnn);
        if (status != CUDNN_STATUS_SUCCESS)
            d->cudnn = NULL;
    }
    if (status == CUDNN_STATUS_SUCCESS)
        status = vgg_cudnn.cudnnSetStream(d->cudnn, stream);
    *handle = d->cudnn;
    if (status == CUDNN_STATUS_SUCCESS)
        return VGG_OK;
    vgg_cuda_unlock(ctx);
    return vgg_cudnn_fail(ctx, status, "cudnnCreate");
}

/* ------------------------------------------------------------------------------------------------ workspace */

void *vgg_cuda_part(struct vgg_cuda_parts *parts, size_t count, size_t element)
{
    size_t bytes, from = parts->bytes;
    if (!vgg_mul_size(&bytes, count, element) || bytes > PTRDIFF_MAX - 255 ||
        !vgg_add_size(&parts->bytes, from, (bytes + 255) & ~(size_t)255) || parts->bytes > PTRDIFF_MAX)
        parts->overflow = true;
    return parts->base && !parts->overflow ? parts->base + from : NULL;
}

enum vgg_status vgg_cuda_parts_fit(struct vgg_context *ctx, const char *op, const struct vgg_cuda_parts *parts)
{
    if (parts->overflow)
        return vgg_fail(ctx->error, VGG_INVALID_ARGUMENT, "%s: the size of the workspace overflows", op);
    if (parts->bytes && (!ctx->workspace || ctx->workspace_bytes < parts->bytes))
        return vgg_fail(ctx->error, VGG_INVALID_ARGUMENT, "%s: workspace has %zu bytes; expected at least %zu", op,
                        ctx->workspace ? ctx->workspace_bytes : 0, parts->bytes);
    return VGG_OK;
}

/* ------------------------------------------------------------------------------------------------ memory */

cudaError_t vgg_cuda_free_memory(int device, size_t *free_bytes, size_t *total)
{
    *free_bytes = *total = 0;
    if (devices[device].pool)
        (void)cudaMemPoolTrimTo(devices[device].pool, 0);
    return cudaMemGetInfo(free_bytes, total);
}

/* Tells the device's pool, once, to keep its memory. */
static cudaError_t prepare_pool(struct device *d, int device)
{
    uint64_t everything = UINT64_MAX;
    cudaMemPool_t pool = NULL;
    cudaError_t error = cudaSuccess;
    pthread_mutex_lock(&d->lock);
    if (!d->pool) {
        error = cudaDeviceGetDefaultMemPool(&pool, device);
        if (error == cudaSuccess)
            error = cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &everything);
        if (error == cudaSuccess)
            d->pool = pool;
    }
    pthread_mutex_unlock(&d->lock);
    return error;
}

static enum vgg_status no_memory(struct vgg_context *ctx, size_t bytes)
{
    size_t free_bytes = 0, total = 0;
    (void)cudaGetLastError();
    (void)vgg_cuda_free_memory(ctx->device, &free_bytes, &total);
    (void)cudaGetLastError();
    return vgg_fail(ctx->error, VGG_OUT_OF_MEMORY, "cannot allocate %zu bytes on device cuda:%d: %zu of its %zu are free",
                    bytes, ctx->device, free_bytes, total);
}

enum vgg_status vgg_cuda_pool_allocate(struct vgg_context *ctx, void **data, size_t bytes)
{
    struct device *d = &devices[ctx->device];
    CUDA_TRY(ctx, cudaSetDevice(ctx->device));
    CUDA_TRY(ctx, prepare_pool(d, ctx->device));
    cudaError_t error = cudaMallocAsync(data, bytes, NULL);
    if (error == cudaErrorMemoryAllocation && !vgg_cuda_capturing(ctx->device)) { /* some may still be on its way back */
        (void)cudaGetLastError();
        if (cudaDeviceSynchronize() == cudaSuccess)
            error = cudaMallocAsync(data, bytes, NULL);
    }
    if (error == cudaErrorMemoryAllocation) {
        *data = NULL;
        return no_memory(ctx, bytes);
    }
    CUDA_TRY(ctx, error);
    if (streams[ctx->device] && !vgg_cuda_capturing(ctx->device)) {
        enum vgg_status status = vgg_cuda_wait(ctx, ctx->device, streams[ctx->device], ctx->device, NULL);
        if (status != VGG_OK) {
            (void)cudaFreeAsync(*data, NULL);
            *data = NULL;
            return status;
        }
    }
    pthread_mutex_lock(&d->lock);
    d->current += bytes;
    d->peak = vgg_max_size(d->peak, d->current);
    d->allocations++;
    pthread_mutex_unlock(&d->lock);
    return VGG_OK;
}

enum vgg_status vgg_cuda_allocate(struct vgg_context *ctx, void **data, size_t bytes)
{
    *data = NULL;
    if (bytes == 0)
        return VGG_OK;
    return (vgg_cuda_capturing(ctx->device) ? vgg_cuda_capture_allocate : vgg_cuda_pool_allocate)(ctx, data, bytes);
}

void vgg_cuda_pool_release(int device, void *data, size_t bytes)
{
    struct device *d = &devices[device];
    cudaStream_t stream = vgg_cuda_stream_beneath(device);
    int previous;
    if (cudaGetDevice(&previous) == cudaSuccess && cudaSetDevice(device) == cudaSuccess) {
        struct vgg_error error;
        struct vgg_context ctx = {.device = device, .error = &error};
        if (stream)
            (void)vgg_cuda_wait(&ctx, device, NULL, device, stream);
        (void)cudaFreeAsync(data, NULL);
        (void)cudaSetDevice(previous);
    }
    (void)cudaGetLastError(); /* a broken context has nothing left to give back */
    pthread_mutex_lock(&d->lock);
    d->current -= bytes;
    pthread_mutex_unlock(&d->lock);
}

void vgg_cuda_release(int device, void *data, size_t bytes)
{
    if (data && !vgg_cuda_capture_keeps(data))
        vgg_cuda_pool_release(device, data, bytes);
}

void vgg_cuda_memory_stats(int device, struct vgg_memory_stats *stats)
{
    struct device *d = &devices[device];
    size_t free_bytes = 0, total = 0;
    if (cudaSetDevice(device) == cudaSuccess)
        (void)vgg_cuda_free_memory(device, &free_bytes, &total);
    (void)cudaGetLastError();
    pthread_mutex_lock(&d->lock);
    *stats = (struct vgg_memory_stats){d->current, d->peak, d->allocations, free_bytes, total};
    pthread_mutex_unlock(&d->lock);
}

void vgg_cuda_reset_peak(int device)
{
    struct device *d = &devices[device];
    pthread_mutex_lock(&d->lock);
    d->peak = d->current;
    pthread_mutex_unlock(&d->lock);
}

/* ------------------------------------------------------------------------------------------------ transfers */

static enum vgg_status make_ring(struct vgg_context *ctx, struct device *d)
{
    for (int slot = 0; slot < SLOTS; slot++)
        if (!d->fetched[slot])
            CUDA_TRY(ctx, cudaEventCreateWithFlags(&d->fetched[slot], cudaEventDisableTiming));
    if (!d->ring)
        CUDA_TRY(ctx, cudaHostAlloc((void **)&d->ring, (size_t)SLOTS * SLOT_BYTES, cudaHostAllocPortable));
    return VGG_OK;
}

/* Sends the `filled` bytes of the current slot to `to`, and goes on to the next. */
static enum vgg_status send_slot(struct vgg_context *ctx, struct device *d, void *to, size_t filled, cudaStream_t stream)
{
    if (filled == 0)
        return VGG_OK;
    CUDA_TRY(ctx, cudaMemcpyAsync(to, d->ring + (size_t)d->slot * SLOT_BYTES, filled, cudaMemcpyHostToDevice, stream));
    cudaError_t error = cudaEventRecord(d->fetched[d->slot], stream);
    if (error != cudaSuccess) /* no event tells when the slot may be filled again */
        (void)cudaStreamSynchronize(stream);
    CUDA_TRY(ctx, error);
    d->slot = (d->slot + 1) % SLOTS;
    return VGG_OK;
}

static enum vgg_status send_rows(struct vgg_context *ctx, struct device *d, unsigned char *to,
                                 const struct vgg_cuda_rows *pieces, size_t count, cudaStream_t stream)
{
    CUDA_PASS(make_ring(ctx, d));
    size_t filled = 0;
    for (size_t i = 0; i < count; i++)
        for (size_t row = 0; row < pieces[i].rows; row++) {
            const unsigned char *from = pieces[i].from + row * pieces[i].stride;
            for (size_t left = pieces[i].row_bytes; left;) {
                size_t part = vgg_min_size(left, SLOT_BYTES - filled);
                if (filled == 0)
                    CUDA_TRY(ctx, cudaEventSynchronize(d->fetched[d->slot]));
                memcpy(d->ring + (size_t)d->slot * SLOT_BYTES + filled, from, part);
                from += part;
                left -= part;
                filled += part;
                if (filled == SLOT_BYTES) {
                    CUDA_PASS(send_slot(ctx, d, to, filled, stream));
                    to += filled;
                    filled = 0;
                }
            }
        }
    return send_slot(ctx, d, to, filled, stream);
}

enum vgg_status vgg_cuda_upload(struct vgg_context *ctx, void *to, const void *from_host, size_t bytes)
{
    struct device *d = &devices[ctx->device];
    const struct vgg_cuda_rows whole = {from_host, 1, bytes, bytes};
    cudaStream_t stream;
    if (vgg_cuda_capturing(ctx->device))
        return vgg_cuda_refuse_capture(ctx, "an upload");
    CUDA_PASS(vgg_cuda_enter(ctx, &stream));
    pthread_mutex_lock(&d->lock);
    enum vgg_status status = send_rows(ctx, d, to, &whole, 1, stream);
    pthread_mutex_unlock(&d->lock);
    return status;
}

/* The stage holds `bytes`, and the copies' stream may write there. */
static enum vgg_status prepare_stage(struct vgg_context *ctx, struct device *d, size_t bytes)
{
    if (!d->copies)
        CUDA_TRY(ctx, cudaStreamCreateWithFlags(&d->copies, cudaStreamNonBlocking));
    if (!d->stages[d->stage].sent)
        CUDA_TRY(ctx, cudaEventCreateWithFlags(&d->stages[d->stage].sent, cudaEventDisableTiming));
    if (!d->stages[d->stage].read)
        CUDA_TRY(ctx, cudaEventCreateWithFlags(&d->stages[d->stage].read, cudaEventDisableTiming));
    CUDA_TRY(ctx, cudaStreamWaitEvent(d->copies, d->stages[d->stage].read, 0));
    if (d->stages[d->stage].bytes >= bytes)
        return VGG_OK;
    if (d->stages[d->stage].data)
        CUDA_TRY(ctx, cudaFreeAsync(d->stages[d->stage].data, d->copies));
    d->stages[d->stage].data = NULL;
    d->stages[d->stage].bytes = 0;
    cudaError_t error = cudaMallocAsync((void **)&d->stages[d->stage].data, bytes, d->copies);
    if (error == cudaErrorMemoryAllocation)
        return no_memory(ctx, bytes);
    CUDA_TRY(ctx, error);
    d->stages[d->stage].bytes = bytes;
    return VGG_OK;
}

static enum vgg_status fill_stage(struct vgg_context *ctx, struct device *d, const struct vgg_cuda_rows *pieces, size_t count,
                                  cudaStream_t stream)
{
    size_t bytes = 0;
    for (size_t i = 0; i < count; i++)
        bytes += pieces[i].rows * pieces[i].row_bytes;
    CUDA_PASS(prepare_stage(ctx, d, bytes));
    pthread_mutex_lock(&d->lock);
    enum vgg_status status = send_rows(ctx, d, d->stages[d->stage].data, pieces, count, d->copies);
    pthread_mutex_unlock(&d->lock);
    CUDA_PASS(status);
    CUDA_TRY(ctx, cudaEventRecord(d->stages[d->stage].sent, d->copies));
    CUDA_TRY(ctx, cudaStreamWaitEvent(stream, d->stages[d->stage].sent, 0));
    return VGG_OK;
}

enum vgg_status vgg_cuda_stage(struct vgg_context *ctx, unsigned char **staged, const struct vgg_cuda_rows *pieces,
                               size_t count)
{
    struct device *d = &devices[ctx->device];
    cudaStream_t stream;
    if (vgg_cuda_capturing(ctx->device))
        return vgg_cuda_refuse_capture(ctx, "an upload");
    CUDA_PASS(vgg_cuda_enter(ctx, &stream));
    pthread_mutex_lock(&d->stage_lock);
    enum vgg_status status = fill_stage(ctx, d, pieces, count, stream);
    *staged = d->stages[d->stage].data;
    if (status != VGG_OK)
        pthread_mutex_unlock(&d->stage_lock);
    return status;
}

enum vgg_status vgg_cuda_unstage(struct vgg_context *ctx)
{
    struct device *d = &devices[ctx->device];
    cudaError_t error = cudaEventRecord(d->stages[d->stage].read, streams[ctx->device]);
    if (error != cudaSuccess) /* the copy two steps on can't wait for it then, so it is waited for here */
        (void)cudaStreamSynchronize(streams[ctx->device]);
    d->stage = (d->stage + 1) % STAGES;
    pthread_mutex_unlock(&d->stage_lock);
    CUDA_TRY(ctx, error);
    return VGG_OK;
}

enum vgg_status vgg_cuda_download(struct vgg_context *ctx, void *to_host, const void *from, size_t bytes)
{
    cudaStream_t stream;
    if (vgg_cuda_capturing(ctx->device))
        return vgg_cuda_refuse_capture(ctx, "a value is read");
    CUDA_PASS(vgg_cuda_enter(ctx, &stream));
    CUDA_TRY(ctx, cudaMemcpyAsync(to_host, from, bytes, cudaMemcpyDeviceToHost, stream));
    CUDA_TRY(ctx, cudaStreamSynchronize(stream));
    return VGG_OK;
}

enum vgg_status vgg_cuda_copy(struct vgg_context *ctx, void *to, const void *from, int from_device, size_t bytes)
{
    cudaStream_t stream;
    CUDA_PASS(vgg_cuda_enter(ctx, &stream));
    if (from_device == ctx->device) {
        CUDA_TRY(ctx, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream));
        return VGG_OK;
    }
    /* By way of the host where the two can't reach each other; the runtime sees to that. */
    CUDA_PASS(vgg_cuda_wait(ctx, ctx->device, stream, from_device, streams[from_device]));
    CUDA_TRY(ctx, cudaMemcpyPeerAsync(to, ctx->device, from, from_device, bytes, stream));
    return vgg_cuda_wait(ctx, from_device, streams[from_device], ctx->device, stream);
}

enum vgg_status vgg_cuda_zero(struct vgg_context *ctx, void *data, size_t bytes)
{
    cudaStream_t stream;
    CUDA_PASS(vgg_cuda_enter(ctx, &stream));
    if (bytes)
        CUDA_TRY(ctx, cudaMemsetAsync(data, 0, bytes, stream));
    return VGG_OK;
}

enum vgg_status vgg_cuda_synchronize(struct vgg_context *ctx)
{
    cudaStream_t stream;
    if (vgg_cuda_capturing(ctx->device))
        return vgg_cuda_refuse_capture(ctx, "the device is waited for");
    CUDA_PASS(vgg_cuda_enter(ctx, &stream));
    CUDA_TRY(ctx, cudaStreamSynchronize(stream));
    return VGG_OK;
}

/* ops/backend_cpu.c: the CPU's backend table, and its memory entries. */
#include "cpu.h"

#include <string.h>

/* They have threads of their own, so that replicas of a net in one process can compute at once, and share one memory. */
int vgg_cpu_device_count(void)
{
    return VGG_CPU_DEVICES;
}

enum vgg_status vgg_cpu_allocate(struct vgg_context *ctx, void **data, size_t bytes)
{
    *data = NULL;
    if (bytes == 0)
        return VGG_OK;
    *data = vgg_allocate(bytes);
    if (*data == NULL)
        return vgg_fail(ctx->error, VGG_OUT_OF_MEMORY, "cannot allocate %zu bytes on device cpu", bytes);
    return VGG_OK;
}

void vgg_cpu_release(int device, void *data, size_t bytes)
{
    (void)device;
    if (data != NULL)
        vgg_release(data, bytes);
}

/* Copying is parallel for the page faults of fresh memory, which cost more than the bytes. */
enum { COPY_CHUNK = 1 << 20 };

struct transfer {
    unsigned char *to;
    const unsigned char *from; /* NULL writes zeros */
    size_t bytes;
};

static void transfer_chunk(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct transfer *t = argument;
    size_t end, begin = vgg_chunk(&end, task, COPY_CHUNK, t->bytes);
    if (t->from == NULL)
        memset(t->to + begin, 0, end - begin);
    else
        memcpy(t->to + begin, t->from + begin, end - begin);
}

static enum vgg_status transfer(const struct vgg_context *ctx, void *to, const void *from, size_t bytes)
{
    struct transfer t = {to, from, bytes};
    int threads = bytes < 4 * (size_t)COPY_CHUNK ? 1 : ctx->threads;
    vgg_parallel_for(ctx->device, threads, vgg_ceil_div(bytes, COPY_CHUNK), transfer_chunk, &t);
    return VGG_OK;
}

enum vgg_status vgg_cpu_upload(struct vgg_context *ctx, void *to, const void *from_host, size_t bytes)
{
    return transfer(ctx, to, from_host, bytes);
}

enum vgg_status vgg_cpu_download(struct vgg_context *ctx, void *to_host, const void *from, size_t bytes)
{
    return transfer(ctx, to_host, from, bytes);
}

enum vgg_status vgg_cpu_copy(struct vgg_context *ctx, void *to, const void *from, int from_device, size_t bytes)
{
    (void)from_device; /* in the same memory */
    return transfer(ctx, to, from, bytes);
}

enum vgg_status vgg_cpu_zero(struct vgg_context *ctx, void *data, size_t bytes)
{
    return transfer(ctx, data, NULL, bytes);
}

enum vgg_status vgg_cpu_synchronize(struct vgg_context *ctx)
{
    (void)ctx; /* every call has finished when it returns */
    return VGG_OK;
}

intptr_t vgg_cpu_stream(int device)
{
    (void)device;
    return 0;
}

enum vgg_status vgg_cpu_order(struct vgg_context *ctx, intptr_t before, intptr_t after)
{
    (void)ctx, (void)before, (void)after; /* as synchronize */
    return VGG_OK;
}

void vgg_cpu_memory_stats(int device, struct vgg_memory_stats *stats)
{
    (void)device;
    vgg_allocation_stats(stats);
}

void vgg_cpu_reset_peak(int device)
{
    (void)device;
    vgg_allocation_reset_peak();
}

#define X(entry) .entry = vgg_cpu_##entry,
const struct vgg_backend vgg_cpu_backend = {.name = "cpu", .host = true, .dlpack_type = 1, VGG_BACKEND_ENTRIES(X)};
#undef X

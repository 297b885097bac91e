/* ops/cpu.h: the CPU's entries of the backend table (contracts: vgg.h), and what its operations share. */
#ifndef VGG_CPU_H
#define VGG_CPU_H

#include "../vgg_internal.h"

#include <string.h>

/* Threads worth waking for `work` bytes of memory traffic, or as much arithmetic: small calls run as the caller's own tasks.
 * The partition into tasks never depends on it. */
static inline int vgg_cpu_threads(const struct vgg_context *ctx, size_t work)
{
    return work < (size_t)1 << 17 ? 1 : ctx->threads;
}

/* The part of 0..size-1 that task `task` of chunks of `chunk` takes: sets *end, returns the begin. */
static inline size_t vgg_chunk(size_t *end, size_t task, size_t chunk, size_t size)
{
    *end = vgg_min_size(size, (task + 1) * chunk);
    return task * chunk;
}

/* condition ? x : 0, as a mask: compilers make a conditional load of the other form, and then neither vectorise the loop nor
 * predict its branch. */
static inline float vgg_keep(bool condition, float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits &= 0u - (uint32_t)condition;
    memcpy(&x, &bits, sizeof x);
    return x;
}

#define X(entry) __typeof__(*vgg_cpu_backend.entry) vgg_cpu_##entry;
VGG_BACKEND_ENTRIES(X)
#undef X

#endif

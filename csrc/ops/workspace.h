/* ops/workspace.h: how conv2d and linear size and share out the workspace: a part for all, then a part for each thread. */
#ifndef VGG_WORKSPACE_H
#define VGG_WORKSPACE_H

#include "cpu.h"

/* Adds a * b * c floats, rounded up to 64 bytes, to *bytes; false on overflow. */
static inline bool vgg_reserve(size_t *bytes, size_t a, size_t b, size_t c)
{
    size_t block;
    return vgg_mul_size(&block, a, b) && vgg_mul_size(&block, block, c) && vgg_mul_size(&block, block, sizeof(float)) &&
           block <= PTRDIFF_MAX && vgg_add_size(bytes, *bytes, vgg_align64(block)) && *bytes <= PTRDIFF_MAX;
}

/* VGG_OK if the sizes of a workspace fit, else the one failure that they can have. */
static inline enum vgg_status vgg_workspace_fits(const struct vgg_context *ctx, const char *op, bool fits)
{
    return fits ? VGG_OK : vgg_fail(ctx->error, VGG_INVALID_ARGUMENT, "%s: the size of the workspace overflows", op);
}

/* *bytes = shared + each for every thread of the context. */
static inline enum vgg_status vgg_workspace_bytes(size_t *bytes, const struct vgg_context *ctx, const char *op, size_t shared,
                                                  size_t each)
{
    return vgg_workspace_fits(ctx, op, vgg_mul_size(bytes, each, (size_t)ctx->threads) && vgg_add_size(bytes, *bytes, shared));
}

/* How many threads a workspace serves that has `shared` bytes and `each` for a thread: sets *threads, at most ctx->threads.
 * VGG_INVALID_ARGUMENT if not even one. */
static inline enum vgg_status vgg_workspace_threads(const struct vgg_context *ctx, const char *op, int *threads, size_t shared,
                                                    size_t each)
{
    size_t given = ctx->workspace == NULL ? 0 : ctx->workspace_bytes;
    size_t slots = given < shared ? 0 : each == 0 ? (size_t)ctx->threads : (given - shared) / each;
    if (slots == 0)
        return vgg_fail(ctx->error, VGG_INVALID_ARGUMENT, "%s: workspace has %zu bytes; expected at least %zu", op, given,
                        shared + each);
    *threads = (int)vgg_min_size(slots, (size_t)ctx->threads);
    return VGG_OK;
}

#endif

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

/* ops/backend_cpu.c */
int vgg_cpu_device_count(void);
enum vgg_status vgg_cpu_allocate(struct vgg_context *ctx, void **data, size_t bytes);
void vgg_cpu_release(int device, void *data, size_t bytes);
enum vgg_status vgg_cpu_upload(struct vgg_context *ctx, void *to, const void *from_host, size_t bytes);
enum vgg_status vgg_cpu_download(struct vgg_context *ctx, void *to_host, const void *from, size_t bytes);
enum vgg_status vgg_cpu_copy(struct vgg_context *ctx, void *to, const void *from, int from_device, size_t bytes);
enum vgg_status vgg_cpu_zero(struct vgg_context *ctx, void *data, size_t bytes);
enum vgg_status vgg_cpu_synchronize(struct vgg_context *ctx);
intptr_t vgg_cpu_stream(int device);
enum vgg_status vgg_cpu_order(struct vgg_context *ctx, intptr_t before, intptr_t after);
void vgg_cpu_memory_stats(int device, struct vgg_memory_stats *stats);
void vgg_cpu_reset_peak(int device);

/* ops/convert.c */
enum vgg_status vgg_cpu_convert(struct vgg_context *ctx, void *to, enum vgg_dtype to_dtype, const void *from, size_t count);

/* ops/conv2d.c */
enum vgg_status vgg_cpu_conv2d_workspace(struct vgg_context *ctx, size_t *bytes, const struct vgg_conv2d *s,
                                         enum vgg_direction direction);
enum vgg_status vgg_cpu_conv2d_transformed_bytes(struct vgg_context *ctx, size_t *bytes, const struct vgg_conv2d *s);
enum vgg_status vgg_cpu_conv2d_transform(struct vgg_context *ctx, float *transformed, const float *w,
                                         const struct vgg_conv2d *s);
enum vgg_status vgg_cpu_conv2d(struct vgg_context *ctx, void *y, uint8_t *index, const void *x, const void *w, const float *b,
                               const struct vgg_conv2d *s);
enum vgg_status vgg_cpu_conv2d_backward_input(struct vgg_context *ctx, void *dx, const void *dy, const void *w, const void *y,
                                              const uint8_t *index, const struct vgg_conv2d *s);
enum vgg_status vgg_cpu_conv2d_backward_weight(struct vgg_context *ctx, float *dw, float *db, const void *dy, const void *x,
                                               const void *y, const uint8_t *index, const struct vgg_conv2d *s, int beta);

/* ops/max_pool2d.c */
enum vgg_status vgg_cpu_max_pool2d(struct vgg_context *ctx, void *y, uint8_t *index, const void *x,
                                   const struct vgg_max_pool2d *s);
enum vgg_status vgg_cpu_max_pool2d_backward(struct vgg_context *ctx, void *dx, const void *dy, const uint8_t *index,
                                            const struct vgg_max_pool2d *s);

/* ops/relu.c */
enum vgg_status vgg_cpu_relu(struct vgg_context *ctx, void *y, const void *x, size_t count, enum vgg_dtype dtype);
enum vgg_status vgg_cpu_relu_backward(struct vgg_context *ctx, void *dx, const void *dy, const void *y, size_t count,
                                      enum vgg_dtype dtype);
enum vgg_status vgg_cpu_add(struct vgg_context *ctx, void *y, const void *x, size_t count, enum vgg_dtype dtype);

/* ops/lrn.c */
enum vgg_status vgg_cpu_lrn(struct vgg_context *ctx, void *y, const void *x, const struct vgg_lrn *s);
enum vgg_status vgg_cpu_lrn_backward(struct vgg_context *ctx, void *dx, const void *dy, const void *x, const struct vgg_lrn *s);

/* ops/linear.c */
enum vgg_status vgg_cpu_linear_workspace(struct vgg_context *ctx, size_t *bytes, const struct vgg_linear *s,
                                         enum vgg_direction direction);
enum vgg_status vgg_cpu_linear(struct vgg_context *ctx, void *y, const void *x, const void *w, const float *b,
                               const struct vgg_linear *s);
enum vgg_status vgg_cpu_linear_backward_input(struct vgg_context *ctx, void *dx, const void *dy, const void *w,
                                              const struct vgg_linear *s);
enum vgg_status vgg_cpu_linear_backward_weight(struct vgg_context *ctx, float *dw, float *db, const void *dy, const void *x,
                                               const struct vgg_linear *s, int beta);

/* ops/softmax.c */
enum vgg_status vgg_cpu_softmax(struct vgg_context *ctx, float *y, const float *x, const struct vgg_softmax *s);
enum vgg_status vgg_cpu_cross_entropy(struct vgg_context *ctx, float *loss, float *dlogits, const float *logits,
                                      const int64_t *labels, const struct vgg_softmax *s);

/* ops/euclidean.c */
enum vgg_status vgg_cpu_euclidean_loss(struct vgg_context *ctx, float *loss, float *dx, const float *x, const float *target,
                                       const int64_t *labels, const struct vgg_euclidean *s);

/* ops/dropout.c */
enum vgg_status vgg_cpu_dropout(struct vgg_context *ctx, void *y, const void *x, const int64_t *rows,
                                const struct vgg_dropout *s);

/* ops/sgd.c */
enum vgg_status vgg_cpu_sgd(struct vgg_context *ctx, float *const *param, float *const *velocity, const float *const *grad,
                            const size_t *sizes, size_t count, const struct vgg_sgd *s);

/* ops/average.c */
enum vgg_status vgg_cpu_average(struct vgg_context *const *ctx, float *const *grad, const double *weight, size_t devices,
                                size_t size);

/* ops/augment.c */
enum vgg_status vgg_cpu_augment(struct vgg_context *ctx, float *x, const struct vgg_crop *crops, const struct vgg_augment *s);

/* ops/unfold.c */
enum vgg_status vgg_cpu_unfold(struct vgg_context *ctx, void *y, const void *x, const struct vgg_unfold *s);

/* ops/random.c */
enum vgg_status vgg_cpu_random_normal(struct vgg_context *ctx, float *x, size_t count, float scale, uint64_t seed,
                                      uint32_t purpose);
enum vgg_status vgg_cpu_random_uniform(struct vgg_context *ctx, float *x, size_t count, float scale, uint64_t seed,
                                       uint32_t purpose);

#endif

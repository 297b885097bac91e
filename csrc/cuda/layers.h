/* layers.h: entries of the table that are in layers.c and training.c. */
#ifndef VGG_CUDA_LAYERS_H
#define VGG_CUDA_LAYERS_H

#include "../vgg.h"

enum vgg_status vgg_cuda_max_pool2d(struct vgg_context *ctx, void *y, uint8_t *index, const void *x,
                                    const struct vgg_max_pool2d *s);
enum vgg_status vgg_cuda_max_pool2d_backward(struct vgg_context *ctx, void *dx, const void *dy, const uint8_t *index,
                                             const struct vgg_max_pool2d *s);
enum vgg_status vgg_cuda_convert(struct vgg_context *ctx, void *to, enum vgg_dtype to_dtype, const void *from, size_t count);
enum vgg_status vgg_cuda_relu(struct vgg_context *ctx, void *y, const void *x, size_t count, enum vgg_dtype dtype);
enum vgg_status vgg_cuda_relu_backward(struct vgg_context *ctx, void *dx, const void *dy, const void *y, size_t count,
                                       enum vgg_dtype dtype);
enum vgg_status vgg_cuda_add(struct vgg_context *ctx, void *y, const void *x, size_t count, enum vgg_dtype dtype);
enum vgg_status vgg_cuda_lrn(struct vgg_context *ctx, void *y, const void *x, const struct vgg_lrn *s);
enum vgg_status vgg_cuda_lrn_backward(struct vgg_context *ctx, void *dx, const void *dy, const void *x,
                                      const struct vgg_lrn *s);
enum vgg_status vgg_cuda_softmax(struct vgg_context *ctx, float *y, const float *x, const struct vgg_softmax *s);
enum vgg_status vgg_cuda_cross_entropy(struct vgg_context *ctx, float *loss, float *dlogits, const float *logits,
                                       const int64_t *labels, const struct vgg_softmax *s);
enum vgg_status vgg_cuda_euclidean_loss(struct vgg_context *ctx, float *loss, float *dx, const float *x, const float *target,
                                        const int64_t *labels, const struct vgg_euclidean *s);
enum vgg_status vgg_cuda_dropout(struct vgg_context *ctx, void *y, const void *x, const int64_t *rows,
                                 const struct vgg_dropout *s);
enum vgg_status vgg_cuda_sgd(struct vgg_context *ctx, float *const *param, float *const *velocity, const float *const *grad,
                             const size_t *sizes, size_t count, const struct vgg_sgd *s);
enum vgg_status vgg_cuda_average(struct vgg_context *const *ctx, float *const *grad, const double *weight, size_t devices,
                                 size_t size);
enum vgg_status vgg_cuda_augment(struct vgg_context *ctx, float *x, const struct vgg_crop *crops, const struct vgg_augment *s);
enum vgg_status vgg_cuda_unfold(struct vgg_context *ctx, void *y, const void *x, const struct vgg_unfold *s);
enum vgg_status vgg_cuda_random_normal(struct vgg_context *ctx, float *x, size_t count, float scale, uint64_t seed,
                                       uint32_t purpose);
enum vgg_status vgg_cuda_random_uniform(struct vgg_context *ctx, float *x, size_t count, float scale, uint64_t seed,
                                        uint32_t purpose);

#endif

/* ops/conv2d.h: what the files of the convolution share: conv2d.c (checks, choice, entries), conv2d_direct.c (forward and
 * input gradient), conv2d_weight.c (weight gradient), conv2d_first.c (all three where channels are few), conv2d_winograd.c and
 * conv2d_winograd_weight.c (the same by Winograd). */
#ifndef VGG_CONV2D_H
#define VGG_CONV2D_H

#include "workspace.h"

/* The gradient with respect to z, made row by row from what backward is given: dy, masked by y > 0, un-pooled by index. */
struct vgg_conv2d_gradient {
    const float *dy;
    const float *y;       /* or NULL */
    const uint8_t *index; /* or NULL */
    size_t h, w, k;       /* of the convolution's output */
    size_t oh, ow;        /* of dy: pooled with index, else h and w */
};

struct vgg_conv2d_gradient vgg_conv2d_gradient(const struct vgg_conv2d *s, const float *dy, const float *y,
                                               const uint8_t *index);
/* row[w][k] = row h of image n. */
void vgg_conv2d_gradient_row(float *row, const struct vgg_conv2d_gradient *g, size_t n, size_t h);

/* conv2d_direct.c: forward if g is NULL (x, bias, relu, pool), else the input gradient. */
enum vgg_status vgg_conv2d_direct_workspace(struct vgg_context *ctx, size_t *bytes, const struct vgg_conv2d *s, bool backward);
enum vgg_status vgg_conv2d_direct(struct vgg_context *ctx, float *y, uint8_t *index, const float *x,
                                  const struct vgg_conv2d_gradient *g, const float *w, const float *b,
                                  const struct vgg_conv2d *s);

/* conv2d_first.c: 3x3 kernels over few channels. vgg_conv2d_first_takes tells where they are faster. */
bool vgg_conv2d_first_takes(const struct vgg_conv2d *s, enum vgg_direction direction);
enum vgg_status vgg_conv2d_first_workspace(struct vgg_context *ctx, size_t *bytes, const struct vgg_conv2d *s,
                                           enum vgg_direction direction);
enum vgg_status vgg_conv2d_first(struct vgg_context *ctx, float *y, uint8_t *index, const float *x, const float *w,
                                 const float *b, const struct vgg_conv2d *s);
enum vgg_status vgg_conv2d_first_input(struct vgg_context *ctx, float *dx, const struct vgg_conv2d_gradient *g, const float *w,
                                       const struct vgg_conv2d *s);
enum vgg_status vgg_conv2d_first_weight(struct vgg_context *ctx, float *dw, float *db, const struct vgg_conv2d_gradient *g,
                                        const float *x, const struct vgg_conv2d *s, int beta);

/* conv2d_winograd.c: the same, for 3x3 kernels; and the weights of the forward pass, transformed beforehand. */
enum vgg_status vgg_conv2d_winograd_transformed_bytes(struct vgg_context *ctx, size_t *bytes, const struct vgg_conv2d *s);
enum vgg_status vgg_conv2d_winograd_transform(struct vgg_context *ctx, float *u, const float *w, const struct vgg_conv2d *s);
enum vgg_status vgg_conv2d_winograd_workspace(struct vgg_context *ctx, size_t *bytes, const struct vgg_conv2d *s,
                                              bool backward);
enum vgg_status vgg_conv2d_winograd(struct vgg_context *ctx, float *y, uint8_t *index, const float *x,
                                    const struct vgg_conv2d_gradient *g, const float *w, const float *b,
                                    const struct vgg_conv2d *s);

/* conv2d_weight.c */
enum vgg_status vgg_conv2d_weight_workspace(struct vgg_context *ctx, size_t *bytes, const struct vgg_conv2d *s);
enum vgg_status vgg_conv2d_weight(struct vgg_context *ctx, float *dw, float *db, const struct vgg_conv2d_gradient *g,
                                  const float *x, const struct vgg_conv2d *s, int beta);

/* conv2d_winograd_weight.c: the same, for 3x3 kernels. */
enum vgg_status vgg_conv2d_winograd_weight_workspace(struct vgg_context *ctx, size_t *bytes, const struct vgg_conv2d *s);
enum vgg_status vgg_conv2d_winograd_weight(struct vgg_context *ctx, float *dw, float *db, const struct vgg_conv2d_gradient *g,
                                           const float *x, const struct vgg_conv2d *s, int beta);

#endif

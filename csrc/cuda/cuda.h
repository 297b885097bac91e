/* cuda.h: what the files of csrc/cuda share: C (host) and CUDA C++ (kernels and their launches).
 *
 * Streams: every call is queued on the calling thread's stream of its device (device.c) and returns at once; only `download`
 * and `synchronize` wait. The default is the device's legacy stream, which is ordered with every blocking stream, so memory
 * may be given back there whatever stream used it last.
 * Errors: a status with the device's name, what was tried and the library's own words in ctx->error.
 */
#ifndef VGG_CUDA_H
#define VGG_CUDA_H

#include "../vgg.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { VGG_CUDA_MAX_DEVICES = 64 };

/* ------------------------------------------------------------------------------------------------ errors (device.c) */

enum vgg_status vgg_cuda_fail(struct vgg_context *ctx, cudaError_t error, const char *what);

/* `call` gives a cudaError_t. */
#define CUDA_TRY(ctx, call) \
    do { \
        cudaError_t cuda_try_error = (call); \
        if (cuda_try_error != cudaSuccess) \
            return vgg_cuda_fail(ctx, cuda_try_error, #call); \
    } while (0)

#define CUDA_PASS(expr) \
    do { \
        enum vgg_status cuda_pass_status = (expr); \
        if (cuda_pass_status != VGG_OK) \
            return cuda_pass_status; \
    } while (0)

/* ------------------------------------------------------------------------------------------------ devices (device.c) */

int vgg_cuda_count(void); /* usable devices; 0 before vgg_cuda_open */
/* Makes ctx's device the thread's and tells the stream that its work goes to. */
enum vgg_status vgg_cuda_enter(struct vgg_context *ctx, cudaStream_t *stream);
/* The calling thread's stream of a device; NULL is the legacy default. */
void vgg_cuda_set_stream(int device, cudaStream_t stream);
cudaStream_t vgg_cuda_stream(int device);

/* ------------------------------------------------------------------------------------------------ launches (.cu files)
 *
 * One function a kernel: outputs, inputs, shape, options, stream; it launches and returns cudaGetLastError(). Counts are in
 * elements, 64 bits wide; 0 launches nothing. Pointers of `float` are aligned to 4 bytes, no more. */

cudaError_t vgg_cuda_launch_relu(float *y, const float *x, size_t count, cudaStream_t stream);
cudaError_t vgg_cuda_launch_relu_backward(float *dx, const float *dy, const float *y, size_t count, cudaStream_t stream);
cudaError_t vgg_cuda_launch_add(float *y, const float *x, size_t count, cudaStream_t stream);
/* y[row][k] = epilogue(y[row][k] + b[k]); b NULL adds nothing */
cudaError_t vgg_cuda_launch_bias_relu(float *y, const float *b, size_t rows, size_t k, bool relu, cudaStream_t stream);
/* out[i] = the float of the bfloat16 in[i] */
cudaError_t vgg_cuda_launch_widen(float *out, const uint16_t *in, size_t count, cudaStream_t stream);
/* Rows of c values become rows of `padded` values, zeros last; or are cut back to c. */
cudaError_t vgg_cuda_launch_pad(float *out, const float *in, size_t rows, size_t c, size_t padded, cudaStream_t stream);
cudaError_t vgg_cuda_launch_unpad(float *out, const float *in, size_t rows, size_t c, size_t padded, cudaStream_t stream);

cudaError_t vgg_cuda_launch_max_pool2d(float *y, uint8_t *index /* or NULL */, const float *x, const struct vgg_max_pool2d *s,
                                       cudaStream_t stream);
/* dx[n][i][j][c] = dy where index says, and y > 0 (y or NULL: like dy), else 0 */
cudaError_t vgg_cuda_launch_unpool(float *dx, const float *dy, const float *y, const uint8_t *index,
                                   const struct vgg_max_pool2d *s, cudaStream_t stream);

cudaError_t vgg_cuda_launch_lrn(float *y, const float *x, const struct vgg_lrn *s, cudaStream_t stream);
cudaError_t vgg_cuda_launch_lrn_backward(float *dx, const float *dy, const float *x, const struct vgg_lrn *s,
                                         cudaStream_t stream);

/* sum[k] = (beta ? sum[k] : 0) + sum over rows of g[row][k]. Partial sums go to scratch of vgg_cuda_column_sums_bytes. */
size_t vgg_cuda_column_sums_bytes(size_t rows, size_t k);
cudaError_t vgg_cuda_launch_column_sums(float *sum, const float *g, void *scratch, size_t rows, size_t k, int beta,
                                        cudaStream_t stream);

cudaError_t vgg_cuda_launch_softmax(float *y, const float *x, const struct vgg_softmax *s, cudaStream_t stream);
/* A label out of range makes the loss and its row NaN: checking it would mean waiting for the device. */
cudaError_t vgg_cuda_launch_cross_entropy(float *loss, float *dlogits, const float *logits, const int64_t *labels,
                                          const struct vgg_softmax *s, cudaStream_t stream);

cudaError_t vgg_cuda_launch_euclidean_loss(float *loss, float *dx, const float *x, const float *target, const int64_t *labels,
                                           const struct vgg_euclidean *s, cudaStream_t stream);

cudaError_t vgg_cuda_launch_dropout(float *y, const float *x, const int64_t *rows, const struct vgg_dropout *s,
                                    cudaStream_t stream);
cudaError_t vgg_cuda_launch_random_normal(float *x, size_t count, float scale, uint64_t seed, uint32_t purpose,
                                          cudaStream_t stream);
cudaError_t vgg_cuda_launch_random_uniform(float *x, size_t count, float scale, uint64_t seed, uint32_t purpose,
                                           cudaStream_t stream);

/* The tensors of one launch: a net's parameters fit into one. */
enum { VGG_CUDA_SGD_TENSORS = 64 };
struct vgg_cuda_sgd_list {
    float *param[VGG_CUDA_SGD_TENSORS], *velocity[VGG_CUDA_SGD_TENSORS];
    const float *grad[VGG_CUDA_SGD_TENSORS];
    size_t size[VGG_CUDA_SGD_TENSORS];
    int count;
};
cudaError_t vgg_cuda_launch_sgd(const struct vgg_cuda_sgd_list *list, const struct vgg_sgd *s, cudaStream_t stream);

/* out[j] = sum over d of weight[d] in[d][j] / total, in float64 in the order of d; out may be one of in. */
struct vgg_cuda_average_list {
    const float *in[VGG_CUDA_MAX_DEVICES];
    double weight[VGG_CUDA_MAX_DEVICES], total;
    int count;
};
cudaError_t vgg_cuda_launch_average(float *out, const struct vgg_cuda_average_list *list, size_t size, cudaStream_t stream);

/* crops: n times (size, size, c) bytes; offset and mirror: (n, 4) floats and n bytes, both on the device */
cudaError_t vgg_cuda_launch_augment(float *x, const uint8_t *crops, const float *offset, const uint8_t *mirror,
                                    const struct vgg_augment *s, cudaStream_t stream);
cudaError_t vgg_cuda_launch_unfold(float *y, const float *x, const struct vgg_unfold *s, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif

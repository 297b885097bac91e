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

/* Makes ctx's device the thread's and tells the stream that its work goes to. */
enum vgg_status vgg_cuda_enter(struct vgg_context *ctx, cudaStream_t *stream);
/* The calling thread's stream of a device; NULL is the legacy default. */
void vgg_cuda_set_stream(int device, cudaStream_t stream);
cudaStream_t vgg_cuda_current_stream(int device);

/* ------------------------------------------------------------------------------------------------ launches (.cu files)
 *
 * One function a kernel: outputs, inputs, shape, options, stream; it launches and returns cudaGetLastError(). Counts are in
 * elements, 64 bits wide; 0 launches nothing. Pointers are aligned to their elements, no more. `void *`: a map, float32 or
 * bfloat16. */

cudaError_t vgg_cuda_launch_relu(void *y, const void *x, size_t count, enum vgg_dtype dtype, cudaStream_t stream);
cudaError_t vgg_cuda_launch_relu_backward(void *dx, const void *dy, const void *y, size_t count, enum vgg_dtype dtype,
                                          cudaStream_t stream);
cudaError_t vgg_cuda_launch_add(void *y, const void *x, size_t count, enum vgg_dtype dtype, cudaStream_t stream);
/* y[row][k] = epilogue(z[row][k] + b[k]); b NULL adds nothing; y may be z; of one dtype, or y bfloat16 and z float32 */
cudaError_t vgg_cuda_launch_bias_relu(void *y, enum vgg_dtype dtype, const void *z, enum vgg_dtype z_dtype, const float *b,
                                      size_t rows, size_t k, bool relu, cudaStream_t stream);
/* out[i], of `dtype`, = in[i]: from float32 to bfloat16, or from that to float32 */
cudaError_t vgg_cuda_launch_convert(void *out, enum vgg_dtype dtype, const void *in, size_t count, cudaStream_t stream);
/* Rows of c values become rows of `padded` values, zeros last; or are cut back to c. */
cudaError_t vgg_cuda_launch_pad(void *out, const void *in, size_t rows, size_t c, size_t padded, enum vgg_dtype dtype,
                                cudaStream_t stream);
cudaError_t vgg_cuda_launch_unpad(void *out, const void *in, size_t rows, size_t c, size_t padded, enum vgg_dtype dtype,
                                  cudaStream_t stream);

cudaError_t vgg_cuda_launch_max_pool2d(void *y, uint8_t *index /* or NULL */, const void *x, const struct vgg_max_pool2d *s,
                                       cudaStream_t stream);
/* dx[n][i][j][c] = dy where index says, and y > 0 (y or NULL: like dy), else 0 */
cudaError_t vgg_cuda_launch_unpool(void *dx, const void *dy, const void *y, const uint8_t *index,
                                   const struct vgg_max_pool2d *s, cudaStream_t stream);

cudaError_t vgg_cuda_launch_lrn(void *y, const void *x, const struct vgg_lrn *s, cudaStream_t stream);
cudaError_t vgg_cuda_launch_lrn_backward(void *dx, const void *dy, const void *x, const struct vgg_lrn *s, cudaStream_t stream);

/* sum[k] = (beta ? sum[k] : 0) + sum over rows of g[row][k]. Partial sums go to scratch of vgg_cuda_column_sums_bytes. */
size_t vgg_cuda_column_sums_bytes(size_t rows, size_t k);
cudaError_t vgg_cuda_launch_column_sums(float *sum, const void *g, enum vgg_dtype dtype, void *scratch, size_t rows, size_t k,
                                        int beta, cudaStream_t stream);

cudaError_t vgg_cuda_launch_softmax(float *y, const float *x, const struct vgg_softmax *s, cudaStream_t stream);
/* A label out of range makes the loss and its row NaN: checking it would mean waiting for the device. */
cudaError_t vgg_cuda_launch_cross_entropy(float *loss, float *dlogits, const float *logits, const int64_t *labels,
                                          const struct vgg_softmax *s, cudaStream_t stream);

cudaError_t vgg_cuda_launch_euclidean_loss(float *loss, float *dx, const float *x, const float *target, const int64_t *labels,
                                           const struct vgg_euclidean *s, cudaStream_t stream);

cudaError_t vgg_cuda_launch_dropout(void *y, const void *x, const int64_t *rows, const struct vgg_dropout *s,
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
cudaError_t vgg_cuda_launch_unfold(void *y, const void *x, const struct vgg_unfold *s, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif

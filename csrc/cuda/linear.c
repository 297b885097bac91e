/* linear.c: fully connected layers through cuBLAS (paper, section 2.1). Contract: vgg.h.
 *
 * cuBLAS counts by columns, so a row-major (rows, columns) matrix is its (columns, rows) matrix with leading dimension
 * `columns`; the products below are those of vgg.h, transposed. */
#include "host.h"

#include <limits.h>

enum { WIDENED = 64 << 20 }; /* bytes of bfloat16 weights that are widened at a time */

static enum vgg_status gemm(struct vgg_context *ctx, cudaStream_t stream, bool tf32, cublasOperation_t a_op,
                            cublasOperation_t b_op, size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b,
                            size_t ldb, int beta, float *c, size_t ldc)
{
    if (m > INT_MAX || n > INT_MAX || k > INT_MAX || lda > INT_MAX || ldb > INT_MAX || ldc > INT_MAX)
        return vgg_fail(ctx->error, VGG_UNSUPPORTED, "linear: a side of %zu by %zu by %zu is beyond cuBLAS's 32 bits", m, n, k);
    cublasHandle_t handle;
    const float one = 1, scale = beta ? 1 : 0;
    CUDA_PASS(vgg_cuda_lock_cublas(ctx, &handle, stream, tf32));
    cublasStatus_t status = vgg_cublas.cublasSgemm_v2(handle, a_op, b_op, (int)m, (int)n, (int)k, &one, a, (int)lda, b,
                                                      (int)ldb, &scale, c, (int)ldc);
    vgg_cuda_unlock(ctx);
    return status == CUBLAS_STATUS_SUCCESS ? VGG_OK : vgg_cublas_fail(ctx, status, "cublasSgemm");
}

/* Outputs whose bfloat16 weights are widened together. */
static size_t widened_outputs(const struct vgg_linear *s)
{
    return vgg_min_size(s->out, vgg_max_size(1, WIDENED / sizeof(float) / vgg_max_size(1, s->in)));
}

enum vgg_status vgg_cuda_linear_workspace(struct vgg_context *ctx, size_t *bytes, const struct vgg_linear *s,
                                          enum vgg_direction direction)
{
    struct vgg_cuda_parts parts = {.base = NULL};
    if (direction == VGG_BACKWARD_WEIGHT)
        vgg_cuda_part(&parts, vgg_cuda_column_sums_bytes(s->n, s->out), 1);
    if (direction == VGG_FORWARD && s->bfloat16)
        vgg_cuda_part(&parts, widened_outputs(s) * s->in, sizeof(float));
    if (parts.overflow)
        return vgg_fail(ctx->error, VGG_INVALID_ARGUMENT, "linear: the size of the workspace overflows");
    *bytes = parts.bytes;
    return VGG_OK;
}

enum vgg_status vgg_cuda_linear(struct vgg_context *ctx, float *y, const float *x, const void *w, const float *b,
                                const struct vgg_linear *s)
{
    cudaStream_t stream;
    CUDA_PASS(vgg_cuda_enter(ctx, &stream));
    if (s->n == 0 || s->out == 0)
        return VGG_OK;
    if (s->in == 0)
        CUDA_TRY(ctx, cudaMemsetAsync(y, 0, s->n * s->out * sizeof(float), stream));
    else if (s->bfloat16) {
        struct vgg_cuda_parts parts = {.base = ctx->workspace};
        size_t step = widened_outputs(s);
        float *wide = vgg_cuda_part(&parts, step * s->in, sizeof(float));
        CUDA_PASS(vgg_cuda_parts_fit(ctx, "linear", &parts));
        for (size_t o = 0; o < s->out; o += step) {
            size_t count = vgg_min_size(step, s->out - o);
            CUDA_TRY(ctx, vgg_cuda_launch_widen(wide, (const uint16_t *)w + o * s->in, count * s->in, stream));
            CUDA_PASS(gemm(ctx, stream, s->tf32, CUBLAS_OP_T, CUBLAS_OP_N, count, s->n, s->in, wide, s->in, x, s->in, 0, y + o,
                           s->out));
        }
    } else
        CUDA_PASS(gemm(ctx, stream, s->tf32, CUBLAS_OP_T, CUBLAS_OP_N, s->out, s->n, s->in, w, s->in, x, s->in, 0, y, s->out));
    CUDA_TRY(ctx, vgg_cuda_launch_bias_relu(y, b, s->n, s->out, s->relu, stream));
    return VGG_OK;
}

enum vgg_status vgg_cuda_linear_backward_input(struct vgg_context *ctx, float *dx, const float *dy, const float *w,
                                               const struct vgg_linear *s)
{
    cudaStream_t stream;
    CUDA_PASS(vgg_cuda_enter(ctx, &stream));
    if (s->n == 0 || s->in == 0)
        return VGG_OK;
    if (s->out == 0) {
        CUDA_TRY(ctx, cudaMemsetAsync(dx, 0, s->n * s->in * sizeof(float), stream));
        return VGG_OK;
    }
    return gemm(ctx, stream, s->tf32, CUBLAS_OP_N, CUBLAS_OP_N, s->in, s->n, s->out, w, s->in, dy, s->out, 0, dx, s->in);
}

enum vgg_status vgg_cuda_linear_backward_weight(struct vgg_context *ctx, float *dw, float *db, const float *dy, const float *x,
                                                const struct vgg_linear *s, int beta)
{
    cudaStream_t stream;
    CUDA_PASS(vgg_cuda_enter(ctx, &stream));
    struct vgg_cuda_parts parts = {.base = ctx->workspace};
    void *partial = vgg_cuda_part(&parts, vgg_cuda_column_sums_bytes(s->n, s->out), 1);
    CUDA_PASS(vgg_cuda_parts_fit(ctx, "linear_backward_weight", &parts));
    CUDA_TRY(ctx, vgg_cuda_launch_column_sums(db, dy, partial, s->n, s->out, beta, stream));
    if (s->in == 0 || s->out == 0)
        return VGG_OK;
    if (s->n == 0) {
        if (!beta)
            CUDA_TRY(ctx, cudaMemsetAsync(dw, 0, s->in * s->out * sizeof(float), stream));
        return VGG_OK;
    }
    return gemm(ctx, stream, s->tf32, CUBLAS_OP_N, CUBLAS_OP_T, s->in, s->out, s->n, x, s->in, dy, s->out, beta, dw, s->in);
}

/* linear.c: fully connected layers through cuBLAS (paper, section 2.1). Contract: vgg.h.
 *
 * cuBLAS counts by columns, so a row-major (rows, columns) matrix is its (columns, rows) matrix with leading dimension
 * `columns`; the products below are those of vgg.h, transposed. */
#include "host.h"

#include <limits.h>

enum { WIDENED = 64 << 20 }; /* bytes of bfloat16 weights that are widened at a time */

/* a and b are of precision's dtype, c of c_dtype. */
static enum vgg_status gemm(struct vgg_context *ctx, cudaStream_t stream, enum vgg_precision precision, cublasOperation_t a_op,
                            cublasOperation_t b_op, size_t m, size_t n, size_t k, const void *a, size_t lda, const void *b,
                            size_t ldb, int beta, void *c, enum vgg_dtype c_dtype, size_t ldc)
{
    if (m > INT_MAX || n > INT_MAX || k > INT_MAX || lda > INT_MAX || ldb > INT_MAX || ldc > INT_MAX)
        return vgg_fail(ctx->error, VGG_UNSUPPORTED, "linear: a side of %zu by %zu by %zu is beyond cuBLAS's 32 bits", m, n, k);
    cublasHandle_t handle;
    const float one = 1, scale = beta ? 1 : 0;
    const bool narrow = precision == VGG_PRECISION_BF16;
    CUDA_PASS(vgg_cuda_lock_cublas(ctx, &handle, stream, precision));
    cublasStatus_t status =
        narrow ? vgg_cublas.cublasGemmEx(handle, a_op, b_op, (int)m, (int)n, (int)k, &one, a, CUDA_R_16BF, (int)lda, b,
                                         CUDA_R_16BF, (int)ldb, &scale, c, c_dtype == VGG_BFLOAT16 ? CUDA_R_16BF : CUDA_R_32F,
                                         (int)ldc, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT)
               : vgg_cublas.cublasSgemm_v2(handle, a_op, b_op, (int)m, (int)n, (int)k, &one, a, (int)lda, b, (int)ldb, &scale,
                                           c, (int)ldc);
    vgg_cuda_unlock(ctx);
    return status == CUBLAS_STATUS_SUCCESS ? VGG_OK : vgg_cublas_fail(ctx, status, narrow ? "cublasGemmEx" : "cublasSgemm");
}

/* Outputs whose bfloat16 weights are widened together. */
static size_t widened_outputs(const struct vgg_linear *s)
{
    return vgg_min_size(s->out, vgg_max_size(1, WIDENED / sizeof(float) / vgg_max_size(1, s->in)));
}

/* In bf16 the sums of the forward pass are float32 until the bias is added, and a float32 dy is rounded. The bytes are
 * planned without knowing whether y and dy are float32: it may be more than the call takes. */
enum vgg_status vgg_cuda_linear_workspace(struct vgg_context *ctx, size_t *bytes, const struct vgg_linear *s,
                                          enum vgg_direction direction)
{
    struct vgg_cuda_parts parts = {.base = NULL};
    const bool narrow = s->precision == VGG_PRECISION_BF16;
    if (direction == VGG_BACKWARD_WEIGHT)
        vgg_cuda_part(&parts, vgg_cuda_column_sums_bytes(s->n, s->out), 1);
    if (direction == VGG_FORWARD && s->bfloat16 && !narrow)
        vgg_cuda_part(&parts, widened_outputs(s) * s->in, sizeof(float));
    size_t count;
    parts.overflow = parts.overflow || !vgg_mul_size(&count, s->n, s->out);
    if (narrow && !parts.overflow)
        vgg_cuda_part(&parts, count, direction == VGG_FORWARD ? sizeof(float) : sizeof(uint16_t));
    if (parts.overflow)
        return vgg_fail(ctx->error, VGG_INVALID_ARGUMENT, "linear: the size of the workspace overflows");
    *bytes = parts.bytes;
    return VGG_OK;
}

enum vgg_status vgg_cuda_linear(struct vgg_context *ctx, void *y, const void *x, const void *w, const float *b,
                                const struct vgg_linear *s)
{
    cudaStream_t stream;
    CUDA_PASS(vgg_cuda_expect_precision(ctx, "linear", s->precision));
    CUDA_PASS(vgg_cuda_enter(ctx, &stream));
    if (s->n == 0 || s->out == 0)
        return VGG_OK;
    const bool narrow = s->precision == VGG_PRECISION_BF16;
    struct vgg_cuda_parts parts = {.base = ctx->workspace};
    float *z = narrow && !s->wide ? vgg_cuda_part(&parts, s->n * s->out, sizeof(float)) : y;
    const size_t step = widened_outputs(s);
    float *wide = s->bfloat16 && !narrow ? vgg_cuda_part(&parts, step * s->in, sizeof(float)) : NULL;
    CUDA_PASS(vgg_cuda_parts_fit(ctx, "linear", &parts));
    if (s->in == 0)
        CUDA_TRY(ctx, cudaMemsetAsync(z, 0, s->n * s->out * sizeof(float), stream));
    else if (wide)
        for (size_t o = 0; o < s->out; o += step) {
            size_t count = vgg_min_size(step, s->out - o);
            CUDA_TRY(ctx, vgg_cuda_launch_convert(wide, VGG_FLOAT32, (const uint16_t *)w + o * s->in, count * s->in, stream));
            CUDA_PASS(gemm(ctx, stream, s->precision, CUBLAS_OP_T, CUBLAS_OP_N, count, s->n, s->in, wide, s->in, x, s->in, 0,
                           z + o, VGG_FLOAT32, s->out));
        }
    else
        CUDA_PASS(gemm(ctx, stream, s->precision, CUBLAS_OP_T, CUBLAS_OP_N, s->out, s->n, s->in, w, s->in, x, s->in, 0, z,
                       VGG_FLOAT32, s->out));
    CUDA_TRY(ctx, vgg_cuda_launch_bias_relu(y, z == y ? VGG_FLOAT32 : VGG_BFLOAT16, z, VGG_FLOAT32, b, s->n, s->out, s->relu,
                                            stream));
    return VGG_OK;
}

/* *dy, rounded to bfloat16 in `parts` where that is what is multiplied. */
static enum vgg_status round_gradient(struct vgg_context *ctx, const char *op, const void **dy, struct vgg_cuda_parts *parts,
                                      const struct vgg_linear *s, cudaStream_t stream)
{
    void *rounded = s->wide ? vgg_cuda_part(parts, s->n * s->out, sizeof(uint16_t)) : NULL;
    CUDA_PASS(vgg_cuda_parts_fit(ctx, op, parts));
    if (!s->wide)
        return VGG_OK;
    CUDA_TRY(ctx, vgg_cuda_launch_convert(rounded, VGG_BFLOAT16, *dy, s->n * s->out, stream));
    *dy = rounded;
    return VGG_OK;
}

enum vgg_status vgg_cuda_linear_backward_input(struct vgg_context *ctx, void *dx, const void *dy, const void *w,
                                               const struct vgg_linear *s)
{
    static const char op[] = "linear_backward_input";
    const enum vgg_dtype dtype = vgg_precision_dtype(s->precision);
    cudaStream_t stream;
    CUDA_PASS(vgg_cuda_expect_precision(ctx, op, s->precision));
    CUDA_PASS(vgg_cuda_enter(ctx, &stream));
    if (s->n == 0 || s->in == 0)
        return VGG_OK;
    if (s->out == 0) {
        CUDA_TRY(ctx, cudaMemsetAsync(dx, 0, s->n * s->in * vgg_dtype_size(dtype), stream));
        return VGG_OK;
    }
    struct vgg_cuda_parts parts = {.base = ctx->workspace};
    CUDA_PASS(round_gradient(ctx, op, &dy, &parts, s, stream));
    return gemm(ctx, stream, s->precision, CUBLAS_OP_N, CUBLAS_OP_N, s->in, s->n, s->out, w, s->in, dy, s->out, 0, dx, dtype,
                s->in);
}

enum vgg_status vgg_cuda_linear_backward_weight(struct vgg_context *ctx, float *dw, float *db, const void *dy, const void *x,
                                                const struct vgg_linear *s, int beta)
{
    static const char op[] = "linear_backward_weight";
    cudaStream_t stream;
    CUDA_PASS(vgg_cuda_expect_precision(ctx, op, s->precision));
    CUDA_PASS(vgg_cuda_enter(ctx, &stream));
    struct vgg_cuda_parts parts = {.base = ctx->workspace};
    void *partial = vgg_cuda_part(&parts, vgg_cuda_column_sums_bytes(s->n, s->out), 1);
    const void *g = dy;
    CUDA_PASS(round_gradient(ctx, op, &g, &parts, s, stream));
    const enum vgg_dtype dtype = s->wide ? VGG_FLOAT32 : vgg_precision_dtype(s->precision);
    CUDA_TRY(ctx, vgg_cuda_launch_column_sums(db, dy, dtype, partial, s->n, s->out, beta, stream));
    if (s->in == 0 || s->out == 0)
        return VGG_OK;
    if (s->n == 0) {
        if (!beta)
            CUDA_TRY(ctx, cudaMemsetAsync(dw, 0, s->in * s->out * sizeof(float), stream));
        return VGG_OK;
    }
    return gemm(ctx, stream, s->precision, CUBLAS_OP_N, CUBLAS_OP_T, s->in, s->out, s->n, x, s->in, g, s->out, beta, dw,
                VGG_FLOAT32, s->in);
}

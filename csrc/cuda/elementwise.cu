/* elementwise.cu: operations that take each value by itself. Contracts: vgg.h and cuda.h. */
#include "launch.cuh"

/* z > 0, or NaN: what the CPU's `z < 0 ? 0 : z` keeps. */
template <typename T> __global__ static void relu_kernel(T *y, const T *x, size_t count)
{
    WORD_STRIDE(T, i, count) {
        float z = widen(x[i]);
        store(y + i, z < 0 ? 0 : z);
    }
}

cudaError_t vgg_cuda_launch_relu(void *y, const void *x, size_t count, enum vgg_dtype dtype, cudaStream_t stream)
{
    if (count)
        WITH_TYPE(dtype, T, relu_kernel<<<blocks_for(words_of<T>(count)), BLOCK, 0, stream>>>((T *)y, (const T *)x, count));
    return cudaGetLastError();
}

template <typename T> __global__ static void relu_backward_kernel(T *dx, const T *dy, const T *y, size_t count)
{
    WORD_STRIDE(T, i, count)
        store(dx + i, widen(y[i]) > 0 ? widen(dy[i]) : 0);
}

cudaError_t vgg_cuda_launch_relu_backward(void *dx, const void *dy, const void *y, size_t count, enum vgg_dtype dtype,
                                          cudaStream_t stream)
{
    if (count)
        WITH_TYPE(dtype, T,
                  relu_backward_kernel<<<blocks_for(words_of<T>(count)), BLOCK, 0, stream>>>((T *)dx, (const T *)dy,
                                                                                             (const T *)y, count));
    return cudaGetLastError();
}

template <typename T> __global__ static void add_kernel(T *y, const T *x, size_t count)
{
    WORD_STRIDE(T, i, count)
        store(y + i, widen(y[i]) + widen(x[i]));
}

cudaError_t vgg_cuda_launch_add(void *y, const void *x, size_t count, enum vgg_dtype dtype, cudaStream_t stream)
{
    if (count)
        WITH_TYPE(dtype, T, add_kernel<<<blocks_for(words_of<T>(count)), BLOCK, 0, stream>>>((T *)y, (const T *)x, count));
    return cudaGetLastError();
}

template <typename T, typename Z>
__global__ static void bias_relu_kernel(T *y, const Z *z, const float *b, size_t count, size_t k, bool relu)
{
    WORD_STRIDE(T, i, count) {
        float sum = widen(z[i]) + (b ? b[i % k] : 0);
        store(y + i, relu && sum < 0 ? 0 : sum);
    }
}

cudaError_t vgg_cuda_launch_bias_relu(void *y, enum vgg_dtype dtype, const void *z, enum vgg_dtype z_dtype, const float *b,
                                      size_t rows, size_t k, bool relu, cudaStream_t stream)
{
    size_t count = rows * k;
    const unsigned blocks = blocks_for(count);
    if (!count || (!b && !relu && y == z))
        return cudaSuccess;
    if (dtype == z_dtype)
        WITH_TYPE(dtype, T, bias_relu_kernel<<<blocks, BLOCK, 0, stream>>>((T *)y, (const T *)z, b, count, k, relu));
    else
        bias_relu_kernel<<<blocks, BLOCK, 0, stream>>>((bfloat16 *)y, (const float *)z, b, count, k, relu);
    return cudaGetLastError();
}

__global__ static void widen_kernel(float *out, const bfloat16 *in, size_t count)
{
    GRID_STRIDE(i, count)
        out[i] = widen(in[i]);
}

__global__ static void round_kernel(bfloat16 *out, const float *in, size_t count)
{
    GRID_STRIDE(i, count)
        store(out + i, in[i]);
}

cudaError_t vgg_cuda_launch_convert(void *out, enum vgg_dtype dtype, const void *in, size_t count, cudaStream_t stream)
{
    if (count && dtype == VGG_BFLOAT16)
        round_kernel<<<blocks_for(count), BLOCK, 0, stream>>>((bfloat16 *)out, (const float *)in, count);
    else if (count)
        widen_kernel<<<blocks_for(count), BLOCK, 0, stream>>>((float *)out, (const bfloat16 *)in, count);
    return cudaGetLastError();
}

template <typename T> __global__ static void pad_kernel(T *out, const T *in, size_t count, size_t c, size_t padded)
{
    GRID_STRIDE(i, count) {
        size_t row = i / padded, ch = i % padded;
        out[i] = ch < c ? in[row * c + ch] : T{0};
    }
}

cudaError_t vgg_cuda_launch_pad(void *out, const void *in, size_t rows, size_t c, size_t padded, enum vgg_dtype dtype,
                                cudaStream_t stream)
{
    if (rows)
        WITH_TYPE(
            dtype, T,
            pad_kernel<<<blocks_for(rows * padded), BLOCK, 0, stream>>>((T *)out, (const T *)in, rows * padded, c, padded));
    return cudaGetLastError();
}

template <typename T> __global__ static void unpad_kernel(T *out, const T *in, size_t count, size_t c, size_t padded)
{
    GRID_STRIDE(i, count)
        out[i] = in[i / c * padded + i % c];
}

cudaError_t vgg_cuda_launch_unpad(void *out, const void *in, size_t rows, size_t c, size_t padded, enum vgg_dtype dtype,
                                  cudaStream_t stream)
{
    if (rows && c)
        WITH_TYPE(dtype, T,
                  unpad_kernel<<<blocks_for(rows * c), BLOCK, 0, stream>>>((T *)out, (const T *)in, rows * c, c, padded));
    return cudaGetLastError();
}

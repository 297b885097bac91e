/* elementwise.cu: operations that take each value by itself. Contracts: vgg.h and cuda.h. */
#include "launch.cuh"

/* z > 0, or NaN: what the CPU's `z < 0 ? 0 : z` keeps. */
__global__ static void relu_kernel(float *y, const float *x, size_t count)
{
    GRID_STRIDE(i, count)
        y[i] = x[i] < 0 ? 0 : x[i];
}

cudaError_t vgg_cuda_launch_relu(float *y, const float *x, size_t count, cudaStream_t stream)
{
    if (count)
        relu_kernel<<<blocks_for(count), BLOCK, 0, stream>>>(y, x, count);
    return cudaGetLastError();
}

__global__ static void relu_backward_kernel(float *dx, const float *dy, const float *y, size_t count)
{
    GRID_STRIDE(i, count)
        dx[i] = y[i] > 0 ? dy[i] : 0;
}

cudaError_t vgg_cuda_launch_relu_backward(float *dx, const float *dy, const float *y, size_t count, cudaStream_t stream)
{
    if (count)
        relu_backward_kernel<<<blocks_for(count), BLOCK, 0, stream>>>(dx, dy, y, count);
    return cudaGetLastError();
}

__global__ static void add_kernel(float *y, const float *x, size_t count)
{
    GRID_STRIDE(i, count)
        y[i] += x[i];
}

cudaError_t vgg_cuda_launch_add(float *y, const float *x, size_t count, cudaStream_t stream)
{
    if (count)
        add_kernel<<<blocks_for(count), BLOCK, 0, stream>>>(y, x, count);
    return cudaGetLastError();
}

__global__ static void bias_relu_kernel(float *y, const float *b, size_t count, size_t k, bool relu)
{
    GRID_STRIDE(i, count) {
        float z = y[i] + (b ? b[i % k] : 0);
        y[i] = relu && z < 0 ? 0 : z;
    }
}

cudaError_t vgg_cuda_launch_bias_relu(float *y, const float *b, size_t rows, size_t k, bool relu, cudaStream_t stream)
{
    if (rows && k && (b || relu))
        bias_relu_kernel<<<blocks_for(rows * k), BLOCK, 0, stream>>>(y, b, rows * k, k, relu);
    return cudaGetLastError();
}

__global__ static void widen_kernel(float *out, const uint16_t *in, size_t count)
{
    GRID_STRIDE(i, count)
        out[i] = __uint_as_float((unsigned)in[i] << 16);
}

cudaError_t vgg_cuda_launch_widen(float *out, const uint16_t *in, size_t count, cudaStream_t stream)
{
    if (count)
        widen_kernel<<<blocks_for(count), BLOCK, 0, stream>>>(out, in, count);
    return cudaGetLastError();
}

__global__ static void pad_kernel(float *out, const float *in, size_t count, size_t c, size_t padded)
{
    GRID_STRIDE(i, count) {
        size_t row = i / padded, ch = i % padded;
        out[i] = ch < c ? in[row * c + ch] : 0;
    }
}

cudaError_t vgg_cuda_launch_pad(float *out, const float *in, size_t rows, size_t c, size_t padded, cudaStream_t stream)
{
    if (rows)
        pad_kernel<<<blocks_for(rows * padded), BLOCK, 0, stream>>>(out, in, rows * padded, c, padded);
    return cudaGetLastError();
}

__global__ static void unpad_kernel(float *out, const float *in, size_t count, size_t c, size_t padded)
{
    GRID_STRIDE(i, count)
        out[i] = in[i / c * padded + i % c];
}

cudaError_t vgg_cuda_launch_unpad(float *out, const float *in, size_t rows, size_t c, size_t padded, cudaStream_t stream)
{
    if (rows && c)
        unpad_kernel<<<blocks_for(rows * c), BLOCK, 0, stream>>>(out, in, rows * c, c, padded);
    return cudaGetLastError();
}

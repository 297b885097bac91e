/* update.cu: SGD over all parameters in one launch (paper, section 3.1), and the mean of the devices' gradients (3.3). */
#include "launch.cuh"

static constexpr size_t CHUNK = 1 << 14; /* parameters of one tensor that a block takes at a time */

__global__ static void sgd_kernel(const __grid_constant__ vgg_cuda_sgd_list list, size_t chunks, float lr, float momentum,
                                  float weight_decay)
{
    for (size_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
        size_t left = chunk;
        int t = 0;
        for (size_t own; left >= (own = (list.size[t] + CHUNK - 1) / CHUNK); t++)
            left -= own;
        size_t first = left * CHUNK, last = first + CHUNK < list.size[t] ? first + CHUNK : list.size[t];
        float *p = list.param[t], *v = list.velocity[t];
        const float *g = list.grad[t];
        for (size_t j = first + threadIdx.x; j < last; j += blockDim.x) {
            float step = momentum * v[j] + lr * (g[j] + weight_decay * p[j]);
            v[j] = step;
            p[j] -= step;
        }
    }
}

cudaError_t vgg_cuda_launch_sgd(const struct vgg_cuda_sgd_list *list, const struct vgg_sgd *s, cudaStream_t stream)
{
    size_t chunks = 0;
    for (int t = 0; t < list->count; t++)
        chunks += (list->size[t] + CHUNK - 1) / CHUNK;
    if (chunks)
        sgd_kernel<<<blocks_for(chunks, 1), BLOCK, 0, stream>>>(*list, chunks, s->lr, s->momentum, s->weight_decay);
    return cudaGetLastError();
}

__global__ static void average_kernel(float *out, const __grid_constant__ vgg_cuda_average_list list, size_t size)
{
    GRID_STRIDE(j, size) {
        double sum = 0;
        for (int d = 0; d < list.count; d++)
            sum += list.weight[d] * (double)list.in[d][j];
        out[j] = (float)(sum / list.total);
    }
}

cudaError_t vgg_cuda_launch_average(float *out, const struct vgg_cuda_average_list *list, size_t size, cudaStream_t stream)
{
    if (size)
        average_kernel<<<blocks_for(size), BLOCK, 0, stream>>>(out, *list, size);
    return cudaGetLastError();
}

/* euclidean_loss.cu: the Euclidean loss of predicted boxes and its gradient (paper, appendix A). One block, so that the order
 * of the sum is fixed: a batch has few rows. */
#include "launch.cuh"

__global__ static void euclidean_kernel(float *loss, float *dx, const float *x, const float *target, const int64_t *labels,
                                        size_t rows, size_t c, size_t d, double normalizer)
{
    __shared__ double sums[BLOCK];
    double own = 0;
    for (size_t i = threadIdx.x; i < rows * c * d; i += BLOCK) {
        size_t row = i / (c * d), prediction = i / d % c, j = i % d;
        int64_t label = labels ? labels[row] : 0;
        bool valid = label >= 0 && (uint64_t)label < c;
        double difference = valid ? (double)x[i] - (double)target[row * d + j] : (double)NAN;
        bool counts = !valid || prediction == (size_t)label;
        own += counts ? difference * difference : 0;
        dx[i] = counts ? (float)(difference / normalizer) : 0;
    }
    sums[threadIdx.x] = own;
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0;
        for (unsigned i = 0; i < BLOCK; i++)
            total += sums[i];
        *loss = (float)(total / (2 * normalizer));
    }
}

cudaError_t vgg_cuda_launch_euclidean_loss(float *loss, float *dx, const float *x, const float *target, const int64_t *labels,
                                           const struct vgg_euclidean *s, cudaStream_t stream)
{
    euclidean_kernel<<<1, BLOCK, 0, stream>>>(loss, dx, x, target, labels, s->rows, s->c, s->d, s->normalizer);
    return cudaGetLastError();
}

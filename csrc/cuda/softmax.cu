/* softmax.cu: soft-max over the last axis, and cross-entropy with its gradient (paper, section 3.1).
 *
 * A warp a row; sums in float64, by the tree of __shfl_xor_sync, so the same bits every time. */
#include "launch.cuh"

static constexpr unsigned WARP = 32, WARPS = BLOCK / WARP;

/* The row's maximum, NaN left out: a NaN comes back through the exponentials. */
__device__ static float row_maximum(const float *x, size_t c, unsigned lane)
{
    float m = -INFINITY;
    for (size_t j = lane; j < c; j += WARP)
        m = x[j] > m ? x[j] : m;
    for (unsigned step = WARP / 2; step; step /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, m, step);
        m = other > m ? other : m;
    }
    return m;
}

__device__ static double row_sum(const float *x, size_t c, float m, unsigned lane)
{
    double sum = 0;
    for (size_t j = lane; j < c; j += WARP)
        sum += (double)expf(x[j] - m);
    for (unsigned step = WARP / 2; step; step /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    return sum;
}

__global__ static void softmax_kernel(float *y, const float *x, size_t rows, size_t c)
{
    unsigned lane = threadIdx.x % WARP;
    for (size_t row = (size_t)blockIdx.x * WARPS + threadIdx.x / WARP; row < rows; row += (size_t)gridDim.x * WARPS) {
        const float *in = x + row * c;
        float m = row_maximum(in, c, lane);
        double factor = 1 / row_sum(in, c, m, lane);
        for (size_t j = lane; j < c; j += WARP)
            y[row * c + j] = (float)((double)expf(in[j] - m) * factor);
    }
}

cudaError_t vgg_cuda_launch_softmax(float *y, const float *x, const struct vgg_softmax *s, cudaStream_t stream)
{
    if (s->rows && s->c)
        softmax_kernel<<<blocks_for(s->rows, WARPS), BLOCK, 0, stream>>>(y, x, s->rows, s->c);
    return cudaGetLastError();
}

__global__ static void cross_entropy_kernel(float *dlogits, const float *logits, const int64_t *labels, size_t rows, size_t c,
                                            double normalizer)
{
    unsigned lane = threadIdx.x % WARP;
    for (size_t row = (size_t)blockIdx.x * WARPS + threadIdx.x / WARP; row < rows; row += (size_t)gridDim.x * WARPS) {
        const float *x = logits + row * c;
        float m = row_maximum(x, c, lane);
        double sum = row_sum(x, c, m, lane), factor = 1 / (sum * normalizer);
        int64_t label = labels[row];
        bool valid = label >= 0 && (uint64_t)label < c;
        for (size_t j = lane; j < c; j += WARP) {
            double e = (double)expf(x[j] - m);
            /* In float64: near a certain answer p - 1 is a difference of almost equal numbers. */
            double d = j == (size_t)label ? (e / sum - 1) / normalizer : e * factor;
            dlogits[row * c + j] = valid ? (float)d : NAN;
        }
    }
}

/* One block, so that the order of the sum is fixed: the logits of a batch are few. */
__global__ static void loss_kernel(float *loss, const float *logits, const int64_t *labels, size_t rows, size_t c,
                                   double normalizer)
{
    __shared__ double sums[WARPS];
    unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    double own = 0;
    for (size_t row = warp; row < rows; row += WARPS) {
        const float *x = logits + row * c;
        float m = row_maximum(x, c, lane);
        double sum = row_sum(x, c, m, lane);
        int64_t label = labels[row];
        bool valid = label >= 0 && (uint64_t)label < c;
        own += valid ? log(sum) + ((double)m - (double)x[label]) : (double)NAN;
    }
    if (lane == 0)
        sums[warp] = own;
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0;
        for (unsigned i = 0; i < WARPS; i++)
            total += sums[i];
        *loss = (float)(total / normalizer);
    }
}

cudaError_t vgg_cuda_launch_cross_entropy(float *loss, float *dlogits, const float *logits, const int64_t *labels,
                                          const struct vgg_softmax *s, cudaStream_t stream)
{
    if (s->rows && s->c)
        cross_entropy_kernel<<<blocks_for(s->rows, WARPS), BLOCK, 0, stream>>>(dlogits, logits, labels, s->rows, s->c,
                                                                               s->normalizer);
    loss_kernel<<<1, BLOCK, 0, stream>>>(loss, logits, labels, s->rows, s->c, s->normalizer);
    return cudaGetLastError();
}

/* column_sums.cu: the gradient of a bias: sums over the rows of a (rows, k) matrix, in a fixed order.
 *
 * A block takes 32 columns and ROWS rows; its 8 warps take every eighth of these rows, are added up in shared memory, and give
 * one partial sum a column. A second kernel adds the partial sums in float64. */
#include "launch.cuh"

static constexpr unsigned COLUMNS = 32, WARPS = 8;
static constexpr size_t ROWS = 1024;

static size_t parts_of(size_t rows)
{
    return rows / ROWS + (rows % ROWS != 0);
}

size_t vgg_cuda_column_sums_bytes(size_t rows, size_t k)
{
    return parts_of(rows) * k * sizeof(float);
}

template <typename T> __global__ static void partial_kernel(float *partial, const T *g, size_t rows, size_t k, size_t parts)
{
    __shared__ float sums[WARPS][COLUMNS];
    size_t groups = (k + COLUMNS - 1) / COLUMNS;
    for (size_t block = blockIdx.x; block < parts * groups; block += gridDim.x) {
        size_t part = block / groups, column = block % groups * COLUMNS + threadIdx.x;
        size_t first = part * ROWS, last = first + ROWS < rows ? first + ROWS : rows;
        float sum = 0;
        if (column < k)
            for (size_t row = first + threadIdx.y; row < last; row += WARPS)
                sum += widen(g[row * k + column]);
        sums[threadIdx.y][threadIdx.x] = sum;
        __syncthreads();
        if (threadIdx.y == 0 && column < k) {
            for (unsigned warp = 1; warp < WARPS; warp++)
                sum += sums[warp][threadIdx.x];
            partial[part * k + column] = sum;
        }
        __syncthreads();
    }
}

__global__ static void total_kernel(float *sum, const float *partial, size_t parts, size_t k, int beta)
{
    GRID_STRIDE(column, k) {
        double total = beta ? (double)sum[column] : 0;
        for (size_t part = 0; part < parts; part++)
            total += (double)partial[part * k + column];
        sum[column] = (float)total;
    }
}

cudaError_t vgg_cuda_launch_column_sums(float *sum, const void *g, enum vgg_dtype dtype, void *scratch, size_t rows, size_t k,
                                        int beta, cudaStream_t stream)
{
    if (!k)
        return cudaSuccess;
    size_t parts = parts_of(rows);
    float *partial = (float *)scratch;
    if (parts) {
        size_t blocks = parts * ((k + COLUMNS - 1) / COLUMNS);
        WITH_TYPE(
            dtype, T,
            partial_kernel<<<blocks_for(blocks, 1), dim3(COLUMNS, WARPS), 0, stream>>>(partial, (const T *)g, rows, k, parts));
        cudaError_t error = cudaGetLastError();
        if (error != cudaSuccess) /* there is nothing to add up */
            return error;
    }
    total_kernel<<<blocks_for(k), BLOCK, 0, stream>>>(sum, partial, parts, k, beta);
    return cudaGetLastError();
}

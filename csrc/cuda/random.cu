/* random.cu: dropout and random tensors from the counter-based numbers of core/philox.h. The same steps as ops/dropout.c and
 * ops/random.c in the same order; this file is compiled without fused multiply-adds, so the bits are the CPU's too. */
#include "launch.cuh"

#include "../core/philox.h"

/* A thread a block of four words. */
template <typename T>
__global__ static void dropout_kernel(T *y, const T *x, const int64_t *rows, size_t n, size_t c, size_t blocks, float p,
                                      uint64_t seed, uint32_t purpose)
{
    float kept = 1 / (1 - p);
    GRID_STRIDE(i, n * blocks) {
        size_t row = i / blocks, block = i % blocks;
        uint32_t words[4];
        vgg_philox(words, seed, (uint64_t)rows[row], purpose, (uint32_t)block);
        for (size_t j = 4 * block, k = 0; k < 4 && j < c; j++, k++) {
            float u = (float)(int32_t)(words[k] >> 8) * 0x1p-24f;
            store(y + row * c + j, u >= p ? widen(x[row * c + j]) * kept : 0);
        }
    }
}

cudaError_t vgg_cuda_launch_dropout(void *y, const void *x, const int64_t *rows, const struct vgg_dropout *s,
                                    cudaStream_t stream)
{
    size_t blocks = s->c / 4 + (s->c % 4 != 0), count = s->n * blocks;
    if (count)
        WITH_TYPE(s->dtype, T,
                  dropout_kernel<<<blocks_for(count), BLOCK, 0, stream>>>((T *)y, (const T *)x, rows, s->n, s->c, blocks, s->p,
                                                                          s->seed, s->purpose));
    return cudaGetLastError();
}

__global__ static void uniform_kernel(float *x, size_t count, float scale, uint64_t seed, uint32_t purpose)
{
    GRID_STRIDE(block, (count + 3) / 4) {
        uint32_t words[4];
        vgg_philox(words, seed, 0, purpose, (uint32_t)block);
        for (size_t j = 4 * block, k = 0; k < 4 && j < count; j++, k++)
            x[j] = ((float)(int32_t)(words[k] >> 8) * 0x1p-23f - 1) * scale;
    }
}

cudaError_t vgg_cuda_launch_random_uniform(float *x, size_t count, float scale, uint64_t seed, uint32_t purpose,
                                           cudaStream_t stream)
{
    if (count)
        uniform_kernel<<<blocks_for((count + 3) / 4), BLOCK, 0, stream>>>(x, count, scale, seed, purpose);
    return cudaGetLastError();
}

/* ln((k + 1) 2^-24), 0 <= k < 2^24: ops/random.c explains it. */
__device__ static float logarithm(uint32_t k)
{
    float u = (float)(int32_t)(k + 1) * 0x1p-24f;
    uint32_t bits = __float_as_uint(u);
    const uint32_t root_half = 0x3F3504F3;
    int32_t exponent = (int32_t)(bits - root_half) >> 23;
    float m = __uint_as_float(bits - ((uint32_t)exponent << 23));
    float t = (m - 1) / (m + 1), tt = t * t;
    float series = t + t * tt * (1.0f / 3 + tt * (1.0f / 5 + tt * (1.0f / 7 + tt * (1.0f / 9))));
    return 2 * series + (float)exponent * 0.693147181f;
}

/* words[0], words[1] into two values: ops/random.c explains it. */
__device__ static void normal_pair(float *pair, const uint32_t *words, float scale)
{
    float r = sqrtf(-2 * logarithm(words[0] >> 8)) * scale;
    uint32_t quarter = (words[1] + 0x20000000u) >> 30;
    float a = (float)(int32_t)(words[1] - (quarter << 30)) * 1.46291808e-9f;
    float aa = a * a;
    float sine = a + a * aa * (-1.0f / 6 + aa * (1.0f / 120 + aa * (-1.0f / 5040 + aa * (1.0f / 362880))));
    float cosine = 1 + aa * (-0.5f + aa * (1.0f / 24 + aa * (-1.0f / 720 + aa * (1.0f / 40320))));
    float first = quarter & 1 ? sine : cosine, second = quarter & 1 ? cosine : sine;
    pair[0] = r * __uint_as_float(__float_as_uint(first) ^ ((quarter + 1) & 2) << 30);
    pair[1] = r * __uint_as_float(__float_as_uint(second) ^ (quarter & 2) << 30);
}

__global__ static void normal_kernel(float *x, size_t count, float scale, uint64_t seed, uint32_t purpose)
{
    GRID_STRIDE(block, (count + 3) / 4) {
        uint32_t words[4];
        float values[4];
        vgg_philox(words, seed, 0, purpose, (uint32_t)block);
        normal_pair(values, words, scale);
        normal_pair(values + 2, words + 2, scale);
        for (size_t j = 4 * block, k = 0; k < 4 && j < count; j++, k++)
            x[j] = values[k];
    }
}

cudaError_t vgg_cuda_launch_random_normal(float *x, size_t count, float scale, uint64_t seed, uint32_t purpose,
                                          cudaStream_t stream)
{
    if (count)
        normal_kernel<<<blocks_for((count + 3) / 4), BLOCK, 0, stream>>>(x, count, scale, seed, purpose);
    return cudaGetLastError();
}

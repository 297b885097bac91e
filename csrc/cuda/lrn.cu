/* lrn.cu: local response normalisation across channels (paper, section 2.1, net A-LRN) and its gradient.
 *
 * A thread a value; the window's values come from the L1 cache, where the neighbours' threads have just read them. */
#include "launch.cuh"

struct lrn_shape {
    size_t c, half; /* half <= c */
    float alpha, beta, k;
};

static lrn_shape shape_of(const struct vgg_lrn *s)
{
    return {s->c, s->size / 2 < s->c ? s->size / 2 : s->c, s->alpha, s->beta, s->k};
}

/* First channel of the window of channel c, and one past its last. */
__device__ static inline void window(size_t *from, size_t *to, size_t c, lrn_shape s)
{
    *from = c > s.half ? c - s.half : 0;
    *to = c + s.half + 1 < s.c ? c + s.half + 1 : s.c;
}

template <typename T> __device__ static inline float scale(const T *row, size_t c, lrn_shape s)
{
    size_t from, to;
    window(&from, &to, c, s);
    float sum = 0;
    for (size_t i = from; i < to; i++)
        sum += widen(row[i]) * widen(row[i]);
    return s.k + s.alpha * sum;
}

/* scale^-beta; the paper's beta by square roots, as on the CPU. */
__device__ static inline float negative_power(float scale, float beta)
{
    if (beta != 0.75f)
        return powf(scale, -beta);
    float root = sqrtf(scale);
    return 1 / (root * sqrtf(root));
}

template <typename T> __global__ static void lrn_kernel(T *y, const T *x, size_t count, lrn_shape s)
{
    GRID_STRIDE(i, count) {
        size_t c = i % s.c;
        store(y + i, widen(x[i]) * negative_power(scale(x + (i - c), c, s), s.beta));
    }
}

cudaError_t vgg_cuda_launch_lrn(void *y, const void *x, const struct vgg_lrn *s, cudaStream_t stream)
{
    size_t count = s->rows * s->c;
    if (count)
        WITH_TYPE(s->dtype, T, lrn_kernel<<<blocks_for(count), BLOCK, 0, stream>>>((T *)y, (const T *)x, count, shape_of(s)));
    return cudaGetLastError();
}

template <typename T> __global__ static void lrn_backward_kernel(T *dx, const T *dy, const T *x, size_t count, lrn_shape s)
{
    GRID_STRIDE(i, count) {
        size_t c = i % s.c, from, to;
        const T *row = x + (i - c), *drow = dy + (i - c);
        window(&from, &to, c, s);
        float own = 0, sum = 0;
        for (size_t j = from; j < to; j++) {
            float at = scale(row, j, s), power = negative_power(at, s.beta);
            sum += widen(drow[j]) * widen(row[j]) * (power / at);
            if (j == c)
                own = power;
        }
        store(dx + i, widen(drow[c]) * own - 2 * s.alpha * s.beta * widen(row[c]) * sum);
    }
}

cudaError_t vgg_cuda_launch_lrn_backward(void *dx, const void *dy, const void *x, const struct vgg_lrn *s, cudaStream_t stream)
{
    size_t count = s->rows * s->c;
    if (count)
        WITH_TYPE(s->dtype, T,
                  lrn_backward_kernel<<<blocks_for(count), BLOCK, 0, stream>>>((T *)dx, (const T *)dy, (const T *)x, count,
                                                                               shape_of(s)));
    return cudaGetLastError();
}

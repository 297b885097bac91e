/* max_pool2d.cu: 2x2 max pooling (paper, section 2.1) and its gradient, which gathers: no atomics, the same bits every time. */
#include "launch.cuh"

struct pool_shape {
    size_t h, w, c, oh, ow;
};

static pool_shape shape_of(const struct vgg_max_pool2d *s)
{
    size_t up = s->ceil_mode;
    return {s->h, s->w, s->c, s->h / 2 + (s->h % 2 & up), s->w / 2 + (s->w % 2 & up)};
}

/* A thread a value of y; channels are neighbours, so a warp reads whole lines. */
template <typename T> __global__ static void pool_kernel(T *y, uint8_t *index, const T *x, size_t count, pool_shape s)
{
    GRID_STRIDE(i, count) {
        size_t c = i % s.c, column = i / s.c % s.ow, row = i / s.c / s.ow % s.oh, image = i / s.c / s.ow / s.oh;
        const T *window = x + ((image * s.h + 2 * row) * s.w + 2 * column) * s.c + c;
        float best = widen(window[0]);
        unsigned where = 0;
        for (unsigned place = 1; place < 4; place++) {
            size_t r = place / 2, q = place % 2;
            if (2 * row + r >= s.h || 2 * column + q >= s.w)
                continue;
            float value = widen(window[(r * s.w + q) * s.c]);
            if (value > best || (value != value && best == best)) {
                best = value;
                where = place;
            }
        }
        store(y + i, best);
        if (index)
            index[i] = (uint8_t)where;
    }
}

cudaError_t vgg_cuda_launch_max_pool2d(void *y, uint8_t *index, const void *x, const struct vgg_max_pool2d *s,
                                       cudaStream_t stream)
{
    pool_shape p = shape_of(s);
    size_t count = s->n * p.oh * p.ow * p.c;
    if (count)
        WITH_TYPE(s->dtype, T, pool_kernel<<<blocks_for(count), BLOCK, 0, stream>>>((T *)y, index, (const T *)x, count, p));
    return cudaGetLastError();
}

template <typename T>
__global__ static void unpool_kernel(T *dx, const T *dy, const T *y, const uint8_t *index, size_t count, pool_shape s)
{
    GRID_STRIDE(i, count) {
        size_t c = i % s.c, column = i / s.c % s.w, row = i / s.c / s.w % s.h, image = i / s.c / s.w / s.h;
        float value = 0;
        if (row / 2 < s.oh && column / 2 < s.ow) { /* floor leaves out an odd last row and column */
            size_t at = ((image * s.oh + row / 2) * s.ow + column / 2) * s.c + c;
            if (index[at] == row % 2 * 2 + column % 2 && (!y || widen(y[at]) > 0))
                value = widen(dy[at]);
        }
        store(dx + i, value);
    }
}

cudaError_t vgg_cuda_launch_unpool(void *dx, const void *dy, const void *y, const uint8_t *index,
                                   const struct vgg_max_pool2d *s, cudaStream_t stream)
{
    size_t count = s->n * s->h * s->w * s->c;
    if (count)
        WITH_TYPE(s->dtype, T,
                  unpool_kernel<<<blocks_for(count), BLOCK, 0, stream>>>((T *)dx, (const T *)dy, (const T *)y, index, count,
                                                                         shape_of(s)));
    return cudaGetLastError();
}

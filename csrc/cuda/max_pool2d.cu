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
__global__ static void pool_kernel(float *y, uint8_t *index, const float *x, size_t count, pool_shape s)
{
    GRID_STRIDE(i, count) {
        size_t c = i % s.c, column = i / s.c % s.ow, row = i / s.c / s.ow % s.oh, image = i / s.c / s.ow / s.oh;
        const float *window = x + ((image * s.h + 2 * row) * s.w + 2 * column) * s.c + c;
        float best = window[0];
        unsigned where = 0;
        for (unsigned place = 1; place < 4; place++) {
            size_t r = place / 2, q = place % 2;
            if (2 * row + r >= s.h || 2 * column + q >= s.w)
                continue;
            float value = window[(r * s.w + q) * s.c];
            if (value > best || (value != value && best == best)) {
                best = value;
                where = place;
            }
        }
        y[i] = best;
        if (index)
            index[i] = (uint8_t)where;
    }
}

cudaError_t vgg_cuda_launch_max_pool2d(float *y, uint8_t *index, const float *x, const struct vgg_max_pool2d *s,
                                       cudaStream_t stream)
{
    pool_shape p = shape_of(s);
    size_t count = s->n * p.oh * p.ow * p.c;
    if (count)
        pool_kernel<<<blocks_for(count), BLOCK, 0, stream>>>(y, index, x, count, p);
    return cudaGetLastError();
}

__global__ static void unpool_kernel(float *dx, const float *dy, const float *y, const uint8_t *index, size_t count,
                                     pool_shape s)
{
    GRID_STRIDE(i, count) {
        size_t c = i % s.c, column = i / s.c % s.w, row = i / s.c / s.w % s.h, image = i / s.c / s.w / s.h;
        float value = 0;
        if (row / 2 < s.oh && column / 2 < s.ow) { /* floor leaves out an odd last row and column */
            size_t at = ((image * s.oh + row / 2) * s.ow + column / 2) * s.c + c;
            if (index[at] == row % 2 * 2 + column % 2 && (!y || y[at] > 0))
                value = dy[at];
        }
        dx[i] = value;
    }
}

cudaError_t vgg_cuda_launch_unpool(float *dx, const float *dy, const float *y, const uint8_t *index,
                                   const struct vgg_max_pool2d *s, cudaStream_t stream)
{
    size_t count = s->n * s->h * s->w * s->c;
    if (count)
        unpool_kernel<<<blocks_for(count), BLOCK, 0, stream>>>(dx, dy, y, index, count, shape_of(s));
    return cudaGetLastError();
}

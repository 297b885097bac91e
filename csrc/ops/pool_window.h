/* ops/pool_window.h: one row of 2x2, stride 2 max pooling; shared by max_pool2d and by conv2d's fused pooling. */
#ifndef VGG_POOL_WINDOW_H
#define VGG_POOL_WINDOW_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef float vgg_pool_vec __attribute__((vector_size(16)));
typedef int32_t vgg_pool_mask __attribute__((vector_size(16)));

/* `lanes` channels, at most four, of one window of `count` elements. In vectors, because which element wins is a coin's
 * throw to a branch; lanes is a constant wherever this is inlined. */
static inline __attribute__((always_inline)) void vgg_pool_lanes(float *y, uint8_t *index, const float *const *window,
                                                                 const int *place, int count, size_t c, const size_t lanes)
{
    vgg_pool_vec best = {0};
    vgg_pool_mask where = {0};
    memcpy(&best, window[0] + c, lanes * sizeof(float));
    for (int i = 1; i < count; i++) {
        vgg_pool_vec value = {0};
        memcpy(&value, window[i] + c, lanes * sizeof(float));
        /* larger, or the first NaN */
        vgg_pool_mask wins = (value > best) | ((value != value) & (best == best));
        best = (vgg_pool_vec)((wins & (vgg_pool_mask)value) | (~wins & (vgg_pool_mask)best));
        where = (wins & place[i]) | (~wins & where);
    }
    memcpy(y + c, &best, lanes * sizeof(float));
    for (size_t lane = 0; index != NULL && lane < lanes; lane++)
        index[c + lane] = (uint8_t)where[lane];
}

/* y[j][c] = max of x[0..1][2j..2j+1][c], index[j][c] = its place 0..3 in the window, row-major (index may be NULL).
 * top and bottom are the window's two rows of x, width by channels; bottom is NULL where the window hangs over the edge,
 * and so may its right column (width odd, pooled_width rounded up). The first maximum wins; if there is a NaN, the first
 * NaN wins. x is not written; y may not alias it. */
static inline void vgg_pool_row(float *y, uint8_t *index, const float *top, const float *bottom, size_t width,
                                size_t pooled_width, size_t channels)
{
    for (size_t j = 0; j < pooled_width; j++) {
        const float *window[4];
        int place[4];
        int count = 0;
        for (int i = 0; i < 4; i++) {
            const float *row = i < 2 ? top : bottom;
            size_t column = 2 * j + (size_t)(i & 1);
            if (row == NULL || column >= width)
                continue;
            window[count] = row + column * channels;
            place[count++] = i;
        }
        size_t c = 0;
        for (; c + 4 <= channels; c += 4)
            vgg_pool_lanes(y, index, window, place, count, c, 4);
        for (; c < channels; c++)
            vgg_pool_lanes(y, index, window, place, count, c, 1);
        y += channels;
        index = index == NULL ? NULL : index + channels;
    }
}

#endif

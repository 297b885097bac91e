/* ops/pool_window.h: one row of 2x2, stride 2 max pooling; shared by max_pool2d and by conv2d's fused pooling. */
#ifndef VGG_POOL_WINDOW_H
#define VGG_POOL_WINDOW_H

#include <stddef.h>
#include <stdint.h>

/* Lets one element of the window, at `place`, win: it is larger, or the first NaN. Loads before it chooses, so that the
 * choice is a mask and the loop vectorises. */
static inline void vgg_pool_take(float *restrict best, int32_t *restrict where, const float *restrict x, int32_t place,
                                 size_t count)
{
    for (size_t c = 0; c < count; c++) {
        float value = x[c], old = best[c];
        int32_t at = where[c];
        int wins = (value > old) | ((value != value) & (old == old));
        best[c] = wins ? value : old;
        where[c] = wins ? place : at;
    }
}

/* y[j][c] = max of x[0..1][2j..2j+1][c], index[j][c] = its place 0..3 in the window, row-major (index may be NULL).
 * top and bottom are the window's two rows of x, width by channels; bottom is NULL where the window hangs over the edge,
 * and so may its right column (width odd, pooled_width rounded up). The first maximum wins; if there is a NaN, the first
 * NaN wins. x is not written; y may not alias it. */
static inline void vgg_pool_row(float *restrict y, uint8_t *restrict index, const float *top, const float *bottom,
                                size_t width, size_t pooled_width, size_t channels)
{
    enum { BLOCK = 64 }; /* channels at a time, with places in 32-bit lanes */
    for (size_t j = 0; j < pooled_width; j++) {
        const float *window[4];
        int place[4];
        int count = 0;
        for (int row = 0; row < 2; row++)
            for (size_t column = 0; column < 2; column++) {
                const float *x = row == 0 ? top : bottom;
                if (x == NULL || 2 * j + column >= width)
                    continue;
                window[count] = x + (2 * j + column) * channels;
                place[count++] = 2 * row + (int)column;
            }
        for (size_t c0 = 0; c0 < channels; c0 += BLOCK) {
            size_t block = channels - c0 < BLOCK ? channels - c0 : BLOCK;
            float best[BLOCK];
            int32_t where[BLOCK];
            for (size_t c = 0; c < block; c++) {
                best[c] = window[0][c0 + c];
                where[c] = 0;
            }
            for (int i = 1; i < count; i++)
                vgg_pool_take(best, where, window[i] + c0, place[i], block);
            for (size_t c = 0; c < block; c++)
                y[j * channels + c0 + c] = best[c];
            if (index != NULL)
                for (size_t c = 0; c < block; c++)
                    index[j * channels + c0 + c] = (uint8_t)where[c];
        }
    }
}

#endif

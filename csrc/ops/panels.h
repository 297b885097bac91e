/* ops/panels.h: rows of a matrix to the panels that the GEMM microkernel reads. */
#ifndef VGG_PANELS_H
#define VGG_PANELS_H

#include "../core/lanes.h"

#include <stddef.h>
#include <string.h>

/* The widths of panels: the tiles of kernels.def. A panel's row wants its width as a constant, so that it is a vector or
 * two and not a call of memcpy. */
#define VGG_EACH_WIDTH(X) X(4) X(6) X(8) X(14) X(16) X(32)

static inline __attribute__((always_inline)) void vgg_to_panels_width(float *restrict to, size_t panel_floats,
                                                                      const float *restrict from, size_t from_row, size_t rows,
                                                                      size_t columns, const size_t width)
{
    size_t full = columns / width, rest = columns % width;
    for (size_t row = 0; row < rows; row++, to += width, from += from_row) {
        for (size_t panel = 0; panel < full; panel++)
            memcpy(to + panel * panel_floats, from + panel * width, width * sizeof *to);
        if (rest != 0) {
            float *last = to + full * panel_floats;
            for (size_t j = 0; j < rest; j++)
                last[j] = from[full * width + j];
            for (size_t j = rest; j < width; j++)
                last[j] = 0;
        }
    }
}

/* to[panel * panel_floats + row * width + j] = from[row * from_row + panel * width + j]; 0 beyond the last column. */
static inline void vgg_to_panels(float *to, size_t panel_floats, const float *from, size_t from_row, size_t rows,
                                 size_t columns, size_t width)
{
    switch (width) {
#define VGG_TO_PANELS(constant) \
    case constant: vgg_to_panels_width(to, panel_floats, from, from_row, rows, columns, constant); break;
        VGG_EACH_WIDTH(VGG_TO_PANELS)
    default: vgg_to_panels_width(to, panel_floats, from, from_row, rows, columns, width);
    }
}

static inline __attribute__((always_inline)) void vgg_sum_columns_width(double *sums, const float *from, size_t from_row,
                                                                        size_t rows, size_t columns, const size_t width)
{
    double acc[32] = {0}; /* the widest tile */
    for (size_t row = 0; row < rows; row++, from += from_row)
        for (size_t j = 0; j < width; j++)
            acc[j] += (double)from[j];
    for (size_t j = 0; j < columns; j++)
        sums[j] += acc[j];
}

/* sums[j] += sum over rows of from[row * from_row + j], j < columns <= width; width floats of a row are readable. */
static inline void vgg_sum_columns(double *sums, const float *from, size_t from_row, size_t rows, size_t columns, size_t width)
{
    switch (width) { /* a constant keeps the sums in registers */
#define VGG_SUM_COLUMNS(constant) \
    case constant: vgg_sum_columns_width(sums, from, from_row, rows, columns, constant); break;
        VGG_EACH_WIDTH(VGG_SUM_COLUMNS)
    default: vgg_sum_columns_width(sums, from, from_row, rows, columns, width);
    }
}

/* to[column * width + row] = from[row * from_row + column], four by four in registers. */
static inline void vgg_transpose_quad(float *to, size_t width, const float *from, size_t from_row)
{
    vgg_quad a, b, c, d;
    memcpy(&a, from, sizeof a);
    memcpy(&b, from + from_row, sizeof b);
    memcpy(&c, from + 2 * from_row, sizeof c);
    memcpy(&d, from + 3 * from_row, sizeof d);
    const vgg_quad ab_lo = VGG_LANES(a, b, 0, 4, 1, 5), ab_hi = VGG_LANES(a, b, 2, 6, 3, 7);
    const vgg_quad cd_lo = VGG_LANES(c, d, 0, 4, 1, 5), cd_hi = VGG_LANES(c, d, 2, 6, 3, 7);
    a = VGG_LANES(ab_lo, cd_lo, 0, 1, 4, 5);
    b = VGG_LANES(ab_lo, cd_lo, 2, 3, 6, 7);
    c = VGG_LANES(ab_hi, cd_hi, 0, 1, 4, 5);
    d = VGG_LANES(ab_hi, cd_hi, 2, 3, 6, 7);
    memcpy(to, &a, sizeof a);
    memcpy(to + width, &b, sizeof b);
    memcpy(to + 2 * width, &c, sizeof c);
    memcpy(to + 3 * width, &d, sizeof d);
}

/* A panel from a transposed matrix: to[column * width + row] = from[row * from_row + column], 0 for row from `rows` up to
 * width. */
static inline void vgg_transpose_to_panel(float *restrict to, const float *restrict from, size_t from_row, size_t rows,
                                          size_t columns, size_t width)
{
    enum { LINE = 16 }; /* a cache line of each row at a time, so that both sides stay in L1 */
    for (size_t begin = 0; begin < columns; begin += LINE) {
        size_t end = columns - begin < LINE ? columns : begin + LINE;
        size_t rows4 = end - begin == LINE ? rows / 4 * 4 : 0;
        for (size_t row = 0; row < rows4; row += 4)
            for (size_t column = begin; column < end; column += 4)
                vgg_transpose_quad(to + column * width + row, width, from + row * from_row + column, from_row);
        for (size_t row = rows4; row < width; row++)
            for (size_t column = begin; column < end; column++)
                to[column * width + row] = row < rows ? from[row * from_row + column] : 0;
    }
}

#endif

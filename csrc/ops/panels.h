/* ops/panels.h: rows of a matrix to the panels that the GEMM microkernel reads. */
#ifndef VGG_PANELS_H
#define VGG_PANELS_H

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

#endif

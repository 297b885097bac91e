/* kernels/average_tile.h: the mean of several devices' gradients, written on each of them. Contract: struct vgg_average of
 * vgg_internal.h.
 *
 * LANES doubles are a vector. Sums stay in registers from the first device to the division, so a gradient is read once and
 * written once. setup.py has no multiplication fused with an addition here: every ISA gives the same bits. */
#include "../vgg_internal.h"

#include <string.h>

enum { VECTORS = 4 }; /* of independent sums, which hide what an addition and a division take */

typedef float narrow __attribute__((vector_size(LANES * 4)));
typedef double wide __attribute__((vector_size(LANES * 8)));

void NAME(const struct vgg_average *call)
{
    const struct vgg_average t = *call; /* a copy, which no store can change */
    size_t j = 0;
    for (; j + VECTORS * LANES <= t.count; j += VECTORS * LANES) {
        wide sum[VECTORS] = {{0}};
        for (size_t d = 0; d < t.devices; d++)
            for (int i = 0; i < VECTORS; i++) {
                narrow g;
                memcpy(&g, t.grad[d] + t.first + j + i * LANES, sizeof g);
                sum[i] += t.weight[d] * __builtin_convertvector(g, wide);
            }
        narrow mean[VECTORS];
        for (int i = 0; i < VECTORS; i++)
            mean[i] = __builtin_convertvector(sum[i] / t.total, narrow);
        for (size_t d = 0; d < t.devices; d++)
            memcpy(t.grad[d] + t.first + j, mean, sizeof mean);
    }
    for (; j < t.count; j++) {
        double sum = 0;
        for (size_t d = 0; d < t.devices; d++)
            sum += t.weight[d] * (double)t.grad[d][t.first + j];
        float mean = (float)(sum / t.total);
        for (size_t d = 0; d < t.devices; d++)
            t.grad[d][t.first + j] = mean;
    }
}

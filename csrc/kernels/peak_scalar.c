/* kernels/peak_scalar.c: the peak loop of scalar. */
#define VL 4
#define NAME vgg_fma_peak__scalar
#include "peak_tile.h"

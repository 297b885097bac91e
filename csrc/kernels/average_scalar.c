/* kernels/average_scalar.c: the mean of gradients for any machine, in vectors of two doubles (SSE2, NEON or scalar code). */
#define LANES 2
#define NAME vgg_average__scalar
#include "average_tile.h"

/* kernels/kernels.h: prototypes of every kernel of kernels.def. */
#ifndef VGG_KERNELS_H
#define VGG_KERNELS_H

#include "../vgg_internal.h"

#define KERNEL(slot, member, function, isa, mr, nr) vgg_##member##_run function;
#define PEAK(function, isa, vl) float function(size_t steps);
#include "kernels.def"
#undef KERNEL
#undef PEAK

/* FLOP/s of `threads` threads that do nothing but the selected ISA's multiply-add, best of several passes; what benchmarks
 * call the peak. Takes some 20 ms. */
double vgg_fma_peak(int threads);

#endif

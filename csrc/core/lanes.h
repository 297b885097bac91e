/* core/lanes.h: four floats at a time, and their lanes by number. */
#ifndef VGG_LANES_H
#define VGG_LANES_H

#include <stdint.h>

typedef float vgg_quad __attribute__((vector_size(16)));

/* Lanes of a and b, 0..3 and 4..7. */
#if defined(__clang__) || __GNUC__ >= 12
#define VGG_LANES(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define VGG_LANES(a, b, i, j, k, l) __builtin_shuffle(a, b, (int32_t __attribute__((vector_size(16)))){i, j, k, l})
#endif

#endif

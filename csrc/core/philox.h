/* core/philox.h: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11). */
#ifndef VGG_PHILOX_H
#define VGG_PHILOX_H

#include <stdint.h>

#ifdef __CUDACC__ /* devices draw the same words */
#define VGG_PHILOX __host__ __device__
#else
#define VGG_PHILOX
#endif

/* Words 4 * block .. 4 * block + 3 of (seed, row, purpose): key and counter as vgg.h lays them out. */
VGG_PHILOX static inline void vgg_philox(uint32_t out[4], uint64_t seed, uint64_t row, uint32_t purpose, uint32_t block)
{
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    uint32_t c0 = block, c1 = purpose, c2 = (uint32_t)row, c3 = (uint32_t)(row >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)0xD2511F53u * c0, product1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ key0;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ key1;
        c3 = (uint32_t)product0;
        key0 += 0x9E3779B9u; /* the golden ratio and sqrt(3) - 1: the Weyl sequence of round keys */
        key1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

#endif

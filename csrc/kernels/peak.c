/* kernels/peak.c: the multiply-add rate of this machine, as the selected ISA reaches it. */
#include "kernels.h"

#include <time.h>

enum { STEPS = 100000, PASSES = 10, CHAINS = 12 };

static const struct {
    enum vgg_isa isa;
    size_t vl;
    float (*run)(size_t steps);
} loops[] = {
#define KERNEL(slot, member, function, isa, mr, nr)
#define PEAK(function, isa, vl) {isa, vl, function},
#include "kernels.def"
#undef KERNEL
#undef PEAK
};

static void one_thread(void *argument, size_t task, int thread)
{
    (void)task;
    (void)thread;
    volatile float sink = loops[*(const size_t *)argument].run(STEPS);
    (void)sink;
}

double vgg_fma_peak(int threads)
{
    size_t loop = 0;
    while (loops[loop].isa != vgg_isa_selected())
        loop++;
    double best = 0;
    for (int pass = 0; pass < PASSES; pass++) {
        struct timespec from, to;
        timespec_get(&from, TIME_UTC);
        /* Four tasks a thread: one that wakes late still takes its share. */
        vgg_parallel_for(threads, 4 * (size_t)threads, one_thread, &loop);
        timespec_get(&to, TIME_UTC);
        double seconds = (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec);
        double rate = 2.0 * (double)loops[loop].vl * CHAINS * STEPS * 4 * threads / seconds;
        if (rate > best)
            best = rate;
    }
    return best;
}

/* kernels/peak.c: the multiply-add rate of this machine, as the selected ISA reaches it, and its memory's bandwidth. */
#include "kernels.h"

#include <string.h>
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

static double now(void)
{
    struct timespec time;
    timespec_get(&time, TIME_UTC);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

double vgg_fma_peak(int threads)
{
    size_t loop = 0;
    while (loops[loop].isa != vgg_isa_selected())
        loop++;
    double best = 0;
    for (int pass = 0; pass < PASSES; pass++) {
        double start = now();
        /* Four tasks a thread: one that wakes late still takes its share. */
        vgg_parallel_for(0, threads, 4 * (size_t)threads, one_thread, &loop);
        double rate = 2.0 * (double)loops[loop].vl * CHAINS * STEPS * 4 * threads / (now() - start);
        if (rate > best)
            best = rate;
    }
    return best;
}

enum stream { READ, WRITE, UPDATE, STREAMS };

enum { RUNS = 8 }; /* that a task reads side by side: memory answers several streams faster than one */

typedef uint32_t words __attribute__((vector_size(16)));

struct streaming {
    enum stream stream;
    unsigned char *data;
    size_t share; /* bytes of a task; a multiple of RUNS vectors */
};

static void stream_task(void *argument, size_t task, int thread)
{
    (void)thread;
    const struct streaming *s = argument;
    unsigned char *part = s->data + task * s->share;
    words value[RUNS] = {0};
    if (s->stream == WRITE) {
        memset(part, 1, s->share);
    } else if (s->stream == UPDATE) {
        for (size_t at = 0; at < s->share; at += sizeof *value) {
            memcpy(value, part + at, sizeof *value);
            *value += 1;
            memcpy(part + at, value, sizeof *value);
        }
    } else {
        words sum = {0};
        for (size_t at = 0; at < s->share / RUNS; at += sizeof *value) {
            for (size_t run = 0; run < RUNS; run++)
                memcpy(&value[run], part + run * (s->share / RUNS) + at, sizeof *value);
            for (size_t run = 0; run < RUNS; run++)
                sum ^= value[run];
        }
        volatile uint32_t sink = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
        (void)sink;
    }
}

struct vgg_memory_bandwidth vgg_memory_bandwidth(int threads, void *data, size_t bytes)
{
    size_t tasks = 4 * (size_t)threads;
    struct streaming s = {.data = data, .share = bytes / tasks / (RUNS * sizeof(words)) * (RUNS * sizeof(words))};
    double best[STREAMS] = {0};
    memset(data, 0, bytes); /* so that its pages exist */
    for (int pass = 0; pass < PASSES; pass++)
        for (s.stream = READ; s.stream < STREAMS; s.stream++) {
            double start = now();
            vgg_parallel_for(0, threads, tasks, stream_task, &s);
            double rate = (double)(s.share * tasks) / (now() - start);
            if (rate > best[s.stream])
                best[s.stream] = rate;
        }
    return (struct vgg_memory_bandwidth){.read = best[READ], .write = best[WRITE], .update = 2 * best[UPDATE]};
}

/* core/threads.c: small pools of our own behind vgg_parallel_for, one for each CPU device.
 *
 * Why not OpenMP: idle threads must sleep, a child after fork must work, and an extension should not bring a second OpenMP
 * runtime into the process of another library.
 *
 * The caller is thread 0 and works too. Workers join a job by taking one of its seats under the lock; tasks are handed out
 * by an atomic counter. When the caller finds no task left it closes the job, so a worker that wakes late finds no seat and
 * costs nothing, and waits only for those that sat down. */
#define _GNU_SOURCE /* sched_getaffinity */
#include "../vgg_internal.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

enum { MAX_THREADS = 1024, SPINS = 1000 /* some 10 us: longer than the gap between two stages of an operation */ };

struct job {
    void (*body)(void *argument, size_t task, int thread);
    void *argument;
    size_t tasks;
};

static struct pool {
    _Alignas(64) pthread_mutex_t lock; /* pools share no cache line: their callers do not know of each other */
    pthread_cond_t wake, done;
    int workers;       /* threads started, besides callers */
    int seats, joined; /* of the open job: workers that may still join; workers that joined so far */
    struct job job;
    atomic_int working;      /* workers between joining and leaving; the caller spins on it */
    atomic_uint generation;  /* counts jobs; idle workers spin on it before they sleep */
    atomic_size_t next_task; /* of the open job */
    atomic_bool busy;        /* a caller owns the pool */
} pools[VGG_CPU_DEVICES];

static pthread_once_t once = PTHREAD_ONCE_INIT;
static atomic_int num_threads;             /* of every device; 0: not yet known */
static atomic_int shares[VGG_CPU_DEVICES]; /* of one device; 0: num_threads */

static void pause_cpu(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static void work(struct pool *pool, const struct job *job, int thread)
{
    for (;;) {
        size_t task = atomic_fetch_add_explicit(&pool->next_task, 1, memory_order_relaxed);
        if (task >= job->tasks)
            return;
        job->body(job->argument, task, thread);
    }
}

static void *worker(void *argument)
{
    struct pool *pool = argument;
    unsigned seen = 0; /* a job that is open when the thread starts is joined too */
    for (;;) {
        for (int i = 0; i < SPINS && atomic_load_explicit(&pool->generation, memory_order_relaxed) == seen; i++)
            pause_cpu();
        pthread_mutex_lock(&pool->lock);
        while (atomic_load_explicit(&pool->generation, memory_order_relaxed) == seen)
            pthread_cond_wait(&pool->wake, &pool->lock);
        seen = atomic_load_explicit(&pool->generation, memory_order_relaxed);
        if (pool->seats == 0) {
            pthread_mutex_unlock(&pool->lock);
            continue;
        }
        pool->seats--;
        int thread = ++pool->joined;
        struct job job = pool->job;
        atomic_fetch_add_explicit(&pool->working, 1, memory_order_relaxed);
        pthread_mutex_unlock(&pool->lock);

        work(pool, &job, thread);

        pthread_mutex_lock(&pool->lock);
        if (atomic_fetch_sub_explicit(&pool->working, 1, memory_order_release) == 1)
            pthread_cond_signal(&pool->done);
        pthread_mutex_unlock(&pool->lock);
    }
    return NULL;
}

/* Also for a child: it has only the thread that forked, so whatever state the pools were in, they start afresh. */
static void reset_pools(void)
{
    for (struct pool *pool = pools; pool < pools + VGG_CPU_DEVICES; pool++) {
        pthread_mutex_init(&pool->lock, NULL);
        pthread_cond_init(&pool->wake, NULL);
        pthread_cond_init(&pool->done, NULL);
        pool->workers = pool->seats = pool->joined = 0;
        atomic_store(&pool->working, 0);
        atomic_store(&pool->generation, 0);
        atomic_store(&pool->busy, false);
    }
}

static void make_pools(void)
{
    reset_pools();
    (void)pthread_atfork(NULL, NULL, reset_pools);
}

/* Brings the pool to `wanted` workers, or to as many as the system gives. Called by the pool's owner. */
static void start_workers(struct pool *pool, int wanted)
{
    if (pool->workers >= wanted)
        return;
    /* Signals are for the program's own threads. */
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    for (; pool->workers < wanted; pool->workers++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, worker, pool) != 0)
            break;
        pthread_detach(thread);
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

/* False: another caller owns it. */
static bool take_pool(struct pool *pool)
{
    pthread_once(&once, make_pools);
    return !atomic_exchange_explicit(&pool->busy, true, memory_order_acquire);
}

void vgg_parallel_for(int device, int threads, size_t tasks, void (*body)(void *argument, size_t task, int thread),
                      void *argument)
{
    struct pool *pool = &pools[device];
    if (threads > MAX_THREADS)
        threads = MAX_THREADS;
    if ((size_t)threads > tasks)
        threads = (int)tasks;
    if (threads <= 1 || !take_pool(pool)) {
        for (size_t task = 0; task < tasks; task++)
            body(argument, task, 0);
        return;
    }

    struct job job = {.body = body, .argument = argument, .tasks = tasks};
    pthread_mutex_lock(&pool->lock);
    pool->job = job;
    pool->seats = threads - 1;
    pool->joined = 0;
    atomic_store_explicit(&pool->next_task, 0, memory_order_relaxed);
    atomic_fetch_add_explicit(&pool->generation, 1, memory_order_relaxed);
    start_workers(pool, threads - 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);

    work(pool, &job, 0);

    pthread_mutex_lock(&pool->lock);
    pool->seats = 0;
    pthread_mutex_unlock(&pool->lock);
    for (int i = 0; i < SPINS && atomic_load_explicit(&pool->working, memory_order_acquire) != 0; i++)
        pause_cpu();
    pthread_mutex_lock(&pool->lock);
    while (atomic_load_explicit(&pool->working, memory_order_acquire) != 0)
        pthread_cond_wait(&pool->done, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
    atomic_store_explicit(&pool->busy, false, memory_order_release);
}

static int default_threads(void)
{
    const char *text = getenv("VGGNET_NUM_THREADS");
    if (text != NULL && *text != '\0') {
        char *end;
        long wanted = strtol(text, &end, 10);
        if (*end == '\0' && wanted >= 1)
            return wanted > MAX_THREADS ? MAX_THREADS : (int)wanted;
    }
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
        return CPU_COUNT(&set);
#endif
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online < 1 ? 1 : online > MAX_THREADS ? MAX_THREADS : (int)online;
}

void vgg_set_num_threads(int threads, int device)
{
    if (device != VGG_EVERY_DEVICE) {
        atomic_store(&shares[device], threads);
        return;
    }
    atomic_store(&num_threads, threads);
    for (int i = 0; i < VGG_CPU_DEVICES; i++)
        atomic_store(&shares[i], 0);
}

int vgg_get_num_threads(int device)
{
    int threads = device == VGG_EVERY_DEVICE ? 0 : atomic_load(&shares[device]);
    if (threads == 0)
        threads = atomic_load(&num_threads);
    if (threads == 0) {
        threads = default_threads();
        int set = 0; /* meanwhile, by another thread */
        if (!atomic_compare_exchange_strong(&num_threads, &set, threads))
            threads = set;
    }
    return threads;
}

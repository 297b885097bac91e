/* core/memory.c: the one place that takes memory from the system. */
#define _DEFAULT_SOURCE /* madvise */
#include "../vgg_internal.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { HUGE_PAGE = 2 << 20 };

static atomic_size_t current_bytes, peak_bytes, allocations;
static atomic_size_t fail_countdown; /* 0: off */

/* Blocks that were given back are kept for the next one that asks for as many bytes: pass after pass of a net takes the same
 * arenas and workspaces, whose pages the system would fill with zeros each time. Small ones, of up to SMALL bytes, are kept
 * always, in places of their own. Large ones, arenas, are kept while somebody has asked for it (a training step of net D on one
 * thread takes 6 % less then), and make room when another large size is asked for, so that the arenas of different passes never
 * add up. Nothing is kept under AddressSanitizer, which is to see what reads a block that is gone. */
enum { KEPT_SMALL = 3, KEPT_LARGE = 8, SMALL = 64 << 20 };
static struct kept {
    void *data; /* NULL: the place is vacant */
    size_t bytes;
} kept[KEPT_SMALL + KEPT_LARGE];
static unsigned turn;                                         /* whose place is taken when none is vacant */
static unsigned keepers;                                      /* of large ones */
static pthread_mutex_t kept_lock = PTHREAD_MUTEX_INITIALIZER; /* of the four above */
#ifdef __SANITIZE_ADDRESS__
static const bool keeps = false;
#else
static const bool keeps = true;
#endif

/* Worth keeping, and whole huge pages. Asked without a lock: nearly all blocks are smaller. */
static bool of_huge_pages(size_t bytes)
{
    return bytes >= 2 * HUGE_PAGE;
}

/* The places for blocks of a size: *count from the one that is returned. */
static struct kept *places(size_t bytes, unsigned *count)
{
    *count = bytes > SMALL ? KEPT_LARGE : KEPT_SMALL;
    return bytes > SMALL ? kept + KEPT_SMALL : kept;
}

static void give_back(struct kept *place, unsigned count)
{
    for (; count > 0; count--, place++) {
        free(place->data);
        place->data = NULL;
    }
}

/* A kept block of this size, or NULL; then the other large ones make room for a large one. */
static void *take_kept(size_t bytes)
{
    unsigned count;
    struct kept *place = places(bytes, &count);
    void *data = NULL;
    pthread_mutex_lock(&kept_lock);
    for (unsigned i = 0; i < count && data == NULL; i++)
        if (place[i].data != NULL && place[i].bytes == bytes) {
            data = place[i].data;
            place[i].data = NULL;
        }
    if (data == NULL && bytes > SMALL)
        give_back(place, count);
    pthread_mutex_unlock(&kept_lock);
    return data;
}

/* Whether the block was kept. */
static bool keep(void *data, size_t bytes)
{
    if (!keeps || !of_huge_pages(bytes))
        return false;
    unsigned count, vacant = 0;
    struct kept *place = places(bytes, &count);
    pthread_mutex_lock(&kept_lock);
    bool wanted = bytes <= SMALL || keepers > 0;
    if (wanted) {
        while (vacant < count && place[vacant].data != NULL)
            vacant++;
        if (vacant == count) {
            vacant = turn++ % count;
            give_back(place + vacant, 1);
        }
        place[vacant] = (struct kept){data, bytes};
    }
    pthread_mutex_unlock(&kept_lock);
    return wanted;
}

static void give_back_all(void)
{
    pthread_mutex_lock(&kept_lock);
    give_back(kept, KEPT_SMALL + KEPT_LARGE);
    pthread_mutex_unlock(&kept_lock);
}

void vgg_keep_large(bool on)
{
    pthread_mutex_lock(&kept_lock);
    keepers = on ? keepers + 1 : keepers - 1;
    if (keepers == 0)
        give_back(kept + KEPT_SMALL, KEPT_LARGE);
    pthread_mutex_unlock(&kept_lock);
}

/* True for exactly one of the allocations that race for the last count. */
static bool told_to_fail(void)
{
    size_t left = atomic_load(&fail_countdown);
    while (left != 0 && !atomic_compare_exchange_weak(&fail_countdown, &left, left - 1))
        ;
    return left == 1;
}

static void *take_new(size_t bytes)
{
    /* aligned_alloc wants a multiple of the alignment; 0 bytes still get an address of their own. */
    bool large = of_huge_pages(bytes);
    void *data = aligned_alloc(large ? HUGE_PAGE : 64, vgg_align64(vgg_max_size(bytes, 1)));
#ifdef MADV_HUGEPAGE
    /* Winograd's streams, 4 KiB pages each, would miss the TLB; where it is refused, nothing is lost. */
    if (data != NULL && large)
        (void)madvise(data, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
    return data;
}

void *vgg_allocate(size_t bytes)
{
    if (bytes > PTRDIFF_MAX - 64 || told_to_fail())
        return NULL;
    void *data = of_huge_pages(bytes) ? take_kept(bytes) : NULL;
    if (data == NULL && (data = take_new(bytes)) == NULL) {
        give_back_all();
        data = take_new(bytes);
    }
    if (data == NULL)
        return NULL;
    size_t now = atomic_fetch_add(&current_bytes, bytes) + bytes;
    size_t peak = atomic_load(&peak_bytes);
    while (peak < now && !atomic_compare_exchange_weak(&peak_bytes, &peak, now))
        ;
    atomic_fetch_add(&allocations, 1);
    return data;
}

void vgg_release(void *data, size_t bytes)
{
    if (data == NULL)
        return;
    if (!keep(data, bytes))
        free(data);
    atomic_fetch_sub(&current_bytes, bytes);
}

void vgg_allocation_stats(struct vgg_memory_stats *stats)
{
    stats->current_bytes = atomic_load(&current_bytes);
    stats->peak_bytes = atomic_load(&peak_bytes);
    stats->allocations = atomic_load(&allocations);
}

void vgg_allocation_reset_peak(void)
{
    atomic_store(&peak_bytes, atomic_load(&current_bytes));
}

void vgg_fail_allocation(size_t n)
{
    atomic_store(&fail_countdown, n);
}

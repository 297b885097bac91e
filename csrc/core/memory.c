/* core/memory.c: the one place that takes memory from the system. */
#define _DEFAULT_SOURCE /* madvise */
#include "../vgg_internal.h"

#include <stdlib.h>
#include <sys/mman.h>

enum { HUGE_PAGE = 2 << 20 };

static atomic_size_t current_bytes, peak_bytes, allocations;
static atomic_size_t fail_countdown; /* 0: off */

/* Blocks that were given back are kept for the next one that asks for as many bytes: pass after pass of a net takes the same
 * arena and workspace, whose pages the system would fill with zeros each time. A kept block's first bytes are its size. Not
 * kept under AddressSanitizer, which is to see what reads a block that is gone. */
#ifdef __SANITIZE_ADDRESS__
enum { KEPT = 0 };
#else
enum { KEPT = 3 };
#endif
enum { KEPT_MOST = 64 << 20 }; /* bytes of one: zeroing what is larger is a small part of what its pass costs */
static _Atomic(void *) kept[KEPT + 1];

static bool keepable(size_t bytes)
{
    return bytes >= 2 * HUGE_PAGE && bytes <= KEPT_MOST;
}

/* Puts a block into a place, and gives back the one that was there. */
static void keep(void *data, int place)
{
    free(atomic_exchange(&kept[place], data));
}

/* A kept block of this size, or NULL. A block that is looked at is in no place meanwhile, so nobody else can take it. */
static void *take_kept(size_t bytes)
{
    for (int place = 0; place < KEPT; place++) {
        void *data = atomic_exchange(&kept[place], NULL);
        if (data != NULL && *(size_t *)data == bytes)
            return data;
        if (data != NULL)
            keep(data, place);
    }
    return NULL;
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
    bool large = bytes >= 2 * HUGE_PAGE;
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
    void *data = keepable(bytes) ? take_kept(bytes) : NULL;
    if (data == NULL && (data = take_new(bytes)) == NULL)
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
    if (KEPT > 0 && keepable(bytes)) {
        static atomic_uint turn;
        *(size_t *)data = bytes;
        keep(data, (int)(atomic_fetch_add(&turn, 1) % KEPT));
    } else
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

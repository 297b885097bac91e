/* core/memory.c: the one place that takes memory from the system. */
#define _DEFAULT_SOURCE /* madvise */
#include "../vgg_internal.h"

#include <stdlib.h>
#include <sys/mman.h>

enum { HUGE_PAGE = 2 << 20 };

static atomic_size_t current_bytes, peak_bytes, allocations;
static atomic_size_t fail_countdown; /* 0: off */

/* True for exactly one of the allocations that race for the last count. */
static bool told_to_fail(void)
{
    size_t left = atomic_load(&fail_countdown);
    while (left != 0 && !atomic_compare_exchange_weak(&fail_countdown, &left, left - 1))
        ;
    return left == 1;
}

void *vgg_allocate(size_t bytes)
{
    if (bytes > PTRDIFF_MAX - 64 || told_to_fail())
        return NULL;
    /* aligned_alloc wants a multiple of the alignment; 0 bytes still get an address of their own. */
    bool large = bytes >= 2 * HUGE_PAGE;
    void *data = aligned_alloc(large ? HUGE_PAGE : 64, vgg_align64(vgg_max_size(bytes, 1)));
    if (data == NULL)
        return NULL;
#ifdef MADV_HUGEPAGE
    if (large) /* Winograd's 36 streams, 4 KiB pages each, would miss the TLB; where it is refused, nothing is lost */
        (void)madvise(data, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
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

/* core/memory.c: the one place that takes memory from the system. */
#define _DEFAULT_SOURCE /* madvise */
#include "../vgg_internal.h"

#include <stdlib.h>
#include <sys/mman.h>

enum { HUGE_PAGE = 2 << 20 };

static atomic_size_t current_bytes, peak_bytes, allocations;
static atomic_size_t fail_countdown; /* 0: off */

/* Blocks that were given back are kept for the next one that asks for as many bytes: pass after pass of a net takes the same
 * arenas and workspaces, whose pages the system would fill with zeros each time. A kept block's first bytes are its size. Small
 * ones, of up to SMALL bytes, are kept always and displace each other. Large ones, arenas, are kept while somebody has asked
 * for it (a training step of net D on one thread takes 6 % less then), and make room when another size is asked for, so that
 * the arenas of different passes never add up. Nothing is kept under AddressSanitizer, which is to see what reads a block that
 * is gone. */
enum { KEPT_SMALL = 3, KEPT_LARGE = 8, SMALL = 64 << 20 };
static _Atomic(void *) kept[KEPT_SMALL + KEPT_LARGE];
static atomic_int keepers; /* of large ones */
#ifdef __SANITIZE_ADDRESS__
static const bool keeps = false;
#else
static const bool keeps = true;
#endif

static bool keepable(size_t bytes)
{
    return keeps && bytes >= 2 * HUGE_PAGE && (bytes <= SMALL || atomic_load(&keepers) > 0);
}

/* The places for blocks of a size: *count from the one that is returned. */
static _Atomic(void *) *places(size_t bytes, unsigned *count)
{
    *count = bytes > SMALL ? KEPT_LARGE : KEPT_SMALL;
    return bytes > SMALL ? kept + KEPT_SMALL : kept;
}

/* Puts a block, or NULL, into a place, and gives back the one that was there. */
static void keep(void *data, _Atomic(void *) *place)
{
    free(atomic_exchange(place, data));
}

/* A kept block of this size, or NULL. A block that is looked at is in no place meanwhile, so nobody else can take it. */
static void *take_kept(size_t bytes)
{
    unsigned count;
    _Atomic(void *) *place = places(bytes, &count);
    for (; count > 0; count--, place++) {
        void *data = atomic_exchange(place, NULL);
        if (data != NULL && *(size_t *)data == bytes)
            return data;
        if (data != NULL)
            keep(data, place);
    }
    return NULL;
}

static void give_back_large(void)
{
    for (int place = KEPT_SMALL; place < KEPT_SMALL + KEPT_LARGE; place++)
        keep(NULL, &kept[place]);
}

void vgg_keep_large(bool on)
{
    if (atomic_fetch_add(&keepers, on ? 1 : -1) == 1 && !on)
        give_back_large(); /* what another thread gives back at this moment may stay until the next time */
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
    if (data == NULL && bytes > SMALL)
        give_back_large();
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
    if (keepable(bytes)) {
        static atomic_uint turn;
        unsigned count;
        _Atomic(void *) *place = places(bytes, &count);
        *(size_t *)data = bytes;
        keep(data, place + atomic_fetch_add(&turn, 1) % count);
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

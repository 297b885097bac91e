/* core/cpu.c: what the processor and its operating system allow. */
#include "../vgg_internal.h"

#include <unistd.h> /* sysconf */

#if defined(__x86_64__)
#include <cpuid.h>
#endif

const char *vgg_isa_name(enum vgg_isa isa)
{
    static const char *const names[VGG_ISA_COUNT] = {
        [VGG_ISA_SCALAR] = "scalar", [VGG_ISA_AVX2] = "avx2", [VGG_ISA_AVX512] = "avx512"};
    return names[isa];
}

#if defined(__x86_64__)
/* Which register files the operating system saves: XCR0. Valid only if CPUID told OSXSAVE. */
static uint64_t saved_state(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

enum vgg_isa vgg_isa_best(void)
{
    enum { YMM_STATE = 0x6, ZMM_STATE = 0xe6 }; /* SSE and AVX; and opmask, upper ZMM0-15, ZMM16-31 */
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_FMA) || !(c & bit_AVX))
        return VGG_ISA_SCALAR;
    uint64_t saved = saved_state();
    if ((saved & YMM_STATE) != YMM_STATE || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & bit_AVX2))
        return VGG_ISA_SCALAR;
    const unsigned avx512 = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
    if ((saved & ZMM_STATE) != ZMM_STATE || (b & avx512) != avx512)
        return VGG_ISA_AVX2;
    return VGG_ISA_AVX512;
}
#else
enum vgg_isa vgg_isa_best(void)
{
    return VGG_ISA_SCALAR;
}
#endif

size_t vgg_l2_bytes(void)
{
    static atomic_size_t cached;
    size_t bytes = atomic_load_explicit(&cached, memory_order_relaxed);
    if (bytes == 0) {
        long told = -1;
#ifdef _SC_LEVEL2_CACHE_SIZE
        told = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
        bytes = told >= 128 * 1024 ? (size_t)told : 512 * 1024;
        atomic_store_explicit(&cached, bytes, memory_order_relaxed);
    }
    return bytes;
}

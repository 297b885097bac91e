/* kernels/kernels.c: the table of microkernels and the choice among them. */
#include "kernels.h"

#include <string.h>

static const char *const slot_names[] = {
#define SLOT_NAME(enumerator, name) #name,
    VGG_EACH_SLOT(SLOT_NAME)};

static const struct vgg_kernel table[] = {
#define KERNEL(slot, member, function, isa, mr, nr) {#function, VGG_SLOT_##slot, isa, mr, nr, {.member = function}},
#define PEAK(function, isa, vl)
#include "kernels.def"
#undef KERNEL
#undef PEAK
};
enum { TABLE_ROWS = sizeof table / sizeof *table };

static atomic_size_t uses[TABLE_ROWS];
static const struct vgg_kernel *_Atomic selected[VGG_SLOT_COUNT];

const struct vgg_kernel *vgg_kernel(enum vgg_slot slot)
{
    return atomic_load_explicit(&selected[slot], memory_order_relaxed);
}

enum vgg_isa vgg_isa_selected(void)
{
    return vgg_gemm()->isa;
}

enum vgg_status vgg_kernels_init(const char *isa, struct vgg_error *error)
{
    enum vgg_isa best = vgg_isa_best(), cap = best;
    if (isa != NULL && *isa != '\0') {
        for (cap = VGG_ISA_SCALAR; cap < VGG_ISA_COUNT && strcmp(isa, vgg_isa_name(cap)) != 0;)
            cap++;
        if (cap == VGG_ISA_COUNT)
            return vgg_fail(error, VGG_INVALID_ARGUMENT, "isa: got '%.40s'; expected 'scalar', 'avx2' or 'avx512'", isa);
        if (cap > best)
            return vgg_fail(error, VGG_UNSUPPORTED, "isa: got '%s'; expected at most '%s' because this CPU has no more", isa,
                            vgg_isa_name(best));
    }
    for (size_t i = 0; i < TABLE_ROWS; i++)
        if (table[i].isa <= cap)
            atomic_store(&selected[table[i].slot], &table[i]);
    return VGG_OK;
}

const struct vgg_kernel *vgg_kernels(size_t *count)
{
    *count = TABLE_ROWS;
    return table;
}

const char *vgg_slot_name(enum vgg_slot slot)
{
    return slot_names[slot];
}

size_t vgg_kernel_uses(const struct vgg_kernel *kernel)
{
    return atomic_load_explicit(&uses[kernel - table], memory_order_relaxed);
}

void vgg_kernel_count_use(const struct vgg_kernel *kernel)
{
    atomic_fetch_add_explicit(&uses[kernel - table], 1, memory_order_relaxed);
}

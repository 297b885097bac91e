/* dlpack.h: the in-memory protocol of DLPack 1.0 (dmlc.github.io/dlpack), written from its specification: only what is
 * needed here. The layout of these structs is an ABI shared with every other library. */
#ifndef VGGNET_DLPACK_H
#define VGGNET_DLPACK_H

#include <stdint.h>

enum { DLPACK_MAJOR = 1, DLPACK_MINOR = 0 };
enum { DLPACK_CPU = 1, DLPACK_CUDA = 2 };                                                       /* device types */
enum { DLPACK_INT = 0, DLPACK_UINT = 1, DLPACK_FLOAT = 2, DLPACK_BFLOAT = 4, DLPACK_BOOL = 6 }; /* type codes */
#define DLPACK_READ_ONLY ((uint64_t)1)
#define DLPACK_IS_COPIED ((uint64_t)2)

struct dl_tensor {
    void *data;
    struct {
        int32_t type, id;
    } device;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape;
    int64_t *strides; /* in elements; NULL: C-contiguous */
    uint64_t byte_offset;
};

/* Capsule "dltensor": the older form, which cannot say read-only. */
struct dl_managed {
    struct dl_tensor tensor;
    void *context;
    void (*deleter)(struct dl_managed *self);
};

/* Capsule "dltensor_versioned". */
struct dl_managed_versioned {
    struct {
        uint32_t major, minor;
    } version;
    void *context;
    void (*deleter)(struct dl_managed_versioned *self);
    uint64_t flags;
    struct dl_tensor tensor;
};

#endif

/* backend.c: the table of device "cuda". */
#include "host.h"

#define X(entry) .entry = vgg_cuda_##entry,
const struct vgg_backend vgg_cuda_backend = {
    .name = "cuda", .host = false, .bfloat16 = true, .dlpack_type = 2, VGG_BACKEND_ENTRIES(X)};
#undef X

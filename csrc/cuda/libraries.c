/* libraries.c: cuBLAS and cuDNN, found at run time. */
#include "libraries.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

struct vgg_cublas_functions vgg_cublas;
struct vgg_cudnn_functions vgg_cudnn;

static const struct symbol {
    const char *library, *name;
    void *to; /* the member that takes the address */
} symbols[] = {
#define X(function) {"cublas", #function, &vgg_cublas.function},
    VGG_CUBLAS_FUNCTIONS(X)
#undef X
#define X(function) {"cudnn", #function, &vgg_cudnn.function},
        VGG_CUDNN_FUNCTIONS(X)
#undef X
};

int vgg_cuda_symbol(size_t i, const char **library, const char **name)
{
    if (i >= sizeof symbols / sizeof *symbols)
        return 0;
    *library = symbols[i].library;
    *name = symbols[i].name;
    return 1;
}

const char *vgg_cuda_open_libraries(const char *cublas, const char *cudnn, char *reason, size_t size)
{
    const struct {
        const char *name, *file;
    } libraries[] = {{"cublas", cublas}, {"cudnn", cudnn}};
    for (size_t l = 0; l < sizeof libraries / sizeof *libraries; l++) {
        void *handle = dlopen(libraries[l].file, RTLD_NOW | RTLD_GLOBAL); /* stays open: its functions are in use */
        if (!handle) {
            (void)snprintf(reason, size, "%s", dlerror());
            return reason;
        }
        for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
            if (strcmp(symbols[i].library, libraries[l].name) != 0)
                continue;
            void *address = dlsym(handle, symbols[i].name);
            if (!address) {
                (void)snprintf(reason, size, "%s has no function %s: another version is needed", libraries[l].file,
                               symbols[i].name);
                return reason;
            }
            memcpy(symbols[i].to, &address, sizeof address);
        }
    }
    return NULL;
}

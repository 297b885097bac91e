/* libraries.c: cuBLAS, cuDNN and NCCL, found at run time. */
#include "libraries.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

struct vgg_cublas_functions vgg_cublas;
struct vgg_cudnn_functions vgg_cudnn;
#ifdef VGGNET_NCCL
struct vgg_nccl_functions vgg_nccl;
#endif

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
#ifdef VGGNET_NCCL
#define X(function) {"nccl", #function, &vgg_nccl.function},
            VGG_NCCL_FUNCTIONS(X)
#undef X
#endif
};

int vgg_cuda_symbol(size_t i, const char **library, const char **name)
{
    if (i >= sizeof symbols / sizeof *symbols)
        return 0;
    *library = symbols[i].library;
    *name = symbols[i].name;
    return 1;
}

/* Finds the functions of one library, which is open; NULL or the reason. */
static const char *find_functions(const char *library, const char *file, void *handle, char *reason, size_t size)
{
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        if (strcmp(symbols[i].library, library) != 0)
            continue;
        void *address = dlsym(handle, symbols[i].name);
        if (!address) {
            (void)snprintf(reason, size, "%s has no function %s: another version is needed", file, symbols[i].name);
            return reason;
        }
        memcpy(symbols[i].to, &address, sizeof address);
    }
    return NULL;
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
        const char *failure = find_functions(libraries[l].name, libraries[l].file, handle, reason, size);
        if (failure)
            return failure;
    }
    return NULL;
}

/* ------------------------------------------------------------------------------------------------ NCCL */

static char nccl_candidates[4096];

void vgg_cuda_set_nccl(const char *candidates)
{
    (void)snprintf(nccl_candidates, sizeof nccl_candidates, "%s", candidates);
}

#ifdef VGGNET_NCCL
const char *vgg_cuda_open_nccl(char *reason, size_t size)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static bool opened;
    const char *failure = NULL;
    char path[sizeof nccl_candidates], words[256] = "";
    void *handle = NULL;
    pthread_mutex_lock(&lock);
    for (const char *next = nccl_candidates; !opened && !handle && *next;) {
        size_t length = strcspn(next, "\n");
        memcpy(path, next, length);
        path[length] = 0;
        next += length + (next[length] != 0);
        handle = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
        const char *why = handle ? NULL : dlerror();
        if (why && !*words) /* the first place is where it was expected */
            (void)snprintf(words, sizeof words, "%s", why);
    }
    if (handle)
        failure = find_functions("nccl", path, handle, reason, size);
    else if (!opened) {
        (void)snprintf(reason, size, "libnccl.so.2 can't be opened (%s): pip install 'vggnet[cuda13]'", words);
        failure = reason;
    }
    opened = opened || !failure;
    pthread_mutex_unlock(&lock);
    return failure;
}
#else
const char *vgg_cuda_open_nccl(char *reason, size_t size)
{
    (void)snprintf(reason, size,
                   "vggnet was built without NCCL, whose nccl.h was not found: pip install nvidia-nccl-cu13 or "
                   "set NCCL_HOME, and build vggnet again");
    return reason;
}
#endif

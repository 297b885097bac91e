/* libraries.h: the functions of cuBLAS, cuDNN and NCCL that are used, looked up when the backend is opened (NCCL's when
 * devices first average), so that the package needs no library to be built, installed or imported. VGGNET_NCCL: nccl.h was
 * there when this was built. */
#ifndef VGG_CUDA_LIBRARIES_H
#define VGG_CUDA_LIBRARIES_H

#include <cublas_v2.h>
#include <cudnn_graph.h>
#ifdef VGGNET_NCCL
#include <nccl.h>
#endif

#define VGG_CUBLAS_FUNCTIONS(X) \
    X(cublasCreate_v2) \
    X(cublasDestroy_v2) \
    X(cublasSetStream_v2) \
    X(cublasSetWorkspace_v2) \
    X(cublasSetMathMode) \
    X(cublasSgemm_v2) \
    X(cublasGemmEx) \
    X(cublasGetStatusString)

#define VGG_CUDNN_FUNCTIONS(X) \
    X(cudnnCreate) \
    X(cudnnDestroy) \
    X(cudnnSetStream) \
    X(cudnnGetErrorString) \
    X(cudnnGetLastErrorString) \
    X(cudnnBackendCreateDescriptor) \
    X(cudnnBackendDestroyDescriptor) \
    X(cudnnBackendSetAttribute) \
    X(cudnnBackendGetAttribute) \
    X(cudnnBackendFinalize) \
    X(cudnnBackendExecute)

#define VGG_NCCL_FUNCTIONS(X) \
    X(ncclGetUniqueId) \
    X(ncclCommInitRank) \
    X(ncclCommDestroy) \
    X(ncclCommAbort) \
    X(ncclCommGetAsyncError) \
    X(ncclGetErrorString) \
    X(ncclGetLastError) \
    X(ncclGroupStart) \
    X(ncclGroupEnd) \
    X(ncclAllGather)

/* vgg_cudnn.cudnnCreate(...) calls cudnnCreate. Valid after vgg_cuda_open; NCCL's after vgg_cuda_open_nccl. */
#define VGG_MEMBER(name) __typeof__(name) *name;
struct vgg_cublas_functions {
    VGG_CUBLAS_FUNCTIONS(VGG_MEMBER)
};
struct vgg_cudnn_functions {
    VGG_CUDNN_FUNCTIONS(VGG_MEMBER)
};
#ifdef VGGNET_NCCL
struct vgg_nccl_functions {
    VGG_NCCL_FUNCTIONS(VGG_MEMBER)
};
extern struct vgg_nccl_functions vgg_nccl;
#endif
#undef VGG_MEMBER
extern struct vgg_cublas_functions vgg_cublas;
extern struct vgg_cudnn_functions vgg_cudnn;

/* Opens the libraries by their file names (or paths) and finds every function; once. On failure NULL is not returned but the
 * reason, in the caller's buffer; NULL is success. */
const char *vgg_cuda_open_libraries(const char *cublas, const char *cudnn, char *reason, size_t size);
/* Where NCCL may be, paths separated by '\n'; they are tried when vgg_cuda_open_nccl is first called. */
void vgg_cuda_set_nccl(const char *candidates);
/* The same for NCCL. A failure is not kept: the library may be there the next time. */
const char *vgg_cuda_open_nccl(char *reason, size_t size);
/* The i-th function's library and name, or false past the last: what a test looks up in the real libraries. */
int vgg_cuda_symbol(size_t i, const char **library, const char **name);

#endif

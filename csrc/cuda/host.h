/* host.h: what the C files of csrc/cuda share beyond cuda.h. */
#ifndef VGG_CUDA_HOST_H
#define VGG_CUDA_HOST_H

#include "../vgg_internal.h"
#include "cuda.h"
#include "libraries.h"

#include <pthread.h>

/* NULL, or why there is no device, in the caller's buffer. Needs the runtime library alone. */
const char *vgg_cuda_find_devices(int *count, char *reason, size_t size);
/* NULL, or why no device can be used, in the caller's buffer. */
const char *vgg_cuda_open(const char *cublas, const char *cudnn, char *reason, size_t size);

/* What is queued on a stream of `device` from now on waits for what a stream of `awaited_device` holds now. */
enum vgg_status vgg_cuda_wait(struct vgg_context *ctx, int device, cudaStream_t stream, int awaited_device,
                              cudaStream_t awaited);

/* Bytes of the current device, `device`, that may still be taken: with what the pool holds for the next tensors. */
cudaError_t vgg_cuda_free_memory(int device, size_t *free_bytes, size_t *total);

/* The library's handle of ctx's device, set to `stream` and locked until it is unlocked: handles are not thread-safe. */
enum vgg_status vgg_cuda_lock_cublas(struct vgg_context *ctx, cublasHandle_t *handle, cudaStream_t stream,
                                     enum vgg_precision precision);
enum vgg_status vgg_cuda_lock_cudnn(struct vgg_context *ctx, cudnnHandle_t *handle, cudaStream_t stream);
void vgg_cuda_unlock(struct vgg_context *ctx);
enum vgg_status vgg_cublas_fail(struct vgg_context *ctx, cublasStatus_t status, const char *what);
enum vgg_status vgg_cudnn_fail(struct vgg_context *ctx, cudnnStatus_t status, const char *what);

/* VGG_OK when ctx's device has tensor cores for the precision. */
enum vgg_status vgg_cuda_expect_precision(struct vgg_context *ctx, const char *op, enum vgg_precision precision);

/* Parts of a workspace, one after the other. In a first pass (base NULL) they are only counted. */
struct vgg_cuda_parts {
    char *base;
    size_t bytes; /* so far, a multiple of 256 */
    bool overflow;
};
void *vgg_cuda_part(struct vgg_cuda_parts *parts, size_t count, size_t element);
/* VGG_OK when ctx's workspace holds them. */
enum vgg_status vgg_cuda_parts_fit(struct vgg_context *ctx, const char *op, const struct vgg_cuda_parts *parts);

/* Memory of the pool itself, whatever is being captured; bytes > 0. */
enum vgg_status vgg_cuda_pool_allocate(struct vgg_context *ctx, void **data, size_t bytes);
void vgg_cuda_pool_release(int device, void *data, size_t bytes);

/* ------------------------------------------------------------------------------------------------ CUDA graphs (capture.c) */

/* What a thread queued on a device between begin and end, or is queueing. */
struct vgg_cuda_capture {
    int device;
    cudaStream_t stream;   /* that it is queued on: the thread's, meanwhile */
    cudaStream_t beneath;  /* the thread's before and after */
    cudaGraphExec_t graph; /* NULL before the end */
    cudaEvent_t replayed;  /* after the last replay; before the first, after the memory was taken */
    void *workspace;       /* cuBLAS's, or NULL */
};

/* What the calling thread queues from now on is not done but recorded. *c must stay where it is until it is freed. */
enum vgg_status vgg_cuda_capture_begin(struct vgg_context *ctx, struct vgg_cuda_capture *c);
/* By the same thread, whatever happened in between. After a failure *c is to be freed, too. */
enum vgg_status vgg_cuda_capture_end(struct vgg_context *ctx, struct vgg_cuda_capture *c);
/* Queues all of it on the calling thread's stream. */
enum vgg_status vgg_cuda_capture_replay(struct vgg_context *ctx, struct vgg_cuda_capture *c);
void vgg_cuda_capture_free(struct vgg_cuda_capture *c);

/* Whether the calling thread captures on the device; whether to this stream of it; and the error of what can't be captured. */
bool vgg_cuda_capturing(int device);
bool vgg_cuda_captured(int device, cudaStream_t stream);
enum vgg_status vgg_cuda_refuse_capture(struct vgg_context *ctx, const char *what);
/* The thread's stream without regard to a capture. */
cudaStream_t vgg_cuda_stream_beneath(int device);
/* Memory for what is captured. */
enum vgg_status vgg_cuda_capture_allocate(struct vgg_context *ctx, void **data, size_t bytes);
/* The workspace of cuBLAS in the capture, which by itself would take memory that nobody counts. */
enum vgg_status vgg_cuda_capture_cublas(struct vgg_context *ctx, void **workspace, size_t *bytes);
/* Called with memory that nobody uses any more: whether a graph keeps it. */
bool vgg_cuda_capture_keeps(const void *data);

/* ------------------------------------------------------------------------------------------------ NCCL (nccl.c) */

enum { VGG_CUDA_NCCL_ID_BYTES = 128 };

/* Ranks that average with each other, and those of them that this process drives from one thread at a time. */
struct vgg_cuda_communicator {
    pthread_mutex_t lock;
    int size, count; /* ranks; how many of them are here */
    struct {
        int device;
        struct ncclComm *comm; /* NULL: it was aborted */
        cudaStream_t stream;   /* of its own, non-blocking: averages go on while the device computes */
        float *gathered;       /* the ranks' pieces; gathered_bytes */
    } local[VGG_CUDA_MAX_DEVICES];
    size_t gathered_bytes;
};

/* A new id, which every rank of one communicator must be given. */
enum vgg_status vgg_cuda_nccl_id(struct vgg_context *ctx, char id[VGG_CUDA_NCCL_ID_BYTES]);
/* Fills in *c with the `count` ranks from `first` on, of `size`; returns when every rank of every process has called it. */
enum vgg_status vgg_cuda_communicator_open(struct vgg_context *ctx, struct vgg_cuda_communicator *c, const char *id,
                                           const int *devices, int count, int first, int size);
/* Queues on the communicator's streams, after what the thread's streams hold now:
 * tensor[t][r] = sum over ranks d of weight[d] (tensor t of d) / sum of weights, in float64 in the order of ranks, for each
 * rank r of this process (t-major: tensors[t * count + r]). The same tensors in the same order on every rank. After a
 * failure the communicator is aborted and the tensors hold anything. */
enum vgg_status vgg_cuda_communicator_mean(struct vgg_context *ctx, struct vgg_cuda_communicator *c, float *const *tensors,
                                           const size_t *sizes, size_t count, const double *weight);
/* VGG_OK, or what went wrong meanwhile, here or at another rank; the communicator is aborted then. */
enum vgg_status vgg_cuda_communicator_check(struct vgg_context *ctx, struct vgg_cuda_communicator *c);
/* Ends what is under way, here and, where NCCL can tell them, at the other ranks. From any thread. */
void vgg_cuda_communicator_abort(struct vgg_cuda_communicator *c);
/* Gives everything back; aborts what is under way. */
void vgg_cuda_communicator_close(struct vgg_cuda_communicator *c);

/* ------------------------------------------------------------------------------------------------ cuDNN graphs (graph.c) */

enum vgg_cuda_graph_kind {
    VGG_CUDA_CONVOLUTION,           /* x, w -> y */
    VGG_CUDA_CONVOLUTION_BIAS,      /* x, w, b -> y */
    VGG_CUDA_CONVOLUTION_BIAS_RELU, /* x, w, b -> y */
    VGG_CUDA_BACKWARD_INPUT,        /* dy, w -> dx */
    VGG_CUDA_BACKWARD_WEIGHT,       /* dy, x -> dw, float32 */
    VGG_CUDA_BACKWARD_WEIGHT_BF16,  /* dy, x -> dw, bfloat16 */
};

/* Everything that a plan depends on beside the device. */
struct vgg_cuda_graph {
    enum vgg_cuda_graph_kind kind;
    size_t n, h, w, c, k, kernel_size;
    bool aligned;                 /* every tensor to 16 bytes */
    enum vgg_precision precision; /* TF32: engines that round factors may be taken; BF16: maps and weights are bfloat16 */
};

/* The workspace of the plan for *graph, which is made at the first call and kept. VGG_UNSUPPORTED when no engine takes it. */
enum vgg_status vgg_cuda_graph_workspace(struct vgg_context *ctx, size_t *bytes, const struct vgg_cuda_graph *graph);
/* Refused graphs are tried anew when they are asked for again: the cause may have been one that goes away. */
void vgg_cuda_graph_forget_refusals(struct vgg_context *ctx);
/* Tensors in the order above: inputs, then the output; NHWC and KRSC. graph->aligned must be true: that they are is checked. */
enum vgg_status vgg_cuda_graph_run(struct vgg_context *ctx, const struct vgg_cuda_graph *graph, const void *const *tensors,
                                   void *workspace, size_t workspace_bytes, cudaStream_t stream);

/* ------------------------------------------------------------------------------------------------ the table's entries */

#define X(entry) __typeof__(*vgg_cpu_backend.entry) vgg_cuda_##entry;
VGG_BACKEND_ENTRIES(X)
#undef X

/* ------------------------------------------------------------------------------------------------ host memory (device.c) */

/* A piece of host memory: rows. */
struct vgg_cuda_rows {
    const unsigned char *from;
    size_t rows, row_bytes, stride; /* stride: bytes from row to row in `from` */
};
/* Sends pieces, one after the other, to memory of the device that is kept for it, on a stream of its own: beside what the
 * device computes. The thread's stream waits for them. Then the caller queues what reads *staged, and calls vgg_cuda_unstage;
 * nobody else stages on the device meanwhile. After a failure it must not. */
enum vgg_status vgg_cuda_stage(struct vgg_context *ctx, unsigned char **staged, const struct vgg_cuda_rows *pieces,
                               size_t count);
enum vgg_status vgg_cuda_unstage(struct vgg_context *ctx);

#endif

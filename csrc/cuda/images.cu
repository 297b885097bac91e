/* images.cu: the training input from uint8 (paper, section 3.1), and the windows that make fc6 a convolution (section 3.2). */
#include "launch.cuh"

__global__ static void augment_kernel(float *x, const uint8_t *crops, const float *offset, const uint8_t *mirror, size_t count,
                                      size_t size, size_t c)
{
    GRID_STRIDE(i, count) {
        size_t ch = i % c, w = i / c % size, row = i / c / size, image = row / size;
        size_t column = mirror[image] ? size - 1 - w : w;
        x[i] = (float)crops[(row * size + column) * c + ch] + offset[4 * image + ch];
    }
}

cudaError_t vgg_cuda_launch_augment(float *x, const uint8_t *crops, const float *offset, const uint8_t *mirror,
                                    const struct vgg_augment *s, cudaStream_t stream)
{
    size_t count = s->n * s->size * s->size * s->c;
    if (count)
        augment_kernel<<<blocks_for(count), BLOCK, 0, stream>>>(x, crops, offset, mirror, count, s->size, s->c);
    return cudaGetLastError();
}

template <typename T>
__global__ static void unfold_kernel(T *y, const T *x, size_t count, size_t h, size_t w, size_t c, size_t size)
{
    size_t oh = h - size + 1, ow = w - size + 1, row_values = size * c;
    GRID_STRIDE(i, count) {
        size_t in_row = i % row_values, r = i / row_values % size, position = i / row_values / size;
        size_t column = position % ow, row = position / ow % oh, image = position / ow / oh;
        y[i] = x[((image * h + row + r) * w + column) * c + in_row];
    }
}

cudaError_t vgg_cuda_launch_unfold(void *y, const void *x, const struct vgg_unfold *s, cudaStream_t stream)
{
    size_t count = s->n * (s->h - s->size + 1) * (s->w - s->size + 1) * s->size * s->size * s->c;
    if (count)
        WITH_TYPE(
            s->dtype, T,
            unfold_kernel<<<blocks_for(count), BLOCK, 0, stream>>>((T *)y, (const T *)x, count, s->h, s->w, s->c, s->size));
    return cudaGetLastError();
}

/* positions.cpp: the kernels of csrc/cuda on the host, at positions from 2^31 on, of arrays that take no memory until a page is
 * touched. The files are included as test_cuda_positions.py makes them: `kernel<<<grid, block, 0, stream>>>(...)` is
 * `on_host(grid, block, kernel)(...)`, which runs the threads that come to the wanted positions, and no others. */
#include <math.h>
#include <stdio.h>
#include <sys/mman.h>

#include <cuda_runtime_api.h>

static dim3 gridDim, blockDim, blockIdx, threadIdx;
static size_t wanted; /* of a grid-stride loop */

template <typename Kernel> static auto on_host(unsigned grid, dim3 block, Kernel kernel)
{
    return [=](auto... arguments) {
        size_t thread = wanted % ((size_t)grid * block.x);
        gridDim = grid, blockDim = block;
        blockIdx.x = (unsigned)(thread / block.x), threadIdx.x = (unsigned)(thread % block.x);
        kernel(arguments...);
    };
}

static float __uint_as_float(unsigned bits)
{
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}
static unsigned __float_as_uint(float value)
{
    unsigned bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits;
}
extern "C" cudaError_t cudaGetLastError(void)
{
    return cudaSuccess;
}

#include "elementwise.cpp"
#include "images.cpp"
#include "lrn.cpp"
#include "max_pool2d.cpp"
#include "random.cpp"
#include "update.cpp"

template <typename T> struct array {
    T *data;
    size_t bytes;
    explicit array(size_t count) : bytes(count * sizeof(T))
    {
        data = (T *)mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    ~array() { munmap(data, bytes); }
    T &operator[](size_t i) { return data[i]; }
    operator T *() { return data; }
};

static int failures;

template <typename T> static void expect(const char *what, size_t at, T value, float expected)
{
    if (widen(value) != expected) {
        printf("%s at %zu: %g, expected %g\n", what, at, (double)widen(value), (double)expected);
        failures++;
    }
}
static bfloat16 narrow(float value)
{
    return {vgg_round_bfloat16(__float_as_uint(value))};
}
static void put(float &to, float value)
{
    to = value;
}
static void put(bfloat16 &to, float value)
{
    to = narrow(value);
}

/* Maps of either type, `at` is a position in the output. */
template <typename T> static void maps(enum vgg_dtype dtype, size_t at)
{
    const size_t many = at + 1000;
    {
        array<T> x(many), y(many);
        wanted = at / PER_WORD<T>;
        put(x[at], 3);
        vgg_cuda_launch_relu(y, x, many, dtype, NULL);
        expect("relu", at, y[at], 3);
        put(y[at], 1);
        vgg_cuda_launch_relu_backward(y, x, y, many, dtype, NULL);
        expect("relu_backward", at, y[at], 3);
        vgg_cuda_launch_add(y, x, many, dtype, NULL);
        expect("add", at, y[at], 6);
    }
    {
        const size_t k = 8, rows = many / k + 1;
        array<T> z(rows * k), y(rows * k);
        float b[k] = {};
        b[at % k] = 2;
        put(z[at], 1);
        vgg_cuda_launch_bias_relu(y, dtype, z, dtype, b, rows, k, true, NULL);
        expect("bias_relu", at, y[at], 3);
    }
    wanted = at;
    {
        const size_t rows = many / 3, in = at / 4 * 3 + 1, out = at / 4 * 4 + 1;
        array<T> few(rows * 3), full(rows * 4);
        wanted = out;
        put(few[in], 7);
        vgg_cuda_launch_pad(full, few, rows, 3, 4, dtype, NULL);
        expect("pad", out, full[out], 7);
        put(full[at / 3 * 4 + at % 3], 5);
        wanted = at;
        vgg_cuda_launch_unpad(few, full, rows, 3, 4, dtype, NULL);
        expect("unpad", at, few[at], 5);
    }
    {
        const vgg_lrn s = {many / 64 + 1, 64, 1, 1, 0.75f, 0, dtype}; /* y = x (x^2)^-0.75 */
        array<T> x(s.rows * s.c), y(s.rows * s.c);
        put(x[at], 4);
        vgg_cuda_launch_lrn(y, x, &s, NULL);
        expect("lrn", at, y[at], 0.5f);
        vgg_cuda_launch_lrn_backward(y, x, x, &s, NULL);
        expect("lrn_backward", at, y[at], -0.25f);
    }
    {
        const vgg_max_pool2d s = {many / (64 * 64) + 1, 128, 128, 1, false, dtype};
        const size_t image = at / (64 * 64), row = at / 64 % 64, column = at % 64;
        const size_t in = (image * 128 + 2 * row + 1) * 128 + 2 * column + 1;
        array<T> x(s.n * 128 * 128), y(s.n * 64 * 64);
        array<uint8_t> index(s.n * 64 * 64);
        put(x[in], 2);
        vgg_cuda_launch_max_pool2d(y, index, x, &s, NULL);
        expect("max_pool2d", at, y[at], 2);
        expect("its index", at, (float)index[at], 3);
        put(x[in], 0);
        wanted = in;
        vgg_cuda_launch_unpool(x, y, y, index, &s, NULL);
        expect("unpool", in, x[in], 2);
    }
    {
        const vgg_dropout s = {many / 8 + 1, 8, 0.5f, 7, 6, dtype};
        const size_t row = at / 8, block = at / 4 % 2;
        array<T> x(s.n * 8), y(s.n * 8);
        array<int64_t> rows(s.n);
        uint32_t words[4];
        rows[row] = 1234;
        vgg_philox(words, 7, 1234, 6, (uint32_t)block);
        for (size_t j = 0; j < 8; j++)
            put(x[8 * row + j], 1);
        wanted = at / 4;
        vgg_cuda_launch_dropout(y, x, rows, &s, NULL);
        for (size_t j = 0; j < 4; j++)
            expect("dropout", at, y[8 * row + 4 * block + j], words[j] >> 31 ? 2 : 0);
    }
    {
        const size_t side = 8, size = 7, c = 64, line = size * c, window = size * line;
        const vgg_unfold s = {many / (4 * window) + 1, side, side, c, size, dtype};
        const size_t position = at / window, image = position / 4, row = position / 2 % 2, column = position % 2;
        const size_t r = at % window / line, in = ((image * side + row + r) * side + column) * c + at % line;
        array<T> x(s.n * side * side * c), y(s.n * 4 * window);
        put(x[in], 4);
        wanted = at;
        vgg_cuda_launch_unfold(y, x, &s, NULL);
        expect("unfold", at, y[at], 4);
    }
}

static void others(size_t at)
{
    const size_t many = at + 1000;
    wanted = at;
    {
        array<float> x(many), total(many);
        array<bfloat16> y(many);
        put(x[at], 3);
        vgg_cuda_launch_convert(y, VGG_BFLOAT16, x, many, NULL);
        expect("convert to bfloat16", at, y[at], 3);
        vgg_cuda_launch_convert(total, VGG_FLOAT32, y, many, NULL);
        expect("convert to float32", at, total[at], 3);
        const struct vgg_cuda_average_list list = {{x, total}, {1, 3}, 4, 2};
        put(total[at], 7);
        vgg_cuda_launch_average(total, &list, many, NULL);
        expect("average", at, total[at], 6);
    }
    {
        const size_t c = 3, size = 224, image = at / (size * size * c);
        const vgg_augment s = {image + 1, size, c, {}};
        array<float> x(s.n * size * size * c), offset(s.n * 4);
        array<uint8_t> crops(s.n * size * size * c), mirror(s.n);
        crops[at] = 9;
        offset[4 * image + at % c] = 1;
        vgg_cuda_launch_augment(x, crops, offset, mirror, &s, NULL);
        expect("augment", at, x[at], 10);
    }
    {
        array<float> x(many);
        uint32_t words[4];
        wanted = at / 4;
        vgg_philox(words, 7, 0, 6, (uint32_t)(at / 4));
        vgg_cuda_launch_random_uniform(x, many, 1, 7, 6, NULL);
        expect("random_uniform", at, x[at], (float)(int32_t)(words[at % 4] >> 8) * 0x1p-23f - 1);
        x[at] = 0;
        vgg_cuda_launch_random_normal(x, many, 1, 7, 6, NULL);
        expect("random_normal", at, x[at] != 0 ? 1.0f : 0.0f, 1);
    }
    {
        const vgg_sgd s = {1, 0, 0};
        array<float> p(many), v(many), g(many);
        float small[3][3] = {};
        const struct vgg_cuda_sgd_list list = {{small[0], p}, {small[1], v}, {small[2], g}, {3, many}, 2};
        g[at] = 2;
        wanted = (1 + at / CHUNK) * BLOCK + at % CHUNK % BLOCK;
        vgg_cuda_launch_sgd(&list, &s, NULL);
        expect("sgd", at, p[at], -2);
        expect("its velocity", at, v[at], 2);
    }
}

int main()
{
    const size_t positions[] = {((size_t)1 << 31) - 1, (size_t)1 << 31, ((size_t)1 << 32) + 5};
    for (size_t at : positions) {
        maps<float>(VGG_FLOAT32, at);
        maps<bfloat16>(VGG_BFLOAT16, at);
        others(at);
    }
    return failures != 0;
}

/* kernels/first_tile.h: the 3x3 convolution of few channels for every ISA, from one source: a net's first layer, forward and
 * both gradients. Contracts: the structs of vgg_internal.h.
 *
 * The including file defines VL (floats in a vector), PIXELS (of forward's tile, at most 6) and NAME(what), the name of an
 * entry, and is compiled with its ISA's flags; everything else here is static. Vectors lie along the output channels k. With
 * q = (r, s, c), the 9 c numbers that a pixel's window has, accumulators stay in registers for the whole of
 *
 *   forward   PIXELS pixels by 4 vectors: a sum over q in order; x is broadcast, a row of a panel loaded
 *   input     12 / c pixels by c channels: each a vector of partial sums over (r, s, k), whose lanes are added at the end
 *   weight    3 q by 4 vectors: a sum over the block's pixels; x is broadcast, a pixel of g loaded
 *
 * A sum's order depends on nothing but its own place in the map: a tile at a row's end computes pixels that it does not
 * store. */
#include "kernels.h"

#include "../core/lanes.h"
#include "vectors.h"

#include <math.h>

enum { VECTORS = 4, NR = VECTORS * VL, SUMS = 12 };

/* Loads stay behind it: compilers that hoist those of many steps spill the accumulators. */
#define IN_ORDER __asm__ volatile("" ::: "memory");

/* ------------------------------------------------------------------------------------------------ vectors */

/* To memory past the caches, where that pays: the sums of AVX-512 are faster than memory, those of AVX2 are not (8 images of
 * 3 -> 64 channels, 224 x 224: no difference). p is aligned. */
#if VL == 16 && defined(__AVX512F__)
enum { STREAMS = true };
static INLINE void stream(float *p, vec v)
{
    _mm512_stream_ps(p, (__m512)v);
}

/* Such stores are to be seen by the thread that is told next that they are done. */
static INLINE void stream_end(void)
{
    _mm_sfence();
}
#else
enum { STREAMS = false };
static INLINE void stream(float *p, vec v)
{
    store(p, v);
}

static INLINE void stream_end(void) {}
#endif

static INLINE bytes narrowed(mask place)
{
#if VL == 8 && defined(__AVX2__)
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)place), _mm256_extracti128_si256((__m256i)place, 1));
    const __m128i packed = _mm_packus_epi16(words, words);
    bytes narrow;
    memcpy(&narrow, &packed, sizeof narrow);
    return narrow;
#elif VL == 16 && defined(__AVX512F__)
    return (bytes)_mm512_cvtepi32_epi8((__m512i)place);
#else
    return __builtin_convertvector(place, bytes);
#endif
}

/* ------------------------------------------------------------------------------------------------ forward */

static INLINE vec least_of(bool relu)
{
    const vec zero = {0};
    return relu ? zero : zero - INFINITY;
}

/* clang-format off */
#define EACH_PIXEL(X) X(0) X(1) X(2) X(3) X(4) X(5)
#define EACH_VECTOR(X, i) X(i, 0) X(i, 1) X(i, 2) X(i, 3)
#define FORWARD_BIAS(i, v) vec a##i##v = i < PIXELS ? load(w + v * VL) : least;
#define FORWARD_WEIGHT(i, v) const vec w##v = load(w + v * VL);
#define FORWARD_ADD(i, v) a##i##v += x##i * w##v;
#define FORWARD_STORE(i, v)                                 \
    if (streamed)                                           \
        stream(y + v * VL, at_least(a##i##v, least));       \
    else                                                    \
        store(y + v * VL, at_least(a##i##v, least));
#define PIXEL_BIAS(i) EACH_VECTOR(FORWARD_BIAS, i)
#define PIXEL_ADD(i)                                        \
    if (i < PIXELS) {                                       \
        const float x##i = from[i * c + j];                 \
        EACH_VECTOR(FORWARD_ADD, i)                         \
    }
#define PIXEL_STORE(i)                                      \
    if (i < PIXELS && i < count) {                          \
        EACH_VECTOR(FORWARD_STORE, i)                       \
        y += y_pixel;                                       \
    }

/* y = max(z, least) of `count` pixels, at most PIXELS, by a panel w. */
static INLINE void forward_tile(float *y, size_t y_pixel, const float *x, size_t x_row, const float *w, vec least,
                                size_t count, const size_t c, const bool streamed)
{
    EACH_PIXEL(PIXEL_BIAS)
    w += NR;
    for (size_t r = 0; r < 3; r++) {
        const float *from = x + r * x_row;
        for (size_t j = 0; j < 3 * c; j++, w += NR) {
            EACH_VECTOR(FORWARD_WEIGHT, 0)
            EACH_PIXEL(PIXEL_ADD)
            IN_ORDER
        }
    }
    EACH_PIXEL(PIXEL_STORE)
}
/* clang-format on */

static INLINE void forward_rows(const struct vgg_first_forward *t, const size_t c, const bool streamed)
{
    size_t panel_floats = (1 + 9 * c) * NR;
    const vec least = least_of(t->relu);
    for (size_t row = 0; row < t->rows; row++)
        for (size_t column = 0; column < t->w; column += PIXELS) {
            size_t count = vgg_min_size(PIXELS, t->w - column);
            const float *x = t->x + row * t->x_row + column * c, *w = t->panels;
            float *y = t->y + (row * t->w + column) * t->k;
            for (size_t k = 0; k < t->k; k += NR, y += NR, w += panel_floats) {
                if (t->k - k >= NR) {
                    forward_tile(y, t->k, x, t->x_row, w, least, count, c, streamed);
                    continue;
                }
                float rest[PIXELS * NR];
                forward_tile(rest, NR, x, t->x_row, w, least, PIXELS, c, false);
                for (size_t i = 0; i < count; i++)
                    memcpy(y + i * t->k, rest + i * NR, (t->k - k) * sizeof *y);
            }
        }
    if (streamed)
        stream_end();
}

/* y = the maximum of a window of `height` by `width` pixels of z[2][2 PIXELS][NR], and of `least`, by the rules of max_pool2d:
 * the first maximum wins; if there is a NaN, the first NaN wins. What is raised to `least` can only win as the first. */
static INLINE void pool_window(float *y, uint8_t *index, const float *z, vec least, size_t height, size_t width, size_t lanes)
{
    vec best = at_least(load(z), least), where = {0};
    for (int32_t place = 1; place < 4; place++) {
        size_t i = (size_t)place / 2, j = (size_t)place % 2;
        if (i >= height || j >= width) /* the window hangs over the edge */
            continue;
        const vec value = load(z + (i * 2 * PIXELS + j) * NR);
        const mask wins = ~(value <= best) & (best == best); /* larger, or NaN, and there was none */
        const mask here = (mask){0} + place;
        best = choose(wins, value, best);
        where = choose(wins, (vec)here, where);
    }
    memcpy(y, &best, lanes * sizeof *y);
    if (index != NULL) {
        const bytes narrow = narrowed((mask)where);
        memcpy(index, &narrow, lanes);
    }
}

/* Windows of one row, of the pixels that are in z. */
static INLINE void pool_windows(const struct vgg_first_forward *t, const float *z, vec least, size_t row, size_t column,
                                size_t k)
{
    size_t height = vgg_min_size(2, t->rows - 2 * row), end = vgg_min_size(t->ow, column / 2 + PIXELS);
    for (size_t j = column / 2; j < end; j++, z += 2 * NR) {
        size_t width = vgg_min_size(2, t->w - 2 * j), at = (row * t->ow + j) * t->k;
        for (size_t v = k; v < vgg_min_size(t->k, k + NR); v += VL) {
            uint8_t *index = t->index == NULL ? NULL : t->index + at + v;
            if (height == 2 && width == 2 && v + VL <= t->k)
                pool_window(t->y + at + v, index, z + (v - k), least, 2, 2, VL);
            else
                pool_window(t->y + at + v, index, z + (v - k), least, height, width, vgg_min_size(VL, t->k - v));
        }
    }
}

static INLINE void forward_pooled(const struct vgg_first_forward *t, const size_t c)
{
    const vec least = least_of(t->relu), none = least_of(false);
    float z[2 * 2 * PIXELS * NR];
    for (size_t row = 0; row < t->oh; row++)
        for (size_t column = 0; column < 2 * t->ow; column += 2 * PIXELS) {
            const float *w = t->panels;
            for (size_t k = 0; k < t->k; k += NR, w += (1 + 9 * c) * NR) {
                size_t tiles = 2 * row + 1 < t->rows ? 4 : 2; /* two of a row */
                for (size_t tile = 0; tile < tiles; tile++) {
                    const float *x = t->x + (2 * row + tile / 2) * t->x_row + (column + tile % 2 * PIXELS) * c;
                    forward_tile(z + tile * PIXELS * NR, NR, x, t->x_row, w, none, PIXELS, c, false);
                }
                pool_windows(t, z, least, row, column, k);
            }
        }
}

static INLINE void forward_channels(const struct vgg_first_forward *t, const size_t c)
{
    if (t->pool)
        forward_pooled(t, c);
    else if (STREAMS && t->stream)
        forward_rows(t, c, true);
    else
        forward_rows(t, c, false);
}

void NAME(forward)(const struct vgg_first_forward *call)
{
    const struct vgg_first_forward t = *call;
    switch (t.c) {
    case 1: forward_channels(&t, 1); break;
    case 2: forward_channels(&t, 2); break;
    case 3: forward_channels(&t, 3); break;
    default: forward_channels(&t, 4);
    }
}

/* ------------------------------------------------------------------------------------------------ the gradient of z */

/* One vector: dy where y > 0 and index is `place`, else 0. */
static INLINE vec gradient_vector(const struct vgg_first_gradient *t, size_t at, int32_t place, size_t lanes, const bool masked,
                                  const bool pooled)
{
    const vec zero = {0};
    vec v = load_lanes(t->dy + at, lanes);
    if (masked)
        v = keep(load_lanes(t->y + at, lanes) > zero, v);
    if (pooled)
        v = keep(places(t->index + at, lanes) == place, v);
    return v;
}

static INLINE void gradient_pixels(const struct vgg_first_gradient *t, const bool masked, const bool pooled)
{
    const vec zero = {0};
    size_t row = pooled ? t->row / 2 : t->row, pixels = t->columns, k = t->k, g_pixel = t->g_pixel;
    if (!pooled && k == g_pixel) { /* one run */
        k = g_pixel = pixels * k;
        pixels = 1;
    }
    float *g = t->g;
    for (size_t j = t->column; j < t->column + pixels; j++, g += g_pixel) {
        size_t column = pooled ? j / 2 : j, i = 0;
        if (row < t->oh && column < t->ow) { /* else the odd last row or column, which floor mode does not pool */
            size_t at = (row * t->ow + column) * t->k;
            int32_t place = (int32_t)(2 * (t->row & 1) + (j & 1));
            for (; i + VL <= k; i += VL)
                store(g + i, gradient_vector(t, at + i, place, VL, masked, pooled));
            if (i < k) {
                store(g + i, gradient_vector(t, at + i, place, k - i, masked, pooled));
                i += VL;
            }
        }
        for (; i < g_pixel; i += VL)
            store(g + i, zero);
    }
}

void NAME(gradient)(const struct vgg_first_gradient *call)
{
    const struct vgg_first_gradient t = *call;
    if (t.y != NULL && t.index != NULL)
        gradient_pixels(&t, true, true);
    else if (t.index != NULL)
        gradient_pixels(&t, false, true);
    else if (t.y != NULL)
        gradient_pixels(&t, true, false);
    else
        gradient_pixels(&t, false, false);
}

/* ------------------------------------------------------------------------------------------------ input gradient */

static INLINE vgg_quad to_quad(vec v)
{
#if VL == 8 && defined(__AVX__)
    return (vgg_quad)_mm256_castps256_ps128((__m256)v) + (vgg_quad)_mm256_extractf128_ps((__m256)v, 1);
#elif VL == 16 && defined(__AVX512F__)
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
    return (vgg_quad)_mm256_castps256_ps128(half) + (vgg_quad)_mm256_extractf128_ps(half, 1);
#else
    vgg_quad part[VL / 4];
    memcpy(part, &v, sizeof v);
    vgg_quad sum = part[0];
    for (size_t i = 1; i < VL / 4; i++)
        sum += part[i];
    return sum;
#endif
}

/* The sum of each of four vectors' lanes. */
static INLINE vgg_quad sum_lanes(vec v0, vec v1, vec v2, vec v3)
{
    const vgg_quad a = to_quad(v0), b = to_quad(v1), c = to_quad(v2), d = to_quad(v3);
    const vgg_quad ab = VGG_LANES(a, b, 0, 4, 1, 5) + VGG_LANES(a, b, 2, 6, 3, 7);
    const vgg_quad cd = VGG_LANES(c, d, 0, 4, 1, 5) + VGG_LANES(c, d, 2, 6, 3, 7);
    return VGG_LANES(ab, cd, 0, 1, 4, 5) + VGG_LANES(ab, cd, 2, 3, 6, 7);
}

/* clang-format off */
#define EACH_SUM(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define INPUT_ZERO(i) vec a##i = { 0 };
#define INPUT_ADD(i) a##i += load(from + i / c * t->g_pixel) * load(w + i % c * VL);

/* SUMS / c pixels: their SUMS numbers, which are contiguous in dx. */
static INLINE void input_tile(float *dx, const struct vgg_first_input *t, size_t column, const size_t c)
{
    EACH_SUM(INPUT_ZERO)
    const float *w = t->weights;
    for (size_t r = 0; r < 3; r++) {
        const float *from = t->g[r] + column * t->g_pixel, *end = from + 3 * t->g_pixel; /* three pixels are contiguous */
        for (; from != end; from += VL, w += c * VL) {
            EACH_SUM(INPUT_ADD)
        }
    }
    const vgg_quad sums[] = {sum_lanes(a0, a1, a2, a3), sum_lanes(a4, a5, a6, a7), sum_lanes(a8, a9, a10, a11)};
    memcpy(dx, sums, sizeof sums);
}
/* clang-format on */

static INLINE void input_row(const struct vgg_first_input *t, const size_t c)
{
    size_t column = 0;
    for (; column + SUMS / c <= t->w; column += SUMS / c)
        input_tile(t->dx + column * c, t, column, c);
    if (column < t->w) {
        float rest[SUMS];
        input_tile(rest, t, column, c);
        memcpy(t->dx + column * c, rest, (t->w - column) * c * sizeof *rest);
    }
}

void NAME(input)(const struct vgg_first_input *call)
{
    const struct vgg_first_input t = *call;
    switch (t.c) {
    case 1: input_row(&t, 1); break;
    case 2: input_row(&t, 2); break;
    case 3: input_row(&t, 3); break;
    default: input_row(&t, 4);
    }
}

/* ------------------------------------------------------------------------------------------------ weight gradient */

/* clang-format off */
#define WEIGHT_ZERO(i, v) vec a##i##v = zero;
#define WEIGHT_LOAD(i, v) const vec g##v = v < vectors ? load(g + v * VL) : zero;
#define WEIGHT_ADD(i, v) if (v < vectors) a##i##v += x##i * g##v;
#define WEIGHT_FINISH(i, v)                                 \
    if (v < vectors) {                                      \
        float *to = sums + i * t->g_pixel + v * VL;         \
        store(to, load(to) + a##i##v);                      \
    }

/* Three numbers of the window by `vectors` vectors of channels. */
static INLINE void weight_tile(const struct vgg_first_weight *t, float *sums, const float *x, const float *g,
                               const char *ahead, size_t ahead_step, const size_t vectors)
{
    const vec zero = {0};
    EACH_VECTOR(WEIGHT_ZERO, 0) EACH_VECTOR(WEIGHT_ZERO, 1) EACH_VECTOR(WEIGHT_ZERO, 2)
    for (size_t row = 0; row < t->rows; row++) {
        const float *from = x + row * t->x_row;
        for (size_t j = t->columns; j != 0; j--, from += t->c, g += t->g_pixel, ahead += ahead_step) {
            __builtin_prefetch(ahead);
            EACH_VECTOR(WEIGHT_LOAD, 0)
            const float x0 = from[0], x1 = from[1], x2 = from[2];
            EACH_VECTOR(WEIGHT_ADD, 0) EACH_VECTOR(WEIGHT_ADD, 1) EACH_VECTOR(WEIGHT_ADD, 2)
        }
    }
    EACH_VECTOR(WEIGHT_FINISH, 0) EACH_VECTOR(WEIGHT_FINISH, 1) EACH_VECTOR(WEIGHT_FINISH, 2)
}

#define BIAS_ADD(i, v) if (v < vectors) a##i##v += load(g + v * VL);

static INLINE void bias_tile(const struct vgg_first_weight *t, float *sums, const float *g, const size_t vectors)
{
    const vec zero = {0};
    EACH_VECTOR(WEIGHT_ZERO, 0)
    for (size_t j = t->rows * t->columns; j != 0; j--, g += t->g_pixel) {
        EACH_VECTOR(BIAS_ADD, 0)
    }
    EACH_VECTOR(WEIGHT_FINISH, 0)
}
/* clang-format on */

/* The sums of some vectors of channels. The block's prefetches are spread evenly over its multiply-adds: memory is slower than
 * the few that a pixel has, and would wait through them otherwise. */
static INLINE void weight_panel(const struct vgg_first_weight *t, size_t first, size_t ahead_step, const size_t vectors)
{
    const float *g = t->g + first;
    float *sums = t->sums + first;
    size_t at = first / NR * 3 * t->c * t->rows * t->columns * ahead_step; /* of the bytes ahead */
    for (size_t r = 0; r < 3; r++)
        for (size_t j = 0; j < 3 * t->c; j += 3, sums += 3 * t->g_pixel, at += t->rows * t->columns * ahead_step) {
            const char *ahead = (const char *)(at < t->ahead_bytes ? t->ahead[0] : t->ahead[1]);
            ahead += at < t->ahead_bytes ? at : at - t->ahead_bytes;
            weight_tile(t, sums, t->x + r * t->x_row + j, g, ahead, ahead_step, vectors);
        }
    bias_tile(t, sums, g, vectors);
}

void NAME(weight)(const struct vgg_first_weight *call)
{
    enum { STEP = 32 }; /* bytes; half a line */
    const struct vgg_first_weight t = *call;
    size_t steps = vgg_ceil_div(t.g_pixel, NR) * 3 * t.c * t.rows * t.columns;
    size_t ahead_step = vgg_ceil_div(vgg_ceil_div(2 * t.ahead_bytes, steps), STEP) * STEP;
    for (size_t first = 0; first < t.g_pixel; first += NR)
        switch ((t.g_pixel - first) / VL) {
        case 1: weight_panel(&t, first, ahead_step, 1); break;
        case 2: weight_panel(&t, first, ahead_step, 2); break;
        case 3: weight_panel(&t, first, ahead_step, 3); break;
        default: weight_panel(&t, first, ahead_step, VECTORS);
        }
}

/* kernels/winograd4_tile.h: the transforms of Winograd's F(4x4, 3x3) for every ISA, from one source (Lavin and Gray 2016).
 * Contracts: the structs of vgg_internal.h.
 *
 * The including file defines VL (floats in a vector) and NAME(what), the name of an entry, and is compiled with its ISA's
 * flags; everything else here is static. A vector holds VL channels, so no lane ever needs another's.
 *
 * The correlation of six numbers d with three numbers t is four numbers  A^T ((G t) * (B^T d)),  by interpolation at the
 * points 0, a, -a, b, -b and infinity; with  m(x) = x (x^2 - a^2) (x^2 - b^2)  and N_p = m'(p):
 *
 *          row or column p                        infinity
 *   B^T    the coefficients of m(x) / (x - p)     those of m(x)
 *   G      (1, p, p^2) / N_p                      (0, 0, 1)
 *   A      (1, p, p^2, p^3)                       (0, 0, 0, 1)
 *
 * Points in pairs share their even and odd parts, which makes B^T d twelve multiply-adds. a = 3/4 and b = 3/2 keep B and A
 * exact, and powers near 1 keep rounding low. Worst error against float64, in eps32 times the largest sum of absolute
 * products in a tile, of a model of float32 rounding; ReLU-normal x, He weights, 3, 64 and 512 channels, and 64 with 98 % of
 * x zero and heavy tails:
 *
 *                             3    64   512   sparse
 *   0, 1, -1, 2, -2          55    15   7.6       61
 *   0, 1, -1, 2, -1/2       7.9   5.8   3.9       20
 *   0, 3/4, -3/4, 3/2, -3/2 6.3   3.4   2.6       13
 *
 * The kernels themselves, worst of four to eight seeds: 11, 4.3, 2.5 and 24 (49 with 3 channels).
 *
 * A sum's operations are spelled so that a compiler has one way to fuse them; a tile's bits depend on nothing but its input. */
#include "kernels.h"

#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

typedef float vec __attribute__((vector_size(VL * 4)));
typedef int32_t mask __attribute__((vector_size(VL * 4)));
typedef uint8_t bytes __attribute__((vector_size(VL)));

#define INLINE inline __attribute__((always_inline))

static const float A1 = 0.75F, A2 = 0.5625F, A3 = 0.421875F; /* a, a^2, a^3 */
static const float B1 = 1.5F, B2 = 2.25F, B3 = 3.375F;       /* b, b^2, b^3 */
static const float SUM = 2.8125F, PRODUCT = 1.265625F;       /* a^2 + b^2, a^2 b^2: m(x) = x^5 - SUM x^3 + PRODUCT x */
/* 1 / N_0 = 1 / PRODUCT, 1 / N_a = 1 / (2 a^2 (a^2 - b^2)), 1 / N_b = 1 / (2 b^2 (b^2 - a^2)) */
static const float N0 = 64.0F / 81, NA = -128.0F / 243, NB = 32.0F / 243;

/* ------------------------------------------------------------------------------------------------ vectors
 *
 * lanes is VL wherever it is a constant; the last vector of a map whose channels are no multiple of VL has fewer. */

static INLINE vec load(const float *p, size_t lanes)
{
    vec v = {0};
    memcpy(&v, p, lanes * sizeof *p);
    return v;
}

static INLINE void store(float *p, vec v, size_t lanes)
{
    memcpy(p, &v, lanes * sizeof *p);
}

static INLINE vec choose(mask m, vec yes, vec no)
{
    return (vec)((m & (mask)yes) | (~m & (mask)no));
}

/* ------------------------------------------------------------------------------------------------ input
 *
 * The gradient of z, as conv2d's backward functions are given it, is read where it lies: masked, and put where the pooled
 * maps' index says. */

struct source {
    const float *x, *y;
    const uint8_t *index;
    size_t h, w, c, oh, ow;
};

/* Bytes of index, widened: with an instruction that GCC does not find by itself. */
static INLINE mask places(const uint8_t *index, size_t lanes)
{
    bytes place = {0};
    memcpy(&place, index, lanes);
#if VL == 8 && defined(__AVX2__)
    return (mask)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)&place));
#elif VL == 16 && defined(__AVX512F__)
    return (mask)_mm512_cvtepu8_epi32((__m128i)place);
#else
    return __builtin_convertvector(place, mask);
#endif
}

/* Channels from `channel` on of pixel (row, column) of the map; 0 outside of it. row and column wrap below 0. `inside`,
 * `masked` and `pooled` are constants wherever it matters. */
static INLINE vec pixel(const struct source *s, size_t row, size_t column, size_t channel, const bool inside, const bool masked,
                        const bool pooled, size_t lanes)
{
    const vec zero = {0};
    size_t i = pooled ? row / 2 : row, j = pooled ? column / 2 : column;
    if (!inside && (row >= s->h || column >= s->w || i >= s->oh || j >= s->ow))
        return zero;
    size_t at = (i * s->ow + j) * s->c + channel;
    vec x = load(s->x + at, lanes);
    if (masked)
        x = choose(load(s->y + at, lanes) > zero, x, zero);
    if (pooled) {
        const mask place = places(s->index + at, lanes);
        x = choose(place == (int32_t)(2 * (row & 1) + (column & 1)), x, zero);
    }
    return x;
}

/* v = B^T d */
static INLINE void input_transform(vec v[6], vec d0, vec d1, vec d2, vec d3, vec d4, vec d5)
{
    const vec even_a = d4 - B2 * d2, odd_a = d3 - B2 * d1;
    const vec even_b = d4 - A2 * d2, odd_b = d3 - A2 * d1;
    const vec first = d4 - SUM * d2, last = d5 - SUM * d3;
    v[0] = first + PRODUCT * d0;
    v[1] = even_a + A1 * odd_a;
    v[2] = even_a - A1 * odd_a;
    v[3] = even_b + B1 * odd_b;
    v[4] = even_b - B1 * odd_b;
    v[5] = last + PRODUCT * d1;
}

/* One vector of channels of one tile: V = B^T d B to v[e * v_element]. (row, column) is the tile's first pixel. */
static INLINE void input_tile(float *v, size_t v_element, const struct source *s, size_t row, size_t column, size_t channel,
                              const bool inside, const bool masked, const bool pooled, size_t lanes)
{
    vec half[6][6];
    for (size_t i = 0; i < 6; i++) {
#define PIXEL(j) pixel(s, row + i, column + j, channel, inside, masked, pooled, lanes)
        input_transform(half[i], PIXEL(0), PIXEL(1), PIXEL(2), PIXEL(3), PIXEL(4), PIXEL(5));
#undef PIXEL
    }
    for (size_t j = 0; j < 6; j++) {
        vec out[6];
        input_transform(out, half[0][j], half[1][j], half[2][j], half[3][j], half[4][j], half[5][j]);
        float *to = v + j * v_element;
        for (size_t i = 0; i < 6; i++, to += 6 * v_element)
            store(to, out[i], VL);
    }
}

static INLINE void input_channels(const struct vgg_winograd4_input *t, const struct source *s, size_t tile, const bool inside,
                                  const bool masked, const bool pooled)
{
    size_t row = 4 * t->row - 1, column = 4 * (t->column + tile) - 1;
    float *v = t->v + tile * t->v_tile;
    for (size_t begin = 0; begin < t->c; begin += t->width, v += t->v_panel) {
        size_t end = vgg_min_size(t->c, begin + t->width), c = begin;
        for (; c + VL <= end; c += VL)
            input_tile(v + (c - begin), t->v_element, s, row, column, c, inside, masked, pooled, VL);
        if (c < end)
            input_tile(v + (c - begin), t->v_element, s, row, column, c, false, t->y != NULL, t->index != NULL, end - c);
    }
}

void NAME(input)(const struct vgg_winograd4_input *call)
{
    const struct vgg_winograd4_input local = *call, *t = &local; /* a copy, which no store can change */
    const struct source s = {
        .x = t->x, .y = t->y, .index = t->index, .h = t->h, .w = t->w, .c = t->c, .oh = t->oh, .ow = t->ow};
    bool masked = t->y != NULL, pooled = t->index != NULL;
    size_t h = pooled ? vgg_min_size(t->h, 2 * t->oh) : t->h, w = pooled ? vgg_min_size(t->w, 2 * t->ow) : t->w;
    for (size_t tile = 0; tile < t->tiles; tile++) {
        size_t column = t->column + tile;
        bool inside = t->row > 0 && 4 * t->row + 5 <= h && column > 0 && 4 * column + 5 <= w;
        if (!inside)
            input_channels(t, &s, tile, false, masked, pooled);
        else if (masked && pooled)
            input_channels(t, &s, tile, true, true, true);
        else if (masked)
            input_channels(t, &s, tile, true, true, false);
        else if (pooled)
            input_channels(t, &s, tile, true, false, true);
        else
            input_channels(t, &s, tile, true, false, false);
    }
}

/* ------------------------------------------------------------------------------------------------ weights */

/* u = G t */
static INLINE void weights_transform(vec u[6], vec t0, vec t1, vec t2)
{
    const vec even_a = NA * t0 + (NA * A2) * t2, odd_a = (NA * A1) * t1;
    const vec even_b = NB * t0 + (NB * B2) * t2, odd_b = (NB * B1) * t1;
    u[0] = N0 * t0;
    u[1] = even_a + odd_a;
    u[2] = even_a - odd_a;
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = t2;
}

void NAME(weights)(const struct vgg_winograd4_weights *call)
{
    const struct vgg_winograd4_weights t = *call;
    for (size_t at = 0; at < t.count; at += VL) {
        vec half[3][6];
        for (size_t r = 0; r < 3; r++) {
            const float *row = t.taps + 3 * r * t.tap + at;
            weights_transform(half[r], load(row, VL), load(row + t.tap, VL), load(row + 2 * t.tap, VL));
        }
        float *u = t.u + at;
        for (size_t j = 0; j < 6; j++, u += t.u_element) {
            vec out[6];
            weights_transform(out, half[0][j], half[1][j], half[2][j]);
            float *to = u;
            for (size_t i = 0; i < 6; i++, to += 6 * t.u_element)
                store(to, out[i], VL);
        }
    }
}

/* ------------------------------------------------------------------------------------------------ output */

/* y = A^T m */
static INLINE void output_transform(vec y[4], vec m0, vec m1, vec m2, vec m3, vec m4, vec m5)
{
    const vec sum_a = m1 + m2, difference_a = m1 - m2;
    const vec sum_b = m3 + m4, difference_b = m3 - m4;
    const vec even = m0 + sum_a, last = m5 + A3 * difference_a, odd = A1 * difference_a, square = A2 * sum_a;
    y[0] = even + sum_b;
    y[1] = odd + B1 * difference_b;
    y[2] = square + B2 * sum_b;
    y[3] = last + B3 * difference_b;
}

/* The 2 x 2 windows of a tile, by the rules of max_pool2d: the first maximum wins; if there is a NaN, the first NaN wins. */
static INLINE void pool_tile(const struct vgg_winograd4_output *t, vec z[4][4], size_t row, size_t column, size_t channel,
                             size_t lanes)
{
    for (size_t i = 0; i < 4; i += 2)
        for (size_t j = 0; j < 4; j += 2) {
            size_t oi = (row + i) / 2, oj = (column + j) / 2;
            if (oi >= t->oh || oj >= t->ow)
                continue;
            vec best = z[i][j];
            mask where = {0};
            for (int32_t place = 1; place < 4; place++) {
                size_t di = i + (size_t)place / 2, dj = j + (size_t)place % 2;
                if (row + di >= t->h || column + dj >= t->w) /* the window hangs over the edge */
                    continue;
                const vec value = z[di][dj];
                const mask wins = (value > best) | ((value != value) & (best == best));
                best = choose(wins, value, best);
                where = (wins & place) | (~wins & where);
            }
            size_t at = (oi * t->ow + oj) * t->k + channel;
            store(t->y + at, best, lanes);
            if (t->index != NULL) {
                const bytes index = __builtin_convertvector(where, bytes);
                memcpy(t->index + at, &index, lanes);
            }
        }
}

/* One vector of channels of one tile; (row, column) is the tile's first pixel. */
static INLINE void output_tile(const struct vgg_winograd4_output *t, size_t tile, size_t row, size_t column, size_t channel,
                               const bool inside, const bool pool, size_t lanes)
{
    const float *m = t->m + tile * t->m_tile + channel;
    const size_t element = t->m_element;
    const vec zero = {0}, bias = t->bias == NULL ? zero : load(t->bias + channel, lanes);
    vec half[6][4], z[4][4];
    for (size_t i = 0; i < 6; i++, m += 6 * element) {
#define ELEMENT(j) load(m + j * element, VL)
        output_transform(half[i], ELEMENT(0), ELEMENT(1), ELEMENT(2), ELEMENT(3), ELEMENT(4), ELEMENT(5));
#undef ELEMENT
    }
    for (size_t j = 0; j < 4; j++) {
        vec out[4];
        output_transform(out, half[0][j], half[1][j], half[2][j], half[3][j], half[4][j], half[5][j]);
        for (size_t i = 0; i < 4; i++) {
            z[i][j] = out[i] + bias;
            if (t->relu) /* max(z, 0) that lets NaN through */
                z[i][j] = (vec)((mask)z[i][j] & ~(mask)(z[i][j] < zero));
            if (!pool && (inside || (row + i < t->h && column + j < t->w)))
                store(t->y + ((row + i) * t->w + column + j) * t->k + channel, z[i][j], lanes);
        }
    }
    if (pool)
        pool_tile(t, z, row, column, channel, lanes);
}

static INLINE void output_channels(const struct vgg_winograd4_output *t, size_t tile, const bool inside, const bool pool)
{
    size_t row = 4 * t->row, column = 4 * (t->column + tile), channel = 0;
    for (; channel + VL <= t->channels; channel += VL)
        output_tile(t, tile, row, column, channel, inside, pool, VL);
    if (channel < t->channels)
        output_tile(t, tile, row, column, channel, false, pool, t->channels - channel);
}

void NAME(output)(const struct vgg_winograd4_output *call)
{
    const struct vgg_winograd4_output local = *call, *t = &local;
    for (size_t tile = 0; tile < t->tiles; tile++)
        if (t->pool)
            output_channels(t, tile, false, true);
        else if (4 * t->row + 4 <= t->h && 4 * (t->column + tile) + 4 <= t->w)
            output_channels(t, tile, true, false);
        else
            output_channels(t, tile, false, false);
}

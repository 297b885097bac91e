/* kernels/winograd_tile.h: the transforms of Winograd's F(OUT x OUT, 3x3) for every ISA, from one source (Lavin and Gray
 * 2016). Contracts: the structs of vgg_internal.h.
 *
 * The including file defines VL (floats in a vector), OUT (2, 4 or 6: outputs of a tile's row and column) and NAME(what), the
 * name of an entry, and is compiled with its ISA's flags; everything else here is static. A vector holds VL channels, so no
 * lane ever needs another's.
 *
 * The correlation of IN = OUT + 2 numbers d with three numbers t is OUT numbers  A^T ((G t) * (B^T d)),  by interpolation at
 * points p and infinity; with  m(x) = product of (x - p)  and  N_p = m'(p):
 *
 *          row or column p                        infinity
 *   B^T    the coefficients of m(x) / (x - p)     those of m(x)
 *   G      (1, p, p^2) / N_p                      (0, 0, 1)
 *   A      (1, p, .., p^(OUT-1))                  (0, .., 0, 1)
 *
 * The points are 0 and pairs a, -a, which share their even and odd parts. winograd2_points.h, winograd4_points.h and
 * winograd6_points.h have them and the one-dimensional transforms. Worst error against float64, in eps32 times the largest sum
 * of absolute products in a tile, of a model of float32 rounding; ReLU-normal x, He weights, 3 and 64 channels, and 64 with
 * 98 % of x zero and heavy tails; and relative L2 with 64:
 *
 *                                           3    64   sparse   L2
 *   2: 0, +-1                             1.4   0.7      3.7   2.0e-7    taken
 *   4: 0, +-1, +-2                         55    15       61   1.4e-6
 *   4: 0, +-1, 2, -1/2                    7.9   5.8       20
 *   4: 0, +-3/4, +-3/2                    6.3   3.4       17   6.6e-7    taken: exact B and A, powers near 1
 *   6: 0, +-1/2, +-1, +-2                  36    22      112   2.8e-6    taken
 *   6: 0, +-1/2, +-1, +-13/8               30    16      106   3.1e-6
 *
 * The kernels themselves, worst of four to eight seeds, F(4,3): 11, 4.3 and 24 (49 with 3 channels).
 *
 * A sum's operations are spelled so that a compiler has one way to fuse them; a tile's bits depend on nothing but its input. */
#include "kernels.h"

#include "vectors.h"

#define UNROLLED _Pragma("GCC unroll 8")
#define ROLLED _Pragma("GCC unroll 1") /* a loop over rows or columns: unrolled, it has more addresses than registers */

enum { IN = OUT + 2, LINE = 16 /* floats of a cache line */ };

#if OUT == 2
#include "winograd2_points.h"
#elif OUT == 4
#include "winograd4_points.h"
#else
#include "winograd6_points.h"
#endif

/* ------------------------------------------------------------------------------------------------ input
 *
 * The gradient of z, as conv2d's backward functions are given it, is read where it lies: masked, and put where the pooled
 * maps' index says. */

struct source {
    const float *x, *y;
    const uint8_t *index;
    size_t h, w, c, oh, ow;
};

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
    vec x = load_lanes(s->x + at, lanes);
    if (masked)
        x = keep(load_lanes(s->y + at, lanes) > zero, x);
    if (pooled) {
        const mask place = places(s->index + at, lanes);
        x = keep(place == (int32_t)(2 * (row & 1) + (column & 1)), x);
    }
    return x;
}

/* One vector of channels of one tile: V = B^T d B to v[e * v_element]. (row, column) is the tile's first pixel. */
static INLINE void input_tile(float *v, size_t v_element, const struct source *s, size_t row, size_t column, size_t channel,
                              const bool inside, const bool masked, const bool pooled, size_t lanes)
{
    vec half[IN][IN];
    ROLLED
    for (size_t i = 0; i < IN; i++) {
        vec d[IN];
        UNROLLED
        for (size_t j = 0; j < IN; j++)
            d[j] = pixel(s, row + i, column + j, channel, inside, masked, pooled, lanes);
        input_transform(half[i], d);
        if (inside && !pooled && channel % LINE == 0) /* the next tile's new pixels: 5 % where maps come from memory */
            for (size_t j = 0; j < OUT; j++)
                __builtin_prefetch(s->x + ((row + i) * s->ow + column + IN + j) * s->c + channel);
    }
    ROLLED
    for (size_t j = 0; j < IN; j++, v += v_element) {
        vec d[IN], out[IN];
        UNROLLED
        for (size_t i = 0; i < IN; i++)
            d[i] = half[i][j];
        input_transform(out, d);
        float *to = v;
        UNROLLED
        for (size_t i = 0; i < IN; i++, to += IN * v_element)
            store(to, out[i]);
    }
}

static INLINE void input_channels(const struct vgg_winograd_input *t, const struct source *s, size_t tile, const bool inside,
                                  const bool masked, const bool pooled)
{
    size_t row = OUT * t->row - 1, column = OUT * (t->column + tile) - 1;
    float *v = t->v + tile * t->v_tile;
    for (size_t begin = 0; begin < t->c; begin += t->width, v += t->v_panel) {
        size_t end = vgg_min_size(t->c, begin + t->width), c = begin;
        for (; c + VL <= end; c += VL)
            input_tile(v + (c - begin), t->v_element, s, row, column, c, inside, masked, pooled, VL);
        if (c < end)
            input_tile(v + (c - begin), t->v_element, s, row, column, c, false, t->y != NULL, t->index != NULL, end - c);
    }
}

void NAME(input)(const struct vgg_winograd_input *call)
{
    const struct vgg_winograd_input local = *call, *t = &local; /* a copy, which no store can change */
    const struct source s = {
        .x = t->x, .y = t->y, .index = t->index, .h = t->h, .w = t->w, .c = t->c, .oh = t->oh, .ow = t->ow};
    bool masked = t->y != NULL, pooled = t->index != NULL;
    size_t h = pooled ? vgg_min_size(t->h, 2 * t->oh) : t->h, w = pooled ? vgg_min_size(t->w, 2 * t->ow) : t->w;
    for (size_t tile = 0; tile < t->tiles; tile++) {
        size_t column = t->column + tile;
        bool inside = t->row > 0 && OUT * t->row + OUT + 1 <= h && column > 0 && OUT * column + OUT + 1 <= w;
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

void NAME(weights)(const struct vgg_winograd_weights *call)
{
    const struct vgg_winograd_weights t = *call;
    for (size_t at = 0; at < t.count; at += VL) {
        vec half[3][IN];
        for (size_t r = 0; r < 3; r++) {
            const float *row = t.taps + 3 * r * t.tap + at;
            const vec taps[3] = {load(row), load(row + t.tap), load(row + 2 * t.tap)};
            weights_transform(half[r], taps);
        }
        float *u = t.u + at;
        ROLLED
        for (size_t j = 0; j < IN; j++, u += t.u_element) {
            const vec taps[3] = {half[0][j], half[1][j], half[2][j]};
            vec out[IN];
            weights_transform(out, taps);
            float *to = u;
            UNROLLED
            for (size_t i = 0; i < IN; i++, to += IN * t.u_element)
                store(to, out[i]);
        }
    }
}

/* ------------------------------------------------------------------------------------------------ output */

/* The 2 x 2 windows of a tile, by the rules of max_pool2d: the first maximum wins; if there is a NaN, the first NaN wins. */
static INLINE void pool_tile(const struct vgg_winograd_output *t, vec z[OUT][OUT], size_t row, size_t column, size_t channel,
                             size_t lanes)
{
    for (size_t i = 0; i < OUT; i += 2)
        for (size_t j = 0; j < OUT; j += 2) {
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
            store_lanes(t->y + at, best, lanes);
            if (t->index != NULL) {
                const bytes index = __builtin_convertvector(where, bytes);
                memcpy(t->index + at, &index, lanes);
            }
        }
}

/* One vector of channels of one tile; (row, column) is the tile's first pixel. */
static INLINE void output_tile(const struct vgg_winograd_output *t, size_t tile, size_t row, size_t column, size_t channel,
                               const bool inside, const bool pool, size_t lanes)
{
    const float *m = t->m + tile * t->m_tile + channel;
    const size_t element = t->m_element;
    const vec zero = {0}, bias = t->bias == NULL ? zero : load_lanes(t->bias + channel, lanes);
    vec half[IN][OUT], z[OUT][OUT];
    ROLLED
    for (size_t i = 0; i < IN; i++) {
        vec row_m[IN];
        UNROLLED
        for (size_t j = 0; j < IN; j++, m += element)
            row_m[j] = load(m);
        output_transform(half[i], row_m);
    }
    ROLLED
    for (size_t j = 0; j < OUT; j++) {
        vec column_m[IN], out[OUT];
        UNROLLED
        for (size_t i = 0; i < IN; i++)
            column_m[i] = half[i][j];
        output_transform(out, column_m);
        UNROLLED
        for (size_t i = 0; i < OUT; i++) {
            z[i][j] = out[i] + bias;
            if (t->relu)
                z[i][j] = at_least(z[i][j], zero);
            if (!pool && (inside || (row + i < t->h && column + j < t->w)))
                store_lanes(t->y + ((row + i) * t->w + column + j) * t->k + channel, z[i][j], lanes);
        }
    }
    if (pool)
        pool_tile(t, z, row, column, channel, lanes);
}

static INLINE void output_channels(const struct vgg_winograd_output *t, size_t tile, const bool inside, const bool pool)
{
    size_t row = OUT * t->row, column = OUT * (t->column + tile), channel = 0;
    for (; channel + VL <= t->channels; channel += VL)
        output_tile(t, tile, row, column, channel, inside, pool, VL);
    if (channel < t->channels)
        output_tile(t, tile, row, column, channel, false, pool, t->channels - channel);
}

void NAME(output)(const struct vgg_winograd_output *call)
{
    const struct vgg_winograd_output local = *call, *t = &local;
    for (size_t tile = 0; tile < t->tiles; tile++)
        if (t->pool)
            output_channels(t, tile, false, true);
        else if (OUT * t->row + OUT <= t->h && OUT * (t->column + tile) + OUT <= t->w)
            output_channels(t, tile, true, false);
        else
            output_channels(t, tile, false, false);
}

/* kernels/linear_tile.h: the fully connected layer's kernels for every ISA, from one source. Contracts: struct
 * vgg_linear_forward and struct vgg_linear_gradient of vgg_internal.h.
 *
 * The including file defines VL (floats in a vector), MR (rows of the gradient's tile) and NAME(what), the name of an entry,
 * and is compiled with its ISA's flags; everything else here is static.
 *
 * Both read the big matrix where it lies, once, at the speed of memory. */
#include "kernels.h"

#include "vectors.h"

enum { FEW = 8, NR = 2 * VL };

typedef float quad __attribute__((vector_size(16)));

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* ------------------------------------------------------------------------------------------------ forward
 *
 * A lane is an output: VL rows of w are read side by side, a quad of inputs of each at a time, and transposed in registers.
 * Register r of a step has quad g of rows 4 g + r; after the transpose it has input r of all rows:
 *
 *   row 0: [ a b c d ] row 4: [ i j k l ]          input 0: [ a e . . i m . . ]
 *   row 1: [ e f g h ] row 5: [ m n o p ]    ->    input 1: [ b f . . j n . . ]
 *   ...                                            ...
 *
 * so a sum runs over the inputs in order, as that of the GEMM kernel does, and has the same bits. A quad of bfloat16 is eight
 * inputs in four pairs: a pair's low half is the even input, and each half becomes a float by filling up with zeros. */

#if VL == 4
#define EACH_QUAD(X) X(0)
#elif VL == 8
#define EACH_QUAD(X) X(0), X(4)
#else
#define EACH_QUAD(X) X(0), X(4), X(8), X(12)
#endif
#if defined(__clang__) || __GNUC__ >= 12
#define LANES(a, b, lanes) __builtin_shufflevector(a, b, EACH_QUAD(lanes))
#else
#define LANES(a, b, lanes) __builtin_shuffle(a, b, (mask){EACH_QUAD(lanes)})
#endif
#if VL == 4
#define JOIN(q) q[0]
#elif (defined(__clang__) || __GNUC__ >= 12) && VL == 8
#define JOIN(q) __builtin_shufflevector(q[0], q[1], 0, 1, 2, 3, 4, 5, 6, 7)
#elif defined(__clang__) || __GNUC__ >= 12
#define JOIN_TWO(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7)
#define JOIN(q) \
    __builtin_shufflevector(JOIN_TWO(q[0], q[1]), JOIN_TWO(q[2], q[3]), 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
#else
#define ELEMENTS(i) q[(i) / 4][0], q[(i) / 4][1], q[(i) / 4][2], q[(i) / 4][3]
#define JOIN(q) ((vec){EACH_QUAD(ELEMENTS)})
#endif
/* Of two vectors, in every quad from lane i on: the low or high lanes in turn, the low or high pairs. */
#define LOW(i) i, VL + i, i + 1, VL + i + 1
#define HIGH(i) i + 2, VL + i + 2, i + 3, VL + i + 3
#define LOW_PAIRS(i) i, i + 1, VL + i, VL + i + 1
#define HIGH_PAIRS(i) i + 2, i + 3, VL + i + 2, VL + i + 3

/* Quad g of row[4 g], `size` bytes of it (the others 0), for every g. */
static INLINE vec quads(const char *const *row, size_t at, const size_t size)
{
    quad q[VL / 4] = {0};
    UNROLL
    for (size_t g = 0; g < VL / 4; g++)
        memcpy(&q[g], row[4 * g] + at, size);
    return JOIN(q);
}

/* acc[n] += x[n][i] * w[.][i] for `count` inputs i: 4 (bfloat16: 8), or 1. `at` and x are where the first lies. */
static INLINE void forward_step(vec *acc, const char *const *row, size_t at, const float *x, size_t x_row, const size_t rows,
                                const bool bfloat16, const size_t count)
{
    const size_t size = count * (bfloat16 ? 2 : 4);
    const vec a = quads(row, at, size), b = quads(row + 1, at, size), c = quads(row + 2, at, size),
              d = quads(row + 3, at, size);
    const vec ab_low = LANES(a, b, LOW), ab_high = LANES(a, b, HIGH), cd_low = LANES(c, d, LOW), cd_high = LANES(c, d, HIGH);
    const vec w[4] = {LANES(ab_low, cd_low, LOW_PAIRS), LANES(ab_low, cd_low, HIGH_PAIRS), LANES(ab_high, cd_high, LOW_PAIRS),
                      LANES(ab_high, cd_high, HIGH_PAIRS)};
    UNROLL
    for (size_t i = 0; i < count; i++) {
        vec wi = bfloat16 ? w[i / 2] : w[i];
        if (bfloat16)
            wi = (vec)(i % 2 == 0 ? (mask)wi << 16 : (mask)wi & ~(int32_t)0xffff);
        UNROLL
        for (size_t n = 0; n < rows; n++)
            acc[n] += x[n * x_row + i] * wi;
    }
}

/* One input at a time, where fewer than a quad are left. */
static void forward_tail(vec *acc, const char *const *row, size_t at, const float *x, size_t x_row, size_t rows, bool bfloat16)
{
    if (bfloat16)
        forward_step(acc, row, at, x, x_row, rows, true, 1);
    else
        forward_step(acc, row, at, x, x_row, rows, false, 1);
}

/* The sums of a vector of outputs, from the one numbered o on, to y. */
static void forward_finish(const struct vgg_linear_forward *t, const vec *total, size_t o)
{
    const size_t size = vgg_min_size(VL, t->outputs - o) * sizeof(float);
    const vec zero = {0};
    vec bias = zero;
    if (t->bias != NULL)
        memcpy(&bias, t->bias + o, size);
    for (size_t n = 0; n < t->rows; n++) {
        vec z = total[n] + bias;
        if (t->relu)
            z = at_least(z, zero);
        memcpy(t->y + n * t->y_row + o, &z, size);
    }
}

/* `groups` vectors of outputs at a time: chains enough to hide the latency of multiply-add. */
static INLINE void forward_rows(const struct vgg_linear_forward *t, const size_t rows, const bool bfloat16, const size_t groups)
{
    const size_t item = bfloat16 ? 2 : 4, run = 16 / item;
    for (size_t first = 0; first < t->outputs; first += groups * VL) {
        const char *row[2 * VL]; /* beyond the last output: the last one again */
        for (size_t o = 0; o < groups * VL; o++)
            row[o] = (const char *)t->w + vgg_min_size(first + o, t->outputs - 1) * t->w_row * item;
        vec total[2][FEW] = {0};
        for (size_t begin = 0; begin < t->in; begin += t->block) {
            const size_t end = vgg_min_size(t->in, begin + t->block);
            vec acc[2][FEW] = {0};
            size_t i = begin;
            for (; i + run <= end; i += run) {
                UNROLL
                for (size_t g = 0; g < groups; g++)
                    forward_step(acc[g], row + g * VL, i * item, t->x + i, t->x_row, rows, bfloat16, run);
            }
            for (; i < end; i++)
                for (size_t g = 0; g < groups; g++)
                    forward_tail(acc[g], row + g * VL, i * item, t->x + i, t->x_row, rows, bfloat16);
            for (size_t g = 0; g < groups; g++)
                for (size_t n = 0; n < rows; n++)
                    total[g][n] = begin == 0 ? acc[g][n] : acc[g][n] + total[g][n];
        }
        for (size_t g = 0; g < groups && first + g * VL < t->outputs; g++)
            forward_finish(t, total[g], first + g * VL);
    }
}

/* clang-format off */
#define EACH_FEW(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8)
#define FORWARD(n)                                                      \
    case n:                                                             \
        if (t.bfloat16)                                                 \
            forward_rows(&t, n, true, n <= 2 ? 2 : 1);                  \
        else                                                            \
            forward_rows(&t, n, false, 1);                              \
        break;
/* clang-format on */

void NAME(forward)(const struct vgg_linear_forward *call)
{
    const struct vgg_linear_forward t = *call; /* a copy, which no store can change */
    switch (t.rows) {
        EACH_FEW(FORWARD)
    }
}

/* ------------------------------------------------------------------------------------------------ gradient
 *
 * A tile is MR rows of c by two vectors, as the GEMM kernel's. The first tile of a panel of b reads it in place, line by line
 * from as many rows, and leaves a copy in `packed` for the tiles that follow. */

/* A tile: `rows` of c by NR columns. */
struct tile {
    size_t k;
    const float *a; /* a_col floats a step */
    size_t a_col;
    const float *b;
    size_t b_row;
    float *copy; /* of b, if it is read in place; then what begins at `next` is fetched ahead, in rows as b's */
    const float *next;
    const float *carry; /* or NULL */
    size_t carry_row;
    float *c;
    size_t c_row, c_ahead;
    bool beta;
};

static INLINE void tile_rows(const struct tile *t, const size_t rows, const bool in_place)
{
    const float *a = t->a, *b = t->b, *next = t->next;
    float *c = t->c, *copy = t->copy;
    vec low[MR] = {0}, high[MR] = {0};
    if (t->carry != NULL) {
        UNROLL
        for (size_t r = 0; r < rows; r++) {
            low[r] = load(t->carry + r * t->carry_row);
            high[r] = load(t->carry + r * t->carry_row + VL);
        }
    } else {
        UNROLL
        for (size_t r = 0; r < rows; r++)
            __builtin_prefetch(c + r * t->c_row + t->c_ahead, 1);
    }
    for (size_t p = t->k; p != 0; p--) {
        const vec b_low = load(b), b_high = load(b + VL);
        if (in_place) {
            store(copy, b_low);
            store(copy + VL, b_high);
            copy += NR;
            __builtin_prefetch(next, 0, 2);
            next += t->b_row;
        }
        UNROLL
        for (size_t r = 0; r < rows; r++) {
            low[r] += a[r] * b_low;
            high[r] += a[r] * b_high;
        }
        a += t->a_col;
        b += t->b_row;
    }
    UNROLL
    for (size_t r = 0; r < rows; r++, c += t->c_row) {
        if (t->beta) {
            low[r] += load(c);
            high[r] += load(c + VL);
        }
        store(c, low[r]);
        store(c + VL, high[r]);
    }
}

/* clang-format off */
#define EACH_ROW(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14)
#define TILE(i)                                                         \
    case i:                                                             \
        if (i <= MR && in_place)                                        \
            tile_rows(t, i, true);                                      \
        else if (i <= MR)                                               \
            tile_rows(t, i, false);                                     \
        break;
/* clang-format on */

static void run_tile(const struct tile *t, size_t rows, bool in_place)
{
    switch (rows) {
        EACH_ROW(TILE)
    }
}

/* A tile of fewer than NR columns, by way of a whole one. */
static void run_narrow_tile(struct tile t, size_t rows, size_t columns)
{
    float whole[MR * NR] = {0}, *c = t.c;
    for (size_t r = 0; t.beta && r < rows; r++)
        memcpy(whole + r * NR, c + r * t.c_row, columns * sizeof *c);
    const size_t c_row = t.c_row;
    t.c = whole;
    t.c_row = NR;
    run_tile(&t, rows, false);
    for (size_t r = 0; r < rows; r++)
        memcpy(c + r * c_row, whole + r * NR, columns * sizeof *c);
}

void NAME(gradient)(const struct vgg_linear_gradient *call)
{
    enum { AHEAD = 128 / NR }; /* panels: 512 bytes */
    const struct vgg_linear_gradient g = *call;
    const size_t panels = vgg_ceil_div(g.columns, NR);
    struct tile t = {.k = g.k, .a_col = g.tile, .carry_row = g.carry_row, .c_row = g.c_row, .beta = g.beta};
    t.c_ahead = g.k < 32 ? 4 * NR : 0; /* a longer sum leaves time enough to fetch its own part of c */
    for (size_t panel = 0; panel < panels; panel++) {
        const size_t columns = vgg_min_size(NR, g.columns - panel * NR);
        bool in_place = g.packed != NULL && columns == NR;
        t.b = g.b + panel * g.b_panel;
        t.b_row = g.b_row;
        t.copy = g.packed;
        t.next = panel + AHEAD < panels ? t.b + AHEAD * g.b_panel : g.next + (panel + AHEAD - panels) * g.b_panel;
        if (g.packed != NULL && columns != NR) {
            for (size_t p = 0; p < g.k; p++) {
                memcpy(g.packed + p * NR, t.b + p * g.b_row, columns * sizeof(float));
                memset(g.packed + p * NR + columns, 0, (NR - columns) * sizeof(float));
            }
            t.b = g.packed;
            t.b_row = NR;
        }
        for (size_t first = 0; first < g.rows; first += g.tile) {
            const size_t rows = vgg_min_size(g.tile, g.rows - first);
            t.a = g.a + first / g.tile * g.a_tile;
            t.carry = g.carry == NULL ? NULL : g.carry + first * g.carry_row + panel * NR;
            t.c = g.c + first * g.c_row + panel * NR;
            if (columns != NR) {
                run_narrow_tile(t, rows, columns);
                continue;
            }
            run_tile(&t, rows, in_place);
            if (in_place) {
                t.b = g.packed;
                t.b_row = NR;
                in_place = false;
            }
        }
    }
}

/* kernels/gemm_tile.h: the GEMM microkernel of every ISA, from one source. Contract: struct vgg_gemm, vgg_internal.h.
 *
 * The including file defines VL (floats in a vector), MR (rows of the full tile, at most 14) and NAME (the entry), and is
 * compiled with its ISA's flags; everything here is static. The tile is MR rows by two vectors:
 *
 *            b (packed, NR = 2 VL floats a step)
 *            [ b_lo ][ b_hi ]
 *   a[0] *   [ lo0  ][ hi0  ]      acc stays in registers for the whole sum: 2 MR accumulators, two of b, one of a
 *   a[1] *   [ lo1  ][ hi1  ]      that is broadcast from memory: 14 x 2 of 32 zmm, 6 x 2 of 16 ymm
 *    ...         ...
 *
 * A sum runs over t, then p, in that order, in one accumulator per element: a result does not depend on where in a tile
 * its row was, nor on mr. Rows beyond mr do not exist: there is one specialisation for each mr.
 *
 * While a sum is made, what comes next is fetched into L1: the rows of A below these, which are the next tile's as a rule,
 * and the lines at `next`. The hardware does not see them coming: it is worth 5 to 10 % of Winograd's products. A call takes
 * as many tiles as its rows need, and chooses once how they end: a call for each tile took 14 % longer with 64 steps. */
#include "kernels.h"

#include "vectors.h"

enum {
    NR = 2 * VL,
    LINE = 16,     /* floats of a cache line */
    STEPS = LINE,  /* of a sum at once: a line of each row of A */
    NEXT_LINES = 2 /* that are fetched meanwhile */
};

static inline vec epilogue(vec acc, const float *c, const float *bias, const struct vgg_gemm *t)
{
    if (t->beta)
        acc += load(c);
    if (bias != NULL)
        acc += load(bias);
    return t->relu ? at_least(acc, (vec){0}) : acc;
}

/* One row of the tile to memory, through a buffer of full width where nr is short. */
static inline void finish(const struct vgg_gemm *t, vec lo, vec hi, float *c)
{
    if (t->nr == NR) {
        store(c, epilogue(lo, c, t->bias, t));
        store(c + VL, epilogue(hi, c + VL, t->bias == NULL ? NULL : t->bias + VL, t));
        return;
    }
    float row[NR] = {0}, bias[NR] = {0};
    if (t->beta)
        memcpy(row, c, t->nr * sizeof *row);
    if (t->bias != NULL)
        memcpy(bias, t->bias, t->nr * sizeof *bias);
    store(row, epilogue(lo, row, t->bias == NULL ? NULL : bias, t));
    store(row + VL, epilogue(hi, row + VL, t->bias == NULL ? NULL : bias + VL, t));
    memcpy(c, row, t->nr * sizeof *row);
}

#define EACH_ROW(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13)

/* A row's element is base[i / 3] + (i % 3) * a_row: x86 adds one or two strides in the addressing mode, so fourteen rows
 * take five pointers. */
/* clang-format off */
#define DECLARE(i) vec lo##i = { 0 }, hi##i = { 0 };
#define BASE(i)                                             \
    const char *a##i = NULL;                                \
    if (mr > 3 * i)                                         \
        a##i = (const char *)(a + 3 * i * t->a_row);
#define ADVANCE(i)                                          \
    if (mr > 3 * i)                                         \
        a##i += a_col;
#define AT(base, times) ((base) + (times) * a_row)
#define ROW(i, base, times)                                 \
    if (mr > i) {                                           \
        const float x = *(const float *)AT(base, times);    \
        lo##i += x * b_lo;                                  \
        hi##i += x * b_hi;                                  \
    }
#define AHEAD(i, base, times)                               \
    if (mr > i)                                             \
        __builtin_prefetch(AT((base) + tile_bytes, times));
#define EACH_ROW_AT(X)                                      \
    X(0, a0, 0) X(1, a0, 1) X(2, a0, 2)                     \
    X(3, a1, 0) X(4, a1, 1) X(5, a1, 2)                     \
    X(6, a2, 0) X(7, a2, 1) X(8, a2, 2)                     \
    X(9, a3, 0) X(10, a3, 1) X(11, a3, 2)                   \
    X(12, a4, 0) X(13, a4, 1)
#define STEP                                                \
    {                                                       \
        const vec b_lo = load(b), b_hi = load(b + VL);      \
        EACH_ROW_AT(ROW)                                    \
        b += NR;                                            \
        ADVANCE(0) ADVANCE(1) ADVANCE(2) ADVANCE(3) ADVANCE(4) \
    }
#define WRITE(i)                                            \
    if (mr > i) {                                           \
        store(c + i * c_row, lo##i);                        \
        store(c + i * c_row + VL, hi##i);                   \
    }
#define ADD(i)                                              \
    if (mr > i) {                                           \
        store(c + i * c_row, lo##i + load(c + i * c_row));  \
        store(c + i * c_row + VL, hi##i + load(c + i * c_row + VL)); \
    }
#define FINISH(i)                                           \
    if (mr > i)                                             \
        finish(t, lo##i, hi##i, c + i * c_row);

/* Where a call is: its next tile, and what to fetch. */
struct place {
    const float *a;
    float *c;
    const float *next;
    size_t next_lines;
};

/* `tiles` tiles of mr rows, from *at on, which then is past them; mr is a constant wherever this is inlined. What tiles share
 * is read once: of 64 steps, a tile's beginning and end would else be a quarter. */
static inline __attribute__((always_inline)) void strip(const struct vgg_gemm *t, struct place *at, size_t tiles,
                                                        const size_t mr)
{
    const ptrdiff_t a_row = (ptrdiff_t)(t->a_row * sizeof(float)), a_col = (ptrdiff_t)(t->a_col * sizeof(float));
    const ptrdiff_t tile_bytes = (ptrdiff_t)mr * a_row;
    const bool plain = t->nr == NR && t->bias == NULL && !t->relu, beta = t->beta;
    const size_t c_row = t->c_row, runs = t->runs, k = t->k, lines = runs * (k / STEPS) * NEXT_LINES;
    const float *start = at->a;
    float *c = at->c;
    for (; tiles != 0; tiles--) {
        EACH_ROW(DECLARE)
        const float *a = start, *b_start = t->b, *ahead = b_start;
        if (at->next_lines != 0) {
            size_t fetched = vgg_min_size(lines, at->next_lines);
            ahead = at->next;
            at->next += fetched * LINE;
            at->next_lines -= fetched;
        }
        for (size_t run = 0; run < runs; run++) {
            BASE(0) BASE(1) BASE(2) BASE(3) BASE(4)
            const float *b = b_start;
            size_t p = k;
            for (; p >= STEPS; p -= STEPS) {
                for (size_t line = 0; line < NEXT_LINES; line++, ahead += LINE)
                    __builtin_prefetch(ahead);
                EACH_ROW_AT(AHEAD)
                _Pragma("GCC unroll 16")
                for (int step = 0; step < STEPS; step++)
                    STEP
            }
            for (; p != 0; p--)
                STEP
            a += t->a_run;
            b_start += t->b_run;
        }
        if (!plain) {
            EACH_ROW(FINISH)
        } else if (beta) {
            EACH_ROW(ADD)
        } else {
            EACH_ROW(WRITE)
        }
        start += mr * t->a_row;
        c += mr * c_row;
    }
    at->a = start;
    at->c = c;
}

/* The specialisations, one for each mr up to MR. */
#define SPECIALISE(i)                                       \
    case i + 1:                                             \
        if (i < MR)                                         \
            strip(t, &at, tiles, i + 1);                    \
        break;

/* clang-format on */

void NAME(const struct vgg_gemm *t)
{
    struct place at = {t->a, t->c, t->next, t->next_lines};
    size_t all = (t->rows + MR - 1) / MR, tiles = t->rows % all, mr = t->rows / all + 1; /* the longer ones, if any */
    for (int part = 0; part < 2; part++, tiles = all - tiles, mr--) {
        if (tiles == 0)
            continue;
        switch (mr) {
            EACH_ROW(SPECIALISE)
        }
    }
}

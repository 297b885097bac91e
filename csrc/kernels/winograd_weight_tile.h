/* kernels/winograd_weight_tile.h: Winograd's F(3x3, OUT x OUT): the weight gradient of a 3x3 convolution, for any ISA.
 * Contracts: the structs of vgg_internal.h. Included after winograd_tile.h, whose points and whose transform of x it shares.
 *
 * A tile of OUT x OUT pixels of the gradient g and the IN x IN pixels of x that it meets give 3x3 sums,
 * dw = A' [(G g G') * (B' x B)] A. The valid correlation of IN numbers by OUT is a polynomial product transposed: with V(m) the
 * matrix of rows (1, p, .., p^(m-1)), of infinity (0, .., 0, 1), it is V(3)' [(V(OUT) g) * (V(IN)^-T d)]. The rows of B' are
 * those of V(IN)^-T times N_p, so a factor must take them back. G is applied to each tile, A' once to the sum over all: A' has
 * the factors.
 *
 *   G: row p  (1, p, .., p^(OUT-1))   infinity  (0, .., 0, 1)       A': column p  (1, p, p^2) / N_p   infinity  (0, 0, 1) */
#ifndef VGG_WINOGRAD_WEIGHT_H
#define VGG_WINOGRAD_WEIGHT_H

/* ------------------------------------------------------------------------------------------------ gradient */

/* Two pixels of row i of the 2 x 2 window that was pooled to x[at]; a tile's windows are whole. */
static INLINE void window_row(vec *g, const struct source *s, size_t at, size_t i, const bool masked, size_t lanes)
{
    const vec zero = {0};
    vec x = load_lanes(s->x + at, lanes);
    if (masked)
        x = keep(load_lanes(s->y + at, lanes) > zero, x);
    const mask where = places(s->index + at, lanes);
    g[0] = keep(where == (int32_t)(2 * i), x);
    g[1] = keep(where == (int32_t)(2 * i + 1), x);
}

/* One vector of channels of one tile: G g G' to v[e * v_element], and the sum of its pixels as one element more. */
static INLINE void gradient_tile(float *v, size_t v_element, const struct source *s, size_t row, size_t column, size_t channel,
                                 const bool inside, const bool masked, const bool pooled, size_t lanes)
{
    vec half[OUT][IN], sum = {0};
    for (size_t i = 0; i < OUT; i++) {
        vec g[OUT];
        if (inside && pooled)
            for (size_t j = 0; j < OUT; j += 2)
                window_row(g + j, s, ((row + i) / 2 * s->ow + (column + j) / 2) * s->c + channel, i % 2, masked, lanes);
        else
            for (size_t j = 0; j < OUT; j++)
                g[j] = pixel(s, row + i, column + j, channel, inside, masked, pooled, lanes);
        gradient_transform(half[i], g);
        for (size_t j = 0; j < OUT; j += 2)
            sum += g[j] + g[j + 1];
    }
    for (size_t j = 0; j < IN; j++) {
        vec g[OUT], out[IN];
        for (size_t i = 0; i < OUT; i++)
            g[i] = half[i][j];
        gradient_transform(out, g);
        for (size_t i = 0; i < IN; i++)
            store(v + (IN * i + j) * v_element, out[i]);
    }
    store(v + IN * IN * v_element, sum);
}

static INLINE void gradient_channels(const struct vgg_winograd_input *t, const struct source *s, size_t tile, const bool inside,
                                     const bool masked, const bool pooled)
{
    size_t row = OUT * t->row, column = OUT * (t->column + tile);
    float *panel = t->v + tile * t->v_tile;
    for (size_t first = 0; first < t->c; first += t->width, panel += t->v_panel) {
        size_t c = first, end = vgg_min_size(t->c, first + t->width);
        for (; c + VL <= end; c += VL)
            gradient_tile(panel + (c - first), t->v_element, s, row, column, c, inside, masked, pooled, VL);
        if (c < end)
            gradient_tile(panel + (c - first), t->v_element, s, row, column, c, false, t->y != NULL, t->index != NULL, end - c);
    }
}

void NAME(gradient)(const struct vgg_winograd_input *t)
{
    const struct source s = {
        .x = t->x, .y = t->y, .index = t->index, .h = t->h, .w = t->w, .c = t->c, .oh = t->oh, .ow = t->ow};
    bool masked = t->y != NULL, pooled = t->index != NULL;
    size_t h = pooled ? vgg_min_size(t->h, 2 * t->oh) : t->h, w = pooled ? vgg_min_size(t->w, 2 * t->ow) : t->w;
    for (size_t tile = 0; tile < t->tiles; tile++) {
        bool inside = OUT * t->row + OUT <= h && OUT * (t->column + tile) + OUT <= w;
        if (!inside)
            gradient_channels(t, &s, tile, false, masked, pooled);
        else if (masked && pooled)
            gradient_channels(t, &s, tile, true, true, true);
        else if (masked)
            gradient_channels(t, &s, tile, true, true, false);
        else if (pooled)
            gradient_channels(t, &s, tile, true, false, true);
        else
            gradient_channels(t, &s, tile, true, false, false);
    }
}

/* ------------------------------------------------------------------------------------------------ sums */

/* One vector of channels of one row: dw[tap] = A' m A, plus what it was with beta. */
static INLINE void sums_row(const struct vgg_winograd_sums *t, const float *m, float *dw, size_t lanes)
{
    vec half[IN][3];
    for (size_t i = 0; i < IN; i++) {
        vec row_m[IN];
        for (size_t j = 0; j < IN; j++, m += t->m_element)
            row_m[j] = load(m);
        sums_transform(half[i], row_m);
    }
    for (size_t j = 0; j < 3; j++) {
        vec column_m[IN], out[3];
        for (size_t i = 0; i < IN; i++)
            column_m[i] = half[i][j];
        sums_transform(out, column_m);
        for (size_t i = 0; i < 3; i++) {
            float *to = dw + (3 * i + j) * t->dw_tap;
            store_lanes(to, t->beta ? out[i] + load_lanes(to, lanes) : out[i], lanes);
        }
    }
}

void NAME(sums)(const struct vgg_winograd_sums *t)
{
    for (size_t row = 0; row < t->rows; row++) {
        const float *m = t->m + row * t->m_row;
        float *dw = t->dw + row * t->dw_row;
        size_t c = 0;
        for (; c + VL <= t->columns; c += VL)
            sums_row(t, m + c, dw + c, VL);
        if (c < t->columns)
            sums_row(t, m + c, dw + c, t->columns - c);
    }
}

#endif

/* kernels/winograd4_points.h: F(4, 3) at the points 0, a = 3/4, -a, b = 3/2, -b and infinity, and F(3, 4) at the same, for the
 * weight gradient. Included by winograd_tile.h, which explains; F(3, 4) is explained in winograd_weight_tile.h. */
#ifndef VGG_WINOGRAD4_POINTS_H
#define VGG_WINOGRAD4_POINTS_H

static const float A1 = 0.75F, A2 = 0.5625F, A3 = 0.421875F; /* a, a^2, a^3 */
static const float B1 = 1.5F, B2 = 2.25F, B3 = 3.375F;       /* b, b^2, b^3 */
static const float SUM = 2.8125F, PRODUCT = 1.265625F;       /* a^2 + b^2, a^2 b^2: m(x) = x^5 - SUM x^3 + PRODUCT x */
/* 1 / N_0 = 1 / PRODUCT, 1 / N_a = 1 / (2 a^2 (a^2 - b^2)), 1 / N_b = 1 / (2 b^2 (b^2 - a^2)) */
static const float N0 = 64.0F / 81, NA = -128.0F / 243, NB = 32.0F / 243;

/* v = B^T d */
static INLINE void input_transform(vec v[6], const vec d[6])
{
    const vec even_a = d[4] - B2 * d[2], odd_a = d[3] - B2 * d[1];
    const vec even_b = d[4] - A2 * d[2], odd_b = d[3] - A2 * d[1];
    const vec first = d[4] - SUM * d[2], last = d[5] - SUM * d[3];
    v[0] = first + PRODUCT * d[0];
    v[1] = even_a + A1 * odd_a;
    v[2] = even_a - A1 * odd_a;
    v[3] = even_b + B1 * odd_b;
    v[4] = even_b - B1 * odd_b;
    v[5] = last + PRODUCT * d[1];
}

/* u = G t */
static INLINE void weights_transform(vec u[6], const vec t[3])
{
    const vec even_a = NA * t[0] + (NA * A2) * t[2], odd_a = (NA * A1) * t[1];
    const vec even_b = NB * t[0] + (NB * B2) * t[2], odd_b = (NB * B1) * t[1];
    u[0] = N0 * t[0];
    u[1] = even_a + odd_a;
    u[2] = even_a - odd_a;
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = t[2];
}

/* y = A^T m */
static INLINE void output_transform(vec y[4], const vec m[6])
{
    const vec sum_a = m[1] + m[2], difference_a = m[1] - m[2];
    const vec sum_b = m[3] + m[4], difference_b = m[3] - m[4];
    const vec even = m[0] + sum_a, last = m[5] + A3 * difference_a, odd = A1 * difference_a, square = A2 * sum_a;
    y[0] = even + sum_b;
    y[1] = odd + B1 * difference_b;
    y[2] = square + B2 * sum_b;
    y[3] = last + B3 * difference_b;
}

/* The weight gradient's: u = G g */
static INLINE void gradient_transform(vec u[6], const vec g[4])
{
    const vec even_a = g[0] + A2 * g[2], odd_a = A1 * g[1] + A3 * g[3];
    const vec even_b = g[0] + B2 * g[2], odd_b = B1 * g[1] + B3 * g[3];
    u[0] = g[0];
    u[1] = even_a + odd_a;
    u[2] = even_a - odd_a;
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = g[3];
}

/* y = A' m */
static INLINE void sums_transform(vec y[3], const vec m[6])
{
    const vec sum_a = NA * (m[1] + m[2]), difference_a = (NA * A1) * (m[1] - m[2]);
    const vec sum_b = NB * (m[3] + m[4]), difference_b = (NB * B1) * (m[3] - m[4]);
    y[0] = N0 * m[0] + (sum_a + sum_b);
    y[1] = difference_a + difference_b;
    y[2] = (A2 * sum_a + m[5]) + B2 * sum_b;
}

#endif

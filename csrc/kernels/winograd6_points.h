/* kernels/winograd6_points.h: F(6, 3) at the points 0, a = 1/2, -a, 1, -1, c = 2, -c and infinity, and F(3, 6)
 * at the same, for the weight gradient. Included by winograd_tile.h, which explains; F(3, 6) is explained in
 * winograd_weight_tile.h. With the squares 1/4, 1 and 4 of the points,
 *
 *   m(x) = x^7 - 21/4 x^5 + 21/4 x^3 - x,    m(x) / (x - p) = (x^2 + p x) (x^4 - (q + r) x^2 + q r),
 *
 * where q and r are the squares of the other two pairs. */
#ifndef VGG_WINOGRAD6_POINTS_H
#define VGG_WINOGRAD6_POINTS_H

static const float A1 = 0.5F, A2 = 0.25F, A3 = 0.125F, A4 = 0.0625F, A5 = 0.03125F; /* powers of a */
static const float C1 = 2, C2 = 4, C3 = 8, C4 = 16, C5 = 32;                        /* powers of c */
static const float SUM = 5.25F;
static const float NA = 32.0F / 45, NB = -2.0F / 9, NC = 1.0F / 90; /* 1 / N_p of the pairs; N_0 = -1 */

/* v = B^T d */
static INLINE void input_transform(vec v[8], const vec d[8])
{
    const vec even_a = d[6] - 5 * d[4] + 4 * d[2], odd_a = d[5] - 5 * d[3] + 4 * d[1];
    const vec even_b = (d[6] + d[2]) - 4.25F * d[4], odd_b = (d[5] + d[1]) - 4.25F * d[3];
    const vec even_c = d[6] - 1.25F * d[4] + 0.25F * d[2], odd_c = d[5] - 1.25F * d[3] + 0.25F * d[1];
    v[0] = (d[6] - d[0]) + SUM * (d[2] - d[4]);
    v[1] = even_a + A1 * odd_a;
    v[2] = even_a - A1 * odd_a;
    v[3] = even_b + odd_b;
    v[4] = even_b - odd_b;
    v[5] = even_c + C1 * odd_c;
    v[6] = even_c - C1 * odd_c;
    v[7] = (d[7] - d[1]) + SUM * (d[3] - d[5]);
}

/* u = G t */
static INLINE void weights_transform(vec u[8], const vec t[3])
{
    const vec even_a = NA * t[0] + (NA * A2) * t[2], odd_a = (NA * A1) * t[1];
    const vec even_b = NB * (t[0] + t[2]), odd_b = NB * t[1];
    const vec even_c = NC * t[0] + (NC * C2) * t[2], odd_c = (NC * C1) * t[1];
    u[0] = -t[0];
    u[1] = even_a + odd_a;
    u[2] = even_a - odd_a;
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = even_c + odd_c;
    u[6] = even_c - odd_c;
    u[7] = t[2];
}

/* y = A^T m */
static INLINE void output_transform(vec y[6], const vec m[8])
{
    const vec sum_a = m[1] + m[2], difference_a = m[1] - m[2];
    const vec sum_b = m[3] + m[4], difference_b = m[3] - m[4];
    const vec sum_c = m[5] + m[6], difference_c = m[5] - m[6];
    y[0] = (m[0] + sum_a) + (sum_b + sum_c);
    y[1] = difference_b + A1 * difference_a + C1 * difference_c;
    y[2] = sum_b + A2 * sum_a + C2 * sum_c;
    y[3] = difference_b + A3 * difference_a + C3 * difference_c;
    y[4] = sum_b + A4 * sum_a + C4 * sum_c;
    y[5] = (difference_b + m[7]) + A5 * difference_a + C5 * difference_c;
}

/* The weight gradient's: u = G g */
static INLINE void gradient_transform(vec u[8], const vec g[6])
{
    const vec even_a = g[0] + A2 * g[2] + A4 * g[4], odd_a = A1 * g[1] + A3 * g[3] + A5 * g[5];
    const vec even_b = (g[0] + g[2]) + g[4], odd_b = (g[1] + g[3]) + g[5];
    const vec even_c = g[0] + C2 * g[2] + C4 * g[4], odd_c = C1 * g[1] + C3 * g[3] + C5 * g[5];
    u[0] = g[0];
    u[1] = even_a + odd_a;
    u[2] = even_a - odd_a;
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = even_c + odd_c;
    u[6] = even_c - odd_c;
    u[7] = g[5];
}

/* y = A' m */
static INLINE void sums_transform(vec y[3], const vec m[8])
{
    const vec sum_a = NA * (m[1] + m[2]), difference_a = (NA * A1) * (m[1] - m[2]);
    const vec sum_b = NB * (m[3] + m[4]), difference_b = NB * (m[3] - m[4]);
    const vec sum_c = NC * (m[5] + m[6]), difference_c = (NC * C1) * (m[5] - m[6]);
    y[0] = (sum_a + sum_b) + (sum_c - m[0]);
    y[1] = difference_a + difference_b + difference_c;
    y[2] = (sum_b + m[7]) + A2 * sum_a + C2 * sum_c;
}

#endif

/* kernels/winograd2_points.h: F(2, 3) at the points 0, 1, -1 and infinity. Included by winograd_tile.h, which explains.
 * N_0 = -1, N_1 = N_-1 = 2. */
#ifndef VGG_WINOGRAD2_POINTS_H
#define VGG_WINOGRAD2_POINTS_H

/* v = B^T d */
static INLINE void input_transform(vec v[4], const vec d[4])
{
    v[0] = d[2] - d[0];
    v[1] = d[2] + d[1];
    v[2] = d[2] - d[1];
    v[3] = d[3] - d[1];
}

/* u = G t */
static INLINE void weights_transform(vec u[4], const vec t[3])
{
    const vec even = 0.5F * (t[0] + t[2]);
    u[0] = -t[0];
    u[1] = even + 0.5F * t[1];
    u[2] = even - 0.5F * t[1];
    u[3] = t[2];
}

/* y = A^T m */
static INLINE void output_transform(vec y[2], const vec m[4])
{
    y[0] = m[0] + (m[1] + m[2]);
    y[1] = (m[1] - m[2]) + m[3];
}

#endif

"""Convolution, stride 1, size-keeping padding (paper, section 2.1).

z[n,h,w,k] = b[k] + sum over r, s, c of x[n, h + r - p, w + s - p, c] w[k,r,s,c],   p = (R - 1) / 2
"""

import numpy as np

from . import max_pool2d, relu


def _padded(x, p):
    return np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))


def forward(x, w, b=None):
    """x (N, H, W, C), w (K, R, R, C), b (K,) -> z (N, H, W, K)."""
    n, height, width, _ = x.shape
    k, size, _, _ = w.shape
    xp = _padded(x, (size - 1) // 2)
    z = np.zeros((n, height, width, k), x.dtype)
    for r in range(size):
        for s in range(size):
            z += np.einsum("nhwc,kc->nhwk", xp[:, r : r + height, s : s + width], w[:, r, s], optimize=True)
    return z if b is None else z + b


def fused(x, w, b=None, with_relu=False, pool=None):
    """Convolution, then ReLU if asked, then max pooling "floor" or "ceil" if asked -> y, or (y, index)."""
    z = forward(x, w, b)
    a = relu.forward(z) if with_relu else z
    return a if pool is None else max_pool2d.forward(a, ceil_mode=pool == "ceil")


def fused_gradient(dy, y=None, index=None, input_shape=None):
    """The gradient with respect to z of a fused call: dy masked by y > 0, then put back where index says."""
    g = dy if y is None else relu.backward(dy, y)
    return g if index is None else max_pool2d.backward(g, index, (*input_shape[:3], dy.shape[3]))


def backward_input(g, w):
    """g (N, H, W, K), w (K, R, R, C) -> dx (N, H, W, C): dx[n,h,w,c] = sum g[n, h - r + p, w - s + p, k]
    w[k,r,s,c]."""
    n, height, width, _ = g.shape
    _, size, _, c = w.shape
    p = (size - 1) // 2
    gp = _padded(g, p)
    dx = np.zeros((n, height, width, c), g.dtype)
    for r in range(size):
        for s in range(size):
            top, left = 2 * p - r, 2 * p - s
            shifted = gp[:, top : top + height, left : left + width]
            dx += np.einsum("nhwk,kc->nhwc", shifted, w[:, r, s], optimize=True)
    return dx


def backward_weight(g, x, size=3):
    """g (N, H, W, K), x (N, H, W, C) -> dw (K, R, R, C), db (K,)."""
    _, height, width, k = g.shape
    xp = _padded(x, (size - 1) // 2)
    dw = np.zeros((k, size, size, x.shape[3]), g.dtype)
    for r in range(size):
        for s in range(size):
            shifted = xp[:, r : r + height, s : s + width]
            dw[:, r, s] = np.einsum("nhwk,nhwc->kc", g, shifted, optimize=True)
    return dw, g.sum(axis=(0, 1, 2))

"""Local response normalisation over channels (paper, section 2.1, net A-LRN; Krizhevsky et al. 2012, section
3.3).

s[c] = k + alpha sum over the window of x^2 (the plain sum);  y[c] = x[c] s[c]^-beta
dx[c] = dy[c] s[c]^-beta - 2 alpha beta x[c] sum over the window of dy x s^(-beta - 1)
"""

import numpy as np


def _window_sum(a, size):
    """out[..., c] = sum of a[..., c'] over |c' - c| <= size // 2."""
    channels, half = a.shape[-1], size // 2
    out = np.zeros_like(a)
    for c in range(channels):
        out[..., c] = a[..., max(0, c - half) : min(channels, c + half + 1)].sum(axis=-1)
    return out


def scale(x, size=5, alpha=1e-4, k=2.0):
    return k + alpha * _window_sum(x * x, size)


def forward(x, size=5, alpha=1e-4, beta=0.75, k=2.0):
    return x * scale(x, size, alpha, k) ** -beta


def backward(dy, x, size=5, alpha=1e-4, beta=0.75, k=2.0):
    s = scale(x, size, alpha, k)
    return dy * s**-beta - 2 * alpha * beta * x * _window_sum(dy * x * s ** (-beta - 1), size)

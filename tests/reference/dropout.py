"""Dropout: y[n,j] = 0 where word j of (seed, rows[n], purpose), as a uniform number, is below p; else x[n,j]
/ (1 - p)."""

import numpy as np

from . import philox


def mask(p, seed, rows, purpose, width):
    """(N, width) of 0 and 1 / (1 - p)."""
    u = philox.uniform(philox.bits(seed, rows, purpose, width))
    return np.where(u < p, 0.0, 1 / (1 - p))


def forward(x, p, seed, rows, purpose=0):
    return x * mask(p, seed, rows, purpose, x.shape[1])

"""The Euclidean loss of predicted boxes (paper, appendix A): half the squared distance to the target."""

import numpy as np


def loss(x, target, labels=None, normalizer=None):
    """x (N, D) or, with labels (N,), (N, C * D); target (N, D) -> loss, dx, both divided by normalizer (N where it is None)."""
    n, d = target.shape
    normalizer = n if normalizer is None else normalizer
    dx = np.zeros((n, x.shape[1] // d, d), x.dtype)
    own = np.zeros(n, int) if labels is None else labels
    dx[np.arange(n), own] = (x.reshape(dx.shape)[np.arange(n), own] - target) / normalizer
    return (dx**2).sum() * normalizer / 2, dx.reshape(x.shape)

"""Every size x size window, stride 1, no padding, as a row (how fc6 becomes a convolution: paper, section
3.2)."""

import numpy as np


def forward(x, size):
    """x (N, H, W, C) -> (N * OH * OW, size * size * C)."""
    n, height, width, _ = x.shape
    rows = [
        x[i, h : h + size, w : w + size].reshape(-1)
        for i in range(n)
        for h in range(height - size + 1)
        for w in range(width - size + 1)
    ]
    return np.array(rows, x.dtype).reshape(len(rows), size * size * x.shape[3])

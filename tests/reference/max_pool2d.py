"""Max pooling, 2x2 window, stride 2 (paper, section 2.1).

index is 0..3, row-major in the window. The first maximum wins; where there is a NaN, the first NaN wins. With
ceil_mode a window that hangs over the edge has the elements that exist.
"""

import numpy as np

POSITIONS = [(0, 0), (0, 1), (1, 0), (1, 1)]


def pooled(size, ceil_mode):
    return (size + 1) // 2 if ceil_mode else size // 2


def forward(x, ceil_mode=False):
    """x (N, H, W, C) -> y (N, H', W', C), index uint8 of y's shape."""
    n, height, width, c = x.shape
    rows, columns = pooled(height, ceil_mode), pooled(width, ceil_mode)
    y = np.zeros((n, rows, columns, c), x.dtype)
    index = np.zeros(y.shape, np.uint8)
    for i in range(rows):
        for j in range(columns):
            for position, (di, dj) in enumerate(POSITIONS):
                if 2 * i + di >= height or 2 * j + dj >= width:
                    continue
                value = x[:, 2 * i + di, 2 * j + dj]
                best = y[:, i, j]
                wins = (
                    (value > best) | (np.isnan(value) & ~np.isnan(best))
                    if position
                    else np.full(best.shape, True)
                )
                y[:, i, j] = np.where(wins, value, best)
                index[:, i, j] = np.where(wins, position, index[:, i, j])
    return y, index


def backward(dy, index, input_shape):
    """dy, index (N, H', W', C) -> dx of input_shape: dy where the winner was, 0 elsewhere."""
    dx = np.zeros(input_shape, dy.dtype)
    for i in range(dy.shape[1]):
        for j in range(dy.shape[2]):
            for position, (di, dj) in enumerate(POSITIONS):
                if 2 * i + di < input_shape[1] and 2 * j + dj < input_shape[2]:
                    won = index[:, i, j] == position
                    dx[:, 2 * i + di, 2 * j + dj] = np.where(won, dy[:, i, j], 0)
    return dx

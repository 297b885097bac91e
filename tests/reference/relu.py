"""ReLU: y = max(x, 0), a NaN stays a NaN; dx = dy where y > 0, else 0."""

import numpy as np


def forward(x):
    return np.maximum(x, 0)


def backward(dy, y):
    return np.where(y > 0, dy, 0)

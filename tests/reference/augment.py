"""Crop, mirror, shift, mean subtraction from uint8 (paper, section 3.1)."""

import numpy as np


def forward(images, crops, size, mean, shift=None):
    """images: uint8 (H, W, C) each; crops (N, 3): top, left, mirror; shift (N, C) or None -> (N, size, size,
    C)."""
    x = np.zeros((len(images), size, size, len(mean)))
    for i, (image, (top, left, mirror)) in enumerate(zip(images, crops, strict=True)):
        for h in range(size):
            for w in range(size):
                column = size - 1 - w if mirror else w
                x[i, h, w] = image[top + h, left + column]
        x[i] += (0 if shift is None else shift[i].astype(np.float64)) - np.asarray(mean, np.float64)
    return x

"""The paper's evaluation (sections 3.2 and 4) once more, as plainly as it can be said. Shares no code with
vggnet/.

Pillow rescales, NumPy does the rest. A net comes in as two functions of preprocessed (N, H, W, C) float64
images: `forward` -> (N, classes) scores of input-sized crops, `dense` -> (N, h, w, classes) score maps of
images of any size.
"""

import math

import numpy as np
from PIL import Image


def softmax(scores):
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def rescale(image, q):
    """uint8 (H, W, C) to a smaller side of q; the longer one is floor(long q / short + 0.5)."""
    height, width = image.shape[:2]
    short, long = min(height, width), max(height, width)
    scaled = math.floor(long * q / short + 0.5)
    size = (q, scaled) if width <= height else (scaled, q)  # Pillow's order: width, height
    if image.shape[2] == 1:
        return np.asarray(Image.fromarray(image[:, :, 0]).resize(size, Image.Resampling.BICUBIC))[:, :, None]
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def grid(side, crop, count):
    return [math.floor((side - crop) * i / (count - 1) + 0.5) for i in range(count)]


def crop_places(kind, height, width, crop):
    """[(top, left)] of the crops of one image."""
    centre = ((height - crop) // 2, (width - crop) // 2)
    if kind == "center":
        return [centre]
    if kind == "ten-crop":
        return [(0, 0), (0, width - crop), (height - crop, 0), (height - crop, width - crop), centre]
    return [(top, left) for top in grid(height, crop, 5) for left in grid(width, crop, 5)]


def at_scale(kind, image, q, crop, mean, forward, dense):
    """Posteriors of one image at one scale."""
    x = rescale(image, q).astype(np.float64) - np.asarray(mean)
    mirrored = x[:, ::-1]
    if kind == "dense":
        both = [softmax(dense(view[None])[0].mean(axis=(0, 1))) for view in (x, mirrored)]
        return (both[0] + both[1]) / 2
    crops = []
    for top, left in crop_places(kind, *x.shape[:2], crop):
        window = x[top : top + crop, left : left + crop]
        crops.append(window)
        if kind != "center":
            crops.append(window[:, ::-1])
    return softmax(forward(np.stack(crops))).mean(axis=0)


def posteriors(kind, images, scales, crop, mean, forward, dense):
    """(N, classes) of uint8 images, averaged over the scales."""
    if kind == "combined":
        parts = [posteriors(k, images, scales, crop, mean, forward, dense) for k in ("multi-crop", "dense")]
        return (parts[0] + parts[1]) / 2
    rows = [
        np.mean([at_scale(kind, image, q, crop, mean, forward, dense) for q in scales], axis=0)
        for image in images
    ]
    return np.array(rows)


def errors(posteriors, labels):
    """Top-1 and top-5 errors in percent; a class beats another of equal posterior if it comes first."""
    top1 = top5 = 0
    for row, label in zip(posteriors, labels, strict=True):
        better = sum(p > row[label] or (p == row[label] and i < label) for i, p in enumerate(row))
        top1 += better >= 1
        top5 += better >= 5
    return 100 * top1 / len(labels), 100 * top5 / len(labels)

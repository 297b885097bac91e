"""The paper's tests of predicted boxes (appendix A) once more, in plain loops. Shares no code with vggnet/.

A net comes in as a function of preprocessed (1, H, W, C) float64 images, `dense` -> (1, h, w, outputs), as in
naive_evaluator. Boxes are (left, top, right, bottom).
"""

import numpy as np

from naive_evaluator import rescale, softmax


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = width * height if width > 0 and height > 0 else 0
    areas = [max(right - left, 0) * max(bottom - top, 0) for left, top, right, bottom in (a, b)]
    union = sum(areas) - common
    return common / union if union > 0 else 0


def merge(boxes, scores, least):
    """[(box, score)] best first: groups of boxes, the two whose means overlap most become one."""
    groups = [([list(box)], [score]) for box, score in zip(boxes, scores, strict=True)]

    def mean(group):
        return [sum(values) / len(group[0]) for values in zip(*group[0], strict=True)]

    while len(groups) > 1:
        pairs = [
            (iou(mean(groups[i]), mean(groups[j])), i, j)
            for i in range(len(groups))
            for j in range(i + 1, len(groups))
        ]
        best, i, j = max(pairs, key=lambda pair: pair[0])
        if best < least:
            break
        groups[i] = (groups[i][0] + groups[j][0], groups[i][1] + groups[j][1])
        del groups[j]
    return sorted(((mean(group), sum(group[1])) for group in groups), key=lambda found: -found[1])


def to_image(numbers, left, top, side, image, rescaled):
    """Centre x, centre y, width, height, as fractions of a window's side -> edges in the image, cut off at its border."""
    x, y, width, height = (side * float(v) for v in numbers)
    width, height = max(width, 0), max(height, 0)
    edges = [left + x - width / 2, top + y - height / 2, left + x + width / 2, top + y + height / 2]
    h, w = image.shape[:2]
    scale_x, scale_y = w / rescaled.shape[1], h / rescaled.shape[0]
    limits, factors = (w, h, w, h), (scale_x, scale_y, scale_x, scale_y)
    return [
        min(max(edge * factor, 0), limit) for edge, factor, limit in zip(edges, factors, limits, strict=True)
    ]


def centre_box(numbers_of, image, q, side, mean, first):
    """The box whose numbers begin at output `first`, of the centre crop."""
    rescaled = rescale(image, q)
    top, left = (rescaled.shape[0] - side) // 2, (rescaled.shape[1] - side) // 2
    crop = rescaled[top : top + side, left : left + side].astype(np.float64) - np.asarray(mean)
    return to_image(numbers_of(crop[None])[0][first : first + 4], left, top, side, image, rescaled)


def locate(image, scales, side, mean, classify, nets, top, least=0.5):
    """[(class, posterior, box)]; nets: (dense, one box for all classes?) pairs."""
    posteriors, windows = [], []
    for q in scales:
        rescaled = rescale(image, q)
        x = (rescaled.astype(np.float64) - np.asarray(mean))[None]
        scores = classify(x)[0]
        posteriors.append(softmax(scores.reshape(-1, scores.shape[2]).mean(axis=0)))
        for dense, single in nets:
            numbers = dense(x)[0]
            for i in range(scores.shape[0]):
                for j in range(scores.shape[1]):
                    windows.append((rescaled, i, j, softmax(scores[i, j]), numbers[i, j], single))
    posterior = np.mean(posteriors, axis=0)
    found = []
    for label in sorted(range(len(posterior)), key=lambda c: -posterior[c])[:top]:
        boxes, rates = [], []
        for rescaled, i, j, own, numbers, single in windows:
            first = 0 if single else 4 * label
            boxes.append(to_image(numbers[first : first + 4], 32 * j, 32 * i, side, image, rescaled))
            rates.append(own[label])
        found.append((label, posterior[label], merge(boxes, rates, least)[0][0]))
    return found

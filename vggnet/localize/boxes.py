"""Boxes: what fc8 says of them, overlaps, and the greedy merging of many into few (paper, appendix A).

A box is four float64 numbers: left, top, right, bottom, as edges in pixels, so that right - left is the width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..data.base import Boxes

CORRECT_OVERLAP = 0.5  # a box is correct when its IoU with a true one is greater (paper, appendix A)
MERGE_OVERLAP = 0.5  # our inference: OverFeat's paper does not tell its threshold


def encode(boxes: npt.ArrayLike, side: int) -> npt.NDArray[np.float32]:
    """Boxes in a crop as the net predicts them.

    Parameters
    ----------
    boxes : (..., 4)
        In pixels of the crop; they may reach beyond it.
    side : int
        Of the crop, in pixels: the net's input size.

    Returns
    -------
    (..., 4) float32
        Centre x, centre y, width, height (paper, appendix A) as fractions of the side, which is our inference: the paper does
        not tell the units of its targets.

    Examples
    --------
    >>> encode([[0, 56, 112, 224]], 224).tolist()
    [[0.25, 0.625, 0.5, 0.75]]
    """
    boxes = np.asarray(boxes, np.float64)
    low, high = boxes[..., :2], boxes[..., 2:]
    return (np.concatenate([(low + high) / 2, high - low], axis=-1) / side).astype(np.float32)


def decode(numbers: npt.ArrayLike, side: int) -> Boxes:
    """The inverse of `encode`; a width or height below 0, which an untrained net may say, counts as 0.

    Examples
    --------
    >>> decode([0.25, 0.625, 0.5, 0.75], 224).tolist()
    [0.0, 56.0, 112.0, 224.0]
    """
    numbers = np.asarray(numbers, np.float64) * side
    centre, half = numbers[..., :2], np.maximum(numbers[..., 2:], 0) / 2
    return np.concatenate([centre - half, centre + half], axis=-1)


def clip(boxes: Boxes, height: int, width: int) -> Boxes:
    """The parts of boxes (..., 4) that lie inside an image."""
    return np.clip(boxes, 0, np.array([width, height, width, height], np.float64))


def iou(a: npt.ArrayLike, b: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Intersection over union of boxes.

    Parameters
    ----------
    a, b : (..., 4)
        Shapes that broadcast: ``iou(a[:, None], b)`` compares each with each.

    Returns
    -------
    (...) float64
        0..1; 0 where both boxes are empty.

    Examples
    --------
    >>> iou([0, 0, 2, 2], [[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6]]).round(3).tolist()
    [1.0, 0.333, 0.0]
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    common = np.maximum(high - low, 0).prod(axis=-1)
    union = area(a) + area(b) - common
    return np.asarray(common / np.where(union > 0, union, 1))


def area(boxes: Boxes) -> npt.NDArray[np.float64]:
    """Areas of boxes (..., 4); 0 where right is left of left, or bottom above top."""
    return np.asarray(np.maximum(boxes[..., 2:] - boxes[..., :2], 0).prod(axis=-1))


def merge(
    boxes: npt.ArrayLike, scores: npt.ArrayLike, overlap: float = MERGE_OVERLAP
) -> tuple[Boxes, npt.NDArray[np.float64]]:
    """Greedily merge boxes that overlap, by averaging their coordinates (Sermanet et al. 2014, section 4.3; paper, appendix A).

    Again and again the two boxes that match best become one, until no two match well enough. A merged box is the mean of all
    that went into it, and its score is the sum of theirs: where many windows agree, the evidence adds up.

    Parameters
    ----------
    boxes : (N, 4)
    scores : (N,)
        Of the boxes' windows.
    overlap : float
        The least IoU of two boxes that are merged, 0 < overlap <= 1.

    Returns
    -------
    boxes : (M, 4) float64
        Best score first; M <= N.
    scores : (M,) float64

    Raises
    ------
    ValueError
        For an overlap out of its range, or if there are not as many scores as boxes.

    Notes
    -----
    Two choices are ours. OverFeat's match score adds the distance of the centres and the area of the intersection, which its
    text leaves open how to weigh; here it is the IoU. And its average of two boxes does not say whether one that was merged
    before counts more; here it counts as often as it has members, so that the order in which boxes meet matters less. Takes
    O(N^2) memory.

    Examples
    --------
    >>> boxes, scores = merge([[0, 0, 10, 10], [2, 0, 12, 10], [50, 50, 60, 60]], [0.5, 0.25, 0.5])
    >>> boxes.tolist(), scores.tolist()
    ([[1.0, 0.0, 11.0, 10.0], [50.0, 50.0, 60.0, 60.0]], [0.75, 0.5])
    """
    boxes, scores = np.array(boxes, np.float64).reshape(-1, 4), np.array(scores, np.float64)
    if scores.shape != (len(boxes),):
        raise ValueError(
            f"merge: scores has shape {scores.shape}; expected ({len(boxes)},), one for each box"
        )
    if not 0 < overlap <= 1:
        raise ValueError(f"merge: overlap is {overlap}; expected 0 < overlap <= 1")
    members, live = np.ones(len(boxes)), np.ones(len(boxes), bool)
    match = iou(boxes[:, None], boxes)
    np.fill_diagonal(match, -1)
    while len(boxes):
        i, j = divmod(int(match.argmax()), len(boxes))  # the first of equals: i < j
        if match[i, j] < overlap:
            break
        boxes[i] = (members[i] * boxes[i] + members[j] * boxes[j]) / (members[i] + members[j])
        members[i] += members[j]
        scores[i] += scores[j]
        live[j] = False
        match[j] = match[:, j] = -1
        match[i] = match[:, i] = np.where(live, iou(boxes[i], boxes), -1)
        match[i, i] = -1
    order = np.flatnonzero(live)[np.argsort(-scores[live], kind="stable")]
    return boxes[order], scores[order]

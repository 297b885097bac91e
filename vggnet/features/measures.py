"""What the data sets of the paper's appendix B measure: mean class recall and average precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

RULES = ("11-point", "area")


def mean_class_recall(labels: npt.ArrayLike, predictions: npt.ArrayLike) -> float:
    """The share of each class's images that are recognised, averaged over the classes that occur: Caltech-101's and -256's.

    Parameters
    ----------
    labels, predictions : (N,) integers

    Returns
    -------
    float
        0..1.

    Examples
    --------
    >>> mean_class_recall([0, 0, 0, 1], [0, 0, 1, 1])
    0.8333333333333333
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(
            f"labels have shape {labels.shape} and predictions {predictions.shape}; expected (N,), N >= 1, for both"
        )
    right = labels == predictions
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def average_precision(scores: npt.ArrayLike, labels: npt.ArrayLike, rule: str = "11-point") -> float:
    """Average precision of one class, as PASCAL VOC's development kits define it.

    Parameters
    ----------
    scores : (N,) floats
        The greater, the likelier; equal ones keep their order.
    labels : (N,) of 1 (present), -1 (absent) and 0 (only difficult objects: ignored)
    rule : "11-point" | "area"
        Of VOC2007 to 2009: the mean, over recalls t = 0, 0.1, ..., 1, of the highest precision at a recall of t or more; or of
        VOC2010 and later: the area under the curve of these precisions.

    Returns
    -------
    float
        0..1.

    Raises
    ------
    ValueError
        If no label is 1, scores hold NaN, or shapes or values do not fit.

    Examples
    --------
    >>> round(average_precision([0.9, 0.8, 0.7, 0.1], [1, -1, 1, 0], "area"), 4)
    0.8333
    """
    values, truth = np.asarray(scores, np.float64), np.asarray(labels)
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}; expected one of {', '.join(map(repr, RULES))}")
    if values.ndim != 1 or values.shape != truth.shape:
        raise ValueError(f"scores have shape {values.shape} and labels {truth.shape}; expected (N,) for both")
    if np.isnan(values).any():
        raise ValueError("scores hold NaN")
    if not np.isin(truth, (-1, 0, 1)).all() or not (truth == 1).any():
        raise ValueError("labels: expected 1 (present), 0 (ignored) and -1 (absent), and at least one 1")
    ranked = truth[np.argsort(-values, kind="stable")]
    ranked = ranked[ranked != 0]
    found = np.cumsum(ranked == 1)  # true positives among the first 1, 2, ... images
    precision = found / np.arange(1, len(ranked) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or a greater one
    if rule == "area":
        return float(best[ranked == 1].mean())  # recall steps by 1 / positives at each of them
    positives = int(found[-1])
    # recall >= t / 10 in integers: exact where both are equal
    first = [int(np.argmax(10 * found >= t * positives)) for t in range(11)]
    return float(best[first].mean())


def mean_average_precision(
    scores: npt.ArrayLike, labels: npt.ArrayLike, rule: str = "11-point"
) -> tuple[float, npt.NDArray[np.float64]]:
    """Mean over the classes of `average_precision`, and that of each class.

    Parameters
    ----------
    scores : (N, classes) floats
    labels : (N, classes) of 1, 0 and -1, as `vggnet.data.VOC` has them
    rule : as in `average_precision`; ``VOC.rule`` tells the one of its year

    Returns
    -------
    (mean, each)
        A float, and (classes,) float64.
    """
    values, truth = np.asarray(scores), np.asarray(labels)
    if values.ndim != 2 or values.shape != truth.shape:
        raise ValueError(
            f"scores have shape {values.shape} and labels {truth.shape}; expected (N, classes) for both"
        )
    columns: Any = zip(values.T, truth.T, strict=True)
    each = np.array([average_precision(column, own, rule) for column, own in columns])
    return float(each.mean()), each

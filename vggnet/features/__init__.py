"""Images of other data sets as descriptors, and linear classifiers of these (paper, appendix B).

A net without fc8, its weights kept as they are, describes an image by what relu7 holds at every position, on average; a
linear SVM then learns classes that the net never saw. `Aggregation` names every choice, `extract` runs over a data set,
`VGGFeatures` and `LinearSVM` are the same as scikit-learn estimators (``pip install 'vggnet[svm]'``; only these two need it).

>>> import numpy as np
>>> from vggnet import VGG, data, features
>>> model = VGG("A", num_classes=5, input_size=32, in_channels=1, fc_width=16)
>>> found = features.extract(model, data.Subset(data.sample(train=False), [0, 1, 2]), "stack")
>>> found.values.shape, found.labels.shape
((3, 48), (3,))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .aggregation import CALTECH_SCALES, VOC_SCALES, Aggregation, resolve
from .extraction import Features, descriptors, extract
from .measures import average_precision, mean_average_precision, mean_class_recall

if TYPE_CHECKING:
    from .estimators import LinearSVM, VGGFeatures

__all__ = [
    "CALTECH_SCALES",
    "VOC_SCALES",
    "Aggregation",
    "Features",
    "LinearSVM",
    "VGGFeatures",
    "average_precision",
    "descriptors",
    "extract",
    "mean_average_precision",
    "mean_class_recall",
    "resolve",
]


def __getattr__(name: str) -> Any:
    if name not in ("LinearSVM", "VGGFeatures"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from . import estimators
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "sklearn":
            raise
        raise ImportError(f"{name} needs scikit-learn: pip install 'vggnet[svm]'") from error
    return getattr(estimators, name)

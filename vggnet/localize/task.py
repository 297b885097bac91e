"""Learning boxes: targets in the crop, the Euclidean loss, and what the learning rate watches (paper, appendix A)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from .. import ops
from ..data import Subset
from ..train import Loss, Measure, Task
from .boxes import area, decode, encode, iou
from .evaluate import boxes_of, center_crop_test, check

if TYPE_CHECKING:
    from .. import _C
    from ..augment import Geometry
    from ..data import BoxDataset, Dataset
    from ..data.base import Boxes
    from ..models import VGG
    from ..recipes import Recipe


class BoxRegression(Task):
    """Of each image's crop, the box of what is on it: ``train.fit(net, data, recipe=..., task=BoxRegression())``.

    The loss is half the squared distance of the four numbers of `encode`; of a PCR net, those of the image's class alone are
    compared. Errors, of training and held-out images, are 100 % minus the mean IoU, which moves where the share of wrong
    boxes stands still (our inference: the paper does not tell what its lr watched).

    Notes
    -----
    Of an image with several boxes the largest is learnt, and a crop that shows a part of it should tell all of it (both our
    inference). Each image must have a box; see `with_boxes`.
    """

    def check(self, model: VGG, data: Dataset, name: str) -> None:
        """The net predicts boxes of the data's classes; one without class names takes them."""
        check(model, data, name)
        if model.classes is None:  # so that the saved model can name them
            model.classes = list(data.classes)

    def targets(
        self, data: Dataset, geometry: Geometry
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Numbers of the boxes as the crops show them (n, 4), and labels (n,)."""
        boxes = np.stack([_largest(boxes_of(cast("BoxDataset", data), int(i))) for i in geometry.images])
        return encode(geometry.boxes(boxes), geometry.crop), np.asarray(data.labels, np.int64)[
            geometry.images
        ]

    def loss(self, outputs: _C.Tensor, targets: Any, normalizer: int) -> Loss:
        """Half the squared distance of the class's four numbers; an image is as wrong as its IoU falls short of 1."""
        numbers, labels = targets
        per_class = outputs.shape[1] > 4
        loss, gradient = ops.euclidean_loss(
            outputs, numbers, labels if per_class else None, normalizer=normalizer
        )
        told = outputs.numpy().reshape(len(labels), -1, 4)[np.arange(len(labels)), labels if per_class else 0]
        overlaps = iou(decode(told, 1), decode(numbers, 1))
        return Loss(float(loss), gradient, float((1 - overlaps).sum()))

    def measure(self, model: VGG, data: Dataset, recipe: Recipe, batch: int) -> Measure:
        """The centre-crop test: 100 % minus the mean IoU with the true box."""
        report = center_crop_test(
            model, cast("BoxDataset", data), scale=recipe.validation_scale, filter=recipe.filter, batch=batch
        )
        return Measure(100.0 * (1 - report.mean_iou))


def with_boxes(data: BoxDataset) -> Subset:
    """The images that have a box: of ILSVRC-2012's training images, about half do.

    Raises
    ------
    ValueError
        If none has.
    """
    places = [i for i in range(len(data)) if len(data.boxes(i))]
    if not places:
        raise ValueError("with_boxes: no image of the data set has a box")
    return Subset(data, places)


def _largest(boxes: Boxes) -> Boxes:
    return boxes[area(boxes).argmax()]  # type: ignore[no-any-return]

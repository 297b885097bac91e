"""What is learnt: targets, the loss and its gradient at fc8, and what the learning rate watches.

`Classification` is the paper's (section 3.1). Another task, such as boxes (appendix A), is a class of yours: derive from
`Task`, give it to ``fit(..., task=YourTask())``, and the trainer, its checkpoints and its recipes stay as they are.

Examples
--------
A net with four outputs that learns where things are, as fractions of the crop; the data set has ``boxes(i)``:

>>> class Boxes(Task):
...     def check(self, model, data, name):
...         if model.num_classes != 4:
...             raise ValueError(f"fit: the model has {model.num_classes} outputs; expected 4, of a box")
...     def targets(self, data, geometry):
...         boxes = np.stack([data.boxes(int(i))[0] for i in geometry.images])
...         return (geometry.boxes(boxes) / geometry.crop).astype(np.float32)  # seen from the crop that was trained on
...     def loss(self, outputs, targets, normalizer):
...         difference = outputs.numpy() - targets
...         gradient = _C.tensor(difference / np.float32(normalizer))
...         return Loss(float((difference**2).sum()) / (2 * normalizer), gradient, 0.0)
...     def measure(self, model, data, recipe, batch):
...         return Measure(error=50.0)  # of centre crops at recipe.validation_scale, in %
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _C, evaluate, ops
from ..data.base import single_labels

if TYPE_CHECKING:
    from ..augment import Geometry
    from ..data import Dataset
    from ..models import VGG
    from ..recipes import Recipe


class Loss(NamedTuple):
    """Of one part of a batch.

    Attributes
    ----------
    value : float or 0-d Tensor
        The sum of the images' losses over the normalizer.
    gradient : (n, outputs) float32 Tensor
        Of `value`, with respect to the map of fc8.
    wrong : float
        The sum of the images' errors, 0 to 1 each: what progress and history show as the training error, in % of the images.
    """

    value: float | _C.Tensor
    gradient: _C.Tensor
    wrong: float


@dataclass(frozen=True)
class Measure:
    """Of the held-out images.

    Attributes
    ----------
    error : float
        In %: the plateau rule watches it, and ``Row.val_top1`` records it.
    loss, top5 : float or None
        For the record: ``Row.val_loss`` and ``Row.val_top5`` (in %).
    """

    error: float
    loss: float | None = None
    top5: float | None = None


class Task(ABC):
    """What is learnt. Methods are called from the thread that trains; a task must not keep a state that changes, or a run
    could not go on bit for bit."""

    @abstractmethod
    def check(self, model: VGG, data: Dataset, name: str) -> None:
        """Raise ValueError when the model's outputs do not fit the data set, which messages call `name` ("train_data",
        "val_data")."""

    @abstractmethod
    def targets(self, data: Dataset, geometry: Geometry) -> Any:
        """What the net should say of some images: whatever `loss` takes.

        Parameters
        ----------
        data : Dataset
            The one that is trained on: ``geometry.images`` are indices into it. When `fit` holds out a part of what it was
            given, a `Subset` of that.
        geometry : Geometry
            Which images, and how they became the crops that the net sees: sizes before and after rescaling, where the crop
            lies, whether it is mirrored. ``geometry.boxes(boxes)`` takes boxes to the crop.
        """

    @abstractmethod
    def loss(self, outputs: _C.Tensor, targets: Any, normalizer: int) -> Loss:
        """Loss and gradient at fc8 of one part of a batch.

        Parameters
        ----------
        outputs : (n, outputs) float32 Tensor
            The map of fc8, before soft-max.
        targets
            Of these n images, from `targets`.
        normalizer : int
            Images of the whole batch: losses and gradients of its parts add up to the batch's mean.
        """

    @abstractmethod
    def measure(self, model: VGG, data: Dataset, recipe: Recipe, batch: int) -> Measure:
        """The error on the held-out images after an epoch, some `batch` images at a time."""

    def guessing(self, model: VGG) -> float | None:
        """The loss of a net that has learnt nothing, for the warning that training is stuck; None: no such warning."""
        return None

    def to_dict(self) -> dict[str, Any]:
        """The task's name and settings as JSON can hold them: a run is resumed with equal ones only."""
        return {"name": type(self).__name__}


class Classification(Task):
    """One of the classes: multinomial logistic regression (paper, section 3.1), top-1 and top-5 errors of one centre crop."""

    def check(self, model: VGG, data: Dataset, name: str) -> None:
        """Classes of model and data must be the same; a model without class names takes the data's."""
        model.expect_classes("fit")
        single_labels(data)
        if len(data.classes) != model.num_classes:
            raise ValueError(
                f"fit: {name} has {len(data.classes)} classes; the model has {model.num_classes}"
            )
        if model.classes is None:  # so that the saved model can name them
            model.classes = list(data.classes)
        if list(data.classes) != model.classes:
            raise ValueError(f"fit: the classes of {name} are not those of the model, in the same order")

    def targets(self, data: Dataset, geometry: Geometry) -> npt.NDArray[np.int64]:
        """Labels, (n,)."""
        return np.asarray(data.labels, dtype=np.int64)[geometry.images]

    def loss(self, outputs: _C.Tensor, targets: Any, normalizer: int) -> Loss:
        """Cross entropy of the soft-max; an image is wrong when another class has a greater output."""
        loss, gradient = ops.cross_entropy(outputs, targets, normalizer=normalizer)
        return Loss(loss, gradient, float((outputs.numpy().argmax(axis=1) != targets).sum()))

    def measure(self, model: VGG, data: Dataset, recipe: Recipe, batch: int) -> Measure:
        """One centre crop of each image: fast, and enough to see a plateau."""
        protocol = evaluate.Protocol("center", (recipe.validation_scale,), filter=recipe.filter, batch=batch)
        report = evaluate.evaluate(model, data, protocol)
        return Measure(report.top1, _mean_loss(report), report.top5)

    def guessing(self, model: VGG) -> float | None:
        """ln(classes)."""
        return math.log(model.num_classes)


def _mean_loss(report: evaluate.Report) -> float | None:
    """Mean of -ln(posterior of the right class) over the images that could be read."""
    assert report.posteriors is not None
    own = report.posteriors[np.arange(report.count), report.labels].astype(np.float64)
    own = own[~np.isnan(own)]
    return float(-np.log(np.maximum(own, 1e-38)).mean()) if len(own) else None

"""Descriptors and linear SVMs as scikit-learn estimators: the only module that needs it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit
from sklearn.svm import LinearSVC

from ..models import VGG, load
from ..preprocess import load_image
from .aggregation import Aggregation
from .extraction import descriptors
from .measures import mean_average_precision, mean_class_recall

if TYPE_CHECKING:
    from ..evaluate.passes import Array
    from ..preprocess import ImageSource

    Model = VGG | str | os.PathLike[str]

Scores = npt.NDArray[np.float64]


class VGGFeatures(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A transformer from images to descriptors (paper, appendix B), for scikit-learn's pipelines.

    Nothing is learned, so `fit` does nothing. Clones share the model.

    Parameters
    ----------
    model : VGG, path of a model file, or a list of these
        Descriptors of several are stacked. A path is read at every `transform`: so the estimator pickles, and searches of
        parameters may list paths.
    scales : ints, optional
        By default those of the paper for `combine`, in proportion to the model's input size.
    combine, layer, mirror, filter, batch, memory : as in :class:`vggnet.features.Aggregation`

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from vggnet import VGG, data
    >>> model = VGG("A", num_classes=5, input_size=32, in_channels=1, fc_width=16)
    >>> sample = data.sample()
    >>> images, labels = [sample.image(i) for i in range(40)], sample.labels[:40]
    >>> pipeline = make_pipeline(VGGFeatures(model, scales=32), LinearSVM(C=1.0)).fit(images, labels)
    >>> pipeline.predict(images).shape
    (40,)
    """

    def __init__(
        self,
        model: Model | Sequence[Model],
        *,
        scales: Sequence[int] | int | None = None,
        combine: str = "mean",
        layer: str = "relu7",
        mirror: bool = True,
        filter: str = "bicubic",
        batch: int = 32,
        memory: int = 1 << 30,
    ) -> None:
        self.model = model
        self.scales = scales
        self.combine = combine
        self.layer = layer
        self.mirror = mirror
        self.filter = filter
        self.batch = batch
        self.memory = memory

    def fit(self, X: Any = None, y: Any = None) -> VGGFeatures:  # noqa: N803  # scikit-learn's name
        """Return the transformer itself."""
        return self

    def transform(self, X: Iterable[ImageSource]) -> Array:  # noqa: N803
        """Descriptors, (N, D) float32.

        Parameters
        ----------
        X : sequence of paths, PIL images or uint8 arrays (H, W, C), of any sizes

        Raises
        ------
        ImageError
            If a file can't be read.
        ValueError, TypeError
            As :func:`vggnet.features.descriptors`, and for arrays that are no images of this model.
        """
        if isinstance(X, (str, os.PathLike)) or not isinstance(X, Iterable):
            raise TypeError(f"X is {X!r}; expected a sequence of images")
        several = self.model if isinstance(self.model, list | tuple) else [self.model]
        models = [each if isinstance(each, VGG) else load(each) for each in several]  # type: ignore[arg-type]
        fields = {name: getattr(self, name) for name in ("layer", "mirror", "filter", "batch", "memory")}
        pairs = [
            (model, Aggregation.for_model(model, self.combine, self.scales, **fields)) for model in models
        ]
        return descriptors(pairs, (load_image(image, models[0].preprocessing.channels) for image in X))

    def __sklearn_clone__(self) -> VGGFeatures:
        return type(self)(
            **self.get_params(deep=False)
        )  # the model is shared: copies of 500 MB would be no use

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.no_validation = True
        tags.input_tags.two_d_array = False
        return tags


class LinearSVM(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A linear support vector machine for each class against the rest (paper, appendix B), on scikit-learn's LinearSVC.

    Where `C` lists several values, each is tried on a held-out share of the training data; the one with the best measure
    there (the smallest of equals) is then trained on all of them. The measure is that of the data: mean class recall for one
    label an image, mean average precision (the area rule) for several.

    Parameters
    ----------
    C : float or sequence of floats
        Weight of the squared hinge loss against half the squared norm of the weights.
    holdout : float
        Share of the training data that is held out to choose C: a fifth in the paper; of each class, with one label an image.
    repeats : int
        How many random splits of this kind are averaged; more than one helps where images are few.
    seed : int
        Of the random splits and of the solver.

    Attributes
    ----------
    C_ : float
        The chosen value.
    held_out_ : dict of float to float
        The measure on held-out data for each value of `C`; empty if there was but one.
    classes_ : (classes,)
        The labels that occur, ascending; 0, 1, ... with several labels an image.
    coef_ : (classes, D) float64
    intercept_ : (classes,) float64
        LinearSVC's intercept is the weight of one more feature that is always 1, so it is regularised too.

    Examples
    --------
    >>> x = np.array([[0.0, 1.0], [0.1, 0.9], [1.0, 0.0], [0.9, 0.2]])
    >>> LinearSVM(C=10.0).fit(x, [3, 3, 7, 7]).predict(x).tolist()
    [3, 3, 7, 7]
    """

    def __init__(
        self,
        C: float | Sequence[float] = (0.01, 0.1, 1.0, 10.0, 100.0),  # noqa: N803
        *,
        holdout: float = 0.2,
        repeats: int = 1,
        seed: int = 0,
    ) -> None:
        self.C = C
        self.holdout = holdout
        self.repeats = repeats
        self.seed = seed

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> LinearSVM:  # noqa: N803
        """Choose C and train.

        Parameters
        ----------
        X : (N, D) floats
        y : (N,) labels; or (N, classes) of 1 present, -1 absent, 0 left out, as :class:`vggnet.data.VOC` has them

        Raises
        ------
        ValueError
            For shapes or values that do not fit, NaN, a class without images or without others, and too few images to hold
            some out.
        """
        x, labels = np.asarray(X), np.asarray(y)
        if x.ndim != 2 or labels.ndim not in (1, 2) or len(labels) != len(x):
            raise ValueError(
                f"X has shape {x.shape} and y {labels.shape}; expected (N, D) and (N,) or (N, classes)"
            )
        if not np.isfinite(x).all():
            raise ValueError("X holds NaN or infinity")
        if labels.ndim == 2 and not np.isin(labels, (-1, 0, 1)).all():
            raise ValueError("y of several labels: expected 1 (present), -1 (absent) and 0 (left out)")
        values = [float(c) for c in np.atleast_1d(np.asarray(self.C, np.float64))]
        if not values or not all(0 < c < np.inf for c in values):
            raise ValueError(f"C is {self.C!r}; expected one or more positive numbers")
        self.classes_ = np.unique(labels) if labels.ndim == 1 else np.arange(labels.shape[1])
        if len(self.classes_) < 2 and labels.ndim == 1:
            raise ValueError("y has a single class; expected at least two")
        truth = np.where(labels[:, None] == self.classes_, 1, -1) if labels.ndim == 1 else labels
        self.held_out_ = self._try(x, labels, truth, values) if len(values) > 1 else {}
        self.C_ = max(sorted(values), key=lambda c: self.held_out_.get(c, 0.0))
        self.coef_, self.intercept_ = self._train(x, truth, self.C_)
        self.n_features_in_ = x.shape[1]
        return self

    def decision_function(self, X: npt.ArrayLike) -> Scores:  # noqa: N803
        """Scores (N, classes): positive for images of the class, the greater, the surer."""
        scores: Scores = np.asarray(X) @ self.coef_.T + self.intercept_
        return scores

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[Any]:  # noqa: N803
        """The class with the greatest score for each image, (N,)."""
        predictions: npt.NDArray[Any] = self.classes_[self.decision_function(X).argmax(axis=1)]
        return predictions

    def _train(self, x: npt.NDArray[Any], truth: npt.NDArray[Any], c: float) -> tuple[Scores, Scores]:
        coefficients, intercepts = [], []
        for number, own in enumerate(truth.T):
            rows = np.flatnonzero(own)
            if len(np.unique(own[rows])) < 2:
                raise ValueError(
                    f"class {self.classes_[number]} has {np.sum(own == 1)} images and {np.sum(own == -1)} others "
                    "to train on; expected at least one of both"
                )
            svc = LinearSVC(C=c, dual="auto", max_iter=20_000, random_state=self.seed)
            svc.fit(x if len(rows) == len(x) else x[rows], own[rows])
            coefficients.append(svc.coef_[0])
            intercepts.append(svc.intercept_[0])
        return np.array(coefficients), np.array(intercepts)

    def _try(
        self, x: npt.NDArray[Any], labels: npt.NDArray[Any], truth: npt.NDArray[Any], values: list[float]
    ) -> dict[float, float]:
        """The measure on held-out data for each C, averaged over the repeats."""
        kind = StratifiedShuffleSplit if labels.ndim == 1 else ShuffleSplit
        parts = kind(n_splits=self.repeats, test_size=self.holdout, random_state=self.seed)
        try:
            splits = list(parts.split(x, labels if labels.ndim == 1 else None))
        except ValueError as error:
            raise ValueError(
                f"{len(x)} images of {len(self.classes_)} classes are too few to hold out a share of {self.holdout} "
                f"and choose C: give C as one number, or another holdout ({error})"
            ) from error
        measured = dict.fromkeys(values, 0.0)
        for c in values:
            for train, held in splits:
                coefficients, intercepts = self._train(x[train], truth[train], c)
                scores = x[held] @ coefficients.T + intercepts
                if labels.ndim == 1:
                    measure = mean_class_recall(labels[held], self.classes_[scores.argmax(axis=1)])
                else:
                    present = (truth[held] == 1).any(axis=0)  # a class that was not held out says nothing
                    measure, _ = mean_average_precision(scores[:, present], truth[held][:, present], "area")
                measured[c] += measure / self.repeats
        return measured

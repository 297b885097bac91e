"""How to train: the paper's recipe (section 3.1), every choice a named field, and one for the quickstart."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .augment import RgbShift
from .preprocess import FILTERS


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the paper's (section 3.1), and what the paper leaves open says so.

    Attributes
    ----------
    batch : int
        Images of one update.
    micro_batch : int or None
        Images of one forward and backward pass; their gradients are added up, so the update is that of the
        whole batch and any batch fits any memory. None: the whole batch, or the half, quarter, ... of it that
        fits the free memory.
    lr, momentum, weight_decay : float
        Of Caffe's rule, v = momentum v + lr (g + weight_decay w), w -= v.
    bias_weight_decay : float or None
        For biases; None: as for weights. The paper is silent.
    bias_lr_multiplier : float
        The lr of biases over that of weights. The paper is silent.
    lr_factor, lr_drops : float, int
        The lr is multiplied by lr_factor when the held-out error stops improving; it fell 3 times. The next
        time, the run stops.
    plateau_patience : int
        "Stops improving" means: this many epochs in a row without improvement (our inference; the paper did
        it by hand).
    plateau_threshold : float
        An improvement is a fall of the held-out top-1 error by more than this, in percentage points (our
        inference).
    epochs, iterations : int or None
        Stop after so many, whichever comes first.
    scale : int or (int, int)
        The smallest side S that training images are rescaled to; a pair is scale jittering: drawn per image
        from [lowest, highest]. The crop is the model's input_size.
    filter : "bilinear" | "bicubic" | "lanczos" | "box"
        Pillow's resampling filter (the paper is silent).
    mirror : bool
        Mirror half of the images.
    rgb_shift : "eigenvalue" | "deviation" | None
        Krizhevsky's random RGB shift, by the eigenvalues of the covariance or by their square roots; see
        `Augmentation`. The covariance is the model's, ``model.preprocessing.covariance``; without one, it is
        computed before the first epoch, in one pass over the training images, and kept in the model.
    freeze : tuple of str
        Layers that keep their weights, by name or pattern: ("conv*",) trains fc6, fc7 and fc8 only. Gradients are
        computed down to the lowest layer that learns.
    lr_multipliers : mapping of str to float
        What the lr is multiplied by in some layers, by name or pattern: {"fc8": 10.0} lets a new fc8 learn ten
        times as fast. It multiplies the lr of biases, too.
    holdout : float
        The share of the training set, class-balanced, that is held out for the learning rate to watch when
        `fit` is given no val_data; 0: none, and the lr never drops. (The paper watched the validation set.)
        Test data decide nothing.
    stuck_iterations : int
        Warn when the loss has been within 1 % of ln(classes), which is guessing, for so many iterations.
    compress : "bf16", optional
        Processes on different machines (mpirun) send gradients rounded to bfloat16, which halves what is sent.
    seed : int
        Of the order, the augmentation, dropout and the held-out part.

    Raises
    ------
    ValueError
        For a value out of its range; the message names the field.
    """

    batch: int = 256
    micro_batch: int | None = None
    lr: float = 1e-2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    bias_weight_decay: float | None = None
    bias_lr_multiplier: float = 1.0
    lr_factor: float = 0.1
    lr_drops: int = 3
    plateau_patience: int = 3
    plateau_threshold: float = 0.1
    epochs: int | None = 74
    iterations: int | None = 370_000
    scale: int | tuple[int, int] = 256
    filter: str = "bicubic"
    mirror: bool = True
    rgb_shift: RgbShift | None = "eigenvalue"
    freeze: tuple[str, ...] = ()
    lr_multipliers: Mapping[str, float] = field(default_factory=dict)
    holdout: float = 0.1
    stuck_iterations: int = 500
    compress: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        def check(name: str, good: bool, expected: str) -> None:
            if not good:
                raise ValueError(f"Recipe: {name} is {getattr(self, name)!r}; expected {expected}")

        def whole(name: str, least: int, *, none: bool = False) -> None:
            value = getattr(self, name)
            good = (value is None and none) or (type(value) is int and value >= least)
            check(name, good, f"a whole number, at least {least}" + (", or None" if none else ""))

        def number(name: str, good: Callable[[float], bool], expected: str, *, none: bool = False) -> None:
            value = getattr(self, name)
            real = isinstance(value, (int, float)) and not isinstance(value, bool)
            check(name, (value is None and none) or (real and math.isfinite(value) and good(value)), expected)

        if isinstance(self.scale, list):
            object.__setattr__(self, "scale", tuple(self.scale))
        names = not isinstance(self.freeze, str) and all(isinstance(name, str) for name in self.freeze)
        check("freeze", names, 'names of layers, as in ("conv1_1", "conv1_2")')
        object.__setattr__(self, "freeze", tuple(self.freeze))
        rates = isinstance(self.lr_multipliers, Mapping) and all(
            isinstance(name, str) and type(value) in (int, float) and math.isfinite(value) and value > 0
            for name, value in self.lr_multipliers.items()
        )
        check("lr_multipliers", rates, 'factors above 0 by layer, as in {"fc8": 10.0} (0 is freeze)')
        object.__setattr__(self, "lr_multipliers", {k: float(v) for k, v in self.lr_multipliers.items()})
        whole("batch", 1)
        whole("micro_batch", 1, none=True)
        whole("lr_drops", 0)
        whole("plateau_patience", 1)
        whole("epochs", 1, none=True)
        whole("iterations", 1, none=True)
        whole("stuck_iterations", 2)
        whole("seed", 0)
        check("seed", self.seed < 1 << 64, "less than 2**64")
        number("lr", lambda v: v > 0, "a number above 0")
        number("momentum", lambda v: 0 <= v < 1, "0 <= momentum < 1")
        number("weight_decay", lambda v: v >= 0, "a number, at least 0")
        number("bias_weight_decay", lambda v: v >= 0, "a number, at least 0, or None", none=True)
        number("bias_lr_multiplier", lambda v: v >= 0, "a number, at least 0")
        number("lr_factor", lambda v: 0 < v <= 1, "0 < lr_factor <= 1")
        number("plateau_threshold", lambda v: v >= 0, "a number of percentage points, at least 0")
        number("holdout", lambda v: 0 <= v < 1, "a share of the training set, 0 <= holdout < 1")
        sides = (self.scale, self.scale) if isinstance(self.scale, int) else self.scale
        pair = isinstance(sides, tuple) and len(sides) == 2 and all(type(side) is int for side in sides)
        check("scale", pair and 1 <= sides[0] <= sides[1], "a smallest side in pixels, or (lowest, highest)")
        check("compress", self.compress in ("bf16", None), '"bf16" or None')
        check("filter", self.filter in FILTERS, f"one of {', '.join(FILTERS)}")
        check("mirror", isinstance(self.mirror, bool), "True or False")
        check(
            "rgb_shift",
            self.rgb_shift in ("eigenvalue", "deviation", None),
            '"eigenvalue", "deviation" or None',
        )

    @classmethod
    def paper(cls, scale: int | tuple[int, int] = 256, **changes: Any) -> Recipe:
        """The paper's settings for 224 x 224 crops (section 3.1), with changes if you like.

        Parameters
        ----------
        scale : 256 | 384 | (256, 512)
            256 from random weights, or from a trained A (`fit` with ``init_from``), with lr 1e-2. 384 goes on
            from the weights of 256 with lr 1e-3. (256, 512), scale jittering, goes on from those of 384; its
            lr is not stated, 1e-3 is our inference.
        **changes
            Fields that differ.

        Examples
        --------
        >>> Recipe.paper(scale=(256, 512)).lr
        0.001
        """
        scale = tuple(scale) if isinstance(scale, list) else scale
        if scale not in (256, 384, (256, 512)):
            raise ValueError(
                f"Recipe.paper: scale is {scale!r}; the paper trained at 256, 384 and (256, 512)"
            )
        return cls(**({"scale": scale, "lr": 1e-2 if scale == 256 else 1e-3} | changes))

    @property
    def validation_scale(self) -> int:
        """The smallest side Q at which the held-out error is measured: S, or the middle of its range
        (section 4.1)."""
        return self.scale if isinstance(self.scale, int) else (self.scale[0] + self.scale[1]) // 2

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_dict`; missing fields take their defaults.

        Raises
        ------
        ValueError
            For an unknown field or a value out of its range.
        """
        unknown = sorted(values.keys() - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"Recipe has no field {unknown[0]!r}")
        return cls(**values)


def quickstart() -> tuple[dict[str, Any], Recipe]:
    """Net and recipe for the bundled sample: 3,600 gray images of clothes to train on, in about two minutes.

    The rule is the paper's, its numbers are for a run that is a thousandth as long, found by the held-out
    part: small batches, for more updates; little dropout, since nothing can be learnt by heart in a few
    epochs; and the lr falls as soon as an epoch brings less than 1.5 points, but by less than the paper's
    factor, since 400 held-out images make that a rough measure.

    Returns
    -------
    (arguments, recipe)
        Arguments of `vggnet.VGG`, without the classes and the mean, which are the data's; and the recipe.
    """
    arguments = {
        "config": "A",
        "input_size": 32,
        "in_channels": 1,
        "fc_width": 512,
        "dropout": 0.2,
        "init": "xavier",
    }
    recipe = Recipe(
        batch=8,
        lr=0.0025,
        lr_factor=0.3,
        plateau_patience=1,
        plateau_threshold=1.5,
        epochs=6,
        scale=32,
        rgb_shift=None,
    )
    return arguments, recipe

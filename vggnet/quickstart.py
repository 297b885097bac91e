"""The whole main job in a few minutes on a laptop: train a VGG on the bundled images, evaluate it, draw what
came out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from . import data, picture, recipes, rng
from .augment import pixel_statistics
from .checkpoint import write_text
from .evaluate import Progress, Protocol, Report, compare
from .history import History
from .models import VGG
from .rng import Purpose
from .train import fit

PICTURED = 12  # test images in predictions.png


@dataclass(frozen=True)
class Result:
    """What a quickstart made: the trained net, how it got there, and one report for each protocol."""

    model: VGG
    history: History
    reports: list[Report]


def protocols(model: VGG) -> list[Protocol]:
    """One crop at the training scale S; dense, multi-crop and combined at S and a sixteenth more.

    The net has seen one scale only: held-out images that are an eighth larger have a third more errors. The
    grid is 3 x 3: within margins of a few pixels, a finer one has nearly equal crops.
    """
    center = Protocol.for_model("center", model)
    side = center.scales[0]
    kinds = ("dense", "multi-crop", "combined")
    return [center, *(Protocol(kind, (side, side + side // 16), grid=3) for kind in kinds)]


def run(
    out: str | os.PathLike[str],
    *,
    epochs: int | None = None,
    images: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    say: Callable[[str], object] = print,
    progress: Progress | None = None,
) -> Result:
    """Train, evaluate, and write model, history and pictures to a directory, over an earlier quickstart's.

    Parameters
    ----------
    out : path
        The directory; made if it is not there.
    epochs : int, optional
        Fewer than the recipe's, to try things out.
    images : int, optional
        Use only so many of the 5,000 images: four fifths to train, one fifth to test.
    seed : int
    device : str
    say : callable
        Takes the lines of the report one by one.
    progress : callable, optional
        Of the evaluation: ``progress(done, total)``.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)  # an error here should not come after the training
    arguments, recipe = recipes.quickstart()
    recipe = replace(recipe, seed=seed, epochs=epochs or recipe.epochs)
    train, test = (_some(data.sample(train=part), images, seed) for part in (True, False))
    statistics = pixel_statistics(train.image(i) for i in range(len(train)))
    model = VGG(
        **arguments,
        num_classes=len(train.classes),
        classes=train.classes,
        mean=statistics.mean,
        covariance=statistics.covariance,
        seed=seed,
        device=device,
    )

    size, held_out = model.input_size, round(len(train) * recipe.holdout)
    say(
        f"Training the convolutions of net {model.config}, with fc6 and fc7 of {model.fc_width}: "
        f"{model.num_parameters:,} parameters,\non {len(train) - held_out:,} images of Fashion-MNIST "
        f"at {size} x {size}; the learning rate watches {held_out} others."
    )
    history = fit(model, train, None, recipe)
    model.save(out / "model.safetensors")
    history.write(out)
    picture.history(out / "curves.png", history.rows)

    say(f"\nTesting on {len(test):,} images that training never saw:\n")
    reports = compare([(model, p) for p in protocols(model)], test, progress=progress)
    _write_results(out, test, reports, seed)
    return Result(model, history, reports)


def _some(dataset: data.Dataset, images: int | None, seed: int) -> data.Dataset:
    """A class-balanced part of a data set, in proportion to ``images`` of 5,000."""
    share = 1.0 if images is None else images / 5000
    return dataset if share >= 1 else data.split(dataset, share, seed)[1]


def _write_results(out: Path, test: data.Dataset, reports: list[Report], seed: int) -> None:
    """report.json; predictions.png; and one test image of each class as a file, for ``vggnet predict``."""
    combined = reports[-1]
    write_text(out / "report.json", "[" + ",\n".join(r.to_json() for r in reports) + "]\n")
    some = rng.permutation(seed, 0, len(test), Purpose.ORDER)[:PICTURED]
    assert combined.posteriors is not None
    picture.predictions(
        out / "predictions.png",
        [test.image(int(i)) for i in some],
        combined.posteriors[some],
        [int(label) for label in test.labels[some]],
        test.classes,
        title=f"{len(some)} test images, drawn at random: true class, and what the net says",
    )
    folder = out / "images"
    folder.mkdir(exist_ok=True)
    for label, name in enumerate(test.classes):
        first = int(np.flatnonzero(test.labels == label)[0])
        file = re.sub("[^a-z]+", "-", name.lower()) + ".png"
        Image.fromarray(test.image(first)[..., 0]).save(folder / file)

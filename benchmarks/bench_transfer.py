"""Transfer: a net learns half of Fashion-MNIST's classes; its features against pixels on the other half (paper, appendix B).

For each seed five classes are drawn, a small net is trained on them (net A's convolutions at 32 x 32, the quickstart's
recipe), and a linear SVM learns the other five from a few labelled images each: on the net's relu7, aggregated as the paper's
appendix B has it; on the same of the net before training; and on pixels. C is chosen by held-out labelled images; test images
choose nothing.

Example::

    python -m benchmarks transfer --seeds 3 --draws 5
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import vggnet as vgg
from vggnet import data, evaluate, features, recipes, train
from vggnet.augment import pixel_statistics
from vggnet.bench import machine

from .measure import origin

LEARNED = 5  # classes that the net is trained on; the others are for the SVM
LABELLED = (5, 10, 20, 50)  # images of a class that the SVM learns from
POOL = 100  # training images of a class that these are drawn from
TEST = 100  # test images of a class

Array = npt.NDArray[np.float32]


def some_of(dataset: data.Dataset, classes: Sequence[int], count: int) -> data.ArrayDataset:
    """The first `count` images of some classes, which get the labels 0, 1, ..."""
    rows = np.concatenate([np.flatnonzero(dataset.labels == label)[:count] for label in classes])
    return data.ArrayDataset(
        [dataset.image(int(i)) for i in rows],
        np.repeat(np.arange(len(classes)), count),
        [dataset.classes[label] for label in classes],
        [dataset.name(int(i)) for i in rows],
    )


def trained(images: data.ArrayDataset, seed: int, epochs: int | None) -> tuple[vgg.VGG, vgg.VGG]:
    """A net before and after training on these images."""
    arguments, recipe = recipes.quickstart()
    recipe = replace(recipe, seed=seed, epochs=epochs or recipe.epochs)
    mean = pixel_statistics(images.image(i) for i in range(len(images))).mean
    before, after = (
        vgg.VGG(**arguments, num_classes=len(images.classes), classes=images.classes, mean=mean, seed=seed)
        for _ in range(2)
    )
    train.fit(after, images, None, recipe)
    return before, after


def describe(images: data.ArrayDataset, before: vgg.VGG, after: vgg.VGG) -> dict[str, Array]:
    """Every way's descriptors of the images: (N, D), of L2 norm 1 or, where scales are stacked, sqrt(scales)."""
    pixels = np.stack([images.image(i).ravel() for i in range(len(images))]).astype(np.float32)
    stacked = features.extract(after, images, "stack").values
    width = stacked.shape[1] // len(features.CALTECH_SCALES)
    return {
        "pixels": pixels / np.linalg.norm(pixels, axis=1, keepdims=True),
        "untrained net, stacked": features.extract(before, images, "stack").values,
        "one scale": np.ascontiguousarray(stacked[:, :width]),
        "scales averaged": np.mean(np.split(stacked, len(features.CALTECH_SCALES), axis=1), axis=0),
        "scales stacked": stacked,
    }


def measure(seed: int, draws: int, epochs: int | None, sizes: dict[str, int]) -> dict[str, Any]:
    """One net: the classes, its error on those it learned, and the recall of every way, size and draw."""
    begin = time.perf_counter()
    order = np.random.default_rng(seed).permutation(10).tolist()
    learned, new = sorted(order[:LEARNED]), sorted(order[LEARNED:])
    whole, test = data.FashionMNIST(), data.FashionMNIST(train=False)
    before, after = trained(some_of(whole, learned, sizes["train"]), seed, epochs)
    seconds = time.perf_counter() - begin
    error = evaluate.evaluate(after, some_of(test, learned, sizes["test"]), "center").top1
    pool, held = some_of(whole, new, sizes["pool"]), some_of(test, new, sizes["test"])
    known, unknown = describe(pool, before, after), describe(held, before, after)
    recalls: dict[str, dict[int, list[float]]] = {way: {n: [] for n in LABELLED} for way in known}
    for labelled in LABELLED:
        for draw in range(draws):
            rows, _ = data.split_per_class(pool.labels, labelled, None, seed * draws + draw)
            for way, values in known.items():
                svm = features.LinearSVM(repeats=3, seed=draw).fit(values[rows], pool.labels[rows])
                found = features.mean_class_recall(held.labels, svm.predict(unknown[way]))
                recalls[way][labelled].append(100 * found)
    return {
        "seed": seed,
        "learned": [whole.classes[label] for label in learned],
        "new": [whole.classes[label] for label in new],
        "training_seconds": seconds,
        "seconds": time.perf_counter() - begin,
        "error_on_learned": error,
        "recalls": recalls,
    }


def report(runs: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over nets and draws, and against pixels in pairs."""
    lines = [
        f"seed {run['seed']}: learned {', '.join(run['learned'])} (error {run['error_on_learned']:.1f} %, "
        f"{run['training_seconds']:.0f} s of {run['seconds']:.0f} s); new: {', '.join(run['new'])}"
        for run in runs
    ]
    lines += ["", "mean class recall on the new classes, %; in brackets: over pixels, and in how many pairs"]
    lines.append(f"{'labelled images a class':26}" + "".join(f"{n:>26}" for n in LABELLED))
    for way in runs[0]["recalls"]:
        cells = []
        for n in LABELLED:
            own, pixels = (
                np.concatenate([run["recalls"][name][n] for run in runs]) for name in (way, "pixels")
            )
            gain = own - pixels
            pair = "" if way == "pixels" else f" ({gain.mean():+.1f}, {np.sum(gain > 0)}/{len(gain)})"
            cells.append(f"{own.mean():.1f} +- {own.std(ddof=1):.1f}{pair}")
        lines.append(f"{way:26}" + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run the experiment from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks transfer", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="nets, each with classes of its own (default: %(default)s)"
    )
    parser.add_argument(
        "--draws", type=int, default=5, help="of the labelled images, a net (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=int, help="fewer than the recipe's, to try things out")
    parser.add_argument(
        "--train", type=int, default=500, help="images of a class that the net learns (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    sizes = {"train": args.train, "pool": POOL, "test": TEST}
    runs = [measure(seed, args.draws, args.epochs, sizes) for seed in range(args.seeds)]
    if args.json:
        print(json.dumps({"machine": machine(), **origin(), "runs": runs}, indent=2))
    else:
        print(report(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

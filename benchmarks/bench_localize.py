"""Localisation in miniature: boxes of clothes on canvases, by the paper's two tests (appendix A).

A net A of 32 x 32 input learns the classes of the bundled sample's 4,000 training images, each at a random size and place on a
canvas; then box nets start from it. A tenth of the training images is held out for the learning rates. The 1,000 test images
decide nothing. A run that was interrupted goes on.

Example::

    python -m benchmarks localize --out runs/localize
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import vggnet as vgg
from vggnet import data, localize, picture, train
from vggnet.bench import machine

SCALES = (32, 36)  # of the full test: the whole canvas in one window, and as in training
NET = {
    "config": "A",
    "input_size": 32,
    "in_channels": 1,
    "fc_width": 256,
    "dropout": 0.2,
    "init": "xavier",
    "mean": (20.0,),
}
RECIPE = train.Recipe(
    batch=8, lr_factor=0.3, plateau_patience=1, plateau_threshold=2.0, scale=36, rgb_shift=None, holdout=0.1
)


def recipe(lr: float, epochs: int) -> train.Recipe:
    return train.Recipe.from_dict(RECIPE.to_dict() | {"lr": lr, "epochs": epochs})


def on_canvases(train: bool, images: int | None, seed: int) -> localize.Canvases:
    items = data.sample(train=train)
    return localize.Canvases(data.Subset(items, range(len(items))[:images]), seed=seed)


def main(arguments: list[str]) -> int:
    """Train, test and report; exit status 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks localize", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for models, checkpoints and the picture"
    )
    parser.add_argument("--heads", default="SCR,PCR", help="box nets to train (default: %(default)s)")
    parser.add_argument("--class-epochs", type=int, default=4)
    parser.add_argument("--box-epochs", type=int, default=3)
    parser.add_argument("--images", type=int, help="the first so many of the training and test images only")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    canvases, unseen = (on_canvases(part, options.images, seed) for part, seed in ((True, 1), (False, 2)))
    classifier = vgg.VGG(num_classes=len(canvases.classes), classes=canvases.classes, **NET)  # type: ignore[arg-type]
    where = options.out / "classes"
    start = time.perf_counter()
    train.fit(classifier, canvases, recipe=recipe(0.005, options.class_epochs), checkpoint=where, resume=True)
    seconds = {"classes": time.perf_counter() - start}
    classifier.save(options.out / "classes.safetensors")
    found: dict[str, Any] = {}
    for head in options.heads.split(","):
        net = localize.from_classifier(classifier, head, init="xavier")
        start = time.perf_counter()
        train.fit(
            net,
            canvases,
            recipe=recipe(0.01, options.box_epochs),
            task=localize.BoxRegression(),
            checkpoint=options.out / head,
            resume=True,
        )
        seconds[head] = time.perf_counter() - start
        net.save(options.out / f"{head}.safetensors")
        center = localize.center_crop_test(net, unseen)
        full = localize.full_test(net, classifier, unseen, scales=SCALES)
        print(f"{head}\n{center.describe()}\n{full.describe()}", flush=True)
        found[head] = {
            "center crop": {"mean IoU": center.mean_iou, "error": center.top1},
            "full": {"mean IoU": full.mean_iou, "top-1 error": full.top1, "top-5 error": full.top5},
        }
    same = np.concatenate([canvases.boxes(i) for i in range(len(canvases))]).mean(axis=0)
    true = np.concatenate([unseen.boxes(i) for i in range(len(unseen))])
    found["one box for all images"] = {"mean IoU": float(localize.iou(same, true).mean())}
    wrong = vgg.evaluate.evaluate(classifier, unseen, "center").top1
    found["classes, centre crop"] = {"top-1 error": wrong}
    shown = range(min(12, len(unseen)))
    images = [unseen.image(i) for i in shown]
    guesses = localize.locate(net, classifier, images, top=1, scales=SCALES)
    picture.boxes(options.out / "boxes.png", images, guesses, [unseen.boxes(i) for i in shown], columns=6)
    result = {"machine": machine(), "seconds": seconds, "results": found}
    print(json.dumps(result, indent=1) if options.json else json.dumps(found, indent=1))
    return 0

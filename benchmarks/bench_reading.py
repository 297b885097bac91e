"""Training images a second and core: JPEG file to the crop that a net sees, mirrored, shifted in colour, the mean subtracted.

The files are made of scikit-learn's two photos: the usual size of ImageNet's (500 x 375), a camera's, and what
``vggnet data prepare`` writes for S = 512 and 256. "whole" decodes every pixel, as evaluation does; "training" decodes
a half, a quarter or an eighth where S allows it.

Example::

    python -m benchmarks reading --scale 256,512
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from vggnet import _C
from vggnet.augment import Augmentation
from vggnet.bench import machine
from vggnet.preprocess import Pixels, load_image, load_rescaled, rescale

from .measure import measure, origin

SOURCES = {  # name: width, height, quality of the JPEG files
    "usual": (500, 375, 92),
    "camera": (1600, 1200, 92),
    "shard of 512": (683, 512, 95),
    "shard of 256": (341, 256, 95),
}
COVARIANCE = ((0.078, 0.068, 0.061), (0.068, 0.072, 0.071), (0.061, 0.071, 0.083))
MEAN = (123.68, 116.779, 103.939)
HEADER = "source        width x height    KB    S   whole ms  training ms  ratio  images/s and core"


def files(name: str) -> list[bytes]:
    """Two photos as JPEG files."""
    from sklearn.datasets import load_sample_images

    width, height, quality = SOURCES[name]
    contents = []
    for photo in load_sample_images().images:
        file = io.BytesIO()
        image = Image.fromarray(photo).crop((0, 0, 569, 427))  # 4 : 3
        image.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=quality)
        contents.append(file.getvalue())
    return contents


def run(name: str, side: int, crop: int, options: argparse.Namespace) -> dict[str, Any]:
    """Time one kind of file at one scale, both ways."""
    contents = files(name)
    augmentation = Augmentation(crop, side, True, "eigenvalue", COVARIANCE, 0)
    images = np.arange(len(contents))
    x = _C.empty((len(contents), crop, crop, 3))

    def batch(read: Callable[[bytes], Pixels]) -> Callable[[], object]:
        def call() -> object:
            pixels: list[npt.NDArray[np.uint8]] = [read(content) for content in contents]
            return augmentation.batch(pixels, 0, images, MEAN, out=x)

        return call

    ways = {
        "whole": batch(lambda content: rescale(load_image(content), side)),
        "training": batch(lambda content: load_rescaled(content, side)[0]),
    }
    ms = {
        way: 1e3 * min(measure(call, seconds=options.seconds, flush=False)) / len(contents)
        for way, call in ways.items()
    }
    width, height, _ = SOURCES[name]
    return {
        "source": name,
        "width": width,
        "height": height,
        "bytes": sum(map(len, contents)) // len(contents),
        "scale": side,
        "whole_ms": ms["whole"],
        "training_ms": ms["training"],
        "images_per_second": 1e3 / ms["training"],
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks reading", description=__doc__.split("\n")[0])
    parser.add_argument("--source", default="all", help=f"of {', '.join(SOURCES)} (default: all)")
    parser.add_argument("--scale", default="256,512", help="smallest sides S (default: %(default)s)")
    parser.add_argument("--crop", type=int, default=224, help="side of the crop (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.4, help="for each figure (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one document instead of a table")
    options = parser.parse_args(arguments)

    names = list(SOURCES) if options.source == "all" else options.source.split(",")
    for name in names:
        if name not in SOURCES:
            parser.error(f"no source {name!r}; expected {', '.join(SOURCES)}")
    _C.set_num_threads(1)
    about = machine() | origin()
    if not options.json:
        print(f"{about['cpu']}, {about['isa']}, one thread\n{HEADER}")
    rows = []
    for name in names:
        for side in map(int, options.scale.split(",")):
            if name == "shard of 256" and side > 256:
                continue  # nobody would enlarge them again
            row = run(name, side, options.crop, options)
            rows.append(row)
            if not options.json:
                size = f"{row['width']} x {row['height']}"
                print(
                    f"{name:13} {size:>14} {row['bytes'] / 1e3:5.0f} {side:4} {row['whole_ms']:10.2f} "
                    f"{row['training_ms']:12.2f} {row['whole_ms'] / row['training_ms']:6.2f} "
                    f"{row['images_per_second']:18.0f}",
                    flush=True,
                )
    if options.json:
        print(json.dumps({"machine": about, "rows": rows}, indent=1))
    return 0

"""What an image costs under the protocols of evaluation: time and arithmetic.

Images are photos of the same size as scikit-learn brings along (427 x 640), or those named; weights are random. The time is
that of `evaluate.posteriors` (rescaling, crops, passes, averaging) with caches as they come, the least of some rounds after
one pass that is dropped.

Example::

    python -m benchmarks evaluation --protocols center:256,dense:384,multi-crop:384 --rounds 3
    python -m benchmarks evaluation --images photos/*.jpg --json
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import vggnet as vgg
from vggnet import _C, evaluate
from vggnet.bench import machine
from vggnet.configs import CONFIGS
from vggnet.evaluate import Protocol
from vggnet.preprocess import Pixels, load_image, rescaled_size

from .measure import origin

PROTOCOLS = (
    "center:256,ten-crop:256,dense:256,dense:384,dense:256/384/512,"
    "multi-crop:384,multi-crop:256/384/512,combined:256/384/512"
)
HEADER = "protocol    Q              passes   GFLOP    ms an image  GFLOP/s  crops' FLOP"


def photos() -> list[Pixels]:
    """The two photos of scikit-learn."""
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise ImportError(
            "the photos are scikit-learn's: pip install 'vggnet[svm]', or name --images"
        ) from error
    return list(load_sample_images().images)


def protocols(text: str) -> list[Protocol]:
    """``center:256,dense:256/384/512`` as protocols."""
    try:
        pairs = [item.partition(":")[::2] for item in text.split(",")]
        return [Protocol(kind, tuple(map(int, scales.split("/")))) for kind, scales in pairs]
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{error}; expected kind:Q/Q/..., such as dense:256/384/512"
        ) from error


def passes(model: vgg.VGG, protocol: Protocol, image: Pixels) -> int:
    """Forward passes of a crop, and dense passes, that one image takes."""
    count = 0
    for part in protocol.parts():
        for scale in part.scales:
            if part.kind == "dense":
                count += 2 if part.mirror else 1
            else:
                shape = rescaled_size(image.shape[0], image.shape[1], scale)
                count += len(evaluate.crops(part, *shape, model.input_size)[0])
    return count


def run(model: vgg.VGG, protocol: Protocol, images: list[Pixels], rounds: int) -> dict[str, Any]:
    """Cost of one protocol, an image."""
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        evaluate.posteriors(model, images, protocol)
        seconds.append((time.perf_counter() - begin) / len(images))
    flops = sum(evaluate.flops(model, protocol, *image.shape[:2]) for image in images) / len(images)
    return {
        "kind": protocol.kind,
        "scales": list(protocol.scales),
        "passes": sum(passes(model, protocol, image) for image in images) / len(images),
        "gflop": flops * 1e-9,
        "ms": min(seconds) * 1e3,
        "gflops": flops / min(seconds) * 1e-9,
    }


def main(arguments: list[str]) -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks evaluation", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--net", default="D", choices=list(CONFIGS), help="(default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="input size (default: %(default)s)")
    parser.add_argument(
        "--protocols",
        type=protocols,
        default=PROTOCOLS,
        help="kind:Q/Q/..., with commas (default: %(default)s)",
    )
    parser.add_argument("--images", nargs="+", metavar="FILE", help="(default: scikit-learn's photos)")
    parser.add_argument(
        "--rounds", type=int, default=2, help="of which the least counts (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=_C.get_num_threads())
    parser.add_argument("--json", action="store_true", help="one document instead of a table")
    options = parser.parse_args(arguments)

    _C.set_num_threads(options.threads)
    images = [load_image(path) for path in options.images] if options.images else photos()
    model = vgg.VGG(options.net, input_size=options.size, init="he")
    evaluate.posteriors(model, images[:1], Protocol("center", (options.size,)))
    about = machine() | origin() | {"net": options.net, "image_sizes": [list(i.shape[:2]) for i in images]}
    if not options.json:
        sizes = ", ".join(f"{height} x {width}" for height, width in about["image_sizes"])
        print(
            f"{about['cpu']}, {about['isa']}, {about['threads']} threads, peak {about['peak'] * 1e-9:.0f} GFLOP/s"
        )
        print(f"net {options.net} at {options.size}; images of {sizes}")
        print(HEADER)
    crop = evaluate.flops(model, Protocol("center", (options.size,)), options.size, options.size) * 1e-9
    rows = []
    for protocol in options.protocols:
        row = run(model, protocol, images, options.rounds)
        rows.append(row)
        if not options.json:
            scales = ", ".join(map(str, row["scales"]))
            print(
                f"{row['kind']:11} {scales:14} {row['passes']:6.0f} {row['gflop']:7.0f} {row['ms']:14.0f} "
                f"{row['gflops']:8.0f} {row['gflop'] / crop:11.1f}",
                flush=True,
            )
    if options.json:
        print(json.dumps({"machine": about, "rows": rows}, indent=1))
    return 0

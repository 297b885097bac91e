"""``vggnet quickstart``: train, evaluate and draw, in two or three minutes."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ..progress import Progress
from .common import UsageError, add_command, begin, positive, print_json

EXAMPLES = """\
  vggnet quickstart
  vggnet quickstart --epochs 2 --images 1000 --out /tmp/try
"""

FILES = """\
model.safetensors  the net; vggnet.load reads it
curves.png         loss and error of the training; history.csv and history.jsonl hold the numbers
predictions.png    test images and what the net says about them
report.json        the table above with the protocols in full
images/            one test image of each class"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "quickstart",
        run,
        "Train a VGG on real images from the package, and test it by the protocols of the paper.",
        EXAMPLES,
    )
    parser.add_argument(
        "--out",
        default="vggnet-quickstart",
        metavar="DIR",
        help="where the files go; those of an earlier quickstart are replaced (default: vggnet-quickstart)",
    )
    parser.add_argument("--epochs", type=positive, metavar="N", help="fewer epochs, to try things out")
    parser.add_argument(
        "--images", type=positive, metavar="N", help="use only N of the 5,000 images, to try things out"
    )


def run(args: argparse.Namespace) -> int:
    if args.images is not None and args.images < 100:
        raise UsageError(
            f"--images {args.images}: expected at least 100, some of each class to train, hold out and test"
        )
    from .. import quickstart
    from ..evaluate import table

    begin(args)
    start = time.perf_counter()
    with Progress("evaluate") as progress:
        result = quickstart.run(
            args.out,
            epochs=args.epochs,
            images=args.images,
            seed=args.seed,
            device=args.device,
            say=(lambda _: None) if args.json else lambda text: print(text, flush=True),
            progress=progress,
        )
    if args.json:
        print_json({"out": args.out, "reports": [report.to_dict() for report in result.reports]})
        return 0
    model = Path(args.out, "model.safetensors")
    print(table(result.reports))
    print(f"\nDone in {time.perf_counter() - start:.0f} seconds. In {args.out}:")
    print("\n".join("  " + line for line in FILES.splitlines()))
    print("\nNext:")
    print(f"  vggnet predict {model} {Path(args.out, 'images')}/*.png")
    print(f"  vggnet evaluate {model} --data sample --protocol dense --scales 32,34,36")
    print("  vggnet train --data FOLDER --config A --out runs/mine    (with a subfolder for each class)")
    return 0

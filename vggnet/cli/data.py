"""``vggnet data``: what to do with images before a long training."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..progress import Progress
from .common import (
    Formatter,
    Interrupted,
    UsageError,
    add_command,
    begin,
    columns,
    data_option,
    open_data,
    positive,
    print_json,
)

if TYPE_CHECKING:
    from ..data import Dataset

PREPARE = """\
  vggnet data prepare --data imagenet --out imagenet-512/train
  vggnet data prepare --data photos --out photos-256/train --short-side 256
"""
CHECK = """\
  vggnet data check --data imagenet
  vggnet data check --data photos --ignore cmyk,tiny --json
"""
STATS = """\
  vggnet data stats --data imagenet --out stats.json
  vggnet train --data imagenet --stats stats.json --out runs/A
"""


def add_parser(commands: Any) -> None:
    summary = "Look for broken images, compute the mean and covariance of pixels, write shards."
    parser = commands.add_parser("data", help=summary, description=summary, formatter_class=Formatter)
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)

    prepare = add_command(
        actions, "prepare", run_prepare, "Rescale images once and write them to tar files.", PREPARE
    )
    _options(prepare)
    prepare.add_argument(
        "--out", metavar="DIR", required=True, help="where the shards go; a second call goes on"
    )
    prepare.add_argument(
        "--short-side",
        type=positive,
        default=512,
        metavar="S",
        help="larger images get this smallest side (default: %(default)s)",
    )
    prepare.add_argument(
        "--per-shard", type=positive, default=1000, metavar="N", help="images a file (default: %(default)s)"
    )
    prepare.add_argument(
        "--quality", type=positive, default=95, metavar="Q", help="of the JPEG files (default: %(default)s)"
    )
    prepare.add_argument(
        "--strict", action="store_true", help="stop at the first broken image (default: at 1 %%)"
    )

    check = add_command(
        actions, "check", run_check, "Read every file and list what is wrong; status 1 if anything is.", CHECK
    )
    _options(check)
    check.add_argument(
        "--tiny",
        type=positive,
        default=64,
        metavar="N",
        help="list sides below N pixels (default: %(default)s)",
    )
    check.add_argument(
        "--ignore",
        default="",
        metavar="KIND,...",
        help="of broken, cmyk, suffix, tiny, duplicate: do not list these",
    )

    stats = add_command(
        actions, "stats", run_stats, "Mean, covariance, eigenvalues and eigenvectors of all pixels.", STATS
    )
    _options(stats)
    stats.add_argument(
        "--out", metavar="FILE", help="also write them to this file, as JSON, for vggnet train --stats"
    )
    stats.add_argument(
        "--strict", action="store_true", help="stop at the first broken image (default: at 1 %%)"
    )


def _options(parser: argparse.ArgumentParser) -> None:
    data_option(parser, required=True)
    parser.add_argument(
        "--part", choices=("train", "val", "test"), default="train", help="of the data (default: %(default)s)"
    )
    parser.add_argument("--gray", action="store_true", help="read images as gray (default: RGB)")
    parser.add_argument(
        "--workers", type=positive, metavar="N", help="threads that read images (default: one a core)"
    )


def _open(args: argparse.Namespace) -> Dataset:
    begin(args)
    return open_data(args.data, args.part, channels=1 if args.gray else 3)


def run_prepare(args: argparse.Namespace) -> int:
    from .. import data

    dataset = _open(args)
    if args.quality > 100:
        raise UsageError(f"--quality {args.quality}: expected 1 to 100")
    try:
        with Progress("preparing") as progress:
            broken = data.prepare(
                dataset,
                args.out,
                short_side=args.short_side,
                per_shard=args.per_shard,
                quality=args.quality,
                seed=args.seed,
                workers=args.workers,
                strict=args.strict or None,
                progress=progress,
            )
    except KeyboardInterrupt:
        raise Interrupted("What is written stays; the same command goes on") from None
    shards = sorted(Path(args.out).glob("shard-*.tar"))
    size = sum(path.stat().st_size for path in shards)
    if args.json:
        facts = {"shards": len(shards), "bytes": size, "broken": [asdict(entry) for entry in broken]}
        print_json({"images": len(dataset) - len(broken)} | facts)
        return 0
    print(f"Wrote {args.out}: {len(shards)} shards, {size / 1e6:.1f} MB, of {len(dataset)} images.")
    for entry in broken:
        print(f"left out: {entry.reason}")
    return 0


def run_check(args: argparse.Namespace) -> int:
    from .. import data
    from ..data.checking import KINDS

    ignored = set(filter(None, args.ignore.split(",")))
    if unknown := sorted(ignored - set(KINDS)):
        raise UsageError(f"--ignore {unknown[0]}: expected some of {', '.join(KINDS)}")
    dataset = _open(args)
    if not isinstance(dataset, data.ImageFiles):
        raise UsageError(f"--data {args.data}: has no image files to check; expected a folder")
    with Progress("checking") as progress:
        found = data.check(dataset, tiny=args.tiny, workers=args.workers, progress=progress)
    found = [finding for finding in found if finding.kind not in ignored]
    counts = Counter(finding.kind for finding in found)
    if args.json:
        print_json(
            {
                "images": len(dataset),
                "counts": {kind: counts[kind] for kind in KINDS if kind not in ignored},
                "findings": [asdict(finding) for finding in found],
            }
        )
        return 1 if found else 0
    for finding in found:
        print(f"{finding.kind}: {finding.name}: {finding.what}")
    summary = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind]) or "nothing wrong"
    print(f"{len(dataset)} images: {summary}")
    return 1 if found else 0


def run_stats(args: argparse.Namespace) -> int:
    from .. import data
    from ..checkpoint import write_text

    dataset = _open(args)
    with Progress("pixels of the images") as progress:
        found = data.statistics(dataset, workers=args.workers, strict=args.strict or None, progress=progress)
    if args.out is not None:
        write_text(args.out, json.dumps(found.to_dict(), indent=2) + "\n")
    if args.json:
        print_json(found.to_dict())
        return 0
    rows = [
        ("images", str(found.images)),
        ("pixels", str(found.pixels)),
        ("mean (0..255)", "  ".join(f"{value:.4f}" for value in found.mean)),
        ("covariance (0..1)", "  ".join(f"{value:.6f}" for value in found.covariance[0])),
        *(("", "  ".join(f"{value:.6f}" for value in row)) for row in found.covariance[1:]),
        ("eigenvalues", "  ".join(f"{value:.6f}" for value in found.eigenvalues)),
        ("eigenvectors", "  ".join(f"{value:+.5f}" for value in found.eigenvectors[0])),
        *(("", "  ".join(f"{value:+.5f}" for value in row)) for row in found.eigenvectors[1:]),
    ]
    print(columns(rows))
    return 0

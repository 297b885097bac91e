"""The paper in miniature: nets A to E on Fashion-MNIST, trained and tested as the paper did, and its tables 3 to 6.

Everything is a seventh in size: crops of 32 instead of 224 pixels, training scales S of 36, 44 and [36, 56]. The order is the
paper's (section 3.1): A and A-LRN from random weights; B to E from A's first four convolutions and its fully connected
layers; S = 44 from the weights of S = 36 and jitter from those of S = 44, both with a tenth of the learning rate. The
learning rate falls by what a held-out part of the training images says; test images decide nothing.

`Plan` fixes the rest, seeds included. A run can be stopped at any moment and goes on where it was: every stage of every net and
seed has a directory with its checkpoints, then its model and the posteriors of its tests. Errors are top-1: with ten
classes, top-5 says nothing.

Example::

    python -m benchmarks paper-tables --out runs/paper-tables
    python -m benchmarks paper-tables --out runs/paper-tables --tables   # of what is complete so far; trains nothing
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import vggnet as vgg
from vggnet import data, evaluate, train
from vggnet.augment import pixel_statistics
from vggnet.bench import machine
from vggnet.checkpoint import replace_file, write_text

Posteriors = npt.NDArray[np.float32]  # (images, classes)

CROP = 32
NETS = ("A", "A-LRN", "B", "C", "D", "E")  # in the order of the tables
ORDER = ("A", "D", "E", "A-LRN", "B", "C")  # of training: what tables 5 and 6 need comes first
ALL_STAGES = ("C", "D", "E")
FUSED = ("D", "E")


@dataclass(frozen=True)
class Stage:
    """One training scale S, and the test scales Q that go with it: the lowest, the single one, the highest."""

    name: str
    scale: int | tuple[int, int]
    tests: tuple[int, int, int]

    @property
    def single(self) -> int:
        """Q of a test at one scale: S, or the middle of its range (paper, section 4.1)."""
        return self.tests[1]


FIXED = Stage("36", 36, (32, 36, 40))  # 256, tested at 224, 256, 288
LARGER = Stage("44", 44, (40, 44, 48))  # 384, tested at 352, 384, 416
JITTER = Stage("[36, 56]", (36, 56), (36, 46, 56))  # [256, 512], tested at 256, 384, 512

BY_TECHNIQUE = (("D", JITTER), ("E", JITTER))  # tested by crops, too (paper, table 5)

# Of pooling in dense passes: "floor" is the default, "ceil" was Caffe's, and so the authors'. Both stand in the tables, since
# the paper does not say, and for maps as small as these much depends on it. A crop of 32 has no rest: training and crops are
# the same with either.
ROUNDINGS = ("floor", "ceil")


def stages(net: str) -> tuple[Stage, ...]:
    """What the paper trained a net at (tables 3 and 4)."""
    return (FIXED, LARGER, JITTER) if net in ALL_STAGES else (FIXED,)


@dataclass(frozen=True)
class Plan:
    """What decides about the results; the defaults are the experiment."""

    seeds: tuple[int, ...] = (0, 1, 2)  # of images, weights, order, augmentation, dropout, held-out part
    train_images: int = 4_000  # of 60,000, as many of each class; other ones for each seed
    held_out: float = 0.1  # of them, for the learning rate
    test_images: int = 600  # of 10,000, as many of each class; the same for all
    fc_width: int = 512
    init: str = "xavier"
    batch: int = 16
    lr: float = 0.005
    lr_drops: int = 2
    plateau_patience: int = 1
    plateau_threshold: float = 0.5
    epochs: int = 6  # at most, at S = 36
    fine_tuning_epochs: int = 1  # of each later stage
    grid: int = 5

    def recipe(self, stage: Stage, seed: int) -> train.Recipe:
        """How a stage is trained."""
        first = stage is FIXED
        return train.Recipe(
            batch=self.batch,
            lr=self.lr if first else self.lr / 10,
            lr_drops=self.lr_drops,
            plateau_patience=self.plateau_patience,
            plateau_threshold=self.plateau_threshold,
            epochs=self.epochs if first else self.fine_tuning_epochs,
            scale=stage.scale,
            holdout=self.held_out,
            seed=seed,
        )


# ---- the run


def part(dataset: data.Dataset, images: int, seed: int) -> data.Dataset:
    """So many images of a data set, class by class."""
    return data.split(dataset, images / len(dataset), seed)[1] if images < len(dataset) else dataset


def folder(out: Path, seed: int, net: str, stage: Stage) -> Path:
    """Where a stage of a net keeps everything."""
    scale = stage.scale if isinstance(stage.scale, int) else "{}-{}".format(*stage.scale)
    return out / f"seed-{seed}" / net / f"S-{scale}"


def rounded(how: str, rounding: str) -> str:
    """The name of a test with that pool rounding: "dense", "dense, ceil"."""
    return how if rounding == "floor" else f"{how}, {rounding}"


def tests(net: str, stage: Stage) -> dict[str, tuple[str, str]]:
    """How a trained stage is tested, at each Q by itself (several Q are averages): name -> kind of protocol, pool rounding."""
    kinds = ("center", "multi-crop") if (net, stage) in BY_TECHNIQUE else ("center",)
    dense = {rounded("dense", rounding): ("dense", rounding) for rounding in ROUNDINGS}
    return {kind: (kind, "floor") for kind in kinds} | dense


def posteriors_file(where: Path, how: str, scale: int) -> Path:
    return where / f"{how.replace(', ', '-')}-{scale}.npy"


def run(plan: Plan, out: Path, train_images: data.Dataset, test_images: data.Dataset) -> None:
    """Train and test whatever is not there yet, seed by seed."""
    claim(plan, out)
    test = part(test_images, plan.test_images, 0)
    for seed in plan.seeds:
        images = part(train_images, plan.train_images, seed)
        for net in ORDER:
            for stage in stages(net):
                model = trained(plan, out, seed, net, stage, images)
                tested(plan, folder(out, seed, net, stage), net, stage, model, test)


def claim(plan: Plan, out: Path) -> None:
    """Write the plan into the directory, which must not hold another one's results.

    Raises
    ------
    ValueError
        If it does.
    """
    out.mkdir(parents=True, exist_ok=True)
    text, path = json.dumps(asdict(plan), indent=1), out / "plan.json"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ValueError(f"{out} holds the results of another plan; use another directory, or remove it")
    write_text(path, text)


def trained(plan: Plan, out: Path, seed: int, net: str, stage: Stage, images: data.Dataset) -> vgg.VGG:
    """The net after a stage: read if it is there, else trained, or trained on from its last checkpoint."""
    where = folder(out, seed, net, stage)
    saved = where / "model.safetensors"
    if saved.exists():
        return vgg.load(saved)
    print(f"seed {seed}, net {net}, S = {stage.name}", file=sys.stderr, flush=True)
    statistics = pixel_statistics(images.image(i) for i in range(len(images)))
    before = stages(net)[: stages(net).index(stage)]
    if before:
        model = vgg.load(folder(out, seed, net, before[-1]) / "model.safetensors")
    else:
        model = vgg.VGG(
            net,
            num_classes=len(images.classes),
            classes=images.classes,
            input_size=CROP,
            in_channels=len(statistics.mean),
            fc_width=plan.fc_width,
            init=plan.init,
            mean=statistics.mean,
            covariance=statistics.covariance,
            seed=seed,
        )
    from_a = not before and net not in ("A", "A-LRN")
    start = vgg.load(folder(out, seed, "A", FIXED) / "model.safetensors") if from_a else None
    history = train.fit(
        model,
        images,
        recipe=plan.recipe(stage, seed),
        init_from=start,
        checkpoint=where,
        checkpoint_every=100,
        keep=1,
        resume=True,
    )
    record = {"stopped_by": history.stopped_by, "rows": [asdict(row) for row in history.rows]}
    write_text(where / "history.json", json.dumps(record, indent=1))
    model.save(saved)
    for checkpoint in where.glob("checkpoint-*"):  # 120 MB each, of no use any more
        checkpoint.unlink()
    return model


def tested(plan: Plan, where: Path, net: str, stage: Stage, model: vgg.VGG, test: data.Dataset) -> None:
    """Write the posteriors of each test that is not there yet."""
    for how, (kind, rounding) in tests(net, stage).items():
        model.pool_rounding = rounding
        for scale in stage.tests:
            path = posteriors_file(where, how, scale)
            if path.exists():
                continue
            protocol = evaluate.Protocol(kind, (scale,), grid=plan.grid)
            report = evaluate.evaluate(model, test, protocol, strict=True)
            assert report.posteriors is not None
            replace_file(path, partial(np.save, arr=report.posteriors))
            print(f"  {net} {how}, Q = {scale}: {report.top1:.2f} %", file=sys.stderr, flush=True)


# ---- the tables

# What a posterior is of: a net (or "D + E"), the name of its last stage, and how it was tested.
Key = tuple[str, str, str]


def read(out: Path, seed: int) -> dict[Key, Posteriors]:
    """Posteriors of every test of a seed that is complete, averaged as the paper averages them."""
    found: dict[Key, Posteriors] = {}
    for net in NETS:
        for stage in stages(net):
            where, name = folder(out, seed, net, stage), stage.name
            for how in tests(net, stage):
                files = [posteriors_file(where, how, scale) for scale in stage.tests]
                if not all(file.exists() for file in files):
                    continue
                each = [np.load(file) for file in files]
                found[net, name, how] = mean(each)
                for scale, posteriors in zip(stage.tests, each, strict=True):
                    found[net, name, f"{how}, Q = {scale}"] = posteriors
            for rounding in ROUNDINGS:
                pair = [(net, name, how) for how in (rounded("dense", rounding), "multi-crop")]
                if all(key in found for key in pair):
                    found[net, name, rounded("both", rounding)] = mean([found[key] for key in pair])
    for how in ("multi-crop", *(rounded(how, r) for how in ("dense", "both") for r in ROUNDINGS)):
        if all((net, JITTER.name, how) in found for net in FUSED):
            found["D + E", JITTER.name, how] = mean([found[net, JITTER.name, how] for net in FUSED])
    return found


def mean(posteriors: Sequence[Posteriors]) -> Posteriors:
    """The mean, summed in float64."""
    return np.asarray(np.mean(posteriors, axis=0, dtype=np.float64), np.float32)


def single(net: str, stage: Stage, rounding: str = "floor") -> Key:
    """Dense, at one scale (paper, table 3)."""
    return net, stage.name, f"{rounded('dense', rounding)}, Q = {stage.single}"


def multiple(net: str, stage: Stage, rounding: str = "floor") -> Key:
    """Dense, at three scales (paper, table 4)."""
    return net, stage.name, rounded("dense", rounding)


def center(net: str, stage: Stage, scale: int | None = None) -> Key:
    """One centre crop, by default at the single scale."""
    return net, stage.name, f"center, Q = {scale or stage.single}"


TITLES = {
    3: "Table 3: dense, one test scale",
    4: "Table 4: dense, several test scales",
    5: "Table 5: dense, multiple crops, both",
    6: "Table 6: fusion of D and E",
}
PAPER_STAGES = {256: FIXED, 384: LARGER, (256, 512): JITTER}


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    table: int
    net: str  # or "D + E"
    stage: Stage
    tested: str
    tests: tuple[int, ...]  # Q
    key: Key
    paper: float | None  # the paper's error, %; None where it has no such row


def table_rows() -> list[Row]:
    """The rows of the paper's tables, dense ones with either pool rounding; in table 5 also one centre crop at each Q."""
    rows = [
        Row(5, net, stage, "one centre crop", (scale,), center(net, stage, scale), None)
        for net, stage in BY_TECHNIQUE
        for scale in stage.tests
    ]
    for preset in evaluate.paper_rows():
        stage, net = PAPER_STAGES[preset.train_scale], " + ".join(preset.nets)
        kind = "both" if preset.protocol.kind == "combined" else preset.protocol.kind
        for rounding in ROUNDINGS if kind != "multi-crop" else ("floor",):
            how = rounded(kind, rounding)
            one = len(preset.protocol.scales) == 1
            key = single(net, stage, rounding) if one else (net, stage.name, how)
            scales = (stage.single,) if one else stage.tests
            rows.append(Row(preset.table, net, stage, how, scales, key, preset.top1))
    return sorted(rows, key=lambda row: (row.table, row.net if row.table == 5 else ""))


def comparisons() -> list[tuple[str, Key, Key]]:
    """The paper's findings (section 4): each says that the second is better than the first; LRN, that it is not."""
    return [
        (rounded(finding, rounding), first, second)
        for rounding in ROUNDINGS
        for finding, first, second in findings(rounding)
    ]


def findings(rounding: str) -> list[tuple[str, Key, Key]]:
    """`comparisons` of one pool rounding."""
    deep = [(net, stage) for net in ALL_STAGES for stage in stages(net)]

    def one(net: str, stage: Stage) -> Key:
        return single(net, stage, rounding)

    def both(net: str, stage: Stage) -> Key:
        return net, stage.name, rounded("both", rounding)

    return [
        *(("depth", one("A", FIXED), one(net, FIXED)) for net in ("B", "C", "D", "E")),
        ("LRN", one("A", FIXED), one("A-LRN", FIXED)),
        ("1x1 layers: C over B", one("B", FIXED), one("C", FIXED)),
        *(("3x3 layers: D over C", one("C", stage), one("D", stage)) for stage in stages("C")),
        *(("scale jitter", one(net, stage), one(net, JITTER)) for net, stage in deep if stage is not JITTER),
        *(
            ("several test scales", one(net, stage), multiple(net, stage, rounding))
            for net, stage in [("B", FIXED), *deep]
        ),
        *(
            ("dense and crops complement each other", (net, stage.name, how), both(net, stage))
            for net, stage in (*BY_TECHNIQUE, ("D + E", JITTER))
            for how in (rounded("dense", rounding), "multi-crop")
        ),
        *(
            ("both over one centre crop", center(net, stage, scale), both(net, stage))
            for net, stage in BY_TECHNIQUE
            for scale in stage.tests
        ),
    ]


@dataclass(frozen=True)
class Paired:
    """Two tests on the same images: how many only the first, and only the second, gets wrong."""

    images: int
    only_first: int
    only_second: int

    @property
    def gain(self) -> float:
        """By how many percentage points the second's error is lower."""
        return 100 * (self.only_first - self.only_second) / self.images

    @property
    def standard_error(self) -> float:
        """Of the gain, over the choice of test images, in percentage points."""
        differ = self.only_first + self.only_second
        square = differ - (self.only_first - self.only_second) ** 2 / self.images
        return 100 * math.sqrt(square) / self.images

    @property
    def p(self) -> float:
        """McNemar's exact test, two-sided: how often equal tests would differ so much or more."""
        differ, least = self.only_first + self.only_second, min(self.only_first, self.only_second)
        tail: float = sum(math.comb(differ, k) for k in range(least + 1)) / 2**differ
        return min(1.0, 2 * tail)


def results(plan: Plan, out: Path, labels: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Everything that is complete, as JSON takes it."""
    wrong = {
        seed: {key: evaluate.wrong(p, labels, 1) for key, p in read(out, seed).items()} for seed in plan.seeds
    }
    rows = [
        {
            "table": row.table,
            "net": row.net,
            "S": row.stage.name,
            "tested by": row.tested,
            "Q": row.tests,
            "errors": {
                str(s): 100 * float(found[row.key].mean()) for s, found in wrong.items() if row.key in found
            },
            "paper": row.paper,
        }
        for row in table_rows()
    ]
    pairs = []
    for finding, first, second in comparisons():
        for seed, found in wrong.items():
            if first in found and second in found:
                a, b = found[first], found[second]
                paired = Paired(len(a), int((a & ~b).sum()), int((b & ~a).sum()))
                numbers = {"gain": paired.gain, "standard_error": paired.standard_error, "p": paired.p}
                pairs.append(
                    {
                        "finding": finding,
                        "first": first,
                        "second": second,
                        "seed": seed,
                        **asdict(paired),
                        **numbers,
                    }
                )
    training = []
    for seed in plan.seeds:
        for net in ORDER:
            for stage in stages(net):
                history = folder(out, seed, net, stage) / "history.json"
                if history.exists():
                    record = json.loads(history.read_text(encoding="utf-8"))
                    training.append({"seed": seed, "net": net, "S": stage.name, **record})
    return {
        "plan": asdict(plan),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine(),
        "rows": rows,
        "comparisons": pairs,
        "training": training,
    }


def report(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    seeds = found["plan"]["seeds"]
    complete = sum(all(str(seed) in row["errors"] for row in found["rows"]) for seed in seeds)
    lines = [
        *report_tables(found["rows"]),
        *report_comparisons(found["comparisons"]),
        *report_training(found["training"]),
        f"{complete} of {len(seeds)} seeds complete.",
    ]
    return "\n".join(lines)


def report_tables(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The paper's tables, mean and deviation over the seeds, beside the paper's errors."""
    for table, title in TITLES.items():
        yield from (f"**{title}**", "")
        yield from markdown(
            ("net", "S", "tested by", "Q", "top-1 error, %", "seeds", "the paper, ImageNet"),
            [
                (
                    *(row[name] for name in ("net", "S", "tested by")),
                    ", ".join(map(str, row["Q"])),
                    spread(list(row["errors"].values())),
                    f"{len(row['errors'])}",
                    "" if row["paper"] is None else f"{row['paper']}",
                )
                for row in rows
                if row["table"] == table
            ],
        )


def report_comparisons(comparisons: list[dict[str, Any]]) -> Iterator[str]:
    """What the paper found: over the seeds, and for each over its test images."""
    grouped: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for pair in comparisons:
        grouped.setdefault((pair["finding"], named(pair["first"]), named(pair["second"])), []).append(pair)
    yield from ("**What the paper found**: points by which the second error is lower than the first", "")
    yield from markdown(
        ("finding", "first", "second", "gain", "of each seed: ± standard error over images, McNemar's p"),
        [
            (
                *names,
                spread([pair["gain"] for pair in pairs], signed=True),
                "; ".join(f"{p['gain']:+.2f} ± {p['standard_error']:.2f}, p = {p['p']:.2g}" for p in pairs),
            )
            for names, pairs in grouped.items()
        ],
    )


def report_training(training: list[dict[str, Any]]) -> Iterator[str]:
    """Every stage that was trained, by its last epoch."""
    header = (
        "seed",
        "net",
        "S",
        "epochs",
        "ended by",
        "last lr",
        "training error, %",
        "held out, %",
        "minutes",
    )
    rows = []
    for stage in training:
        last = stage["rows"][-1]
        rows.append(
            (
                f"{stage['seed']}",
                stage["net"],
                stage["S"],
                f"{len(stage['rows'])}",
                stage["stopped_by"],
                f"{last['lr']:g}",
                f"{last['train_error']:.2f}",
                f"{last['val_top1']:.2f}",
                f"{sum(row['seconds'] for row in stage['rows']) / 60:.1f}",
            )
        )
    yield from ("**Training**", "")
    yield from markdown(header, rows)


def named(key: Sequence[str]) -> str:
    """A key in words."""
    net, scale, how = key
    return f"{net}, S = {scale}, {how}"


def spread(values: Sequence[float], *, signed: bool = False) -> str:
    """Mean and sample standard deviation over the seeds."""
    if not values:
        return "not yet"
    text = f"{np.mean(values):{'+' if signed else ''}.2f}"
    return text if len(values) == 1 else f"{text} ± {np.std(values, ddof=1):.2f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, and an empty one."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)] + [""]


def main(arguments: list[str]) -> int:
    """Run the experiment, or go on with it, and print its tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks paper-tables", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST's four files")
    parser.add_argument("--tables", action="store_true", help="train nothing: tables of what is complete")
    parser.add_argument("--json", type=Path, help="write the results to this file, too")
    options = parser.parse_args(arguments)

    plan = Plan()
    train_images, test_images = (data.FashionMNIST(options.data, train=which) for which in (True, False))
    if not options.tables:
        run(plan, options.out, train_images, test_images)
    found = results(plan, options.out, part(test_images, plan.test_images, 0).labels)
    if options.json:
        write_text(options.json, json.dumps(found, indent=1) + "\n")
    print(report(found))
    return 0

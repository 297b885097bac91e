"""Training on several devices: what a second one brings here, measured, and what more would bring elsewhere, predicted.

``measure`` times steps of one thread a replica: one replica, all of them without averaging, and with it, in turn. Started by
mpirun it measures its processes, else the CPU devices of one process; ``--hosts`` puts two processes on two hosts that a slow
link joins. ``profile`` times the layers. Both append to a file, of which ``report`` makes tables and predictions.

Example::

    python -m benchmarks scaling measure --net D --batch 32
    mpirun -n 2 python -m benchmarks scaling measure --net D --batch 32
    python -m benchmarks scaling measure --net D --batch 4 --hosts 1gbit
    python -m benchmarks scaling profile --net D --batch 32
    python -m benchmarks scaling report
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import vggnet as vgg
from vggnet import _C, parallel
from vggnet.bench import machine, profile
from vggnet.checkpoint import replace_file
from vggnet.configs import CONFIGS

from . import scaling_report as tables
from .measure import commit, write_section
from .scaling_hosts import two_hosts
from .scaling_report import GOALS, gains
from .scaling_steps import PARTS, Steps, measure

RESULTS = Path(__file__).with_name("scaling.json")
BEGIN, END = "<!-- python -m benchmarks scaling report: begin -->", "<!-- end -->"


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    commands = {"measure": _measure, "profile": _profile, "report": _report}
    return commands[options.command](options)


def parser() -> argparse.ArgumentParser:
    """The command line's."""
    top = argparse.ArgumentParser(
        prog="python -m benchmarks scaling", description=(__doc__ or "").split("\n")[0]
    )
    commands = top.add_subparsers(dest="command", required=True)
    steps = commands.add_parser("measure", help="time steps on the replicas of this process, or of mpirun's")
    steps.add_argument("--devices", default="cpu:0,cpu:1", help="of one process (default: %(default)s)")
    steps.add_argument(
        "--strong", action="store_true", help="--batch is of all replicas together, not of each"
    )
    steps.add_argument("--rounds", type=int, default=1, help="how often each is timed (default: %(default)s)")
    steps.add_argument(
        "--hosts",
        metavar="RATE",
        help='two hosts, joined at this rate: tc\'s "1gbit", or "none" for no limit',
    )
    layers = commands.add_parser("profile", help="time the layers of a step of one thread")
    report = commands.add_parser("report", help="tables of what was measured, and predictions")
    report.add_argument(
        "--update", type=Path, metavar="FILE", help="write them between the marks of this page"
    )
    report.add_argument("--chart", type=Path, metavar="FILE", help="write the chart of the predictions")
    report.add_argument("--json", type=Path, default=RESULTS, help="what was measured (default: %(default)s)")
    for command in (steps, layers):
        command.add_argument("--net", choices=tuple(CONFIGS), default="D")
        command.add_argument("--batch", type=int, default=32, help="images (default: %(default)s)")
        command.add_argument("--size", type=int, default=224, help="of the images (default: %(default)s)")
        command.add_argument("--fc-width", type=int, default=4096, help="(default: %(default)s)")
        command.add_argument(
            "--json", type=Path, default=RESULTS, help="append to this file (default: %(default)s)"
        )
    return top


# ---- what is measured


def _append(path: Path, kind: str, row: dict[str, Any]) -> None:
    new = not path.exists()
    found: dict[str, Any] = {"machine": machine()} if new else json.loads(path.read_text(encoding="utf-8"))
    found.setdefault(kind, []).append(row | {"commit": commit()})
    text = json.dumps(found, indent=1) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _case(options: argparse.Namespace) -> dict[str, Any]:
    return {"net": options.net, "size": options.size, "batch": options.batch}


def _measure(options: argparse.Namespace) -> int:
    world = parallel.world()
    if options.hosts and world.size == 1:
        command = [sys.executable, "-m", "benchmarks", *sys.argv[1:]]
        with two_hosts(None if options.hosts == "none" else options.hosts) as behind:
            return subprocess.run([*behind, *command], check=False).returncode
    devices = options.devices.split(",") if world.size == 1 else ["cpu"]
    case = _case(options) | {
        "scaling": "strong" if options.strong else "weak",
        "engine": "devices" if world.size == 1 else "processes",
        "hosts": options.hosts,
        "replicas": world.size * len(devices),
    }
    net, size, batch = options.net, options.size, options.batch
    with Steps(net, size, batch, strong=options.strong, devices=devices, fc_width=options.fc_width) as steps:
        row = case | measure(steps, options.rounds)
    if world.rank == 0:
        _append(options.json, "steps", row)
        print(step_text(row), flush=True)
    return 0


def step_text(row: dict[str, Any]) -> str:
    """A measurement as lines, with the goals."""
    what = f"{row['replicas']} {row['engine']}" + (f", {row['hosts']}" if row["hosts"] else "")
    lines = [f"net {row['net']}, {row['batch']} images, {row['scaling']} scaling, {what}"]
    lines.append(f"{'':8}{'images/s':>10}{'step s':>9}" + "".join(f"{part:>10}" for part in PARTS))
    for mode, times in row["modes"].items():
        parts = "".join(f"{times[part]:10.3f}" for part in PARTS)
        lines.append(f"{mode:8}{times['images'] / times['step']:10.2f}{times['step']:9.3f}{parts}")
    speedup, averaging = gains(row["modes"])
    lines.append(
        f"{speedup:.3f} times one replica (goal of net D, 32 images each: {GOALS['speedup']}); "
        f"averaging {100 * averaging:.1f} % of a step (goal: under {100 * GOALS['averaging']:.0f} %)"
    )
    return "\n".join(lines)


def _profile(options: argparse.Namespace) -> int:
    _C.set_num_threads(1)
    model = vgg.VGG(options.net, input_size=options.size, init="he", fc_width=options.fc_width)
    found = profile(model, options.batch, training=True, seconds=0)
    rows = [{key: row[key] for key in ("layer", "direction", "ms")} for row in found["rows"]]
    _append(options.json, "profiles", _case(options) | {"fc_width": options.fc_width, "rows": rows})
    print(f"net {options.net}, {options.batch} images: {found['total']['ms']:.0f} ms")
    return 0


# ---- tables


def report_text(results: dict[str, Any]) -> str:
    """All tables, with what they are."""
    rows = tables.merged(results)
    about = results["machine"]
    paper, half = tables.PAPER_SPEEDUP, f"{100 * tables.SPEED:.0f} %"
    parts = [
        "### Measured",
        f"{about['cpu']}, {about['isa']}, multiply-add peak {about['peak'] * 1e-9:.0f} GFLOP/s a core; one thread a replica. "
        f"Goals of net D, 32 images each: {GOALS['speedup']} times, averaging under {100 * GOALS['averaging']:.0f} %.",
        tables.gains_table(rows),
        "Of each mode the fastest step of all calls; its parts are means over the replicas.",
        tables.measured_table(rows),
        "### The model against what was measured",
        tables.check_table(results, rows),
        "### Predicted: the paper's 4 GPUs",
        f"Times one GPU, net D, 64 images each. The paper reports **{paper}**.",
        tables.paper_table(),
        "### Predicted: 8 GPUs in one machine",
        "Times one GPU, net D.",
        tables.machine_table(),
        "### Predicted: 2 to 64 machines",
        f"Times one GPU that reaches {half} of its roofline, net D.",
        tables.cluster_table(),
        "Times one machine with cores like the measured ones, net D; 64 cores are taken to compute 64 times as fast as one.",
        tables.cpu_cluster_table(results),
        "### Predicted: what is exposed",
        tables.shares_table(),
        "### Published figures",
        tables.hardware_table(),
    ]
    return "\n\n".join(parts)


def _report(options: argparse.Namespace) -> int:
    text = report_text(json.loads(options.json.read_text(encoding="utf-8")))
    if options.chart is not None:
        tables.chart(options.chart)
    if options.update is None:
        print(text)
        return 0
    try:
        write_section(options.update, BEGIN, END, text)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0

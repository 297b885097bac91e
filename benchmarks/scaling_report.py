"""Tables of `python -m benchmarks scaling`: what was measured, the model against it, and what the model predicts elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vggnet.configs import layers_of
from vggnet.run import Precision, nbytes

from .bench_roofline import GPUS, Gpu, rows_of
from .scaling_model import Layer, Level, Link, Work, fit_link, shares, speedup, timeline
from .scaling_steps import MODES, PARTS

GOALS = {"speedup": 1.94, "averaging": 0.03}  # of 2 replicas on 2 cores, net D, 32 images each

TITAN = Gpu(
    "GTX Titan Black",
    5.12e12,
    0.0,  # it has no tensor cores
    0.0,
    336e9,
    "NVIDIA GeForce GTX TITAN Black specifications: 2880 cores, 889 MHz",
)
A100, H100, RTX4090 = GPUS
USED = 0.8  # of a link's published rate that gradients get: an assumption
PCIE_SOURCE, ETHERNET_SOURCE = "PCI-SIG, PCI Express Base Specification", "IEEE 802.3"
PCIE2 = Link("PCIe 2.0 x16", 8.0e9, 20e-6, PCIE_SOURCE)
PCIE3 = Link("PCIe 3.0 x16", 15.75e9, 20e-6, PCIE_SOURCE)
PCIE4 = Link("PCIe 4.0 x16", 31.5e9, 20e-6, PCIE_SOURCE)
NVLINK3 = Link("NVLink 3", 300e9, 20e-6, "NVIDIA A100 Tensor Core GPU datasheet: 600 GB/s both ways together")
NVLINK4 = Link("NVLink 4", 450e9, 20e-6, "NVIDIA H100 Tensor Core GPU datasheet: 900 GB/s both ways together")
NETWORKS = (
    Link("10 Gbit Ethernet", 1.25e9, 50e-6, ETHERNET_SOURCE),
    Link("25 Gbit Ethernet", 3.125e9, 50e-6, ETHERNET_SOURCE),
    Link("100 Gbit Ethernet", 12.5e9, 50e-6, ETHERNET_SOURCE),
    Link("InfiniBand HDR", 25e9, 5e-6, "NVIDIA ConnectX-6 datasheet: 200 Gbit/s"),
    Link("InfiniBand NDR", 50e9, 5e-6, "NVIDIA ConnectX-7 datasheet: 400 Gbit/s"),
)
LINKS = (PCIE2, PCIE3, PCIE4, NVLINK3, NVLINK4, *NETWORKS)
SPEED = 0.5  # of its roofline that a GPU reaches: an assumption
MACHINES = (2, 4, 8, 16, 32, 64)
PAPER_STEPS, PAPER_BATCH, PAPER_SPEEDUP = 370_000, 256, 3.75


def gains(modes: Mapping[str, Any]) -> tuple[float, float]:
    """Times as many images a second as one replica; and averaging's share of the step."""
    alone, off, on = (modes[mode] for mode in MODES)
    return (on["images"] / on["step"]) / (alone["images"] / alone["step"]), 1 - off["step"] / on["step"]


# ---- the work of a step


def work_of(net: str, rows: Iterable[tuple[str, str, float]], **options: int) -> Work:
    """A replica's work from the seconds of operations, (layer, direction, seconds) in the order of the pass."""
    shape = {"num_classes": 1000, "input_size": 224, "in_channels": 3, "fc_width": 4096} | options
    gradients = {
        layer.name: sum(nbytes(s) for s in layer.parameter_shapes.values())
        for layer in layers_of(net, **shape)
        if layer.parameter_shapes
    }
    forward = update = 0.0
    backward: dict[str, list[float]] = {}
    current: list[float] = []
    for name, direction, seconds in rows:
        if name == "sgd":
            update += seconds
        elif direction == "forward" or not (backward or name in gradients):  # the loss, both ways
            forward += seconds
        else:
            if name in gradients:
                current = backward.setdefault(name, [0.0, 0.0])
            current[direction == "backward_input"] += seconds
    layers = tuple(Layer(name, gradients[name], *seconds) for name, seconds in backward.items())
    return Work(forward, layers, update)


def roofline_work(net: str, batch: int, gpu: Gpu, precision: Precision, speed: float = SPEED) -> Work:
    """The work of a GPU that reaches so much of its roofline."""
    rows = rows_of(net, batch, 224, precision, training=True)
    peak = getattr(gpu, precision)
    return work_of(
        net, ((row.layer, row.direction, row.seconds(peak, gpu.bandwidth) / speed) for row in rows)
    )


def used(link: Link) -> Link:
    """The part of a link that gradients get."""
    return replace(link, bandwidth=USED * link.bandwidth)


# ---- what was measured


def merged(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Measurements of the same case as one: of each mode the fastest step of all."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in results.get("steps", ()):
        key = tuple(row[name] for name in ("net", "size", "batch", "scaling", "engine", "hosts", "replicas"))
        if key not in found:
            found[key] = row | {"calls": 1}
            continue
        known = found[key]
        modes = {
            mode: min(known["modes"][mode], row["modes"][mode], key=lambda m: m["step"]) for mode in MODES
        }
        exchanges = [
            {name: min(a[name], b[name]) for name in a}
            for a, b in zip(known["exchanges"], row["exchanges"], strict=True)
        ]
        found[key] = known | {"modes": modes, "exchanges": exchanges, "calls": known["calls"] + 1}
    return sorted(
        found.values(), key=lambda row: (row["hosts"] or "", row["net"], row["engine"], row["scaling"])
    )


def what(row: Mapping[str, Any]) -> str:
    """The replicas of a measurement."""
    hosts = {None: "", "none": ", two hosts, no limit"}.get(row["hosts"], f", two hosts, {row['hosts']}")
    return f"{row['replicas']} {row['engine']}{hosts}"


def measured_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line for each case and mode."""
    head = [
        "net",
        "replicas",
        "scaling",
        "images",
        "mode",
        "images/s",
        "step s",
        *(f"{part} s" for part in PARTS),
    ]
    lines = [_line(head), _rule(5, len(head))]
    for row in rows:
        for mode, times in row["modes"].items():
            rate = f"{times['images'] / times['step']:.2f}"
            parts = (f"{times[part]:.3f}" for part in ("step", *PARTS))
            lines.append(
                _line([row["net"], what(row), row["scaling"], str(times["images"]), mode, rate, *parts])
            )
    return "\n".join(lines)


def gains_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: what the second replica brings, and what averaging costs."""
    lines = [
        _line(["net", "replicas", "scaling", "times one replica", "averaging's share of a step", "calls"]),
        _rule(3, 6),
    ]
    for row in rows:
        times, share = gains(row["modes"])
        cells = [
            row["net"],
            what(row),
            row["scaling"],
            f"{times:.3f}",
            f"{100 * share:.1f} %",
            str(row["calls"]),
        ]
        lines.append(_line(cells))
    return "\n".join(lines)


def fitted(results: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[Work, Link]:
    """Work and link of a measurement: layers in the profile's proportions, stretched to the step without averaging; the link,
    and what averaging takes from the cores, from exchanges while nobody computes."""
    profile = min(
        (p for p in results["profiles"] if (p["net"], p["size"]) == (row["net"], row["size"])),
        key=lambda p: abs(math.log(p["batch"] / row["modes"]["on"]["images"] * row["replicas"])),
    )
    shape = {"input_size": row["size"], "fc_width": profile["fc_width"]}
    rows = ((r["layer"], r["direction"], 1e-3 * r["ms"]) for r in profile["rows"])
    off, exchanges = row["modes"]["off"], row["exchanges"]
    work = work_of(row["net"], rows, **shape).taking(off["input"] + off["compute"] + off["idle"])
    taken = sum(e["cpu"] for e in exchanges) / sum(e["bytes"] for e in exchanges)
    sent, seconds = ([e[key] for e in exchanges] for key in ("bytes", "seconds"))
    link = fit_link(what(row), sent, seconds)
    return replace(work, update=off["update"], averaging=taken), link


def check_table(results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: the model's step against the measured one."""
    head = ["net", "replicas", "scaling", "images", "link GB/s", "CPU s in averaging"]
    head += ["averaging adds, measured s", "predicted s", "step, measured s", "predicted s"]
    lines = [_line(head), _rule(4, len(head))]
    for row in rows:
        work, link = fitted(results, row)
        found = timeline(work, [Level(row["replicas"], link)])
        on, off = (row["modes"][mode] for mode in ("on", "off"))
        lines.append(
            _line(
                [
                    *(row["net"], what(row), row["scaling"], str(on["images"])),
                    *(f"{1e-9 * link.bandwidth:.2f}", f"{work.averaging * work.nbytes:.2f}"),
                    *(f"{on['step'] - off['step']:.2f}", f"{found.exposed:.2f}"),
                    *(f"{on['step']:.2f}", f"{found.step:.2f}"),
                ]
            )
        )
    return "\n".join(lines)


# ---- what is predicted


def paper_table() -> str:
    """Markdown: 4 GPUs of the paper's kind, from its 2 and 3 weeks a net, in several ways of averaging."""
    head = [
        "averaging (predicted)",
        *(f"{link.name}, {weeks} weeks" for link in (PCIE2, PCIE3) for weeks in (2, 3)),
    ]
    lines = [_line(head), _rule(1, 5)]
    for name, factor, overlap in (
        ("in buckets, in a ring, while backward goes on (vggnet)", 1, True),
        ("in a ring, after backward", 1, False),
        ("by one GPU, which collects and returns all, after backward", 4, False),
    ):
        cells = []
        for link in (PCIE2, PCIE3):
            for weeks in (2, 3):
                slow = replace(used(link), bandwidth=used(link).bandwidth / factor)
                many = timeline(paper_work(weeks), [Level(4, slow)], overlap=overlap)
                cells.append(f"{speedup(timeline(paper_work(weeks), []), many, 4, strong=False):.2f}")
        lines.append(_line([name, *cells]))
    return "\n".join(lines)


def paper_work(weeks: float) -> Work:
    """One of the paper's GPUs with a quarter of a batch of net D, if the 370,000 steps took so many weeks, at the 3.75 of 4."""
    work = roofline_work("D", PAPER_BATCH // 4, TITAN, "float32")
    step = weeks * 7 * 86400 / PAPER_STEPS
    return work.taking(PAPER_SPEEDUP / 4 * step - work.update)


def machine_table() -> str:
    """Markdown: 8 GPUs in one machine."""
    cases: list[tuple[Gpu, Precision, Link]] = [
        (TITAN, "float32", PCIE3),
        (RTX4090, "float32", PCIE4),
        (A100, "tf32", PCIE4),
        (A100, "tf32", NVLINK3),
        (H100, "tf32", NVLINK4),
    ]
    head = ["8 GPUs (predicted)", "link", "64 images each: at the roofline", "at half of it"]
    head += ["256 in all: at the roofline", "at half of it"]
    lines = [_line(head), _rule(2, 6)]
    for gpu, precision, link in cases:
        cells = []
        for strong in (False, True):
            for speed in (1.0, SPEED):
                cells.append(
                    f"{predicted(gpu, precision, [Level(8, used(link))], strong=strong, speed=speed):.2f}"
                )
        lines.append(_line([f"{gpu.name}, {precision}", link.name, *cells]))
    return "\n".join(lines)


def predicted(
    gpu: Gpu, precision: Precision, levels: Sequence[Level], *, strong: bool, speed: float = SPEED
) -> float:
    """Times one GPU's images a second: 64 images each, or 256 in all."""
    count = math.prod(level.count for level in levels)
    batch = PAPER_BATCH if strong else PAPER_BATCH // 4
    one = timeline(roofline_work("D", batch, gpu, precision, speed), [])
    many = timeline(roofline_work("D", batch // count if strong else batch, gpu, precision, speed), levels)
    return speedup(one, many, count, strong=strong)


def cluster_table() -> str:
    """Markdown: 2 to 64 machines with one GPU or eight."""
    lines = [
        _line(["machines (predicted)", "network", "scaling", *map(str, MACHINES)]),
        _rule(3, 3 + len(MACHINES)),
    ]
    for strong in (False, True):
        scaling = "256 images in all" if strong else "64 images each"
        for network in NETWORKS:
            cells = [
                f"{predicted(A100, 'tf32', [Level(count, used(network))], strong=strong):.1f}"
                for count in MACHINES
            ]
            lines.append(_line([f"1 {A100.name}, tf32", network.name, scaling, *cells]))
    for network in NETWORKS[2:]:
        inside = Level(8, used(NVLINK4))
        cells = [
            f"{predicted(H100, 'tf32', [inside, Level(count, used(network))], strong=False):.0f}"
            for count in MACHINES
        ]
        lines.append(_line([f"8 {H100.name}, tf32", network.name, "64 images each", *cells]))
    return "\n".join(lines)


def cpu_cluster_table(results: Mapping[str, Any]) -> str:
    """Markdown: machines with CPUs like the one that was measured, and the deepest of the nets."""
    row = max(
        (r for r in merged(results) if not r["hosts"]), key=lambda r: (r["net"], r["engine"], r["scaling"])
    )
    core, _ = fitted(results, row)
    batch = row["modes"]["on"]["images"] // row["replicas"]
    head = ["machines (predicted)", "network", *map(str, MACHINES)]
    lines = [_line(head), _rule(2, 2 + len(MACHINES))]
    for cores in (1, 64):
        work = replace(
            core.taking(core.compute / cores), averaging=core.averaging / cores, update=core.update
        )
        for network in NETWORKS[:3]:
            one = timeline(work, [])
            cells = [
                f"{speedup(one, timeline(work, [Level(count, used(network))]), count, strong=False):.1f}"
                for count in MACHINES
            ]
            lines.append(
                _line([f"{cores} core{'s' * (cores > 1)}, {batch} images each", network.name, *cells])
            )
    return "\n".join(lines)


def shares_table() -> str:
    """Markdown: which buckets the exposed time is of."""
    cases = [
        ("4 GTX Titan Black, 64 images each, 3 weeks a net", paper_work(3), Level(4, used(PCIE2))),
        *(
            (
                f"16 machines, 1 A100, 64 images each, {link.name}",
                roofline_work("D", 64, A100, "tf32"),
                Level(16, used(link)),
            )
            for link in NETWORKS[:3]
        ),
        (
            "8 H100, 32 images each, NVLink 4",
            roofline_work("D", 32, H100, "tf32"),
            Level(8, used(NVLINK4)),
        ),
    ]
    lines = [
        _line(["case (predicted)", "step ms", "exposed ms", "without which bucket it would be less, by ms"]),
        _rule(1, 4),
    ]
    for name, work, level in cases:
        found = timeline(work, [level])
        parts = sorted(shares(work, [level]).items(), key=lambda item: -item[1])
        text = ", ".join(f"{'+'.join(layers)} {1e3 * s:.1f}" for layers, s in parts[:3] if s > 5e-5) or "none"
        lines.append(_line([name, f"{1e3 * found.step:.1f}", f"{1e3 * found.exposed:.1f}", text]))
    return "\n".join(lines)


def hardware_table() -> str:
    """Markdown: published figures."""
    lines = [_line(["published", "figures", "source"]), _rule(3, 3)]
    for gpu in (TITAN, *GPUS):
        text = f"{gpu.float32 * 1e-12:g} TFLOP/s float32, "
        text += f"{gpu.tf32 * 1e-12:g} TF32, " * bool(gpu.tf32) + f"{gpu.bandwidth * 1e-9:g} GB/s"
        lines.append(_line([gpu.name, text, gpu.source]))
    for link in LINKS:
        text = f"{link.bandwidth * 1e-9:g} GB/s each way; {link.latency * 1e6:g} µs a message (assumed)"
        lines.append(_line([link.name, text, link.source]))
    return "\n".join(lines)


def chart(path: Path) -> None:
    """The predicted efficiency of machines with one GPU, by network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.6, 3.2), layout="constrained")
    for network in NETWORKS:
        levels = [[Level(count, used(network))] for count in MACHINES]
        shares = [100 * predicted(A100, "tf32", level, strong=False) / level[0].count for level in levels]
        axes.plot([1, *MACHINES], [100, *shares], marker=".", label=network.name)
    axes.plot([4], [100 * PAPER_SPEEDUP / 4], "k*", label="the paper: 3.75 on\n4 GPUs of one machine")
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, *MACHINES], list(map(str, [1, *MACHINES])))
    axes.set(
        xlabel="machines with one A100 each, TF32 at half its roofline", ylabel="% of linear", ylim=(0, 103)
    )
    axes.set_title("Predicted: net D, 64 images each", fontsize=10)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(left: int, columns: int) -> str:
    return _line(["---"] * left + ["---:"] * (columns - left))

"""Net D against other systems, on the same weights: each measurement in a fresh process, systems alternating, least of rounds.

Example::

    python -m pip install -r benchmarks/peers.txt    # in an environment of its own
    python -m benchmarks peers --python peers/bin/python
    python -m benchmarks peers --python peers/bin/python --cases batch1,train16 --systems vggnet,torch --rounds 1
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import vggnet as vgg
from vggnet import picture
from vggnet.bench import machine
from vggnet.configs import STRIDE

from . import systems
from .measure import commit

CASES = ("batch1", "batch8", "batch32", "dense384", "dense512", "train16", "train32", "import", "size")
MEMORY = ("batch1", "batch32", "train32")  # cases whose peak of memory is told
ENVIRONMENT = ("VGGNET_ISA", "ONEDNN_MAX_CPU_ISA")  # caps on instruction sets; passed on, and told
# Relative L2 of answers, from ours to a peer's: class scores, and a gradient through the whole net, in which ReLUs and pools
# that flip at rounding make jumps.
AGREEMENT = {"batch": 1e-4, "dense": 1e-4, "train": 3e-2}
BEGIN, END = "<!-- python -m benchmarks peers: begin -->", "<!-- end -->"
TITLES = {
    "batch": "inference, batch {}",
    "dense": "dense evaluation, one image of {0} x {0}",
    "train": "training step, batch {}",
}
NAMES = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def title(case: str) -> str:
    """A case in words."""
    kind, number = systems.split(case)
    return TITLES[kind].format(number)


# ---- measuring


def write_net(folder: Path, model: vgg.VGG) -> None:
    """Write a net for all systems: a model file, and its layers for those that know no VGG."""
    model.save(folder / "model.safetensors")
    layers = [
        {
            "name": layer.name,
            "kind": layer.kind,
            "inputs": layer.inputs,
            "outputs": layer.outputs,
            "window": model.input_size // STRIDE if layer.name == "fc6" else layer.window,  # of pool5's map
            "relu": layer.kind in ("conv", "linear") and layer.name != "fc8",
        }
        for layer in model.layers
        if layer.kind in ("conv", "linear", "pool")
    ]
    (folder / "layers.json").write_text(json.dumps(layers))


def python_of(system: str, options: argparse.Namespace) -> str:
    return sys.executable if system == "vggnet" else str(options.python)


def environment(system: str, threads: int) -> dict[str, str]:
    """Of a process; only ours may find vggnet where this one did."""
    own = {"PYTHONPATH": str(Path(vgg.__file__).parents[1])} if system == "vggnet" else {}
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return inherited | own | {"OMP_NUM_THREADS": str(threads)}


def child(system: str, options: argparse.Namespace, *arguments: str) -> str:
    """What a fresh process prints last."""
    command = [python_of(system, options), *arguments]
    done = subprocess.run(
        command, env=environment(system, options.threads), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr.strip() or f'status {done.returncode}'}")
    return done.stdout.strip().splitlines()[-1]


def ask(system: str, case: str, folder: Path, options: argparse.Namespace) -> Any:
    """One run of systems.py."""
    limits = ("--threads", str(options.threads), "--seconds", str(options.seconds))
    return json.loads(child(system, options, systems.__file__, system, case, str(folder), *limits))


def import_seconds(system: str, options: argparse.Namespace) -> float:
    """Of a bare `import`, NumPy's own with it where a system loads that."""
    program = f"import time; t = time.perf_counter(); import {system}; print(time.perf_counter() - t)"
    return min(float(child(system, options, "-c", program)) for _ in range(5))


def disagreement(case: str, system: str, folder: Path) -> float:
    """Relative L2 of a peer's answer from ours."""
    ours, theirs = (
        np.load(folder / f"answer-{case}-{name}.npy").astype(float) for name in ("vggnet", system)
    )
    if ours.shape != theirs.shape:
        raise RuntimeError(f"{case}: {system} answers with shape {theirs.shape}, vggnet with {ours.shape}")
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(ours))


def measure_case(case: str, folder: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Results by system: the least of each figure over the rounds, and how far answers are from ours."""
    best: dict[str, dict[str, Any]] = {}
    able = [system for system in options.systems if systems.supports(system, case)]
    for _ in range(options.rounds):
        for system in able:
            result = ask(system, case, folder, options)
            known = best.setdefault(system, result)
            best[system] = {key: min(known[key], result[key]) for key in result}
            print(f"{case:9} {system:12} {result['ms']:9.2f} ms an image", file=sys.stderr, flush=True)
    for system in able:
        if system != "vggnet" and "vggnet" in able:
            error = disagreement(case, system, folder)
            if not error <= AGREEMENT[systems.split(case)[0]]:
                raise RuntimeError(
                    f"{case}: the answer of {system} is {error:.1e} from vggnet's (relative L2)"
                )
            best[system]["relative_l2"] = error
    return best


def begin(options: argparse.Namespace) -> dict[str, Any]:
    """What the JSON file tells beside results; asks every system for its version."""
    return {
        "machine": machine() | {"memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")},
        "commit": commit(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "rounds": options.rounds,
        "seconds": options.seconds,
        "systems": {
            name: {
                "name": NAMES.get(name, name),
                "version": ask(name, "version", Path(), options),
                "settings": systems.SYSTEMS[name].settings,
            }
            for name in options.systems
        },
        "cases": {},
    }


def measure(results: dict[str, Any], folder: Path, options: argparse.Namespace) -> None:
    """Add case after case to `results`, so that an error leaves those before it."""
    if not (folder / "layers.json").exists():
        write_net(folder, vgg.VGG("D", init="he", seed=0))
    for name in options.systems:
        ask(name, "prepare", folder, options)
    for case in options.cases:
        if case == "import":
            results["import_seconds"] = {name: import_seconds(name, options) for name in options.systems}
        elif case == "size":
            results["installed_bytes"] = {
                name: ask(name, "size", folder, options) for name in options.systems
            }
        else:
            results["cases"][case] = measure_case(case, folder, options)


# ---- reporting


def cells(values: Mapping[str, float], form: str, names: Sequence[str]) -> list[str]:
    """A row's figures, each peer's with how many times ours it is."""
    ours = values.get("vggnet")
    texts = []
    for name in names:
        if name not in values:
            texts.append("")
            continue
        ratio = "" if ours is None or name == "vggnet" else f" ({values[name] / ours:.2f}x)"
        texts.append(form.format(values[name]) + ratio)
    return texts


def table(results: Mapping[str, Any]) -> str:
    """Markdown: the machine, one row a case, and the systems' versions and settings."""
    about, names = results["machine"], list(results["systems"])
    rows: list[list[str]] = [
        ["ms an image", *(results["systems"][name]["name"] for name in names)],
        ["---"] * (1 + len(names)),
    ]
    for case, best in results["cases"].items():
        rows.append(
            [title(case), *cells({name: result["ms"] for name, result in best.items()}, "{:.1f}", names)]
        )
    for case in MEMORY:
        if case in results["cases"]:
            peaks = {name: result["peak_bytes"] / 1e9 for name, result in results["cases"][case].items()}
            rows.append([f"peak memory, {title(case)}, GB", *cells(peaks, "{:.2f}", names)])
    if "batch1" in results["cases"]:
        loading = {
            name: result["loading_peak_bytes"] / 1e9 for name, result in results["cases"]["batch1"].items()
        }
        rows.append(["peak memory of loading the model, GB", *cells(loading, "{:.2f}", names)])
    if "import_seconds" in results:
        seconds = {name: 1e3 * value for name, value in results["import_seconds"].items()}
        rows.append(["import, ms", *cells(seconds, "{:.0f}", names)])
    for key, what in (("alone", "installed, MB"), ("with_dependencies", "installed with all it needs, MB")):
        if "installed_bytes" in results:
            sizes = {name: value[key] / 1e6 for name, value in results["installed_bytes"].items()}
            rows.append([what, *cells(sizes, "{:.1f}", names)])
    caps = "".join(f", {name}={value}" for name, value in results["environment"].items())
    lines = [
        f"{about['cpu']}, {about['isa']}, {about['threads']} threads{caps}; multiply-add peak "
        f"{about['peak'] * 1e-9:.0f} GFLOP/s, memory {about['bandwidth'] * 1e-9:.0f} GB/s; commit "
        f"{results['commit']}; least of {results['rounds']} rounds. In brackets: how many times vggnet's.",
        "",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        *(f"- {s['name']} {s['version']}: {s['settings']}" for s in results["systems"].values()),
    ]
    for training, what in ((False, "class scores"), (True, "gradients of conv1_1")):
        errors = [
            result["relative_l2"]
            for case, best in results["cases"].items()
            for result in best.values()
            if "relative_l2" in result and (systems.split(case)[0] == "train") == training
        ]
        if errors:
            lines.append(f"- {what} differ from vggnet's by at most {max(errors):.1e} (relative L2)")
    return "\n".join(lines)


def draw(results: Mapping[str, Any], path: Path) -> None:
    """The bar chart: a panel a case."""
    names = {name: system["name"] for name, system in results["systems"].items()}
    panels = [
        (title(case), [(names[name], result["ms"]) for name, result in best.items()])
        for case, best in results["cases"].items()
    ]
    about = results["machine"]
    caption = f"ms an image, net D, float32; {about['cpu']}, {about['isa']}, {about['threads']} threads"
    picture.bars(path, panels, "vggnet", caption)


def write(results: Mapping[str, Any], prefix: Path) -> None:
    """PREFIX.json, PREFIX.png, and PREFIX.md, whose text around the table stays."""
    prefix.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    if results["cases"]:
        draw(results, prefix.with_suffix(".png"))
    page = prefix.with_suffix(".md")
    text = page.read_text() if page.exists() else f"# Speed\n\n{BEGIN}\n{END}\n"
    figure = f"![ms an image]({prefix.name}.png)\n\n" if results["cases"] else ""
    block = f"{BEGIN}\n\n{figure}{table(results)}\n\n{END}"
    text, count = re.subn(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: block, text, flags=re.DOTALL)
    page.write_text(text if count else f"{text}\n{block}\n")


# ---- command line


def listed(text: str) -> list[str]:
    return text.split(",")


def case_list(text: str) -> list[str]:
    for case in listed(text):
        if case not in ("import", "size"):
            systems.split(case)
    return listed(text)


def system_list(text: str) -> list[str]:
    for name in listed(text):
        if name not in systems.SYSTEMS:
            raise ValueError(name)
    return listed(text)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m benchmarks peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(
        "--python",
        default=sys.executable,
        metavar="PATH",
        help="interpreter that has the peers (default: this)",
    )
    top.add_argument(
        "--cases",
        type=case_list,
        default=list(CASES),
        help=f"batchN, denseN, trainN, import, size (default: {','.join(CASES)})",
    )
    top.add_argument(
        "--systems",
        type=system_list,
        default=list(systems.SYSTEMS),
        help=f"of {','.join(systems.SYSTEMS)} (default: all)",
    )
    top.add_argument("--rounds", type=int, default=3, help="of fresh processes (default: %(default)s)")
    top.add_argument(
        "--seconds", type=float, default=2.0, help="of timed passes, in each (default: %(default)s)"
    )
    top.add_argument("--threads", type=int, default=vgg.get_num_threads(), help="default: all cores")
    top.add_argument(
        "--folder",
        type=Path,
        help="for the model's files, 2 GB, which stay for the next run (default: temporary)",
    )
    top.add_argument(
        "--out",
        type=Path,
        metavar="PREFIX",
        help="write PREFIX.md, PREFIX.json and PREFIX.png; docs/speed is ours",
    )
    return top


def main(arguments: list[str]) -> int:
    """Measure, write the files if asked, and print the table, also of what there is when a case fails."""
    options = parser().parse_args(arguments)
    vgg.set_num_threads(options.threads)
    results: dict[str, Any] = {}
    status = 0
    try:
        results = begin(options)
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.folder or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            measure(results, folder, options)
    except RuntimeError as error:
        print(f"benchmarks peers: {error}", file=sys.stderr)
        status = 1
    if results:
        if options.out:
            write(results, options.out)
        print(table(results))
    return status

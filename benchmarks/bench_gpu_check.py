"""Everything that wants a real GPU, in one go, with a report: the tests, whole nets against the CPU, times by layer, and
PyTorch where it is installed. An emulator is refused: what runs there is in the tests already. Example::

    python -m benchmarks gpu-check --out gpu-check.md
    python -m benchmarks gpu-check --parts nets,speed --device cuda:1
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import vggnet as vgg
from vggnet.bench import profile
from vggnet.cli.bench import _table

from .measure import commit

ROOT = Path(__file__).resolve().parents[1]
# Largest relative L2 difference from the CPU's float32: sums of up to 25,088 terms in another order; factors of 11 bits; and
# gradients through ReLUs and pools whose winners flip at rounding.
TOLERANCES = {"float32": {"scores": 1e-5, "gradients": 3e-2}, "tf32": {"scores": 1e-2, "gradients": 3e-1}}
BATCHES = {"forward": (1, 64), "training": (64,)}


class FailedCheckError(Exception):
    """A part found something wrong; its text goes into the report."""


def machine(device: str) -> str:
    """The GPU, the driver and the commit."""
    facts = vgg.cuda.properties(device) | {"vggnet": vgg.__version__, "commit": commit()}
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def tests(device: str) -> str:
    """The whole suite, which takes the GPU where it would take an emulator."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "tests"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    tail = "```\n" + "\n".join(done.stdout.splitlines()[-40:]) + "\n```"
    if done.returncode:
        raise FailedCheckError(tail)
    return tail


def nets(device: str) -> str:
    """Scores and gradients of nets at 224 x 224 against the CPU's, in both precisions; and two runs that must be equal."""
    lines = ["| net | precision | scores | gradients | repeats |", "|---|---|---:|---:|---|"]
    wrong = False
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 224, 224, 3), dtype=np.float32) * 60
    labels = rng.integers(1000, size=2)
    for config in ("A", "A-LRN", "D"):
        cpu = vgg.VGG(config, init="he", dropout=0.0)
        scores = cpu.forward(x).numpy()
        _, expected = cpu.loss_and_gradients(x, labels)
        for precision in ("float32", "tf32"):
            net = vgg.VGG(config, init="he", dropout=0.0, device=device, precision=precision)
            got, (_, grads), (_, again) = (
                net.forward(x).numpy(),
                *(net.loss_and_gradients(x, labels) for _ in range(2)),
            )
            differences = {
                "scores": relative(got, scores),
                "gradients": max(relative(grads[name].numpy(), expected[name].numpy()) for name in grads),
            }
            same = all(np.array_equal(grads[name].numpy(), again[name].numpy()) for name in grads)
            bad = [k for k, v in differences.items() if not v <= TOLERANCES[precision][k]]
            wrong = wrong or bool(bad) or not same
            shown = (f"{v:.1e}" + (" WRONG" if k in bad else "") for k, v in differences.items())
            lines.append(
                f"| {config} | {precision} | {' | '.join(shown)} | {'equal' if same else 'DIFFERENT'} |"
            )
    if wrong:
        raise FailedCheckError("\n".join(lines))
    return "\n".join(lines)


def relative(got: Any, expected: Any) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def speed(device: str) -> str:
    """`vggnet bench` of net D."""
    parts = []
    for direction, batches in BATCHES.items():
        for batch in batches:
            for precision in ("float32", "tf32"):
                net = vgg.VGG("D", init="he", device=device, precision=precision)
                result = profile(net, batch, training=direction == "training", seconds=5)
                result |= {"batch": batch, "direction": direction}
                parts.append(f"**{direction}, batch {batch}, {precision}**\n\n```\n{_table(result)}\n```")
                del net
    return "\n\n".join(parts)


def peer(device: str) -> str:
    """PyTorch on the same net and batches, in channels-last memory with cuDNN's own search."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed."
    torch: Any = importlib.import_module("torch")
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} sees no GPU."
    torch.backends.cudnn.benchmark = True
    lines = [f"PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}", ""]
    lines += ["| direction | batch | precision | ms |", "|---|---:|---|---:|"]
    where = torch.device(device)
    for precision in ("float32", "tf32"):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        net = torch_net(torch).to(where, memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)
        for direction, batches in BATCHES.items():
            for batch in batches:
                x = torch.randn(batch, 3, 224, 224, device=where).to(memory_format=torch.channels_last)
                labels = torch.randint(1000, (batch,), device=where)

                step = functools.partial(
                    torch_step, torch, net, optimizer, x, labels, direction == "training"
                )
                lines.append(
                    f"| {direction} | {batch} | {precision} | {1e3 * least(step, torch.cuda.synchronize):.3f} |"
                )
    return "\n".join(lines)


def torch_step(torch: Any, net: Any, optimizer: Any, x: Any, labels: Any, training: bool) -> None:
    if not training:
        with torch.no_grad():
            net.eval()(x)
        return
    optimizer.zero_grad(set_to_none=False)
    torch.nn.functional.cross_entropy(net.train()(x), labels).backward()
    optimizer.step()


def torch_net(torch: Any) -> Any:
    nn = torch.nn
    layers, channels = [], 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    head = [
        nn.Flatten(),
        nn.Linear(25088, 4096),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Dropout(),
    ]
    return nn.Sequential(*layers, *head, nn.Linear(4096, 1000))


def least(step: Callable[[], None], wait: Callable[[], None], seconds: float = 5.0) -> float:
    """The least time of a step, in seconds, after one that is dropped."""
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 4 or time.perf_counter() - start < seconds:
        wait()
        begin = time.perf_counter()
        step()
        wait()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


PARTS: dict[str, Callable[[str], str]] = {
    "machine": machine,
    "tests": tests,
    "nets": nets,
    "speed": speed,
    "peer": peer,
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu-check", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--parts", default=",".join(PARTS), help=f"with commas between (default: {','.join(PARTS)})"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("gpu-check.md"),
        metavar="FILE",
        help="the report (default: gpu-check.md)",
    )
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--parts has {unknown[0]!r}; expected some of {', '.join(PARTS)}")
    if (reason := vgg.cuda.why_not()) is not None:
        print(reason, file=sys.stderr)
        return 1
    if not vgg.cuda.properties(options.device)["clock"]:
        print(
            f"{options.device} is an emulator: nothing that this checks would mean anything", file=sys.stderr
        )
        return 1
    report, failed = (
        ["# vggnet on a GPU", "", f"`python -m benchmarks gpu-check --parts {options.parts}`"],
        [],
    )
    for part in parts:
        print(part, flush=True)
        try:
            body = PARTS[part](options.device)
        except Exception as error:  # a report of what failed is what this is for
            failed.append(part)
            body = str(error) if isinstance(error, FailedCheckError) else f"```\n{traceback.format_exc()}```"
        report += ["", f"## {part}" + (": FAILED" if part in failed else ""), "", body]
        options.out.write_text("\n".join(report) + "\n", encoding="utf-8")
    print(json.dumps({"report": str(options.out), "failed": failed}))
    return 1 if failed else 0

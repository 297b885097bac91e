"""Everything that wants a real GPU, in one go, with a report: whole nets against the CPU, times by layer, CUDA graphs, PyTorch
where it is installed, and the tests. An emulator is refused: what runs there is in the tests already.

Each part runs in a process of its own, since an error on a GPU may leave its process without it, and the report is written
after each: a part that fails, crashes or has no time left says so, with what it found until then. Example::

    python -m benchmarks gpu-check --out gpu-check.md
    python -m benchmarks gpu-check --parts nets,speed --device cuda:1 --seconds 300
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import multiprocessing
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import vggnet as vgg
from vggnet.bench import profile
from vggnet.cli.bench import _table
from vggnet.run import Precision

from .measure import commit

ROOT = Path(__file__).resolve().parents[1]
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bf16")
# Largest relative L2 difference from the CPU's float32: sums of up to 25,088 terms in another order; factors of 11 bits; maps
# and weights of 8 bits, which each of 16 layers rounds; and gradients through ReLUs and pools whose winners flip at rounding.
TOLERANCES = {
    "float32": {"scores": 1e-5, "gradients": 3e-2},
    "tf32": {"scores": 1e-2, "gradients": 3e-1},
    "bf16": {"scores": 2 * 16 * 2.0**-8, "gradients": 7e-1},
}
CASES = [("forward", 1), ("forward", 64), ("training", 64)]  # direction, batch
PACKAGES = ("nvidia-cudnn-cu13", "nvidia-cublas", "nvidia-cuda-runtime", "nvidia-nccl-cu13", "torch", "numpy")
TIMED = 3.0  # seconds of passes in each case


class FailedCheckError(Exception):
    """A part found something wrong: what it has yielded tells."""


def machine(device: str, seconds: float) -> Iterator[str]:
    """The GPU, the driver, the libraries that pip installed, the commit."""
    facts = vgg.cuda.properties(device) | {"vggnet": vgg.__version__, "commit": commit()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            facts[package] = importlib.metadata.version(package)
    for name, value in facts.items():
        yield f"- {name}: {value}"


def nets(
    device: str,
    seconds: float,
    configs: Sequence[str] = ("A", "A-LRN", "D"),
    **shape: Any,
) -> Iterator[str]:
    """Scores and gradients of nets against the CPU's, in every precision; and two runs that must be equal."""
    yield "| net | precision | scores | gradients | repeats |"
    yield "|---|---|---:|---:|---|"
    wrong = False
    rng = np.random.default_rng(0)
    side = shape.get("input_size", 224)
    x = rng.standard_normal((2, side, side, 3), dtype=np.float32) * 60
    labels = rng.integers(1000, size=2)
    for config in configs:
        cpu = vgg.VGG(config, init="he", dropout=0.0, **shape)
        scores = cpu.forward(x).numpy()
        _, expected = cpu.loss_and_gradients(x, labels)
        for precision in PRECISIONS:
            net = vgg.VGG(config, init="he", dropout=0.0, device=device, precision=precision, **shape)
            got = net.forward(x).numpy()
            (_, grads), (_, again) = (net.loss_and_gradients(x, labels) for _ in range(2))
            differences = {
                "scores": relative(got, scores),
                "gradients": max(relative(grads[name].numpy(), expected[name].numpy()) for name in grads),
            }
            same = all(np.array_equal(grads[name].numpy(), again[name].numpy()) for name in grads)
            bad = [k for k, v in differences.items() if not v <= TOLERANCES[precision][k]]
            wrong = wrong or bool(bad) or not same
            shown = (f"{v:.1e}" + (" WRONG" if k in bad else "") for k, v in differences.items())
            yield f"| {config} | {precision} | {' | '.join(shown)} | {'equal' if same else 'DIFFERENT'} |"
    if wrong:
        raise FailedCheckError


def relative(got: Any, expected: Any) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def speed(device: str, seconds: float) -> Iterator[str]:
    """`vggnet bench` of net D: all totals, then each operation."""
    tables = []
    yield from (HEAD, RULE)
    for direction, batch in CASES:
        for precision in PRECISIONS:
            try:
                net = vgg.VGG("D", init="he", device=device, precision=precision)
                result = profile(net, batch, training=direction == "training", seconds=TIMED)
            except Exception as error:  # the other cases may go
                yield f"| {direction} | {batch} | {precision} | {error} |  |"
                continue
            yield row(direction, batch, precision, result["total"]["ms"])
            table = _table(result | {"batch": batch, "direction": direction})
            tables.append(f"\n**{direction}, batch {batch}, {precision}**\n\n```\n{table}\n```")
            del net
    yield from tables
    if len(tables) < len(CASES) * len(PRECISIONS):
        raise FailedCheckError


HEAD, RULE = "| direction | batch | precision | ms | images/s |", "|---|---:|---|---:|---:|"


def row(direction: str, batch: int, precision: str, ms: float) -> str:
    return f"| {direction} | {batch} | {precision} | {ms:.3f} | {1e3 * batch / ms:,.0f} |"


def graphs(device: str, seconds: float) -> Iterator[str]:
    """Forward passes of net D as CUDA graphs: the bits of the pass, and what is left of its time."""
    yield from ("| batch | precision | ms | ms as a graph | bits |", "|---:|---|---:|---:|---|")
    wrong = False
    for batch in (1, 8, 64):
        x = vgg.tensor(
            np.random.default_rng(0).standard_normal((batch, 224, 224, 3), dtype=np.float32), device=device
        )
        for precision in PRECISIONS:
            net = vgg.VGG("D", init="he", device=device, precision=precision)
            forward = functools.partial(net.forward, x)
            graph = vgg.cuda.Graph(forward, device)
            same = np.array_equal(graph().numpy(), forward().numpy())
            wrong = wrong or not same
            ms = " | ".join(f"{1e3 * queued(function, device):.3f}" for function in (forward, graph))
            yield f"| {batch} | {precision} | {ms} | {'equal' if same else 'DIFFERENT'} |"
            del net, forward, graph
    if wrong:
        raise FailedCheckError


def queued(function: Callable[[], Any], device: str, calls: int = 20) -> float:
    """The least seconds a call of some that are queued one after the other."""
    times = []
    for _ in range(5):
        begin = vgg.cuda.record(device)
        for _ in range(calls):
            function()
        times.append(vgg.cuda.elapsed(begin, vgg.cuda.record(device)) / calls)
    return min(times)


def peer(device: str, seconds: float) -> Iterator[str]:
    """PyTorch on the same net and batches: channels-last memory, cuDNN's own search, bfloat16 by autocast."""
    if importlib.util.find_spec("torch") is None:
        yield "PyTorch is not installed."
        return
    torch: Any = importlib.import_module("torch")
    if not torch.cuda.is_available():
        yield f"PyTorch {torch.__version__} sees no GPU."
        return
    torch.cuda.set_device(int(device.partition(":")[2] or 0))  # which events are recorded on
    torch.backends.cudnn.benchmark = True
    yield f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}\n"
    yield from (HEAD, RULE)
    for direction, batch in CASES:
        for precision in PRECISIONS:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
            net = torch_net(torch).to(device, memory_format=torch.channels_last)
            optimizer = torch.optim.SGD(net.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)
            x = torch.randn(batch, 3, 224, 224, device=device).to(memory_format=torch.channels_last)
            labels = torch.randint(1000, (batch,), device=device)
            narrow = torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16")
            training = direction == "training"
            step = functools.partial(torch_step, torch, net, optimizer, x, labels, narrow, training)
            yield row(direction, batch, precision, least(torch, step))


def torch_step(
    torch: Any, net: Any, optimizer: Any, x: Any, labels: Any, narrow: Any, training: bool
) -> None:
    if not training:
        with torch.no_grad(), narrow:
            net.eval()(x)
        return
    optimizer.zero_grad()
    with narrow:
        loss = torch.nn.functional.cross_entropy(net.train()(x), labels)
    loss.backward()
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


def least(torch: Any, step: Callable[[], None]) -> float:
    """The least ms of a step between two events, after two steps that are dropped: in these cuDNN searches."""
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - start < TIMED:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        step()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return min(times[2:])


def tests(device: str, seconds: float) -> Iterator[str]:
    """Those that use a CUDA device, which take the GPU where they would take an emulator; as far as the time goes."""
    command = [sys.executable, "-m", "pytest", "-q", "-rfEs", "--tb=line", "-k", "cuda", "tests"]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, _ = run.communicate(timeout=max(1, seconds - 30))
    except subprocess.TimeoutExpired:
        run.send_signal(signal.SIGINT)  # for which pytest stops and tells what it has
        said, _ = run.communicate(timeout=20)
        yield "The time was up before all had run.\n"
    yield "```\n" + "\n".join(said.splitlines()[-100:]) + "\n```"
    if run.returncode:
        raise FailedCheckError


Part = Callable[[str, float], Iterator[str]]
PARTS: dict[str, Part] = {
    "machine": machine,
    "nets": nets,
    "speed": speed,
    "graphs": graphs,
    "peer": peer,
    "tests": tests,
}


def run_part(part: Part, device: str, seconds: float) -> tuple[str, str]:
    """What a part yields in a process of its own, and how it failed, or ""."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.md"
        path.touch()
        process = multiprocessing.get_context("spawn").Process(
            target=_write, args=(path, part, device, seconds)
        )
        process.start()
        process.join(seconds)
        late = process.is_alive()
        if late:
            process.kill()
            process.join()
        failure = f"stopped after {seconds:.0f} s" if late else ""
        if process.exitcode and not late:
            failure = "FAILED" if process.exitcode == 1 else f"FAILED with status {process.exitcode}"
        return path.read_text(encoding="utf-8"), failure


def _write(path: Path, part: Part, device: str, seconds: float) -> None:
    with path.open("w", encoding="utf-8") as file:
        try:
            for line in part(device, seconds):
                print(line, file=file, flush=True)
        except FailedCheckError:
            sys.exit(1)
        except Exception:
            print(f"\n```\n{traceback.format_exc()}```", file=file, flush=True)
            sys.exit(1)


def check(parts: dict[str, Part], device: str, seconds: float, out: Path) -> list[str]:
    """Write the report; -> the parts that failed."""
    report = ["# vggnet on a GPU", "", f"`python -m benchmarks gpu-check --parts {','.join(parts)}`"]
    end, failed = time.monotonic() + seconds, []
    for name, part in parts.items():
        begin = time.monotonic()
        print(f"{name} ...", end=" ", flush=True)
        body, failure = run_part(part, device, end - begin) if begin < end else ("", "no time was left")
        print(f"{failure or 'done'}, {time.monotonic() - begin:.0f} s", flush=True)
        failed += [name] if failure else []
        report += ["", f"## {name}" + (f": {failure}" if failure else ""), "", body.rstrip()]
        out.write_text("\n".join(report) + "\n", encoding="utf-8")
    return failed


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu-check", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--parts", default=",".join(PARTS), help=f"with commas between (default: {','.join(PARTS)})"
    )
    parser.add_argument(
        "--seconds", type=float, default=600, help="that all parts may take, in this order (default: 600)"
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
    failed = check({name: PARTS[name] for name in parts}, options.device, options.seconds, options.out)
    print(json.dumps({"report": str(options.out), "failed": failed}))
    return 1 if failed else 0

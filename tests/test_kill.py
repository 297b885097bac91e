"""The paper's chain of trainings, killed again and again and resumed, ends as it ends undisturbed: bit for bit.

On 200 images in ILSVRC's format (tar files and devkit), with scale jittering and images read ahead in threads. Processes
are killed from outside at random moments, and, by a driver that wraps what the package calls, at chosen places: between two
micro-batches, and at each step of writing a checkpoint.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from vggnet.checkpoint import Checkpoints, read_tensors
from vggnet.train import History

import ilsvrc_tree
from helpers import ENVIRONMENT

# Kills itself when something is called for the n-th time: `vggnet` with other arguments otherwise.
DRIVER = """
import os, signal, sys
from pathlib import Path
from vggnet import checkpoint, cli, ops

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def at(owner, name, count, before=lambda *a: None, after=lambda *a: None):
    original, calls = getattr(owner, name), []
    def wrapped(*args, **options):
        calls.append(None)
        if len(calls) == count:
            before(*args)
        result = original(*args, **options)
        if len(calls) == count:
            after(*args)
        return result
    setattr(owner, name, wrapped)

def cut(contents, path, *_):
    os.truncate(path, os.path.getsize(path) // 2)
    die()

place, count = sys.argv[1], int(sys.argv[2])
stop = lambda *_: die()
{
    "micro-batch": lambda: at(ops, "cross_entropy", count, before=stop),  # the gradients of some parts are there
    "update": lambda: at(ops, "sgd_", count, before=stop),  # the weights have moved, the biases have not
    "half a file": lambda: at(checkpoint, "save_file", count, after=cut),
    "before the disk": lambda: at(checkpoint, "_sync", count, before=stop),
    "before the rename": lambda: at(os, "replace", count, before=stop),
    "after the rename": lambda: at(os, "replace", count, after=stop),
    "before old ones go": lambda: at(Path, "unlink", count, before=stop),
}[place]()
sys.exit(cli.main(sys.argv[3:]))
"""
TIMES = {"seconds", "images_per_second"}


def command(tree, out, net, stages, batch, iterations):
    return [
        *("train", "--data", tree, "--paper", net, "--stages", ",".join(stages), "--out", out),
        *("--input-size", "32", "--scales", "36,44,56", "--fc-width", "16", "--seed", "4", "--lr", "0.001"),
        *("--batch", str(batch), "--micro-batch", "20", "--iterations", str(iterations)),
        *("--checkpoint-every", "1", "--workers", "3", "--images-per-second", "100"),
    ]


def start(arguments, *, driver=()):
    program = ["-c", DRIVER, *map(str, driver)] if driver else ["-m", "vggnet"]
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def go_on(first, out):
    """The arguments with which a user would go on: the first command's until there is something to resume."""
    begun = (out / "stages.json").exists()
    return ["train", "--resume", str(out)] if begun else first


def files(out):
    return {str(path): path.stat().st_mtime_ns for path in out.rglob("*") if path.exists()}


def killed_at_random(first, out, rng):
    """Start, wait until it has written something, then a random moment, and kill it. Whether it was still alive."""
    before = files(out)
    process = start(go_on(first, out))
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if files(out) != before:
                break
        except FileNotFoundError:  # it went while we looked: so something is being written
            break
        time.sleep(0.01)
    time.sleep(rng.uniform(0.0, 0.8))
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def kill(first, out, place, count):
    """Start with the driver; it must die where it was told to."""
    process = start(go_on(first, out), driver=(place, count))
    _, text = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, (place, text)


def finish(first, out):
    process = start(go_on(first, out))
    _, text = process.communicate(timeout=300)
    assert process.returncode == 0, text


def timeless(run):
    """What a checkpoint says of its run, but for the times."""
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in run["rows"]]
    return {**run, "state": {**run["state"], "seconds": 0.0}, "rows": rows}


def assert_same_chain(a, b, stages):
    """The same models, and in each stage's newest checkpoint the same weights, velocities, state and losses."""
    for stage in stages:
        models = [(out / stage / "model.safetensors").read_bytes() for out in (a, b)]
        assert models[0] == models[1], stage
        newest = [Checkpoints(out / stage).paths()[0] for out in (a, b)]
        assert newest[0].name == newest[1].name
        (ours, about), (theirs, about_theirs) = map(read_tensors, newest)
        assert ours.keys() == theirs.keys()
        assert any(name.startswith("velocity/") for name in ours)
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name], err_msg=f"{stage}: {name}")
        assert timeless(json.loads(about["run"])) == timeless(json.loads(about_theirs["run"]))
        rows = [
            [replace(r, seconds=0.0, images_per_second=0.0) for r in History.read(o / stage).rows]
            for o in (a, b)
        ]
        assert rows[0] == rows[1]
        assert all(np.isfinite(row.train_loss) and row.val_top1 is not None for row in rows[0])


def chain(tmp_path, *arguments):
    """An undisturbed chain; where another may go; and its command."""
    tree = tmp_path / "imagenet"
    ilsvrc_tree.make(tree, classes=4, train=40, val=10, sizes=(40, 72))
    straight, out = tmp_path / "straight", tmp_path / "killed"
    finish(command(tree, straight, *arguments), straight)
    out.mkdir()
    return straight, out, command(tree, out, *arguments)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_killed_chain_goes_on_bit_for_bit(tmp_path):
    stages = ("A", "256", "jitter")
    straight, out, first = chain(tmp_path, "B", stages, 40, 2)
    rng = np.random.default_rng()
    killed_at_random(first, out, rng)
    kill(first, out, "micro-batch", 3)
    kill(first, out, "half a file", 3)
    kill(first, out, "update", 3)
    killed_at_random(first, out, rng)
    finish(first, out)
    assert_same_chain(straight, out, stages)


@pytest.mark.nightly
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_chain_of_net_d_that_is_killed_all_the_time(tmp_path):
    stages = ("A", "256", "384", "jitter")
    straight, out, first = chain(tmp_path, "D", stages, 50, 9)
    seed = int(np.random.default_rng().integers(1 << 32))
    rng = np.random.default_rng(seed)
    places = [
        "micro-batch",
        "update",
        "half a file",
        "before the disk",
        "before the rename",
        "after the rename",
    ]
    died = 0
    for _ in range(60):
        if (out / "jitter" / "model.safetensors").exists():
            break
        if rng.random() < 0.5:
            died += killed_at_random(first, out, rng)
        else:
            place = rng.choice(places)
            process = start(go_on(first, out), driver=(place, int(rng.integers(1, 12))))
            process.communicate(timeout=600)
            died += process.returncode == -signal.SIGKILL
    assert died >= 10, seed
    finish(first, out)
    assert_same_chain(straight, out, stages)

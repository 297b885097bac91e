"""``mpirun -n N vggnet train``: what one process with N devices trains, bit for bit, also when it is killed or stopped, and
goes on."""

import os
import re
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from vggnet.checkpoint import Checkpoints, read_tensors
from vggnet.history import History

import launcher

pytestmark = launcher.needs_mpi

# The command, on narrow nets; each process leaves its number in the first argument, a folder.
PROGRAM = (
    launcher.NARROW
    + """
import os, sys
from pathlib import Path
from vggnet import cli
Path(sys.argv[1], "pid." + os.environ.get("OMPI_COMM_WORLD_RANK", "0")).write_text(str(os.getpid()))
sys.exit(cli.main(sys.argv[2:]))
"""
)


def command(images, out, batch, *more):
    return [
        *(
            "train",
            "--data",
            images,
            "--recipe",
            "quickstart",
            "--config",
            "A",
            "--input-size",
            "32",
            "--in-channels",
            "1",
        ),
        *("--fc-width", "16", "--init", "xavier", "--seed", "4", "--mean", "70", "--rgb-shift", "none"),
        *("--scale", "36", "--batch", str(batch), "--checkpoint-every", "1", "--out", out, *more),
    ]


def go_on(first, out):
    """What a user would type: the first command until there is something to resume."""
    return ["train", "--resume", out] if Checkpoints(out).paths() else first


def train(n, out, arguments, **options):
    """To its end; status and output."""
    return launcher.run(n, "-c", PROGRAM, out, *arguments, **options)


def begin(n, out, arguments):
    """Start it, and wait until all processes run; it, and their ids by rank."""
    for path in out.glob("pid.*"):
        path.unlink()
    process = launcher.start(n, "-c", PROGRAM, out, *arguments)
    while True:
        numbers = [path.read_text() for path in sorted(out.glob("pid.*"))]
        if process.poll() is not None or sum(map(bool, numbers)) == n:  # a file appears before it is written
            return process, [int(number) for number in numbers if number]
        time.sleep(0.02)


def assert_same(a, b):
    """Models, newest checkpoints, and all of the histories but times."""
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    newest = [Checkpoints(out).paths()[0] for out in (a, b)]
    assert newest[0].name == newest[1].name
    (ours, _), (theirs, _) = map(read_tensors, newest)
    assert ours.keys() == theirs.keys() and any(name.startswith("velocity/") for name in ours)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    rows = [
        [replace(r, seconds=0.0, images_per_second=0.0) for r in History.read(out).rows] for out in (a, b)
    ]
    assert rows[0] == rows[1]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """200 training images, in a folder per class, and 20 to validate."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(5)
    for i in range(220):
        path = root / ("train" if i < 200 else "val") / str(i % 4) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (36, 36 + i % 5), np.uint8) // (1 + i % 4)).save(path)
    return root


@pytest.fixture(scope="module")
def straight(tmp_path_factory, images):
    """An undisturbed run of two processes: two epochs of 200 images, in batches of 36, the last of 20."""
    out = tmp_path_factory.mktemp("straight")
    begin = time.monotonic()
    status, output = train(2, out, command(images, out, 36, "--epochs", "2"))
    assert status == 0, output
    (out / "seconds").write_text(str(time.monotonic() - begin))
    return out


@pytest.mark.parametrize("n, batch", [(2, 36), (3, 66)])
def test_processes_train_what_devices_of_one_process_do_bit_for_bit(tmp_path, images, straight, n, batch):
    """Also where the last batch, 2 of 200 images, is smaller than the number of processes."""
    ours, theirs = straight, tmp_path / "devices"
    if n == 3:
        ours = tmp_path / "ours"
        ours.mkdir()
        status, output = train(n, ours, command(images, ours, batch, "--epochs", "2"))
        assert status == 0, output
    theirs.mkdir()
    devices = ",".join(f"cpu:{i}" for i in range(n))
    status, output = train(1, theirs, command(images, theirs, batch, "--epochs", "2", "--devices", devices))
    assert status == 0, output
    assert_same(ours, theirs)
    assert output.count("Wrote ") == 1


def kill_at_random(straight, first, out, n, rng):
    """Start, and kill a random process at a random moment; whether that ended the run."""
    process, pids = begin(n, out, go_on(first, out))
    time.sleep(rng.uniform(0, float((straight / "seconds").read_text())))
    rank = int(rng.integers(n))
    alive = process.poll() is None
    if alive:
        try:
            os.kill(pids[rank], signal.SIGKILL)
        except ProcessLookupError:
            alive = False
    output, _ = process.communicate(timeout=60)
    assert not alive or process.returncode != 0 or "Wrote" in output, output
    if alive and process.returncode:
        assert re.search(rf"rank {rank} (has died|with PID)", output), output
    return alive and process.returncode != 0


def end_and_compare(straight, out, first, n=2):
    status, output = train(n, out, go_on(first, out))
    assert status == 0, output
    assert_same(straight, out)


def test_a_killed_rank_ends_the_run_which_goes_on_bit_for_bit(tmp_path, images, straight):
    rng = np.random.default_rng()
    first = command(images, tmp_path, 36, "--epochs", "2")
    kill_at_random(straight, first, tmp_path, 2, rng)
    end_and_compare(straight, tmp_path, first)


@pytest.mark.nightly
def test_ranks_that_are_killed_50_times(tmp_path, images, straight):
    seed = int(np.random.default_rng().integers(1 << 32))
    rng = np.random.default_rng(seed)
    died = runs = 0
    while died < 50:
        out = tmp_path / str(runs)
        out.mkdir()
        first = command(images, out, 36, "--epochs", "2")
        for _ in range(5):
            if not (out / "model.safetensors").exists():
                died += kill_at_random(straight, first, out, 2, rng)
        end_and_compare(straight, out, first)
        runs += 1
        assert runs < 100, seed


@pytest.mark.parametrize("number, rank", [(signal.SIGTERM, 1), (signal.SIGUSR1, None)])
def test_a_signal_stops_all_ranks_after_the_same_update(tmp_path, images, straight, number, rank):
    """To one rank, or to mpirun, which passes SIGUSR1 on; then the run goes on, with 2 ranks or with 3."""
    first = command(images, tmp_path, 36, "--epochs", "2")
    process, pids = begin(2, tmp_path, first)
    while process.poll() is None and not Checkpoints(tmp_path).paths():
        time.sleep(0.01)
    os.kill(process.pid if rank is None else pids[rank], number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and f"vggnet train --resume {tmp_path}" in output, output
    if number == signal.SIGUSR1:
        end_and_compare(straight, tmp_path, first)
        return
    status, output = train(3, tmp_path, go_on(first, tmp_path))
    assert status == 0, output
    losses = [[row.train_loss for row in History.read(out).rows] for out in (straight, tmp_path)]
    np.testing.assert_allclose(*losses, rtol=1e-3)  # equal to rounding: see test_parallel.py for the band

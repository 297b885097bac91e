"""Training that a signal, a kill or a limit ended goes on bit for bit, or says why it can't."""

import dataclasses
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from vggnet import ops
from vggnet.data import ArrayDataset
from vggnet.train import Callback, fit

from test_train import (
    CLASSES,
    SMALL,
    Signal,
    assert_equal_weights,
    net,
    patterns,
    same_rows,
    undisturbed,
)


@pytest.fixture
def straight():
    return undisturbed()


@pytest.mark.parametrize("stop", [1, 4, 6, 11])
def test_ctrl_c_saves_and_the_run_goes_on_bit_for_bit(tmp_path, straight, capfd, stop):
    data = patterns(36)
    with pytest.raises(KeyboardInterrupt):
        fit(net(), data, recipe=SMALL, checkpoint=tmp_path, callbacks=[Signal(stop, signal.SIGINT)])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    said = capfd.readouterr().err
    assert f"after iteration {stop}; saved " in said
    assert "resume=True" in said
    model = net(seed=99)  # the weights come from the checkpoint
    history = fit(model, data, recipe=SMALL, checkpoint=tmp_path, resume=True, progress=False)
    assert_equal_weights(model, straight[0])
    same_rows(history, straight[1])
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 3


def test_without_checkpoints_sigterm_does_what_it_did():
    handler = signal.getsignal(signal.SIGTERM)
    seen = []

    class Look(Callback):
        def on_iteration(self, model, iteration, loss, error):
            seen.append(signal.getsignal(signal.SIGTERM))

    fit(
        net(),
        patterns(16),
        recipe=dataclasses.replace(SMALL, iterations=1),
        progress=False,
        callbacks=[Look()],
    )
    assert seen == [handler]


CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_train import SMALL, Callback, Signal, fit, net, patterns
stop, number, every, saved = map(int, sys.argv[3:])
class Written(Callback):  # a thread writes it
    def on_iteration(self, model, iteration, loss, error):
        while saved < stop == iteration and not Path(sys.argv[2], f"checkpoint-{saved:010d}.safetensors").exists():
            time.sleep(0.01)
fit(net(), patterns(36), recipe=SMALL, checkpoint=sys.argv[2], callbacks=[Written(), Signal(stop, number)], keep=3,
    checkpoint_every=every)
"""


@pytest.mark.parametrize(
    ("stop", "number", "every", "saved"),
    [
        (6, signal.SIGKILL, 100, 4),
        (7, signal.SIGKILL, 3, 6),
        (10, signal.SIGINT, 100, 10),
        (9, signal.SIGTERM, 100, 9),
    ],
)
def test_a_killed_or_interrupted_process_goes_on_bit_for_bit(tmp_path, straight, stop, number, every, saved):
    command = [
        sys.executable,
        "-c",
        CHILD,
        str(Path(__file__).parent),
        str(tmp_path),
        str(stop),
        str(int(number)),
        str(every),
        str(saved),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if number == signal.SIGTERM else -number), done.stderr
    newest = max(path.name for path in tmp_path.glob("checkpoint-*"))
    assert newest == f"checkpoint-{saved:010d}.safetensors"
    model = net(seed=99)
    history = fit(model, patterns(36), recipe=SMALL, checkpoint=tmp_path, resume=True, progress=False, keep=3)
    assert_equal_weights(model, straight[0])
    same_rows(history, straight[1])


def test_a_damaged_checkpoint_costs_an_epoch_not_the_run(tmp_path, straight):
    fit(net(), patterns(36), recipe=dataclasses.replace(SMALL, epochs=2), checkpoint=tmp_path, progress=False)
    newest = max(tmp_path.glob("checkpoint-*"))
    newest.write_bytes(newest.read_bytes()[:1000])
    model = net()
    history = fit(model, patterns(36), recipe=SMALL, checkpoint=tmp_path, resume=True, progress=False)
    assert_equal_weights(model, straight[0])
    same_rows(history, straight[1])


def test_limits_can_be_raised_and_the_row_of_a_cut_epoch_is_made_anew(tmp_path, straight):
    data = patterns(36)
    for limits, rows in (
        ({"iterations": 6}, 2),
        ({"iterations": 6}, 2),
        ({"epochs": 2}, 2),
        ({"epochs": 3}, 3),
    ):
        model = net()
        recipe = dataclasses.replace(SMALL, **limits)
        history = fit(model, data, recipe=recipe, checkpoint=tmp_path, resume=True, progress=False)
        assert len(history) == rows
        assert history.stopped_by == next(iter(limits))
    assert_equal_weights(model, straight[0])
    same_rows(history, straight[1])


@pytest.mark.parametrize("limit", [{"iterations": 6}, {"iterations": 8}, {"epochs": 2}], ids=str)
def test_a_run_that_was_stopped_after_its_last_update_still_gets_its_last_row(tmp_path, limit):
    recipe, data = dataclasses.replace(SMALL, **limit), patterns(36)
    straight, model = net(), net(seed=99)
    expected = fit(straight, data, recipe=recipe, progress=False)
    last = [Signal(limit.get("iterations", 8), signal.SIGINT)]
    with pytest.raises(KeyboardInterrupt):
        fit(net(), data, recipe=recipe, checkpoint=tmp_path, callbacks=last, progress=False)
    history = fit(model, data, recipe=recipe, checkpoint=tmp_path, resume=True, progress=False)
    same_rows(history, expected)
    assert history.stopped_by == expected.stopped_by == next(iter(limit))
    assert_equal_weights(model, straight)


def test_a_finished_run_is_not_trained_further(tmp_path, straight):
    for _ in range(2):
        model = net()
        history = fit(model, patterns(36), recipe=SMALL, checkpoint=tmp_path, resume=True, progress=False)
        assert_equal_weights(model, straight[0])
        assert len(history) == 3
        assert history.stopped_by == "epochs"


def test_another_run_in_the_directory_is_never_mixed_in(tmp_path):
    data = patterns(12)
    recipe = dataclasses.replace(SMALL, epochs=1)
    fit(net(), data, recipe=recipe, checkpoint=tmp_path, progress=False)
    with pytest.raises(ValueError, match="holds the checkpoints of a run; pass resume=True"):
        fit(net(), data, recipe=recipe, checkpoint=tmp_path, progress=False)
    for name, value in (
        ("lr", 0.5),
        ("seed", 8),
        ("batch", 4),
        ("scale", 36),
        ("momentum", 0.5),
        ("micro_batch", 2),
    ):
        with pytest.raises(ValueError, match=f"recipe.{name} is "):
            fit(
                net(),
                data,
                recipe=dataclasses.replace(recipe, **{name: value}),
                checkpoint=tmp_path,
                resume=True,
            )
    with pytest.raises(ValueError, match=r"model.dropout is 0.1, but the run in .* has 0.5"):
        fit(net(dropout=0.1), data, recipe=recipe, checkpoint=tmp_path, resume=True)
    with pytest.raises(ValueError, match="training images is "):
        fit(net(), patterns(16), recipe=recipe, checkpoint=tmp_path, resume=True)
    other = ArrayDataset([data.image(i) for i in range(12)], np.roll(data.labels, 1), CLASSES)
    with pytest.raises(ValueError, match="training labels' checksum is "):
        fit(net(), other, recipe=recipe, checkpoint=tmp_path, resume=True)
    with pytest.raises(ValueError, match="resume=True needs checkpoint="):
        fit(net(), data, recipe=recipe, resume=True)
    with pytest.raises(ValueError, match="checkpoint_every is 0"):
        fit(net(), data, recipe=recipe, checkpoint=tmp_path, checkpoint_every=0)


@pytest.mark.parametrize(
    ("number", "stop"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_within_an_update_waits_for_its_end(tmp_path, monkeypatch, straight, number, stop):
    data, original = patterns(36), ops.sgd_
    calls = []

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == 10:  # weights and biases are two calls: in the middle of update 5
            signal.raise_signal(number)
        original(*arguments)

    monkeypatch.setattr(ops, "sgd_", interrupted)
    with pytest.raises(stop):
        fit(net(), data, recipe=SMALL, checkpoint=tmp_path, progress=False)
    assert len(calls) == 10
    monkeypatch.undo()
    model = net()
    fit(model, data, recipe=SMALL, checkpoint=tmp_path, resume=True, progress=False)
    assert_equal_weights(model, straight[0])


def test_fit_runs_in_a_thread_and_leaves_other_handlers_alone(straight):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(fit(net(), patterns(36), recipe=SMALL, progress=False))
    )
    thread.start()
    thread.join()
    same_rows(results[0], straight[1])
    handler = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        mine = signal.getsignal(signal.SIGINT)
        fit(net(), patterns(8), recipe=dataclasses.replace(SMALL, epochs=1), progress=False)
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, handler)

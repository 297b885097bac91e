"""Training on several devices: the update of one device, to rounding; on every device the same bits, every time."""

import dataclasses
import json
import math
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import vggnet as vgg
from vggnet import _C, cli, configs, ops, parallel, train
from vggnet.checkpoint import Checkpoints, read_tensors
from vggnet.data.loader import share
from vggnet.rng import Rng, permutation, rows_of
from vggnet.train import Callback, Recipe, fit, trainer, writer

from test_train import (
    CLASSES,
    SMALL,
    Signal,
    WithBroken,
    assert_equal_weights,
    manual_batch,
    net,
    patterns,
    same_rows,
    square,
    weights,
)

EPS = np.finfo(np.float32).eps


def cpus(n):
    return [f"cpu:{i}" for i in range(n)]


@pytest.fixture(autouse=True)
def no_threads_left():
    """A run that is over has no threads, and the devices have the shares of before."""
    before = [_C.get_num_threads(device) for device in cpus(4)]
    yield
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("vggnet-")]
    assert not left
    assert [_C.get_num_threads(device) for device in cpus(4)] == before


@pytest.fixture(scope="module", autouse=True)
def narrow_nets():
    """A few channels instead of hundreds: nothing here depends on them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, text in configs.CONFIGS.items():
            for wide, few in (("64", "4"), ("128", "6"), ("256", "8"), ("512", "10")):
                text = text.replace(wide, few)
            patch.setitem(configs.CONFIGS, name, text)
        yield


@pytest.fixture
def small_buckets(monkeypatch):
    """So that small nets have several."""
    monkeypatch.setattr(
        parallel.replicas, "plan_buckets", lambda p, layers: parallel.plan_buckets(p, layers, 2000)
    )


class Look(Callback):
    """Calls a function after an update."""

    def __init__(self, function):
        self.function = function

    def on_iteration(self, model, iteration, loss, error):
        self.function(iteration)


def watch(monkeypatch):
    """The trainer of the next run, in a list."""
    made, original = [], trainer.Trainer.__init__

    def init(self, *arguments, **options):
        original(self, *arguments, **options)
        made.append(self)

    monkeypatch.setattr(trainer.Trainer, "__init__", init)
    return made


# ---- buckets


@pytest.mark.parametrize(("config", "layers"), [("A", None), ("D", None), ("D", {"conv3_1", "fc6", "fc8"})])
@pytest.mark.parametrize("at_least", [1, 30_000, 10**9])
def test_buckets_are_whole_layers_in_the_order_of_backward(config, layers, at_least):
    model = vgg.VGG(config, num_classes=4, input_size=32, fc_width=8, init=None)
    learning = [layer.name for layer in model.layers if layer.parameter_shapes]
    learning = [name for name in learning if layers is None or name in layers]
    buckets = parallel.plan_buckets(model.parameters, learning, at_least)
    expected = [f"{layer}.{kind}" for layer in reversed(learning) for kind in ("weight", "bias")]
    assert [name for bucket in buckets for name in bucket] == expected
    sizes = [sum(model.parameters[name].nbytes for name in bucket) for bucket in buckets]
    assert all(size >= at_least for size in sizes[:-1])
    for bucket, size in zip(buckets, sizes, strict=True):  # none is larger than it must be
        assert size - sum(model.parameters[name].nbytes for name in bucket[-2:]) < at_least


# ---- the update


@pytest.mark.parametrize(("config", "micro_batch"), [("A", None), ("A", 2), ("D", None)])
def test_first_gradients_are_the_mean_of_the_parts(monkeypatch, small_buckets, config, micro_batch):
    """Bit for bit the mean, weighted by images, of what one device says of each part (itself a batch with the same keys); and
    that is within rounding of what one device says of the whole batch."""
    n = 13
    data = square(n)
    recipe = Recipe(
        batch=n, micro_batch=micro_batch, lr=1e-3, iterations=1, scale=32, rgb_shift=None, holdout=0, seed=3
    )
    arguments = {
        "num_classes": 4,
        "input_size": 32,
        "in_channels": 1,
        "fc_width": 32,
        "init": "xavier",
        "seed": 1,
    }
    model = vgg.VGG(config, mean=[120.0], classes=CLASSES, **arguments)
    images = permutation(recipe.seed, 0, n)

    def gradients(part):
        ids = images[part.start : part.stop]
        total = None
        for start in range(0, len(ids), micro_batch or n):
            some = ids[start : start + (micro_batch or n)]
            x, rng = manual_batch(data, model, recipe, 0, some), Rng(3, rows_of(0, some))
            options = {} if total is None else {"grads": total, "accumulate": True}
            _, total = model.loss_and_gradients(x, data.labels[some], rng=rng, normalizer=len(ids), **options)
        return {name: g.numpy().astype(np.float64) for name, g in total.items()}

    whole = gradients(range(n))
    magnitude = dict.fromkeys(whole, 0.0)  # of the terms that are summed: the images' own gradients
    for i in range(n):
        for name, g in gradients(range(i, i + 1)).items():
            magnitude[name] = magnitude[name] + np.abs(g) / n
    for devices in (2, 3, 4):
        made = watch(monkeypatch)
        copy = vgg.VGG(config, mean=[120.0], classes=CLASSES, **arguments)
        fit(copy, data, recipe=recipe, devices=cpus(devices), progress=False)
        parts = [share(n, r, devices) for r in range(devices)]
        sums = [(len(part), gradients(part)) for part in parts]
        for name, g in made[-1].replicas.first.grads.items():
            mean = np.zeros(g.shape)
            for count, own in sums:
                mean += count * own[name]
            np.testing.assert_array_equal(g.numpy(), (mean / n).astype(np.float32), err_msg=name)
            # Rounding of each layer on the way: F(6, 3)'s 256 units of what is summed (tests/tolerance.py) at most.
            layers = sum(layer.kind in ("conv", "linear") for layer in model.layers)
            bound = 256 * layers * EPS * np.linalg.norm(magnitude[name])
            assert np.linalg.norm(g.numpy() - whole[name]) <= bound, name


def test_200_losses_are_in_the_band_of_one_device():
    """Of runs whose first weights were moved by one unit in the last place: as far from each other as these are."""
    data = patterns(50)  # batches of 9, of 5 at the end of each epoch
    recipe = Recipe(
        batch=9, lr=0.003, epochs=None, iterations=200, scale=(32, 36), rgb_shift="deviation", holdout=0
    )

    def losses(devices=None, moved=None):
        model, found = net(init="he"), []
        if moved is not None:
            rng = np.random.default_rng(moved)
            for p in model.parameters.values():
                p.copy_(np.nextafter(p.numpy(), np.float32(rng.choice([-1, 1]) * np.inf)))

        class Note(Callback):
            def on_iteration(self, model, iteration, loss, error):
                found.append(loss)

        fit(model, data, recipe=recipe, devices=devices, callbacks=[Note()], progress=False)
        return np.convolve(found, np.ones(20) / 20, "valid")

    one = losses()
    assert one[-1] < 0.9 * one[0]
    band = np.array([np.abs(losses(moved=seed) - one).max() for seed in range(4)])
    for n in (2, 3, 4):
        assert np.abs(losses(cpus(n)) - one).max() <= 3 * band.max(), n


def test_a_run_on_several_devices_repeats_bit_for_bit_and_every_replica_is_the_same(
    monkeypatch, small_buckets
):
    models = []
    for threads in (1, 4):
        made, equal = watch(monkeypatch), []

        def compare(iteration, made=made, equal=equal):
            first, *others = made[-1].replicas.local
            equal.append(len(others))
            for replica in others:
                for name, p in replica.model.parameters.items():
                    np.testing.assert_array_equal(p.numpy(), first.model.parameters[name].numpy())
                for name, v in replica.velocities.items():
                    np.testing.assert_array_equal(v.numpy(), first.velocities[name].numpy())

        before = _C.get_num_threads()
        _C.set_num_threads(threads)
        model = net()
        recipe = dataclasses.replace(SMALL, epochs=1, freeze=("conv1_1",), lr_multipliers={"fc8": 10})
        fit(model, patterns(36), recipe=recipe, devices=cpus(3), callbacks=[Look(compare)], progress=False)
        _C.set_num_threads(before)
        assert equal == [2] * 4
        models.append(model)
    assert_equal_weights(*models)


def test_devices_share_the_threads(monkeypatch, threads):
    threads(5)
    seen = []
    recipe = dataclasses.replace(SMALL, iterations=1)
    look = Look(lambda iteration: seen.extend(_C.get_num_threads(device) for device in cpus(3)))
    fit(net(), patterns(16), recipe=recipe, devices=cpus(2), callbacks=[look], progress=False)
    assert seen == [2, 2, 5]


def test_parts_without_images_and_a_broken_image(caplog):
    """Batches of 4 on three devices; one batch lost its second image, and the last one has one image. Each image goes where it
    would have gone, and one device makes the same updates to rounding."""
    broken = int(permutation(0, 0, 104)[1])
    data = WithBroken(patterns(104), {broken})
    keep = [i for i in permutation(0, 0, 104)[:9] if i != broken]
    recipe = Recipe(batch=4, lr=1e-4, epochs=1, scale=34, rgb_shift=None, holdout=0)
    data = WithBroken(patterns(104), {broken})
    for limit in (1, 26):
        one, three = net(dropout=0.0), net(dropout=0.0)
        before = weights(one)
        changed = dataclasses.replace(recipe, iterations=limit)
        histories = [
            fit(model, data, recipe=changed, devices=devices, progress=False)
            for model, devices in ((one, None), (three, cpus(3)))
        ]
        losses = [history[0].train_loss for history in histories]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        for name, p in one.parameters.items():
            moved = p.numpy() - before[name]
            difference = three.parameters[name].numpy() - p.numpy()
            assert np.linalg.norm(difference) <= 1e-2 * np.linalg.norm(moved), (
                name
            )  # a ReLU that flips moves 1e-3
    assert len(keep) == 8 and f"file {broken}: broken" in caplog.text
    model = net()
    tiny = dataclasses.replace(recipe, batch=2, iterations=3)
    fit(model, patterns(5), recipe=tiny, devices=cpus(4), progress=False)  # 1, 1, 0, 0 and at last 1, 0, 0, 0
    assert all(np.isfinite(p.numpy()).all() for p in model.parameters.values())


# ---- stopping and going on


@pytest.fixture(scope="module")
def straight():
    """A run on two devices that nothing disturbs."""
    model = net()
    return model, fit(model, patterns(36), recipe=SMALL, devices=cpus(2), progress=False)


def test_a_signal_waits_for_the_end_of_the_step_and_the_run_goes_on_bit_for_bit(
    tmp_path, monkeypatch, straight
):
    data, original = patterns(36), ops.cross_entropy
    calls = []

    def interrupted(*arguments, **options):
        calls.append(None)
        if len(calls) == 2 * 6 + 1:  # two replicas: in the middle of update 7
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **options)

    monkeypatch.setattr(ops, "cross_entropy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(net(), data, recipe=SMALL, devices=cpus(2), checkpoint=tmp_path, progress=False)
    monkeypatch.undo()
    assert Checkpoints(tmp_path).paths()[0].name == "checkpoint-0000000007.safetensors"
    model, go_on = net(seed=99), {"checkpoint": tmp_path, "resume": True, "progress": False}
    history = fit(model, data, recipe=SMALL, devices=cpus(2), **go_on)
    assert_equal_weights(model, straight[0])
    same_rows(history, straight[1])


def test_another_number_of_devices_goes_on_to_rounding(tmp_path, caplog, straight):
    data, stop = patterns(36), [Signal(11, signal.SIGINT)]
    with pytest.raises(KeyboardInterrupt):
        fit(net(), data, recipe=SMALL, devices=cpus(2), checkpoint=tmp_path, callbacks=stop, progress=False)
    model = net(seed=99)
    with caplog.at_level("INFO", "vggnet"):
        fit(model, data, recipe=SMALL, devices=cpus(3), checkpoint=tmp_path, resume=True, progress=False)
    assert "it was trained on 2 devices, now on 3" in caplog.text
    for name, p in straight[0].parameters.items():
        scale = np.linalg.norm(p.numpy())
        assert np.linalg.norm(model.parameters[name].numpy() - p.numpy()) <= 1e-4 * scale, name


# ---- when something is wrong


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        (["cpu:0", "cpu:1", "cpu"], "expected each of them once"),
        ([], r"devices is \[\]; expected a list of at least one"),
        ("cpu:1", "devices is 'cpu:1'; expected a list"),
        (["cpu:0", "gpu:0"], 'device is "gpu:0"'),
        (["cpu:1", "cpu:0"], "the model is on cpu; expected it on the first"),
    ],
)
def test_wrong_devices_are_named(devices, words):
    with pytest.raises(ValueError, match=words):
        fit(net(), patterns(8), recipe=SMALL, devices=devices)


def test_devices_of_two_kinds_are_refused(monkeypatch):
    class Tensor:
        def __init__(self, device):
            self.device = device

    monkeypatch.setattr(_C, "empty", lambda shape, device: Tensor(device))
    with pytest.raises(ValueError, match="expected devices of one kind"):
        parallel.check_devices(["cpu:0", "cuda:0"])


def test_a_failing_replica_stops_all(monkeypatch):
    original, calls = ops.conv2d_backward_weight, []

    def failing(*arguments, **options):
        if threading.current_thread().name.startswith("vggnet-cpu:1"):
            calls.append(None)
            if len(calls) == 12:
                raise MemoryError("no room")
        return original(*arguments, **options)

    monkeypatch.setattr(ops, "conv2d_backward_weight", failing)
    with pytest.raises(MemoryError, match="no room"):
        fit(net(), patterns(16), recipe=SMALL, devices=cpus(3), progress=False)


def test_a_loss_of_one_replica_that_is_not_finite_leaves_all_weights_as_they_were(monkeypatch):
    class Bad(train.Classification):
        def loss(self, outputs, targets, normalizer):
            found = super().loss(outputs, targets, normalizer)
            bad = threading.current_thread().name.startswith("vggnet-cpu:1")
            return found._replace(value=math.nan) if bad else found

    model = net()
    before = weights(model)
    with pytest.raises(FloatingPointError, match="at iteration 1 "):
        fit(model, patterns(16), recipe=SMALL, task=Bad(), devices=cpus(2), progress=False)
    assert all((p.numpy() == before[name]).all() for name, p in model.parameters.items())


def test_replicas_that_differ_are_named(monkeypatch):
    made = watch(monkeypatch)
    monkeypatch.setattr(trainer, "CHECK_EVERY", 3)

    def damage(iteration):
        if iteration == 2:
            bias = made[-1].replicas.local[1].model.parameters["conv3_2.bias"]
            bias.copy_(bias.numpy() + 1e-3)

    words = r"after update 3 the weights of replica 1 \(cpu:1\) are not those of replica 0 \(cpu\).* in conv"
    with pytest.raises(RuntimeError, match=words):
        fit(net(), patterns(36), recipe=SMALL, devices=cpus(2), callbacks=[Look(damage)], progress=False)


def test_an_error_while_averaging_comes_out(monkeypatch, small_buckets):
    def failing(tensors, weights):
        raise vgg.DeviceError("the link is down")

    monkeypatch.setattr(ops, "average_gradients_", failing)
    with pytest.raises(vgg.DeviceError, match="the link is down"):
        fit(net(), patterns(16), recipe=SMALL, devices=cpus(2), progress=False)


# ---- processes, played by threads


class Late:
    """A mean that comes when it was asked for a few times."""

    def __init__(self, finish):
        self.asked, self.finish = 0, finish

    def done(self):
        self.asked += 1
        if self.asked == 3:
            self.finish()
        return self.asked >= 3


class Threads(parallel.World):
    """Rank `rank` of some threads of this process."""

    def __init__(self, rank, size, shared):
        self.rank, self.size, self.shared = rank, size, shared
        self.means = 0

    def exchange(self, key, value):
        with self.shared["lock"]:
            self.shared["values"].setdefault(key, {})[self.rank] = value
        self.shared[key[0]].wait(60)
        return [self.shared["values"][key][r] for r in range(self.size)]

    def gather(self, value):
        self.calls = getattr(self, "calls", 0) + 1
        return self.exchange(("gather", self.calls), json.loads(json.dumps(value)))

    def concatenate(self, rows):
        self.calls += 1
        return np.concatenate(self.exchange(("rows", self.calls), rows))

    def alive(self):
        pass

    def abort(self, status):
        raise NotImplementedError

    def mean(self, tensors, weights, *, compress=False):
        self.means += 1
        every = self.exchange(("mean", self.means), [tensor.numpy().copy() for tensor in tensors])

        def finish():
            for i, tensor in enumerate(tensors):
                total = sum(
                    w * theirs[i].astype(np.float64) for w, theirs in zip(weights, every, strict=True)
                )
                tensor.copy_((total / sum(weights)).astype(np.float32))

        return Late(finish)

    def broadcast(self, tensors):
        values = self.exchange(("broadcast", 0), [tensor.numpy().copy() for tensor in tensors])[0]
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)


def in_processes(monkeypatch, size, function):
    """function(rank) in each of `size` threads that take each other for processes; their results."""
    barriers = {kind: threading.Barrier(size) for kind in ("gather", "mean", "broadcast", "rows")}
    shared = {"lock": threading.Lock(), "values": {}, **barriers}
    local = threading.local()
    monkeypatch.setattr(parallel, "world", lambda: local.world)

    def one(rank):
        local.world = Threads(rank, size, shared)
        try:
            return function(rank)
        except BaseException:
            for barrier in barriers.values():
                barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


def test_processes_train_as_devices_do(tmp_path, monkeypatch, straight, small_buckets):
    """Bit for bit; rank 0 alone writes, and its weights and covariance are everybody's."""
    models = [net(seed=1 + rank) for rank in range(2)]

    def run(rank):
        out = tmp_path / "run"
        return fit(models[rank], patterns(36), recipe=SMALL, checkpoint=out, progress=False)

    histories = in_processes(monkeypatch, 2, run)
    for model, history in zip(models, histories, strict=True):
        assert_equal_weights(model, straight[0])
        same_rows(history, straight[1])
    _, about = read_tensors(Checkpoints(tmp_path / "run").paths()[0])
    assert json.loads(about["run"])["devices"] == 2


def test_processes_stop_together_and_go_on(tmp_path, monkeypatch, straight):
    """A process that is asked to stop stops all after the same update."""
    made = watch(monkeypatch)

    def run(rank):
        def ask(iteration):
            if iteration == 5 and rank == 1:
                own = next(t for t in made if t.world.rank == rank)
                own.interrupts.waiting = signal.SIGTERM

        with pytest.raises(SystemExit) as stopped:
            fit(net(), patterns(36), recipe=SMALL, checkpoint=tmp_path, callbacks=[Look(ask)], progress=False)
        return stopped.value.code, [t.state.iteration for t in made if t.world.rank == rank]

    assert in_processes(monkeypatch, 2, run) == [(0, [6]), (0, [6])]
    monkeypatch.undo()
    model = net(seed=99)
    fit(model, patterns(36), recipe=SMALL, checkpoint=tmp_path, resume=True, devices=cpus(2), progress=False)
    assert_equal_weights(model, straight[0])


def test_processes_that_were_given_different_runs_are_told(monkeypatch):
    def run(rank):
        recipe = dataclasses.replace(SMALL, lr=0.1 * (rank + 1))
        with pytest.raises(ValueError, match="recipe is .* in process"):
            fit(net(), patterns(36), recipe=recipe, progress=False)
        return True

    assert in_processes(monkeypatch, 2, run) == [True, True]
    world = Threads(0, 2, {})
    with pytest.raises(ValueError, match="in each of 2 processes; expected one device a process"):
        parallel.Replicas(net(), cpus(2), ["fc8"], world)


# ---- checkpoints while training goes on


def test_a_checkpoint_is_of_its_moment_and_training_goes_on_meanwhile(tmp_path, monkeypatch):
    original, wait, threads = Checkpoints.save, threading.Event(), []
    kept = {}

    def slow(self, *arguments, **options):
        threads.append(threading.current_thread())
        assert wait.wait(60)
        return original(self, *arguments, **options)

    class Look(Callback):
        def on_iteration(self, model, iteration, loss, error):
            kept[iteration] = weights(model)
            if iteration == 3:  # two updates after the checkpoint, which nobody has written yet
                assert not list(tmp_path.glob("checkpoint-*"))
                wait.set()

    monkeypatch.setattr(Checkpoints, "save", slow)
    model, recipe = net(), dataclasses.replace(SMALL, epochs=None, iterations=3, holdout=0)
    options = {"checkpoint": tmp_path, "checkpoint_every": 1, "keep": 3, "progress": False}

    class Once(Look):
        def on_iteration(self, model, iteration, loss, error):
            super().on_iteration(model, iteration, loss, error)
            if iteration == 1:
                made[-1].checkpoint_every = None

    made = watch(monkeypatch)
    fit(model, patterns(40), recipe=recipe, callbacks=[Once()], **options)
    assert threading.main_thread() not in threads
    saved = {int(path.name[11:21]): read_tensors(path)[0] for path in Checkpoints(tmp_path).paths()}
    assert sorted(saved) == [1, 3]
    for iteration, arrays in saved.items():
        for name, value in kept[iteration].items():
            np.testing.assert_array_equal(arrays[name], value)


def test_an_error_of_the_writer_comes_out_at_the_next_update(tmp_path, monkeypatch):
    def full(path, write):
        raise OSError(28, "No space left on device")

    seen = []

    class Look(Callback):
        def on_iteration(self, model, iteration, loss, error):
            seen.append(iteration)
            deadline = time.monotonic() + 60
            while not made[-1].writer.under_way.done() and time.monotonic() < deadline:
                time.sleep(0.001)

    made = watch(monkeypatch)
    monkeypatch.setattr("vggnet.checkpoint.replace_file", full)
    options = {"checkpoint": tmp_path, "checkpoint_every": 1, "progress": False, "callbacks": [Look()]}
    with pytest.raises(OSError, match="No space left"):
        fit(net(), patterns(36), recipe=SMALL, **options)
    assert seen == [1]
    with pytest.raises(OSError, match="No space left"):  # at the end
        fit(
            net(),
            patterns(36),
            recipe=dataclasses.replace(SMALL, epochs=1),
            checkpoint=tmp_path,
            progress=False,
        )


def test_an_error_of_the_writer_does_not_hide_another(tmp_path, monkeypatch, caplog):
    def full(path, write):
        raise OSError(28, "No space left on device")

    def stop(iteration):
        if iteration == 5:
            raise ValueError("the user's")

    monkeypatch.setattr("vggnet.checkpoint.replace_file", full)
    monkeypatch.setattr(writer.Writer, "look", lambda self: None)
    with pytest.raises(ValueError, match="the user's"):
        fit(net(), patterns(36), recipe=SMALL, checkpoint=tmp_path, callbacks=[Look(stop)], progress=False)
    assert "the last checkpoint was not written: " in caplog.text


# ---- the command


def test_the_command_trains_on_several_devices(tmp_path, capsys):
    options = [
        "--data",
        "sample",
        "--recipe",
        "quickstart",
        "--config",
        "A",
        "--input-size",
        "32",
        "--fc-width",
        "8",
    ]
    options += ["--batch", "6", "--iterations", "1", "--mean", "72", "--rgb-shift", "none", "--val", "0.01"]
    out = tmp_path / "run"
    assert cli.main(["train", *options, "--devices", "cpu:0,cpu:1", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stopped_by"] == "iterations"
    _, about = read_tensors(Checkpoints(out).paths()[0])
    assert json.loads(about["run"])["devices"] == 2
    for wrong, words in (
        (["--devices", "cpu:0,cpu"], "--devices is ['cpu:0', 'cpu']; expected each of them once"),
        (["--devices", "cpu:0,cpu:1", "--device", "cpu:2"], "give one of them"),
    ):
        assert cli.main(["train", *options, *wrong, "--out", str(tmp_path / "other")]) == 2
        assert words in capsys.readouterr().err

"""Training: the update is the paper's, whatever the micro-batches; what goes wrong is named; history and progress."""

import csv
import dataclasses
import functools
import gc
import json
import logging
import math
import os
import re
import threading

import numpy as np
import pytest
import vggnet as vgg
from vggnet import train
from vggnet.augment import pixel_statistics
from vggnet.data import ArrayDataset, Subset, split
from vggnet.progress import Progress
from vggnet.rng import Purpose, Rng, permutation, rows_of, uniform
from vggnet.train import Callback, Recipe, fit, memory
from vggnet.train.saved import State
from vggnet.train.trainer import Trainer

CLASSES = ["across", "down", "dots", "plain"]


def patterns(n, seed=0):
    """Stripes across, stripes down, dots, or neither, of random contrast, with noise: 34 x 34, gray."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 4
    period, phase = rng.integers(6, 9, n), rng.integers(0, 8, (2, n))
    y, x = np.mgrid[:34, :34]
    images = np.empty((n, 34, 34, 1), np.uint8)
    for i, label in enumerate(labels):
        down, across = ((axis + phase[k, i]) % period[i] < 3 for k, axis in enumerate((x, y)))
        shape = [across, down, across & down, np.zeros_like(across)][label]
        noise = rng.normal(100, 15, shape.shape)
        images[i, ..., 0] = np.clip(noise + rng.uniform(80, 120) * shape, 0, 255)
    return ArrayDataset(images, labels, CLASSES)


def net(seed=1, **changes):
    arguments = {
        "fc_width": 32,
        "dropout": 0.5,
        "init": "xavier",
        "mean": [120.0],
        "classes": CLASSES,
        **changes,
    }
    return vgg.VGG("A", num_classes=4, input_size=32, in_channels=1, seed=seed, **arguments)


SMALL = Recipe(
    batch=8,
    lr=0.002,
    epochs=3,
    scale=(32, 36),
    rgb_shift="deviation",
    holdout=0.25,
    plateau_patience=9,
    seed=7,
)


def weights(model):
    return {name: tensor.numpy().copy() for name, tensor in model.parameters.items()}


def assert_equal_weights(a, b):
    for name, tensor in a.parameters.items():
        np.testing.assert_array_equal(tensor.numpy(), b.parameters[name].numpy(), err_msg=name)


def same_rows(a, b):
    timeless = [
        [dataclasses.replace(row, images_per_second=0.0, seconds=0.0) for row in h.rows] for h in (a, b)
    ]
    assert timeless[0] == timeless[1]


class Signal(Callback):
    """Sends this process a signal after an update."""

    def __init__(self, iteration, number):
        self.iteration, self.number = iteration, number

    def on_iteration(self, model, iteration, loss, error):
        if iteration == self.iteration:
            os.kill(os.getpid(), self.number)


@functools.cache
def undisturbed():
    """A run of three epochs of four updates (28 images, the last batch is of 4) that nothing disturbs: net and history."""
    model = net()
    history = fit(model, patterns(36), recipe=SMALL, progress=False)
    assert [row.iteration for row in history.rows] == [4, 8, 12]
    assert history.stopped_by == "epochs"
    return model, history


@pytest.fixture
def straight():
    return undisturbed()


# ---- recipe


def test_the_defaults_are_the_papers():
    recipe = Recipe.paper(256)
    assert recipe == Recipe()
    assert (recipe.batch, recipe.momentum, recipe.weight_decay, recipe.lr) == (256, 0.9, 5e-4, 1e-2)
    assert (recipe.lr_factor, recipe.lr_drops, recipe.epochs, recipe.iterations) == (0.1, 3, 74, 370_000)
    assert (recipe.scale, recipe.mirror, recipe.rgb_shift) == (256, True, "eigenvalue")
    assert Recipe.paper(384).lr == Recipe.paper((256, 512)).lr == 1e-3
    assert Recipe.paper((256, 512)).validation_scale == 384
    assert Recipe.paper(384).validation_scale == 384
    assert Recipe.paper((256, 512), epochs=9).epochs == 9
    with pytest.raises(ValueError, match="scale is 320; the paper trained at 256, 384"):
        Recipe.paper(320)


@pytest.mark.parametrize(
    "change",
    [
        {"batch": 0}, {"batch": 2.5}, {"batch": True}, {"micro_batch": 0},
        {"lr": 0}, {"lr": math.nan}, {"lr": "0.1"},
        {"momentum": 1.0}, {"weight_decay": -1}, {"bias_weight_decay": -1}, {"bias_lr_multiplier": -1},
        {"lr_factor": 0}, {"lr_factor": 2}, {"lr_drops": -1},
        {"plateau_patience": 0}, {"plateau_threshold": -1},
        {"epochs": 0}, {"iterations": 0}, {"scale": 0}, {"scale": (512, 256)}, {"scale": (1, 2, 3)},
        {"scale": 2.0},
        {"filter": "cubic"}, {"mirror": 1}, {"rgb_shift": "pca"},
        {"freeze": "conv1_1"}, {"freeze": (1,)}, {"lr_multipliers": {"fc8": 0}}, {"lr_multipliers": {"fc8": True}},
        {"lr_multipliers": [("fc8", 10.0)]},
        {"holdout": 1.0}, {"stuck_iterations": 0}, {"seed": -1}, {"seed": 1 << 64},
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_field_is_named(change):
    name = next(iter(change))
    with pytest.raises(ValueError, match=f"Recipe: {name} is "):
        Recipe(**change)


def test_recipes_survive_json():
    recipe = Recipe(scale=[256, 512], freeze=["conv*"], lr_multipliers={"fc8": 10}, seed=(1 << 64) - 1)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    with pytest.raises(ValueError, match="no field 'learning_rate'"):
        Recipe.from_dict({"learning_rate": 1})


# ---- the update


def manual_batch(data, model, recipe, epoch, images):
    """Input of some images, from pixels of side 32 that need no rescaling, drawn by hand."""
    u = uniform(recipe.seed, rows_of(epoch, images), Purpose.MIRROR)[:, 0]
    x = np.stack(
        [data.image(i)[:, ::-1] if flip else data.image(i) for i, flip in zip(images, u < 0.5, strict=True)]
    )
    return x.astype(np.float32) - np.float32(model.preprocessing.mean)


def square(n):
    data = patterns(n)
    return ArrayDataset(np.stack([data.image(i)[1:33, 1:33] for i in range(n)]), data.labels, CLASSES)


def test_updates_are_caffes_rule_on_the_gradients_of_each_batch():
    """Order, dropout keys, normalizer of the smaller last batch, lr and decay of biases: a plain loop's."""
    data = square(10)
    recipe = Recipe(
        batch=4,
        lr=0.01,
        epochs=2,
        scale=32,
        rgb_shift=None,
        holdout=0,
        bias_lr_multiplier=2.0,
        bias_weight_decay=0.0,
        seed=3,
    )
    model, plain = net(), net()
    fit(model, data, recipe=recipe, progress=False)
    # By sgd_, which has tests of its own: updates that round otherwise let a ReLU flip within these six steps, and that
    # moves weights by up to 7e-2 of what they were moved.
    velocity = {name: vgg.zeros(p.shape) for name, p in plain.parameters.items()}
    for epoch in range(2):
        order = permutation(recipe.seed, epoch, 10)
        for start in range(0, 10, 4):
            images = order[start : start + 4]
            x = manual_batch(data, plain, recipe, epoch, images)
            _, grads = plain.loss_and_gradients(x, data.labels[images], rng=Rng(3, rows_of(epoch, images)))
            for name, p in plain.parameters.items():
                lr, decay = (0.02, 0.0) if name.endswith("bias") else (0.01, 5e-4)
                vgg.ops.sgd_(p, grads[name], velocity[name], lr, momentum=0.9, weight_decay=decay)
    for name, p in plain.parameters.items():
        scale = max(np.abs(p.numpy()).max(), 1e-6)
        np.testing.assert_allclose(model.parameters[name].numpy(), p.numpy(), atol=1e-4 * scale, err_msg=name)


@pytest.mark.parametrize("micro_batch", [1, 3, 8, 100])
def test_micro_batches_make_the_update_of_the_whole_batch(micro_batch):
    data = patterns(13)
    recipe = dataclasses.replace(SMALL, holdout=0, epochs=1, iterations=1, batch=13)
    whole, parts = net(), net()
    start = weights(whole)
    fit(whole, data, recipe=recipe, progress=False)
    history = fit(parts, data, recipe=dataclasses.replace(recipe, micro_batch=micro_batch), progress=False)
    assert history[0].iteration == 1
    for name, before in start.items():
        a, b = (model.parameters[name].numpy() - before for model in (whole, parts))
        norm = np.linalg.norm(a)
        assert norm > 0, name
        assert np.linalg.norm(a - b) <= 1e-2 * norm, name  # a ReLU that flips at rounding moves 1e-3


def test_the_result_does_not_depend_on_threads(straight, threads):
    for count in (1, 3):
        threads(count)
        model = net()
        fit(model, patterns(36), recipe=SMALL, progress=False, threads=count)
        assert_equal_weights(model, straight[0])


def test_the_micro_batch_follows_the_free_memory(monkeypatch):
    model = net()
    need = {n: model.memory_plan(n, training=["conv1_1", "fc8"]).total for n in (2, 4, 8)}
    for free, expected in ((None, 8), (need[8], 8), (need[8] - 1, 4), (need[4], 4), (need[4] - 1, 2), (0, 1)):
        monkeypatch.setattr(
            memory, "free_memory", lambda device, free=free: None if free is None else math.ceil(free / 0.8)
        )
        assert memory.micro_batch(model, 8, {"conv1_1": 1.0, "fc8": 1.0}) == expected
    monkeypatch.undo()
    free = memory.free_memory()
    assert free is None or free > 0


def test_training_takes_exactly_the_planned_memory():
    gc.collect()
    before = vgg.memory_stats()["current"]
    model = net()
    vgg._C.reset_peak_memory()
    fit(model, patterns(20), recipe=dataclasses.replace(SMALL, holdout=0, micro_batch=4), progress=False)
    assert vgg.memory_stats()["peak"] - before == model.memory_plan(4, training=True).total


def test_colour_images_of_any_size():
    rng = np.random.default_rng(0)
    sizes = rng.integers(34, 60, (8, 2))
    images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in sizes]
    data = ArrayDataset(images, np.arange(8) % 4, CLASSES)
    model = vgg.VGG("A", num_classes=4, input_size=32, fc_width=16, init="xavier", classes=CLASSES)
    recipe = Recipe(batch=8, epochs=1, lr=1e-3, scale=(32, 40), holdout=0)
    before = weights(model)
    history = fit(model, data, recipe=recipe, progress=False)
    assert history[0].val_top1 is None
    assert history.best is None
    assert math.isfinite(history[0].train_loss)
    assert all(
        (before[name] != tensor.numpy()).any() for name, tensor in model.parameters.items() if "fc8" in name
    )
    covariance = pixel_statistics(images).covariance
    assert model.preprocessing.covariance == covariance
    given = vgg.VGG(
        "A",
        num_classes=4,
        input_size=32,
        fc_width=16,
        init="xavier",
        classes=CLASSES,
        covariance=covariance,
    )
    fit(given, data, recipe=recipe, progress=False)
    assert_equal_weights(given, model)  # the covariance is that of all training pixels


def test_a_small_net_learns():
    model = net(dropout=0.0)
    recipe = Recipe(batch=4, lr=0.001, epochs=5, scale=34, rgb_shift=None, holdout=0.2)
    history = fit(model, patterns(120), recipe=recipe, progress=False)
    assert history.best.val_top1 <= 5.0
    report = vgg.evaluate.evaluate(model, patterns(40, seed=1), vgg.evaluate.Protocol("center", 34))
    assert report.top1 <= 10.0


def test_held_out_images_are_never_trained_on_and_decide_alone(monkeypatch):
    data = patterns(40)
    seen, original = set(), ArrayDataset.image
    held = set(split(data, SMALL.holdout, SMALL.seed)[1].indices.tolist())
    training = threading.Event()

    def image(self, i):
        if training.is_set():
            seen.add(i)
        return original(self, i)

    inner = Trainer._train

    def watched(self):
        training.set()
        inner(self)
        training.clear()

    monkeypatch.setattr(ArrayDataset, "image", image)
    monkeypatch.setattr(Trainer, "_train", watched)
    recipe = dataclasses.replace(SMALL, epochs=1, rgb_shift=None)
    fit(net(), data, recipe=recipe, progress=False)
    assert seen == set(range(40)) - held
    seen.clear()
    fit(
        net(), data, patterns(4), recipe=recipe, progress=False
    )  # with val_data, all of train_data is trained on
    assert seen == set(range(40))


# ---- the learning rate


def test_three_drops_and_then_the_end():
    recipe = Recipe(
        batch=8,
        lr=1e-12,
        lr_drops=2,
        plateau_patience=2,
        epochs=50,
        scale=34,
        rgb_shift=None,
        stuck_iterations=1000,
    )
    history = fit(net(), patterns(4), patterns(8, seed=1), recipe, progress=False)
    assert [row.lr for row in history.rows] == pytest.approx(
        [1e-12] * 3 + [1e-13] * 2 + [1e-14] * 2, rel=1e-9
    )
    assert history.stopped_by == "plateau"


@pytest.mark.parametrize(
    ("errors", "lrs"),
    [
        ([50, 40, 30, 20], [1, 1, 1, 1]),
        ([50, 49.95, 49.91, 49], [1, 1, 1, 0.1]),  # falls of less than the threshold in all are none
        ([50, 60, 40, 41, 42, 43], [1, 1, 1, 1, 1, 0.1]),
    ],
)
def test_the_plateau_rule(errors, lrs):
    recipe = Recipe(lr=1.0, plateau_patience=2, plateau_threshold=0.1)
    state = State()
    for error, lr in zip(errors, lrs, strict=True):
        assert recipe.lr * recipe.lr_factor**state.drops == pytest.approx(lr)
        state.turn(error, recipe)


def test_a_run_needs_an_end():
    with pytest.raises(ValueError, match="nothing would end this run"):
        fit(net(), patterns(8), recipe=Recipe(epochs=None, iterations=None, holdout=0, scale=34))


# ---- when something is wrong


def test_a_stuck_run_says_what_to_do(caplog, capfd):
    recipe = Recipe(batch=4, lr=1e-12, epochs=4, scale=34, rgb_shift=None, holdout=0, stuck_iterations=6)
    model = net(init="paper")
    model.parameters["conv2_1.bias"].copy_(np.full(128, -1e6, np.float32))
    with caplog.at_level(logging.WARNING, "vggnet"):
        fit(model, patterns(8), recipe=recipe, progress=False)
    assert caplog.text.count("training is stuck") == 1  # 8 iterations: once
    for advice in ("ln(4) = 1.386", 'init="xavier"', "init_from", "section 3.1", "relu2_1 (100 %)"):
        assert advice in caplog.text
    assert capfd.readouterr().err == ""


def test_learning_is_not_called_stuck(caplog, straight):
    with caplog.at_level(logging.WARNING, "vggnet"):
        fit(net(), patterns(36), recipe=dataclasses.replace(SMALL, stuck_iterations=50), progress=False)
    assert "stuck" not in caplog.text


def test_a_loss_that_is_not_finite_stops_the_run_before_the_update():
    recipe = Recipe(batch=4, lr=1e9, epochs=40, scale=34, rgb_shift=None, holdout=0)
    model = net(init="he")
    with pytest.raises(FloatingPointError, match=r"at iteration \d+ \(epoch \d+, lr 1e\+09\).*Lower the lr"):
        fit(model, patterns(8), recipe=recipe, progress=False)


def test_what_does_not_fit_together_is_named(caplog):
    data = patterns(20)
    with pytest.raises(ValueError, match=r"recipe.scale is 28; expected at least .* 32"):
        fit(net(), data, recipe=Recipe(scale=28))
    two = ArrayDataset(np.zeros((20, 32, 32, 1), np.uint8), np.arange(20) % 2, ["a", "b"])
    with pytest.raises(ValueError, match="train_data has 2 classes; the model has 4"):
        fit(net(), two, recipe=Recipe(scale=34))
    with pytest.raises(ValueError, match="val_data has 2 classes"):
        fit(net(), data, two, recipe=Recipe(scale=34))
    with pytest.raises(ValueError, match="the classes of train_data are not those of the model"):
        fit(net(classes=CLASSES[::-1]), data, recipe=Recipe(scale=34))
    with pytest.raises(ValueError, match="train_data is empty"):
        fit(net(), Subset(data, np.empty(0, np.int64)), data, recipe=Recipe(scale=34))
    colour = ArrayDataset(np.zeros((20, 34, 34, 3), np.uint8), np.arange(20) % 4, CLASSES)
    with pytest.raises(ValueError, match="image 0"):
        fit(net(), colour, recipe=Recipe(scale=34), progress=False)
    with caplog.at_level(logging.WARNING, "vggnet"):
        fit(net(), data, recipe=Recipe(batch=8, epochs=1, rgb_shift=None), progress=False)
    assert "scale=37 is in the paper's proportion" in caplog.text


def test_a_model_without_class_names_takes_those_of_the_data():
    model = net(classes=None)
    fit(model, patterns(8), recipe=dataclasses.replace(SMALL, epochs=1), progress=False)
    assert model.classes == CLASSES


class WithBroken:
    """A data set, some images of which cannot be read."""

    def __init__(self, data, broken):
        self.data, self.broken = data, broken
        self.classes, self.labels = data.classes, data.labels

    def __len__(self):
        return len(self.data)

    def name(self, i):
        return f"file {i}"

    def image(self, i):
        if i in self.broken:
            raise vgg.ImageError(f"file {i}: broken")
        return self.data.image(i)


def test_broken_images_are_left_out_and_resume_still_fits(tmp_path, caplog):
    broken = int(permutation(0, 0, 100)[5])  # a whole batch, the sixth
    data = WithBroken(patterns(100), {broken})
    recipe = Recipe(batch=1, lr=1e-4, iterations=12, scale=34, rgb_shift=None, holdout=0)
    straight = net()
    fit(straight, data, recipe=recipe, progress=False)
    assert f"file {broken}: broken" in caplog.text
    model = net()
    for limit in (4, 9, 12):
        changed = dataclasses.replace(recipe, iterations=limit)
        fit(model, data, recipe=changed, checkpoint=tmp_path, resume=True, progress=False)
    assert_equal_weights(model, straight)
    with pytest.raises(vgg.ImageError, match=f"file {broken}"):
        fit(net(), data, recipe=recipe, progress=False, strict=True)


# ---- starting from A


def test_a_deep_net_starts_from_a():
    a = net()
    b = vgg.VGG("B", num_classes=4, input_size=32, in_channels=1, fc_width=32, seed=5)
    before = weights(b)
    assert train.start_from(b, a) == list(train.FROM_A)
    for name, tensor in b.parameters.items():
        same = name.split(".")[0] in train.FROM_A
        np.testing.assert_array_equal(tensor.numpy(), (a.parameters[name].numpy() if same else before[name]))
    other = vgg.VGG("B", num_classes=7, input_size=32, in_channels=1, fc_width=32)
    assert train.start_from(other, a) == list(train.FROM_A[:-1])
    narrow = vgg.VGG("B", num_classes=4, input_size=32, in_channels=1, fc_width=16)
    before = weights(narrow)
    with pytest.raises(ValueError, match="fc6 has shape"):
        train.start_from(narrow, a)
    assert all((before[name] == tensor.numpy()).all() for name, tensor in narrow.parameters.items())


def test_fit_starts_from_a_once(tmp_path):
    a, data = net(), patterns(8)
    recipe = dataclasses.replace(SMALL, epochs=1, lr=1e-12, holdout=0)
    b = vgg.VGG(
        "B", num_classes=4, input_size=32, in_channels=1, fc_width=32, seed=5, classes=CLASSES, mean=[120.0]
    )
    fit(b, data, recipe=recipe, init_from=a, checkpoint=tmp_path, progress=False)
    np.testing.assert_allclose(
        b.parameters["fc6.weight"].numpy(), a.parameters["fc6.weight"].numpy(), rtol=1e-6
    )
    resumed = vgg.VGG(
        "B", num_classes=4, input_size=32, in_channels=1, fc_width=32, classes=CLASSES, mean=[120.0]
    )
    fit(resumed, data, recipe=recipe, init_from=net(seed=3), checkpoint=tmp_path, resume=True, progress=False)
    assert_equal_weights(resumed, b)


# ---- history and progress


def test_history_is_written_and_drawn(tmp_path, straight):
    _, history = straight
    history.write(tmp_path)
    with (tmp_path / "history.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [train.Row(**line) for line in lines] == history.rows
    assert [float(row["val_top1"]) for row in table] == [row.val_top1 for row in history.rows]
    assert history.best.val_top1 == min(row.val_top1 for row in history.rows)
    for row in history.rows:
        assert 0 <= row.val_top5 <= row.val_top1 <= 100
        assert row.images_per_second > 0
        assert math.isfinite(row.val_loss)
    history.plot(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_held_out_figures_are_the_evaluators(straight):
    model, history = straight
    held_out = split(patterns(36), SMALL.holdout, SMALL.seed)[1]
    report = vgg.evaluate.evaluate(model, held_out, vgg.evaluate.Protocol("center", 34))
    assert history[-1].val_top1 == report.top1
    own = report.posteriors[np.arange(len(held_out)), held_out.labels]
    assert history[-1].val_loss == pytest.approx(-np.log(own.astype(np.float64)).mean(), rel=1e-5)


@pytest.mark.parametrize("progress", [None, True, False])
def test_progress(capfd, progress):
    recipe = dataclasses.replace(SMALL, epochs=2)
    fit(net(), patterns(16), recipe=recipe, progress=progress)
    out, err = capfd.readouterr()
    assert out == ""
    if progress is False:
        assert err == ""
        return
    lines = [
        line for line in err.replace("\r", "\n").splitlines() if line.startswith("epoch 2/2: lr 0.002, loss ")
    ]
    assert len(lines) == 1
    for part in ("error", "held out", "images/s"):
        assert part in lines[0]
    assert "top-5" not in lines[0]  # of four classes
    assert ("/12 [" in err) == (progress is True)  # the bar, however far a fast epoch lets it be drawn


def test_plain_lines_within_a_long_epoch(capfd, monkeypatch):
    monkeypatch.setattr(Progress, "EVERY", 0.0)
    fit(net(), patterns(16), recipe=dataclasses.replace(SMALL, epochs=1))
    assert "epoch 1/1, 8 of 12 images: loss " in capfd.readouterr().err


def test_plain_lines_of_other_work(capfd, monkeypatch):
    with Progress("reading") as progress:
        progress(1, 3)
        assert capfd.readouterr().err == ""
        monkeypatch.setattr(Progress, "EVERY", 0.0)
        progress(2, 3)
        assert re.fullmatch(r"reading, 2 of 3 images: \d+ images/s\n", capfd.readouterr().err)


def test_top5_error_is_told_where_classes_are_many(straight):
    row = dataclasses.replace(straight[1][-1], val_top5=1.25)
    assert "(top-5 1.25 %)" in row.describe(top5=True)
    assert "top-5" not in row.describe(top5=False)


def test_callbacks_see_every_update_and_epoch():
    seen = []

    class Watch(Callback):
        def on_iteration(self, model, iteration, loss, error):
            seen.append((iteration, math.isfinite(loss), 0 <= error <= 100))

        def on_epoch(self, model, row):
            seen.append(row.epoch)

    fit(net(), patterns(16), recipe=dataclasses.replace(SMALL, epochs=2), progress=False, callbacks=[Watch()])
    assert seen == [(1, True, True), (2, True, True), 1, (3, True, True), (4, True, True), 2]

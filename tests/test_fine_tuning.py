"""Frozen layers and learning rates of layers: backward stops where nothing learns, and updates are those of a naive loop."""

import dataclasses
import gc
import json
import re

import numpy as np
import pytest
import vggnet as vgg
from vggnet.checkpoint import read_tensors
from vggnet.rng import Rng, permutation, rows_of
from vggnet.train import Recipe, fit
from vggnet.train.layers import learning_layers

from test_train import CLASSES, assert_equal_weights, manual_batch, net, patterns, square, weights

RECIPE = Recipe(batch=4, lr=0.01, epochs=2, scale=32, rgb_shift=None, holdout=0, seed=3)


def layer(name):
    return name.split(".")[0]


# ---- backward


@pytest.mark.parametrize(
    ("config", "learning"),
    [
        ("A", ["fc8"]),
        ("A", ["fc7"]),
        ("A", ["conv3_2", "fc6"]),
        ("A-LRN", ["conv1_1"]),
        ("C", ["conv4_1", "conv5_3"]),
    ],
)
def test_gradients_of_some_layers_are_those_of_all(config, learning, rng):
    model = vgg.VGG(config, num_classes=5, input_size=32, in_channels=1, fc_width=16, init="xavier")
    x = rng.normal(0, 50, (3, 32, 32, 1)).astype(np.float32)
    labels = np.array([4, 0, 2])
    _, everything = model.loss_and_gradients(x, labels)
    run, walked = model.run(x, training=True), []
    run._watch = lambda step, direction: walked.append((step.name, direction))
    _, dlogits = vgg.ops.cross_entropy(run.logits, labels)
    ready = []
    grads, dx = run.backward({"fc8": dlogits}, weights=learning, ready=ready.extend)
    names = [f"{name}.{kind}" for name in learning for kind in ("weight", "bias")]
    assert list(grads) == names and set(ready) == set(names) and dx is None
    for name in names:
        np.testing.assert_array_equal(grads[name].numpy(), everything[name].numpy(), err_msg=name)
    # nothing at all is computed below the lowest of them, and no gradient of the others' weights
    assert [name for name, direction in walked if direction == "backward_weight"] == learning[::-1]
    order = list(model.layer_names)
    assert all(order.index(name) > order.index(learning[0]) for name, d in walked if d == "backward_input")

    dx_only = model.run(x, training=True).backward({"fc8": dlogits}, weights=False, input=True)[1]
    grads, dx = model.run(x, training=True).backward({"fc8": dlogits}, weights=learning, input=True)
    np.testing.assert_array_equal(dx.numpy(), dx_only.numpy())
    np.testing.assert_array_equal(grads[names[0]].numpy(), everything[names[0]].numpy())


def test_an_unknown_layer_has_no_gradient():
    run = net().run(np.zeros((1, 32, 32, 1), np.float32))
    with pytest.raises(ValueError, match="weights names 'pool1'; expected layers with weights: conv1_1, "):
        run.backward({"fc8": np.zeros((1, 4), np.float32)}, weights=["fc8", "pool1"])


# ---- training


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_updates_of_frozen_and_of_faster_layers_are_a_naive_loops(micro_batch):
    data, model, plain = square(10), net(), net()
    recipe = dataclasses.replace(
        RECIPE,
        micro_batch=micro_batch,
        freeze=("conv1_1", "conv2*", "fc7"),
        lr_multipliers={"fc8": 10.0, "conv5_*": 0.5},
        bias_lr_multiplier=2.0,
        bias_weight_decay=0.0,
    )
    start = weights(model)
    fit(model, data, recipe=recipe, progress=False)
    frozen = {"conv1_1", "conv2_1", "fc7"}
    multipliers = {"fc8": 10.0, "conv5_1": 0.5, "conv5_2": 0.5}
    velocity = {name: np.zeros(p.shape, np.float32) for name, p in plain.parameters.items()}
    for epoch in range(2):
        order = permutation(recipe.seed, epoch, 10)
        for first in range(0, 10, 4):
            images = order[first : first + 4]
            x = manual_batch(data, plain, recipe, epoch, images)
            _, grads = plain.loss_and_gradients(x, data.labels[images], rng=Rng(3, rows_of(epoch, images)))
            for name, p in plain.parameters.items():
                if layer(name) in frozen:
                    continue
                lr, decay = (0.02, 0.0) if name.endswith("bias") else (0.01, 5e-4)
                lr *= multipliers.get(layer(name), 1.0)
                w, v = p.numpy(), velocity[name]
                v[...] = 0.9 * v + lr * (grads[name].numpy() + decay * w)
                p.copy_(w - v)
    for name, p in plain.parameters.items():
        now = model.parameters[name].numpy()
        if layer(name) in frozen:
            np.testing.assert_array_equal(now, start[name], err_msg=name)
            continue
        moved = np.linalg.norm(p.numpy() - start[name])
        assert moved > 0, name
        assert np.linalg.norm(now - p.numpy()) <= 2e-2 * moved, (
            name
        )  # a ReLU that flips at rounding moves 1e-3


def test_frozen_layers_have_no_velocity_and_the_run_goes_on(tmp_path):
    data, recipe = patterns(12), dataclasses.replace(RECIPE, freeze=("conv*",), scale=34, epochs=3)
    straight, model = net(), net()
    fit(straight, data, recipe=recipe, progress=False)
    stopped = dataclasses.replace(recipe, epochs=1)
    fit(model, data, recipe=stopped, checkpoint=tmp_path, progress=False)
    arrays, _ = read_tensors(max(tmp_path.glob("checkpoint-*")))
    velocities = {name for name in arrays if name.startswith("velocity/")}
    assert velocities == {f"velocity/fc{n}.{kind}" for n in (6, 7, 8) for kind in ("weight", "bias")}
    resumed = net(seed=99)
    fit(resumed, data, recipe=recipe, checkpoint=tmp_path, resume=True, progress=False)
    assert_equal_weights(resumed, straight)
    other = dataclasses.replace(recipe, freeze=("fc6",))
    with pytest.raises(ValueError, match=re.escape("recipe.freeze is ['fc6'], but the run in ")):
        fit(net(), data, recipe=other, checkpoint=tmp_path, resume=True)


@pytest.mark.parametrize("freeze", [("conv*", "fc6"), ("conv1_1", "fc*"), ("conv4_1",)])
def test_training_takes_exactly_the_planned_memory(freeze):
    gc.collect()
    before = vgg.memory_stats()["current"]
    model = net()
    vgg._C.reset_peak_memory()
    recipe = dataclasses.replace(RECIPE, freeze=freeze, scale=34, epochs=1)
    fit(model, patterns(8), recipe=recipe, progress=False)
    plan = model.memory_plan(4, training=learning_layers(model, recipe))
    assert vgg.memory_stats()["peak"] - before == plan.total
    assert plan["gradients"] == plan["momentum"] < plan["parameters"]
    assert plan.total < model.memory_plan(4, training=True).total


def test_layers_are_named_by_patterns():
    model = net()
    names = list(learning_layers(model, Recipe()))
    assert names == [layer(name) for name in model.parameters if name.endswith("weight")]
    recipe = Recipe(freeze=("conv?_1", "fc6"), lr_multipliers={"fc*": 3, "conv5_2": 0.1})
    rates = {"conv3_2": 1.0, "conv4_2": 1.0, "conv5_2": 0.1, "fc7": 3.0, "fc8": 3.0}
    assert learning_layers(model, recipe) == rates
    for changes, message in (
        (
            {"freeze": ("conv6",)},
            "recipe.freeze names 'conv6'; expected layers with weights, of A: conv1_1, ",
        ),
        ({"freeze": ("relu*",)}, "recipe.freeze names 'relu*'"),
        ({"lr_multipliers": {"conv1_2": 2.0}}, "recipe.lr_multipliers names 'conv1_2'"),
        ({"lr_multipliers": {"fc*": 2.0, "fc8": 3.0}}, "names fc8 twice, the second time as 'fc8'"),
        ({"freeze": ("*",)}, "no layer would learn"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            fit(model, patterns(8), recipe=dataclasses.replace(RECIPE, scale=34, **changes))


# ---- statistics in the model


COVARIANCE = ((0.06, 0.05, 0.04), (0.05, 0.07, 0.05), (0.04, 0.05, 0.08))


def test_the_covariance_travels_with_the_model(tmp_path):
    model = vgg.VGG("A", num_classes=2, input_size=32, fc_width=16, covariance=COVARIANCE)
    model.save(tmp_path / "m.safetensors")
    assert vgg.load(tmp_path / "m.safetensors").preprocessing.covariance == COVARIANCE
    _, metadata = read_tensors(tmp_path / "m.safetensors")
    assert json.loads(metadata["preprocessing"])["covariance"] == [list(row) for row in COVARIANCE]
    # a file from before has none
    arguments = json.loads(metadata["model"])
    del arguments["covariance"]
    assert vgg.VGG(**arguments, init=None).preprocessing.covariance is None
    for bad, message in (
        (np.eye(2) * 0.1, "expected 3 rows of 3"),
        ([[0.1, 0.2, 0.0], [0.1, 0.1, 0.0], [0.0, 0.0, 0.1]], "symmetric"),
        (np.array(COVARIANCE) * 255**2, "divide one of the 0..255 scale by 255"),
        (np.full((3, 3), np.nan), "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            vgg.VGG("A", num_classes=2, input_size=32, fc_width=16, covariance=bad)


def colours(n):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (34, 36, 3), np.uint8) for _ in range(n)]
    return vgg.data.ArrayDataset(images, np.arange(n) % 4, CLASSES)


def colour_net(**changes):
    return vgg.VGG("A", num_classes=4, input_size=32, fc_width=16, init="xavier", classes=CLASSES, **changes)


def test_the_covariance_that_a_run_computed_is_kept(tmp_path):
    recipe = Recipe(batch=4, lr=1e-4, epochs=1, scale=34, holdout=0)
    model = colour_net()
    fit(model, colours(8), recipe=recipe, checkpoint=tmp_path, progress=False)
    computed = model.preprocessing.covariance
    assert computed == vgg.augment.pixel_statistics(colours(8).image(i) for i in range(8)).covariance
    resumed = colour_net()
    fit(resumed, colours(8), recipe=recipe, checkpoint=tmp_path, resume=True, progress=False)
    assert resumed.preprocessing.covariance == computed
    with pytest.raises(ValueError, match="model.covariance is "):
        fit(colour_net(covariance=COVARIANCE), colours(8), recipe=recipe, checkpoint=tmp_path, resume=True)
    given = colour_net(covariance=COVARIANCE)  # that of another set moves the colours otherwise
    fit(given, colours(8), recipe=recipe, progress=False)
    assert given.preprocessing.covariance == COVARIANCE
    assert (given.parameters["fc8.weight"].numpy() != model.parameters["fc8.weight"].numpy()).any()

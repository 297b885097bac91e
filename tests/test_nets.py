"""The six nets against the float64 reference: every named map, the loss, all gradients; and what holds
between runs.

At 32 x 32 with narrow fully-connected layers; the convolutions are the paper's. Single operations are judged
strictly in their own files. In a whole net a ReLU or a pool's winner that flips at rounding moves deep
gradients by up to 1e-2, so gradients are judged twice: strictly, by the reference's backward pass over the
library's own maps (no flips), and over several seeds, against what a float32 run of the reference itself
loses.
"""

import math
import re

import numpy as np
import pytest
import vggnet as vgg
from vggnet import configs, dense

import emulator
from helpers import survives_failed_allocations, where
from reference import dropout, max_pool2d, net, softmax
from tolerance import EPS32, relative_l2

CONFIGS = list(net.CONFIGS)
SMALL = {"num_classes": 10, "input_size": 32, "fc_width": 24}
DROP6, DROP7 = 6, 7  # purposes of the random numbers, part of the checkpoint format
# A layer adds a few roundings of its inputs' size (tolerance.py), independent of the layers before: 19 of
# them stay below.
CLOSE = 1e-5


def on_devices(names, values, emulated):
    """Parametrize by `values` on every kind of device. Where CUDA is emulated, those that are not among `emulated` wait for the
    nightly run: they call nothing that these and the tests of single operations do not."""
    devices = ["cpu", *(["cuda"] if vgg.cuda.is_available() else [])]
    slow = emulator.library() is not None
    cases = [
        pytest.param(
            device,
            *(value if isinstance(value, tuple) else (value,)),
            marks=[pytest.mark.nightly] if slow and device == "cuda" and value not in emulated else [],
        )
        for device in devices
        for value in values
    ]
    return pytest.mark.parametrize(f"device, {names}", cases, indirect=["device"])


EVERY_KIND_OF_LAYER = ("A-LRN", "C")


def build(config, seed=0, **options):
    """A model and the same weights in float64."""
    model = vgg.VGG(config, **{**SMALL, "device": where(), **options})
    shapes = {name: tensor.shape for name, tensor in model.parameters.items()}
    parameters = net.random_parameters(shapes, np.random.default_rng([*config.encode(), seed]))
    model.load_parameters(parameters)
    return model, {name: value.astype(np.float64) for name, value in parameters.items()}


def batch(model, n, seed=0, size=None):
    rng = np.random.default_rng([n, seed])
    height, width = size or (model.input_size, model.input_size)
    x = (60 * rng.standard_normal((n, height, width, model.in_channels))).astype(np.float32)
    return x, rng.integers(0, model.num_classes, n)


def masks_of(model, rng):
    return {
        name: dropout.mask(model.dropout, rng.seed, rng.rows.tolist(), purpose, model.fc_width)
        for name, purpose in (("drop6", DROP6), ("drop7", DROP7))
    }


# ---------------------------------------------------------------------------------------------- structure


@pytest.mark.parametrize("config", CONFIGS)
def test_layers_and_parameters(config):
    full = configs.layers_of(config, num_classes=1000, input_size=224, in_channels=3, fc_width=4096)
    assert [layer.name for layer in full] == [name for _, name in net.layers(config)]
    assert configs.parameter_shapes(full) == net.parameter_shapes(config)
    assert configs.count_parameters(full) == net.PARAMETERS[config]
    model, parameters = build(config)
    assert list(model.layer_names) == [name for _, name in net.layers(config)]
    assert {k: v.shape for k, v in model.parameters.items()} == net.parameter_shapes(config, 10, 32, 3, 24)
    assert model.num_parameters == sum(p.size for p in parameters.values())


@pytest.mark.nightly
@pytest.mark.parametrize("config", CONFIGS)
def test_parameters_of_a_whole_model(config):
    assert (
        sum(math.prod(t.shape) for t in vgg.VGG(config, init=None).parameters.values())
        == net.PARAMETERS[config]
    )


# ---------------------------------------------------------------------------------------------- forward


@on_devices("config", CONFIGS, emulated=EVERY_KIND_OF_LAYER)
def test_every_named_map(device, config):
    model, parameters = build(config)
    x, _ = batch(model, 2)
    maps = net.forward(config, parameters, x.astype(np.float64))
    run = model.run(x, layers=model.layer_names)
    for name in model.layer_names:
        assert run[name].shape == maps[name].shape, name
        assert relative_l2(run[name], maps[name]) < CLOSE, name
    assert np.array_equal(run["drop6"], run["relu6"]), "dropout outside training"
    # Fused or not, with or without keeping maps: the same bits.
    logits = run.logits.numpy().tobytes()
    assert model.run(x).logits.numpy().tobytes() == logits
    assert model.forward(x).numpy().tobytes() == logits
    fused = model.run(x)
    for name in ("conv1_1", "relu2_1", "pool3", "fc6", "relu7"):
        assert fused[name].numpy().tobytes() == run[name].numpy().tobytes(), name


@pytest.mark.parametrize("config", ["A-LRN", "C"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n, size", [(1, 32), (3, 64)])
def test_other_shapes(config, channels, n, size):
    model, parameters = build(config, in_channels=channels, input_size=size, num_classes=7)
    x, _ = batch(model, n)
    maps = net.forward(config, parameters, x.astype(np.float64))
    assert relative_l2(model.forward(x), maps["fc8"]) < CLOSE
    assert relative_l2(model.features(x, ["prob"])["prob"], maps["prob"]) < 10 * CLOSE


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
def test_features_of_images_of_any_size(device, rounding):
    model, parameters = build("B", pool_rounding=rounding)
    names = ["conv1_2", "relu3_2", "pool4", "conv5_2"]
    x, _ = batch(model, 2, size=(39, 53))
    maps = net.forward("B", parameters, x.astype(np.float64), ceil_mode=rounding == "ceil", until="conv5_2")
    found = model.features(x, names)
    assert list(found) == names
    for name in names:
        assert found[name].shape == maps[name].shape and relative_l2(found[name], maps[name]) < CLOSE, name
    run = model.run(x, layers=["conv3_1"])
    with pytest.raises(KeyError, match="pool5"):
        run["pool5"]


def test_a_wrong_size_says_dense():
    model, _ = build("A")
    with pytest.raises(ValueError, match="dense") as error:
        model.forward(np.zeros((1, 64, 64, 3), np.float32))
    assert "(1, 64, 64, 3)" in str(error.value) and "32" in str(error.value)
    with pytest.raises(ValueError, match="relu9_9"):
        model.features(np.zeros((1, 32, 32, 3), np.float32), ["relu9_9"])


def test_an_empty_batch(device):
    model, _ = build("A")
    assert model.forward(np.zeros((0, 32, 32, 3), np.float32)).shape == (0, 10)


# ---------------------------------------------------------------------------------------------- gradients


def exact_backward(model, parameters, x, given, rng):
    """The reference's backward pass over the library's own maps: no ReLU and no pool's winner can differ."""
    run = model.run(x, training=True, rng=rng)
    maps = {name: run[name].numpy().astype(np.float64) for name in model.layer_names[:-1]}
    for i in range(1, 6):
        last = [name for name in model.layer_names if name.startswith((f"relu{i}_", f"norm{i}_"))][-1]
        maps[f"pool{i}.index"] = max_pool2d.forward(maps[last], model.pool_rounding == "ceil")[1]
    upstream = {name: d.astype(np.float64) for name, d in given.items()}
    masks = masks_of(model, rng)
    return net.backward(model.config, parameters, x.astype(np.float64), maps, upstream, masks)


def assert_gradients(grads, dx, expected, expected_dx):
    assert set(grads) == set(expected)
    for name, gradient in expected.items():
        assert relative_l2(grads[name], gradient) < CLOSE, name
    assert relative_l2(dx, expected_dx) < CLOSE, "dx"


@on_devices("config", CONFIGS, emulated=EVERY_KIND_OF_LAYER)
def test_gradients_are_those_of_its_own_maps(device, config):
    model, parameters = build(config)
    x, _ = batch(model, 2)
    rng = vgg.Rng(5, np.array([3, (2 << 32) + 1]))
    given = {"fc8": np.random.default_rng(1).standard_normal((2, 10)).astype(np.float32)}
    grads, dx = model.run(x, training=True, rng=rng).backward(given, input=True)
    assert_gradients(grads, dx, *exact_backward(model, parameters, x, given, rng))


@pytest.mark.parametrize("config", ["A-LRN", "C"])
@pytest.mark.parametrize(
    "names",
    [("conv3_1",), ("relu2_1", "pool4"), ("conv2_1", "relu2_1", "pool2"), ("pool5", "fc6", "drop6", "relu7"),
     ("conv1_1", "relu5_2", "fc7", "fc8")],
    ids="+".join,
)  # fmt: skip
@pytest.mark.parametrize("tapped", [False, True], ids=["fused", "tapped"])
def test_gradients_that_enter_anywhere(config, names, tapped):
    model, parameters = build(config)
    x, _ = batch(model, 2)
    rng = vgg.Rng(9, np.arange(2))
    run = model.run(x, layers=names if tapped else None, training=True, rng=rng)
    draw = np.random.default_rng(2)
    given = {name: draw.standard_normal(run[name].shape).astype(np.float32) for name in names}
    before = {name: d.copy() for name, d in given.items()}
    grads, dx = run.backward(given, input=True)
    assert_gradients(grads, dx, *exact_backward(model, parameters, x, given, rng))
    assert all(np.array_equal(given[name], before[name]) for name in given), "a given gradient was written to"
    # The gradient to the image alone is the same, and leaves no gradients of weights.
    nothing, image = run.backward(given, weights=False, input=True)
    assert not nothing and image.numpy().tobytes() == dx.numpy().tobytes()


@pytest.mark.parametrize("config", CONFIGS)
def test_loss_and_gradients_over_seeds(config):
    """Not much further from the float64 reference than the same formulas in NumPy's float32 are: with Winograd
    in all three directions the median's ratio was measured as 3.6 to 7.0."""
    ours, theirs = {}, {}
    for seed in range(3):
        model, parameters = build(config, seed)
        x, labels = batch(model, 2, seed)
        rng = vgg.Rng(seed, np.arange(2) + (seed << 32))
        masks = masks_of(model, rng)
        loss, grads = model.loss_and_gradients(x, labels, rng=rng)
        found = []
        for dtype in (np.float64, np.float32):
            weights = {k: v.astype(dtype) for k, v in parameters.items()}
            cast = {k: v.astype(dtype) for k, v in masks.items()}
            maps = net.forward(config, weights, x.astype(dtype), cast)
            expected_loss, dlogits = softmax.cross_entropy(maps["fc8"], labels)
            found.append(
                (
                    expected_loss,
                    net.backward(config, weights, x.astype(dtype), maps, {"fc8": dlogits}, cast)[0],
                )
            )
        (loss64, exact), (_, rounded) = found
        assert float(loss) == pytest.approx(loss64, rel=1e-4)
        for name, gradient in exact.items():
            ours.setdefault(name, []).append(relative_l2(grads[name], gradient))
            theirs.setdefault(name, []).append(relative_l2(rounded[name], gradient))
    assert set(ours) == set(model.parameters)
    # The median over parameters and seeds is rounding alone; the largest is a flip's.
    errors, yardstick = (np.array([e[name] for name in e]) for e in (ours, theirs))
    assert np.median(errors) <= 16 * np.median(yardstick) + 1e-6
    assert errors.max() < 5e-2


def test_micro_batches_add_up(device):
    model, _ = build("A")
    x, labels = batch(model, 5)
    rng = vgg.Rng(3, np.arange(5))
    loss, whole = model.loss_and_gradients(x, labels, rng=rng)
    grads, total = None, 0.0
    for part in (slice(0, 2), slice(2, 3), slice(3, 5)):
        piece, grads = model.loss_and_gradients(
            x[part],
            labels[part],
            rng=vgg.Rng(3, np.arange(5)[part]),
            normalizer=5.0,
            grads=grads,
            accumulate=grads is not None,
        )
        total += float(piece)
    assert total == pytest.approx(float(loss), rel=10 * EPS32)
    for name in whole:
        assert relative_l2(grads[name], whole[name]) < CLOSE, name


def test_ready_tells_each_layer_once_fc8_first(device):
    model, _ = build("A")
    x, labels = batch(model, 2)
    told = []
    _, grads = model.loss_and_gradients(x, labels, ready=told.append)
    names = [name for kind, name in net.layers("A") if kind in ("conv", "linear")]
    assert told == [(f"{name}.weight", f"{name}.bias") for name in reversed(names)]
    assert set(grads) == set(model.parameters)


@pytest.mark.parametrize("config", CONFIGS)
def test_threads_give_equal_bits(config, threads):
    model, _ = build(config)
    x, labels = batch(model, 3)
    results = []
    for count in (1, 2, 3):
        threads(count)
        loss, grads = model.loss_and_gradients(x, labels, rng=vgg.Rng(1, np.arange(3)))
        results.append([float(loss), *(grads[name].numpy().tobytes() for name in model.parameters)])
    assert results[0] == results[1] == results[2]


def test_a_net_gives_the_same_bits_whatever_the_batch(isa):
    model, _ = build("A-LRN")
    x, _ = batch(model, 5)
    whole = model.forward(x).numpy()
    assert model.forward(x[2:4]).numpy().tobytes() == whole[2:4].tobytes()
    assert model.forward(x[:3]).numpy().tobytes() == whole[:3].tobytes()


def test_changed_weights_invalidate_a_run(device):
    model, _ = build("A")
    x, _ = batch(model, 1)
    run = model.run(x)
    model.parameters["conv1_1.bias"].copy_(np.zeros(64, np.float32))
    with pytest.raises(RuntimeError, match="weights changed"):
        run.backward({"fc8": np.zeros((1, 10), np.float32)})


# ---------------------------------------------------------------------------------------------- dense


@on_devices(
    "height, width, rounding",
    [(*size, r) for size in ((64, 64), (64, 101), (97, 64), (135, 79)) for r in ("floor", "ceil")],
    emulated=[(64, 101, "floor"), (135, 79, "ceil")],
)
def test_dense(device, height, width, rounding):
    size = height, width
    model, parameters = build("B", input_size=64, pool_rounding=rounding)
    x, _ = batch(model, 2, size=size)
    expected = net.dense("B", parameters, x.astype(np.float64), 64, rounding == "ceil")
    scores = model.dense(x)
    assert scores.shape == expected.shape
    assert relative_l2(scores, expected) < CLOSE
    if size == (64, 64):
        assert relative_l2(scores.numpy()[:, 0, 0], model.forward(x)) < 1e-6


@pytest.mark.parametrize("layer", ["relu1_1", "conv3_2", "pool4", "relu5_2", "fc6", "relu6", "drop7", "prob"])
def test_dense_of_any_layer(device, layer):
    """Layers before fc6: the map of the whole image; those after: what a window of pool5's map gives, at each position."""
    model, parameters = build("A-LRN", input_size=64)
    x, _ = batch(model, 1, size=(64, 101))
    maps = net.forward("A-LRN", parameters, x.astype(np.float64), until="pool5")
    expected = maps.get(layer)
    if expected is None:
        windows = [maps["pool5"][:, :, left : left + 2] for left in range(2)]
        columns = []
        for h in (window.reshape(1, -1) for window in windows):
            for name in ("fc6", "fc7", "fc8"):
                h = scores = (
                    h @ parameters[f"{name}.weight"].astype(np.float64).T + parameters[f"{name}.bias"]
                )
                if layer == name:
                    break
                h = np.maximum(h, 0)
                if layer[-1] == name[-1]:  # its ReLU, and dropout, which does nothing here
                    break
            e = np.exp(scores - scores.max())
            columns.append(e / e.sum() if layer == "prob" else h)
        expected = np.stack(columns, axis=1)[None]
    ours = model.dense(x, layer=layer)
    assert ours.shape == expected.shape
    assert relative_l2(ours, expected) < CLOSE


def test_dense_refuses_an_unknown_layer():
    model, _ = build("A")
    with pytest.raises(ValueError, match="layer is 'relu9'; A has conv1_1"):
        model.dense(np.zeros((1, 32, 32, 3), np.float32), layer="relu9")


LONG = (32 * 28 + 17, 33)  # its maps are larger than what Winograd takes beside a narrow band


@pytest.mark.parametrize(
    "config, rounding, n, size",
    [
        ("A", "floor", 2, LONG),
        ("A", "ceil", 2, LONG[::-1]),
        ("C", "ceil", 1, LONG),
        ("E", "floor", 1, LONG[::-1]),
    ],
    ids=["A-rows", "A-columns", "C-rows", "E-columns"],
)
def test_dense_in_bands(config, rounding, n, size):
    """The same to rounding: a band is an image of its own, whose Winograd tiles lie differently. Measured: up to
    2.6e-6."""
    model, _ = build(config, pool_rounding=rounding)
    x, _ = batch(model, n, size=size)
    whole = model.dense(x).numpy()
    with pytest.raises(MemoryError, match="memory is 1000 bytes") as error:
        model.dense(x, memory=1000)
    least = int(re.search(r"takes (\d+) bytes", str(error.value))[1])  # for bands of one row of pool5
    plan = model.memory_plan(n, size=x.shape[1:3])
    assert least < 0.9 * (plan["maps"] + plan["outputs"])
    for memory in (least, (least + plan["maps"]) // 2)[:n]:
        assert relative_l2(model.dense(x, memory=memory), whole) < CLOSE


@pytest.mark.parametrize("layer", ["relu2_1", "conv4_3", "pool4"])
def test_dense_in_bands_of_an_early_layer(layer):
    model, _ = build("C", pool_rounding="ceil")
    for size in (LONG, LONG[::-1]):
        x, _ = batch(model, 1, size=size)
        whole = model.dense(x, layer=layer).numpy()
        with pytest.raises(MemoryError, match="memory is 1000 bytes") as error:
            model.dense(x, layer=layer, memory=1000)
        least = int(re.search(r"takes (\d+) bytes", str(error.value))[1])
        plan = model.memory_plan(1, size=x.shape[1:3], layers=[layer])
        assert least < 0.9 * plan["maps"]
        assert relative_l2(model.dense(x, layer=layer, memory=least), whole) < CLOSE


def test_the_head_sees_many_images_at_once_or_few_rows(device):
    """fc6 to fc8 have the same bits however positions are put together."""
    model, _ = build("A")
    x, _ = batch(model, 3, size=(97, 96))
    whole = model.dense(x).numpy()
    side = 4 * 512 * (model.input_size // 32) ** 2
    pool5 = model.dense(x, layer="pool5")
    for positions in (1, 6, 9, 20):
        scores = dense._head(model, pool5, "fc8", positions * side)
        np.testing.assert_array_equal(scores.numpy(), whole)


# ---------------------------------------------------------------------------------------------- memory


def test_a_net_survives_failed_allocations():
    """Each allocation of a step fails in turn: MemoryError, nothing leaked, and the model works as before."""
    model, _ = build("A-LRN")
    x, labels = batch(model, 1)
    x, labels = vgg.tensor(x), vgg.tensor(labels)
    expected = float(model.loss_and_gradients(x, labels)[0])
    failures = survives_failed_allocations(lambda: model.loss_and_gradients(x, labels))
    assert failures >= 4
    assert float(model.loss_and_gradients(x, labels)[0]) == expected


@pytest.mark.parametrize(
    "layers", [None, ["pool2"], ["relu2_1"], ["pool1", "fc8"], ["conv1_1"], ["pool5", "pool2"]], ids=str
)
@pytest.mark.parametrize("config", ["A-LRN", "B"])
def test_inference_takes_the_first_layers_in_chunks(threads, config, layers):
    """The same bits as a pass that keeps every map, and no more memory than was planned."""
    model = vgg.VGG(config, num_classes=7, input_size=32, fc_width=24, init="he")
    x = np.random.default_rng(3).standard_normal((5, 32, 32, 3)).astype(np.float32)
    expected = model.run(x, layers=layers)
    for count in (1, 3, 4, 16):  # chunks of 1, of 2 with one left, of 2, and no chunks
        threads(count)
        found = model.run(x, layers=layers, keep=False)
        for name in layers or ["fc8"]:
            assert found[name].numpy().tobytes() == expected[name].numpy().tobytes()

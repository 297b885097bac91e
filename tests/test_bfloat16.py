"""bfloat16, the upper half of a float32, as storage: conversions, exchange, linear layers, and models that hold
the weights of fc6, fc7 and fc8 so."""

import json

import numpy as np
import pytest
import vggnet as vgg
from vggnet import _C, evaluate, ops, train
from vggnet.cli import main
from vggnet.configs import layers_of

import tolerance
from helpers import call, put, survives_failed_allocations, where
from reference import linear as reference

try:
    import torch
except ImportError:
    torch = None

# Rounding to the eight bits of bfloat16 errs by at most 2^-8 of a number, and by 2^-8 / sqrt(3) in the root mean square,
# being even between the two ends. The weights' errors are independent, so that is what a layer's sums err by; three layers
# add up. Measured: 3.1e-3 here, 2.7e-3 on net D.
LOGITS = 3 * 2.0**-8 / 3**0.5
needs_torch = pytest.mark.skipif(torch is None, reason="torch, an optional second opinion, is not installed")


def bits_of(values):
    """bfloat16 by definition, in integers: to nearest, to even where two are as near."""
    bits = values.view(np.uint32).astype(np.uint64)
    low, high = bits & 0xFFFF, bits >> 16
    up = (low > 0x8000) | ((low == 0x8000) & (high & 1 == 1))
    return (high + up).astype(np.uint16)


def widened(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values, offset=0):
    """A bfloat16 tensor of the values (in float32: exact ones), `offset` items off alignment; and what it holds."""
    tensor = vgg.tensor(values, dtype="bfloat16", device=where())
    arena = vgg.zeros((2 * offset + tensor.nbytes + 64,), "uint8", where())
    laid = arena.view(2 * offset, tensor.shape, "bfloat16")
    laid.copy_(tensor)
    return laid, tensor.to(dtype="float32").numpy()


# ---- tensors


def test_rounding():
    """Every upper half, with lower halves on, beside and between what rounds to either side."""
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    values = ((np.arange(1 << 16, dtype=np.uint32) << 16)[:, None] | lower).view(np.float32)
    result = vgg.tensor(values, dtype="bfloat16").to(dtype="float32").numpy()
    nan = np.isnan(values)
    assert np.array_equal(np.isnan(result), nan)
    assert (result.view(np.uint32)[nan] >> 31 == values.view(np.uint32)[nan] >> 31).all()
    np.testing.assert_array_equal(
        result[~nan].view(np.uint32), widened(bits_of(values))[~nan].view(np.uint32)
    )


def test_conversions():
    t = vgg.tensor([[1.0, -2.5], [0.1, 300.7]], dtype="bfloat16")
    assert (t.dtype, t.shape, t.nbytes, t.size) == ("bfloat16", (2, 2), 8, 4)
    assert repr(t) == 'Tensor(shape=(2, 2), dtype="bfloat16", device="cpu")'
    assert t.to(dtype="bfloat16") is t
    assert t.to(dtype="float32").numpy().tolist() == [[1, -2.5], [0.10009765625, 300]]
    assert t.to(dtype="int64").numpy().tolist() == [[1, -2], [0, 300]]
    assert vgg.tensor(t).dtype == "bfloat16"
    assert vgg.tensor(t, dtype="float32").dtype == "float32"
    assert vgg.tensor([1, 2], dtype="int64").to(dtype="bfloat16").to(dtype="uint8").numpy().tolist() == [1, 2]
    assert vgg.empty((3, 2), "bfloat16").nbytes == 12
    zeros = vgg.zeros((3,), "bfloat16")
    assert zeros.to(dtype="float32").numpy().tolist() == [0, 0, 0]
    zeros.copy_(np.array([1, 2, 0.1]))
    assert zeros.to(dtype="float32").numpy().tolist() == [1, 2, 0.10009765625]
    wide = vgg.empty((3,))
    wide.copy_(zeros)
    assert wide.numpy().tolist() == [1, 2, 0.10009765625]
    assert (vgg.tensor(1.5, dtype="bfloat16").item(), float(vgg.tensor([0.1], dtype="bfloat16"))) == (
        1.5,
        0.10009765625,
    )
    assert t.reshape((4,)).view(2, (3,), "bfloat16").to(dtype="float32").numpy()[0] == -2.5
    with pytest.raises(ValueError, match="aligned for bfloat16"):
        t.view(1, (1,), "bfloat16")


def test_what_lacks_bfloat16_says_so():
    t = vgg.zeros((2, 2), "bfloat16")
    for function in (t.numpy, lambda: np.asarray(t), lambda: np.array(t, np.float32)):
        with pytest.raises(TypeError, match=r'bfloat16, which NumPy lacks; use t.to\(dtype="float32"\)'):
            function()
    with pytest.raises(BufferError, match=r't.to\(dtype="float32"\)'):
        memoryview(t)
    with pytest.raises(ValueError, match="relu: x has dtype bfloat16; expected float32"):
        ops.relu(t)
    p = vgg.zeros((2, 2))
    with pytest.raises(ValueError, match="bfloat16"):
        ops.sgd_(t, p, p, 0.1)


def test_conversions_fail_without_leaks():
    t = vgg.tensor(np.arange(5.0), dtype="bfloat16")
    assert survives_failed_allocations(lambda: t.to(dtype="float32")) == 1
    assert survives_failed_allocations(lambda: vgg.tensor([1.0, 2.0], dtype="bfloat16")) == 1


@pytest.mark.parametrize("version", [None, (1, 0)], ids=["legacy", "versioned"])
def test_dlpack(version):
    t = vgg.tensor([1.0, 2.5], dtype="bfloat16")
    back = vgg.from_dlpack(t.__dlpack__(max_version=version))
    assert (back.dtype, back.shape) == ("bfloat16", (2,))
    t.copy_(np.array([3.0, 4.0]))
    assert back.to(dtype="float32").numpy().tolist() == [3, 4]


@needs_torch
def test_torch_both_ways():
    values = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    theirs = torch.from_numpy(values).bfloat16()
    ours = vgg.tensor(values, dtype="bfloat16")
    shared = torch.from_dlpack(ours)
    assert shared.dtype == torch.bfloat16 and torch.equal(shared, theirs)
    shared[0, 0] = 8
    assert ours.to(dtype="float32").numpy()[0, 0] == 8
    taken = vgg.from_dlpack(theirs)
    assert taken.dtype == "bfloat16"
    np.testing.assert_array_equal(taken.to(dtype="float32").numpy(), theirs.float().numpy())


# ---- linear


def linear(x, w, b=None, relu=False):
    """Into guarded outputs, with a poisoned workspace."""
    n, i, o = *x.shape, w.shape[0]
    need = _C.linear_workspace(n, i, o, weight_dtype=w.dtype, device=where())
    return call(_C.linear, x, w, b, out=(n, o), relu=relu, workspace=need)


# Both kernels, every remainder of their tiles and of a quad of inputs, more than one block of inputs.
SHAPES = [(n, 37, 35) for n in range(1, 20)] + [(2, i, 35 - i) for i in range(1, 35)]
SHAPES += [(1, 2051, 70), (8, 1030, 65), (9, 2051, 66), (40, 1029, 131), (0, 5, 7), (1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids="n{0[0]}i{0[1]}o{0[2]}".format)
def test_linear(kernels, rng, shape):
    """The bits of the same weights in float32, which are within the bound of the reference."""
    n, i, o = shape
    x = np.maximum(rng.standard_normal((n, i)), 0).astype(np.float32)
    b = rng.standard_normal(o).astype(np.float32)
    w, held = narrow((rng.standard_normal((o, i)) * (2 / i) ** 0.5).astype(np.float32), offset=n % 3)
    y = linear(x, w, b)
    assert y.tobytes() == linear(x, put(held), b).tobytes()
    wide = [a.astype(np.float64) for a in (x, held, b)]
    tolerance.assert_within(y, reference.forward(*wide), tolerance.linear_bound(*wide), "y")
    assert linear(x, w, b, relu=True).tobytes() == np.maximum(y, 0).tobytes()
    assert ops.linear(x, w).numpy().tobytes() == linear(x, w).tobytes()


def test_threads_and_batches_give_equal_bits(isa, rng, threads):
    x = rng.standard_normal((21, 1100)).astype(np.float32)
    w, _ = narrow(rng.standard_normal((300, 1100)).astype(np.float32))
    y = linear(x, w)
    for count in (1, 2, 3, 7):
        threads(count)
        assert linear(x, w).tobytes() == y.tobytes()
    for part in (slice(0, 1), slice(3, 10), slice(5, None)):
        assert linear(x[part], w).tobytes() == y[part].tobytes()


@pytest.mark.parametrize("n", [1, 3, 20])
def test_nan_and_infinity_propagate(kernels, n):
    values = np.zeros((6, 11), np.float32)
    values[:, 10] = [np.nan, np.inf, -np.inf, 1, -1, 0]
    y = linear(np.ones((n, 11), np.float32), narrow(values)[0])
    np.testing.assert_array_equal(y, np.broadcast_to(values[:, 10], y.shape))


def test_only_weights_of_the_forward_pass():
    narrow_w, x = vgg.zeros((5, 3), "bfloat16"), np.zeros((2, 3), np.float32)
    for function, name in (
        (lambda: ops.linear(narrow_w, np.zeros((4, 3), np.float32)), "x"),
        (lambda: ops.linear(x, np.zeros((5, 3), np.float32), vgg.zeros((5,), "bfloat16")), "b"),
        (lambda: ops.linear_backward_input(np.zeros((2, 5), np.float32), narrow_w), "w"),
        (lambda: ops.linear_backward_weight(np.zeros((5, 2), np.float32), narrow_w), "x"),
        (lambda: ops.conv2d(np.zeros((1, 2, 2, 3), np.float32), vgg.zeros((4, 3, 3, 3), "bfloat16")), "w"),
    ):
        with pytest.raises(ValueError, match=f"{name} has dtype bfloat16; expected float32"):
            function()
    with pytest.raises(
        ValueError, match='weight_dtype is \'float16\'; expected one of "float32", "bfloat16"'
    ):
        _C.linear_workspace(1, 2, 3, weight_dtype="float16")


# ---- models


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A file, and its model with either type of weights."""
    path = tmp_path_factory.mktemp("bfloat16") / "a.safetensors"
    vgg.VGG("A", num_classes=10, input_size=32, fc_width=96, init="he", seed=3).save(path)
    return path, vgg.load(path), vgg.load(path, weight_dtype="bfloat16")


def pixels(n, size=32):
    return (50 * np.random.default_rng(n).standard_normal((n, size, size, 3))).astype(np.float32)


def test_weights_of_a_model(models):
    _, whole, half = models
    fully = {f"{name}.weight" for name in ("fc6", "fc7", "fc8")}
    assert (whole.weight_dtype, half.weight_dtype) == ("float32", "bfloat16")
    for name, tensor in half.parameters.items():
        assert tensor.dtype == ("bfloat16" if name in fully else "float32")
        exact = whole.parameters[name].numpy()
        expected = widened(bits_of(exact)) if name in fully else exact
        np.testing.assert_array_equal(tensor.to(dtype="float32").numpy(), expected)


@pytest.mark.parametrize("n", [1, 12])
def test_passes(models, n):
    _, whole, half = models
    x = pixels(n)
    exact = whole.forward(x).numpy()
    error = tolerance.relative_l2(half.forward(x).numpy(), exact)
    assert 0 < error <= LOGITS
    assert np.array_equal(half.run(x)["relu5_2"].numpy(), whole.run(x)["relu5_2"].numpy())
    large = pixels(1, 96)
    assert tolerance.relative_l2(half.dense(large).numpy(), whole.dense(large).numpy()) <= LOGITS
    assert half.features(x, ["relu7"])["relu7"].shape == (n, 96)
    assert half.run(x)["fc7"].shape == (n, 96)  # inside a fused step: made again


def test_predict_and_evaluate(models):
    _, whole, half = models
    images = [np.random.default_rng(i).integers(0, 256, (40, 50, 3), np.uint8) for i in range(3)]
    for protocol in ("center", "dense"):
        pairs = zip(whole.predict(images, protocol), half.predict(images, protocol), strict=True)
        for expected, got in pairs:
            assert got[0][1] == pytest.approx(expected[0][1], rel=0.2)
    protocol = evaluate.Protocol.for_model("center", half)
    np.testing.assert_allclose(
        evaluate.posteriors(half, images, protocol).sum(axis=1), np.ones(3), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("n", [1, 12])
def test_memory_plan(models, n):
    path, whole, _ = models
    half = vgg.load(
        path, weight_dtype="bfloat16"
    )  # one that holds no transformed weights of convolutions yet
    shapes = {
        name: shape
        for layer in layers_of("A", num_classes=10, input_size=32, in_channels=3, fc_width=96)
        if layer.kind == "linear"
        for name, shape in layer.parameter_shapes.items()
        if name.endswith("weight")
    }
    saved = 2 * sum(int(np.prod(shape)) for shape in shapes.values())
    assert whole.memory_plan(n)["parameters"] - half.memory_plan(n)["parameters"] == saved
    x = _C.tensor(pixels(n))
    held = sum(tensor.nbytes for tensor in half.parameters.values())
    before = _C.memory_stats()["current"]
    _C.reset_peak_memory()
    half.forward(x)
    assert _C.memory_stats()["peak"] - before == half.memory_plan(n).total - held - x.nbytes


def test_it_is_for_inference(models, tmp_path):
    path, _, half = models
    x, labels = pixels(2), np.zeros(2, np.int64)
    few = vgg.data.Subset(vgg.data.sample(), range(4))
    for function in (
        lambda: half.run(x, training=True),
        lambda: half.loss_and_gradients(x, labels),
        lambda: half.loss_and_gradients(x, labels, training=False),
        lambda: half.run(x).backward({"fc8": np.ones((2, 10), np.float32)}),
        lambda: half.memory_plan(2, training=True),
        lambda: half.save(tmp_path / "b.safetensors"),
        lambda: train.fit(half, few),
        lambda: vgg.VGG("A", weight_dtype="bfloat16"),
        lambda: vgg.load(path, weight_dtype="float16"),
    ):
        with pytest.raises(ValueError, match="weight_dtype"):
            function()
    assert not (tmp_path / "b.safetensors").exists()


def test_command_line(models, tmp_path, capsys):
    from PIL import Image

    path, _, half = models
    image = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(image)
    options = ["--weight-dtype", "bfloat16", "--protocol", "center", "--json"]
    assert main(["predict", str(path), str(image), *options]) == 0
    top = json.loads(capsys.readouterr().out)["images"][0]["top"]
    assert top[0]["probability"] == pytest.approx(half.predict(image, "center")[0][0][1])

"""Central differences prove the reference, in float64; then the reference may judge the kernels."""

import numpy as np
import pytest

from reference import (
    augment,
    average,
    conv2d,
    dropout,
    euclidean,
    linear,
    lrn,
    max_pool2d,
    net,
    philox,
    relu,
    sgd,
    softmax,
    unfold,
)

STEP = 1e-5


def numeric_gradient(function, x, dy, step=STEP):
    """d sum(function(x) dy) / dx, one element at a time."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        shifted = x.copy()
        shifted[i] = x[i] + step
        above = np.sum(function(shifted) * dy)
        shifted[i] = x[i] - step
        gradient[i] = (above - np.sum(function(shifted) * dy)) / (2 * step)
    return gradient


def assert_gradient(analytic, function, x, dy):
    """Central differences are off by step^2 f'''/6 + eps64 |f| / step: 1e-9 of the largest element at these
    sizes."""
    numeric = numeric_gradient(function, x, dy)
    assert np.abs(analytic - numeric).max() <= 1e-8 * np.abs(numeric).max()


def distinct(rng, shape):
    """Values at least 0.1 apart and from 0, so that a step crosses neither a ReLU's kink nor a pool's tie."""
    size = int(np.prod(shape))
    return (rng.permutation(size) - size // 2 + 0.5).reshape(shape) / 10


@pytest.fixture
def rng():
    return np.random.default_rng(1409)


def by_hand(x, w, b, n, h, wd, k):
    """z[n,h,w,k] as vgg.h has it, in Python's own arithmetic."""
    size, total = w.shape[1], b[k]
    for r in range(size):
        for s in range(size):
            i, j = h + r - (size - 1) // 2, wd + s - (size - 1) // 2
            if 0 <= i < x.shape[1] and 0 <= j < x.shape[2]:
                total += sum(x[n, i, j, c] * w[k, r, s, c] for c in range(x.shape[3]))
    return total


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("height, width", [(1, 1), (1, 4), (3, 1), (4, 5)])
def test_conv2d(rng, size, height, width):
    x, w, b = (rng.standard_normal(s) for s in [(2, height, width, 3), (4, size, size, 3), (4,)])
    dy = rng.standard_normal((2, height, width, 4))
    z = conv2d.forward(x, w, b)
    for i in np.ndindex(z.shape):
        assert z[i] == pytest.approx(by_hand(x, w, b, *i), abs=1e-13)
    assert_gradient(conv2d.backward_input(dy, w), lambda x: conv2d.forward(x, w, b), x, dy)
    dw, db = conv2d.backward_weight(dy, x, size)
    assert_gradient(dw, lambda w: conv2d.forward(x, w, b), w, dy)
    assert_gradient(db, lambda b: conv2d.forward(x, w, b), b, dy)
    # The adjoint identities, without steps at all.
    linear_part = np.sum(conv2d.forward(x, w) * dy)
    assert linear_part == pytest.approx(np.sum(x * conv2d.backward_input(dy, w)), rel=1e-12)
    assert linear_part == pytest.approx(np.sum(w * dw), rel=1e-12)


@pytest.mark.parametrize("pool", [None, "floor", "ceil"])
def test_fused_conv2d(rng, pool):
    x, w, b = (rng.standard_normal(s) for s in [(1, 5, 3, 2), (3, 3, 3, 2), (3,)])

    def function(x):
        return conv2d.fused(x, w, b, with_relu=True, pool=pool)[0 if pool else ...]

    y, index = conv2d.fused(x, w, b, True, pool) if pool else (function(x), None)
    dy = rng.standard_normal(y.shape)
    g = conv2d.fused_gradient(dy, y, index, x.shape)
    assert g.shape == (1, 5, 3, 3)
    assert_gradient(conv2d.backward_input(g, w), function, x, dy)


def test_relu(rng):
    x = distinct(rng, (3, 7))
    dy = rng.standard_normal(x.shape)
    assert_gradient(relu.backward(dy, relu.forward(x)), relu.forward, x, dy)
    assert np.array_equal(relu.forward(np.array([-1.0, 0.0, 2.0, np.nan])), [0, 0, 2, np.nan], equal_nan=True)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("height, width", [(2, 2), (1, 3), (3, 1), (4, 6), (5, 7)])
def test_max_pool2d(rng, height, width, ceil_mode):
    x = distinct(rng, (2, height, width, 3))
    y, index = max_pool2d.forward(x, ceil_mode)
    rounding = np.ceil if ceil_mode else np.floor
    assert y.shape == index.shape == (2, rounding(height / 2), rounding(width / 2), 3)
    for n, i, j, c in np.ndindex(y.shape):
        window = x[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
        assert y[n, i, j, c] == window.max()
        assert x[n, 2 * i + index[n, i, j, c] // 2, 2 * j + index[n, i, j, c] % 2, c] == window.max()
    if y.size:
        dy = rng.standard_normal(y.shape)
        dx = max_pool2d.backward(dy, index, x.shape)
        assert_gradient(dx, lambda x: max_pool2d.forward(x, ceil_mode)[0], x, dy)


def test_max_pool2d_winners():
    nan, inf = np.nan, np.inf
    windows = {
        (1, 1, 1, 1): 0,
        (0, 1, 1, 0): 1,
        (0, 1, nan, nan): 2,
        (nan, nan, 9, nan): 0,
        (nan, nan, nan, nan): 0,
        (-inf, -inf, -inf, -inf): 0,
        (-0.0, 0.0, 0.0, -0.0): 0,
        (-1, -2, -1, -0.5): 3,
        (inf, nan, inf, 1): 1,
    }
    for window, winner in windows.items():
        y, index = max_pool2d.forward(np.array(window, float).reshape(1, 2, 2, 1))
        assert index.item() == winner, window
        assert np.array_equal(y.item(), window[winner], equal_nan=True)


@pytest.mark.parametrize("channels", [1, 2, 5, 9])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_lrn(rng, channels, size):
    # Large alpha, so that the second term of the gradient is as large as the first.
    options = {"size": size, "alpha": 0.3, "beta": 0.75, "k": 1.5}
    x, dy = rng.standard_normal((2, 3, channels)), rng.standard_normal((2, 3, channels))
    assert_gradient(lrn.backward(dy, x, **options), lambda x: lrn.forward(x, **options), x, dy)
    by_definition = [
        x[0, 0, c]
        / (1.5 + 0.3 * sum(v * v for v in x[0, 0, max(0, c - size // 2) : c + size // 2 + 1])) ** 0.75
        for c in range(channels)
    ]
    assert np.allclose(lrn.forward(x, **options)[0, 0], by_definition, rtol=1e-14)


def test_linear(rng):
    x, w, b, dy = (rng.standard_normal(s) for s in [(3, 5), (4, 5), (4,), (3, 4)])
    assert np.allclose(
        linear.forward(x, w, b), [[sum(xi * wi) + bi for wi, bi in zip(w, b, strict=True)] for xi in x]
    )
    dw, db = linear.backward_weight(dy, x)
    assert_gradient(linear.backward_input(dy, w), lambda x: linear.forward(x, w, b), x, dy)
    assert_gradient(dw, lambda w: linear.forward(x, w, b), w, dy)
    assert_gradient(db, lambda b: linear.forward(x, w, b), b, dy)


@pytest.mark.parametrize("normalizer", [None, 2.5])
def test_cross_entropy(rng, normalizer):
    logits, labels = rng.standard_normal((4, 6)), np.array([0, 5, 2, 2])
    loss, dlogits = softmax.cross_entropy(logits, labels, normalizer)
    assert_gradient(dlogits, lambda x: softmax.cross_entropy(x, labels, normalizer)[0], logits, np.array(1.0))
    picked = softmax.forward(logits)[np.arange(4), labels]
    assert loss == pytest.approx(-np.log(picked).sum() / (normalizer or 4), rel=1e-14)
    assert softmax.forward(logits).sum(axis=1) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("normalizer", [None, 2.5])
def test_euclidean_loss(rng, normalizer):
    x, target, labels = rng.standard_normal((4, 6)), rng.standard_normal((4, 2)), np.array([0, 2, 1, 1])
    for predictions, own in ((x, labels), (x[:, :2], None)):
        _, dx = euclidean.loss(predictions, target, own, normalizer)
        assert_gradient(
            dx, lambda x, own=own: euclidean.loss(x, target, own, normalizer)[0], predictions, np.array(1.0)
        )
    by_definition = sum(
        np.linalg.norm(x[n, 2 * k : 2 * k + 2] - target[n]) ** 2 for n, k in enumerate(labels)
    )
    assert euclidean.loss(x, target, labels, 2.5)[0] == pytest.approx(by_definition / 5, rel=1e-14)


def test_philox_known_answers():
    """The vectors that the authors publish with their code (Random123, kat_vectors, philox4x32 with 10
    rounds)."""
    assert philox.rounds((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = 0xFFFFFFFF
    assert philox.rounds((ones,) * 4, (ones, ones)) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert philox.rounds(pi, (0xA4093822, 0x299F31D0)) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_philox_numbers():
    word = philox.bits(7, [3, 1 << 40], 5, 20_000)
    u = philox.uniform(word)
    # Mean 1/2 and deviation 1/sqrt(12) to four standard errors of 40,000 numbers.
    assert abs(u.mean() - 0.5) < 4 * 12**-0.5 / 200 and abs(u.std() - 12**-0.5) < 0.004
    assert u.min() >= 0 and u.max() < 1
    assert len(np.unique(word)) > 39_990
    z = np.array([philox.normal_pair(int(a), int(b)) for a, b in word.reshape(-1, 2)])
    assert (
        abs(z.mean()) < 4 / 200 and abs(z.std() - 1) < 4 / 280 and abs(np.mean(z[:, 0] * z[:, 1])) < 4 / 141
    )


def test_dropout(rng):
    x = rng.standard_normal((2, 1000))
    y = dropout.forward(x, 0.25, 11, [5, 6], purpose=3)
    kept = y != 0
    assert np.allclose(y[kept], x[kept] / 0.75) and abs(kept.mean() - 0.75) < 4 * (0.1875 / 2000) ** 0.5
    assert np.array_equal(dropout.forward(x[1:], 0.25, 11, [6], purpose=3), y[1:])


def test_sgd_and_average(rng):
    p, g, v = rng.standard_normal((3, 5))
    param, velocity = sgd.step(p, g, v, 0.1, 0.9, 0.01)
    assert np.allclose(velocity, 0.9 * v + 0.1 * g + 0.001 * p) and np.allclose(param, p - velocity)
    assert np.allclose(average.weighted_mean([p, g, v], [1, 2, 5]), (p + 2 * g + 5 * v) / 8)


def test_augment_and_unfold(rng):
    image = rng.integers(0, 256, (5, 6, 3), np.uint8)
    straight, mirrored = augment.forward([image, image], [(1, 2, 0), (1, 2, 1)], 4, [1, 2, 3])
    assert np.array_equal(straight, image[1:5, 2:6].astype(float) - [1, 2, 3])
    assert np.array_equal(mirrored, straight[:, ::-1])
    x = rng.standard_normal((2, 3, 4, 2))
    rows = unfold.forward(x, 2)
    assert rows.shape == (2 * 2 * 3, 8)
    assert np.array_equal(rows[6 + 3 + 2], x[1, 1:3, 2:4].ravel())


@pytest.mark.parametrize("config", net.CONFIGS)
def test_net_structure(config):
    order = net.layers(config)
    shapes = net.parameter_shapes(config)
    assert sum(kind in ("conv", "linear") for kind, _ in order) == net.WEIGHT_LAYERS[config]
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == net.PARAMETERS[config]
    assert [name for kind, name in order if kind == "pool"] == ["pool1", "pool2", "pool3", "pool4", "pool5"]


@pytest.mark.parametrize("config", net.CONFIGS)
def test_net_gradients(config, rng):
    """Along a random direction in each parameter and in the input. Dropout on; every layer contributes to the
    loss."""
    shapes = net.parameter_shapes(config, num_classes=5, input_size=32, fc_width=12, divisor=16)
    parameters = net.random_parameters(shapes, rng, np.float64)
    x = rng.standard_normal((2, 32, 32, 3))
    masks = {name: dropout.mask(0.5, 1, [0, 1], i, 12) for i, name in enumerate(("drop6", "drop7"))}
    maps = net.forward(config, parameters, x, masks)
    upstream = {name: rng.standard_normal(maps[name].shape) for _, name in net.layers(config)[:-1]}
    gradients, dx = net.backward(config, parameters, x, maps, upstream, masks)

    # So small a step hardly ever makes a ReLU or a pool's winner flip; maps are subtracted before they are
    # summed, so float64 still leaves six digits.
    step = 1e-9
    for name, gradient in {**gradients, "x": dx}.items():
        direction = rng.standard_normal(gradient.shape)
        above, below = (
            net.forward(config, parameters, x + moved, masks)
            if name == "x"
            else net.forward(config, {**parameters, name: parameters[name] + moved}, x, masks)
            for moved in (step * direction, -step * direction)
        )
        numeric = sum(np.sum((above[layer] - below[layer]) * d) for layer, d in upstream.items()) / (2 * step)
        assert numeric == pytest.approx(np.sum(gradient * direction), rel=1e-4), name


def test_net_dense_is_the_net_on_windows_when_the_window_is_the_image(rng):
    shapes = net.parameter_shapes("A", num_classes=4, input_size=64, fc_width=8, divisor=16)
    parameters = net.random_parameters(shapes, rng, np.float64)
    x = rng.standard_normal((2, 64, 64, 3))
    assert np.allclose(
        net.dense("A", parameters, x, 64)[:, 0, 0], net.forward("A", parameters, x)["fc8"], rtol=1e-12
    )
    assert net.dense("A", parameters, rng.standard_normal((1, 130, 95, 3)), 64).shape == (1, 3, 1, 4)
    assert net.dense("A", parameters, rng.standard_normal((1, 130, 97, 3)), 64, True).shape == (1, 4, 3, 4)

"""The Euclidean loss against the float64 reference: one prediction a row, or one for each class."""

import numpy as np
import pytest

from helpers import Guarded, call, ops, raises, survives_failed_allocations
from reference import euclidean as reference
from tolerance import assert_within, euclidean_loss_bound

SHAPES = [(1, 1, 1), (3, 1, 4), (5, 10, 4), (2, 1000, 4), (7, 3, 5), (700, 2, 3)]  # rows, classes, numbers


def check(x, target, labels=None, normalizer=None):
    options = {} if normalizer is None else {"normalizer": normalizer}
    inputs = (x, target) if labels is None else (x, target, labels)
    loss, dx = call(ops.euclidean_loss, *inputs, out=[((), "float32"), (x.shape, "float32")], **options)
    wide = x.astype(np.float64), target.astype(np.float64), labels, normalizer or len(x)
    (expected, gradient), (loss_bound, dx_bound) = reference.loss(*wide), euclidean_loss_bound(*wide)
    assert_within(loss, expected, loss_bound, "loss")
    assert_within(dx, gradient, dx_bound, "dx")


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e6])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_reference(device, rng, shape, scale):
    n, classes, d = shape
    x, target = ((scale * rng.standard_normal(s)).astype(np.float32) for s in ((n, classes * d), (n, d)))
    check(x, target, rng.integers(0, classes, n))
    check(x, target, rng.integers(0, classes, n), normalizer=256.0)
    check(x[:, :d].copy(), target)
    check(x[:, :d].copy(), target, normalizer=0.25)


def test_a_hit_costs_nothing(device):
    loss, dx = ops.euclidean_loss(np.full((2, 4), 0.3, np.float32), np.full((2, 4), 0.3, np.float32))
    assert float(loss) == 0 and not dx.numpy().any()


def test_only_the_own_class_has_a_gradient(device):
    _, dx = ops.euclidean_loss(np.ones((2, 6), np.float32), np.zeros((2, 2), np.float32), [2, 0])
    assert dx.numpy().tolist() == [[0, 0, 0, 0, 0.5, 0.5], [0.5, 0.5, 0, 0, 0, 0]]


def test_nan_and_inf_propagate(device):
    x, target = np.zeros((3, 4), np.float32), np.zeros((3, 2), np.float32)
    x[0, 2], x[1, 0], x[2, 0] = np.nan, np.inf, np.nan
    loss, dx = ops.euclidean_loss(x, target, [0, 0, 1])  # the NaN are in predictions that do not count
    assert (
        float(loss) == np.inf and dx.numpy()[1].tolist() == [np.inf, 0, 0, 0] and not dx.numpy()[[0, 2]].any()
    )
    loss, dx = ops.euclidean_loss(x, target, [1, 1, 1])
    assert np.isnan(float(loss)) and np.isnan(dx.numpy()[0, 2]) and np.isnan(dx.numpy()).sum() == 1


def test_micro_batches_with_one_normalizer_add_up(device, rng):
    x, target = (rng.standard_normal((7, 4)).astype(np.float32) for _ in range(2))
    whole, dx = ops.euclidean_loss(x, target)
    parts = [ops.euclidean_loss(x[p], target[p], normalizer=7.0) for p in (slice(0, 3), slice(3, 7))]
    assert sum(float(loss) for loss, _ in parts) == pytest.approx(float(whole), rel=1e-6)
    assert np.concatenate([d.numpy() for _, d in parts]).tobytes() == dx.numpy().tobytes()


@pytest.mark.parametrize("bad", [-1, 2, 1 << 40, -(1 << 63)])
def test_label_out_of_range_writes_nothing(bad):
    loss, dx = Guarded((), value=7.0), Guarded((2, 8), value=7.0)
    with raises(["euclidean_loss", "label", str(bad)]):
        ops.euclidean_loss(
            np.zeros((2, 8), np.float32), np.zeros((2, 4), np.float32), [1, bad], out=(loss.tensor, dx.tensor)
        )
    assert loss.numpy() == 7 and (dx.numpy() == 7).all()


@pytest.mark.parametrize("shapes", [((0, 4), (0, 4)), ((0, 8), (0, 4)), ((3, 0), (3, 0))])
def test_empty(device, shapes):
    x, target = (np.zeros(shape, np.float32) for shape in shapes)
    labels = (np.zeros(len(x), np.int64),) if shapes[0] != shapes[1] else ()
    loss, dx = call(ops.euclidean_loss, x, target, *labels, out=[((), "float32"), (x.shape, "float32")])
    assert loss == 0 and dx.shape == x.shape


X, TARGET = np.zeros((3, 4), np.float32), np.zeros((3, 2), np.float32)


@pytest.mark.parametrize(
    "arguments, options, words",
    [
        ((X, TARGET), {}, ["euclidean_loss", "x has 4 columns", "labels"]),
        ((X, np.zeros((3, 3), np.float32), [0, 0, 0]), {}, ["x has 4 columns", "multiple of 3"]),
        ((X, np.zeros((3, 0), np.float32), [0, 0, 0]), {}, ["multiple of 0"]),
        ((X, X[:2]), {}, ["target has 2 rows", "3"]),
        ((X, X[0]), {}, ["target", "(4,)"]),
        ((X[0], X), {}, ["x", "(4,)"]),
        ((X, TARGET, [0, 0]), {}, ["labels", "(2,)"]),
        ((X, TARGET, np.zeros(3)), {}, ["labels", "int64"]),
        ((X, X), {"normalizer": -1.0}, ["normalizer", "-1"]),
        ((X, X), {"normalizer": 0.0}, ["normalizer"]),
        ((X, X), {"normalizer": float("nan")}, ["normalizer"]),
        ((X, X), {"normalizer": float("inf")}, ["normalizer"]),
        ((X, None), {}, ["target is None"]),
    ],
)
def test_errors(arguments, options, words):
    with raises(words, (ValueError, TypeError)):
        ops.euclidean_loss(*arguments, **options)


def test_failed_allocations():
    assert survives_failed_allocations(lambda: ops.euclidean_loss(X, TARGET, [0, 1, 0])) == 2

"""Soft-max and cross-entropy against the float64 reference; stable for any finite logits."""

import numpy as np
import pytest

from helpers import Guarded, call, ops, raises, survives_failed_allocations
from reference import softmax as reference
from tolerance import EPS32, assert_within, cross_entropy_bound, softmax_bound

SHAPES = [(1, 1), (3, 2), (2, 7), (5, 10), (4, 1000), (700, 3), (1, 4099)]


def wide(a):
    return a.astype(np.float64)


def check_softmax(x):
    y = call(ops.softmax, x, out=x.shape)
    expected = reference.forward(wide(x))
    assert_within(y, expected, softmax_bound(wide(x), expected), "y")
    assert_within(
        y.sum(axis=-1, dtype=np.float64), np.ones(x.shape[:-1]), 4 * EPS32 * np.log2(2 + x.shape[-1]), "sum"
    )


def check_cross_entropy(logits, labels, normalizer=None):
    options = {} if normalizer is None else {"normalizer": normalizer}
    loss, dlogits = call(
        ops.cross_entropy, logits, labels, out=[((), "float32"), (logits.shape, "float32")], **options
    )
    expected_loss, expected = reference.cross_entropy(wide(logits), labels, normalizer)
    bounds = cross_entropy_bound(wide(logits), labels, normalizer or len(logits))
    assert_within(loss, expected_loss, bounds[0], "loss")
    assert_within(dlogits, expected, bounds[1], "dlogits")


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_reference(device, rng, shape, scale):
    x = (scale * rng.standard_normal(shape)).astype(np.float32)
    labels = rng.integers(0, shape[1], shape[0])
    check_softmax(x)
    check_cross_entropy(x, labels)
    check_cross_entropy(x, labels, normalizer=0.25)
    check_cross_entropy(x, labels, normalizer=256.0)


def test_any_number_of_axes(device, rng):
    x = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    check_softmax(x)
    check_softmax(x[0, 0, 0])


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4, 3e38, -3e38])
def test_stable_for_large_logits(device, offset):
    logits = np.array([[offset, offset, offset - 1e4 if offset < 1e38 else -offset]], np.float32)
    if not np.isfinite(logits).all():
        logits[0, 2] = offset
    check_softmax(logits)
    for label in range(2):
        check_cross_entropy(logits, np.array([label]))


def test_loss_of_a_hopeless_label_is_its_distance(device):
    logits = np.array([[1e4, -1e4, 0.0]], np.float32)
    loss, dlogits = ops.cross_entropy(logits, np.array([1]))
    assert float(loss) == 2e4
    assert dlogits.numpy().tolist() == [[1.0, -1.0, 0.0]]


def test_uniform_logits_lose_ln_classes(device):
    loss, _ = ops.cross_entropy(np.zeros((8, 1000), np.float32), np.arange(8))
    assert float(loss) == pytest.approx(np.log(1000), rel=EPS32)


def test_nan_and_inf_propagate(device):
    """A NaN or +Inf logit has no soft-max: its row is NaN, others are not touched. -Inf has probability 0."""
    x = np.zeros((4, 3), np.float32)
    x[0, 1], x[1, 2], x[2, 0] = np.nan, np.inf, -np.inf
    y = call(ops.softmax, x, out=x.shape)
    assert np.isnan(y[0]).all() and np.isnan(y[1]).any()
    assert y[2].tolist() == [0, 0.5, 0.5] and np.allclose(y[3], 1 / 3)
    loss, dlogits = ops.cross_entropy(x[:1], np.array([0]))
    assert np.isnan(float(loss)) and np.isnan(dlogits.numpy()).all()


def test_loss_of_many_rows_keeps_its_digits(device):
    logits = np.random.default_rng(3).standard_normal((20_000, 4)).astype(np.float32)
    check_cross_entropy(logits, np.arange(20_000) % 4)


def test_gradient_sums_to_zero(device, rng):
    logits = rng.standard_normal((6, 10)).astype(np.float32)
    _, dlogits = ops.cross_entropy(logits, np.arange(6))
    assert np.abs(dlogits.numpy().sum(axis=1)).max() < 8 * EPS32


def test_micro_batches_with_one_normalizer_add_up(device, rng):
    logits, labels = rng.standard_normal((7, 5)).astype(np.float32), rng.integers(0, 5, 7)
    whole, dlogits = ops.cross_entropy(logits, labels)
    parts = [ops.cross_entropy(logits[p], labels[p], normalizer=7.0) for p in (slice(0, 3), slice(3, 7))]
    assert sum(float(loss) for loss, _ in parts) == pytest.approx(float(whole), rel=4 * EPS32)
    assert np.concatenate([d.numpy() for _, d in parts]).tobytes() == dlogits.numpy().tobytes()


def test_threads_give_equal_bits(rng, threads):
    logits, labels = rng.standard_normal((3000, 100)).astype(np.float32), rng.integers(0, 100, 3000)
    results = []
    for count in (1, 2, 3):
        threads(count)
        loss, dlogits = ops.cross_entropy(logits, labels)
        results.append((float(loss), dlogits.numpy().tobytes(), ops.softmax(logits).numpy().tobytes()))
    assert len(set(results)) == 1


@pytest.mark.parametrize("bad", [-1, 5, 1 << 40, -(1 << 63)])
def test_label_out_of_range_writes_nothing(bad):
    loss, dlogits = Guarded((), value=7.0), Guarded((3, 5), value=7.0)
    with pytest.raises(ValueError, match="label") as error:
        ops.cross_entropy(
            np.zeros((3, 5), np.float32), np.array([0, 4, bad]), out=(loss.tensor, dlogits.tensor)
        )
    assert str(bad) in str(error.value)
    assert loss.numpy() == 7 and (dlogits.numpy() == 7).all()


def test_empty_batch(device):
    loss, dlogits = call(
        ops.cross_entropy,
        np.zeros((0, 5), np.float32),
        np.zeros(0, np.int64),
        out=[((), "float32"), ((0, 5), "float32")],
    )
    assert loss == 0 and dlogits.shape == (0, 5)


@pytest.mark.parametrize(
    "arguments, options, words",
    [
        ((np.zeros((3, 5), np.float32), np.zeros(2, np.int64)), {}, ["cross_entropy", "labels", "(2,)"]),
        ((np.zeros((3, 5), np.float32), np.zeros(3)), {}, ["labels", "int64"]),
        ((np.zeros((3, 5), np.float32), np.zeros(3, np.int64)), {"normalizer": -1.0}, ["normalizer", "-1"]),
        ((np.zeros((3, 5), np.float32), np.zeros(3, np.int64)), {"normalizer": float("nan")}, ["normalizer"]),
        ((np.zeros((3, 5), np.float32), np.zeros(3, np.int64)), {"normalizer": 0.0}, ["normalizer"]),
    ],
)
def test_errors(arguments, options, words):
    with raises(words, (ValueError, TypeError)):
        ops.cross_entropy(*arguments, **options)


def test_failed_allocations(rng):
    x = rng.standard_normal((3, 8)).astype(np.float32)
    assert survives_failed_allocations(lambda: ops.softmax(x)) == 1
    assert survives_failed_allocations(lambda: ops.cross_entropy(x, np.arange(3))) == 2

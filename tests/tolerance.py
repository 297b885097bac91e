"""How far float32 may be from the float64 reference: |y - y64| <= k eps32 B, derived, not tuned.

B is the size of what was added up: the same formula run on absolute values, so cancellation does not hide an
error and a small result among large terms is not asked for digits that float32 never had. k counts roundings:
a sum of m terms made by fused multiply-adds in a few interleaved accumulators errs by a random walk, about
sqrt(m / accumulators) / 2 roundings of partial sums that are themselves a fraction of B. Measured worst k on
dense data (ReLU-normal x, He w, 64 and 512 channels): direct 2.2, F(2,3) 1.1, F(4,3) 4.3 (with the points of
kernels/winograd4_points.h; 13.9 with 0, 1, -1, 2, -2), F(6,3) 24.9, stable over the number of channels, while plain
relative error moves fourfold; with 3 channels F(4,3) 10.7 and F(6,3) 49; with 98 % zeros and heavy tails
F(2,3) 9 (16 with 3 channels), F(4,3) 24 (49 with 3 channels), F(6,3) 137. Weight gradient: direct 1.9,
F(3,4) 5.4, F(3,6) 23.3 on one map of 14 x 14 with 64 channels, where few tiles average little, and 8 on one of 66 x 66
(relative L2 up to 3.9e-6; F(3,4)'s up to 8.8e-7 on the same data, of six seeds). Each k below is the next power of two
above its measurement, or the one after that for data that was not measured; raising one needs a measurement. A Winograd
tile mixes its pixels, so there B is its maximum over the output tile.
"""

import numpy as np

from reference import conv2d, euclidean, linear, lrn, max_pool2d

EPS32 = float(np.finfo(np.float32).eps)
# The smallest normal float32: below it a result has an absolute error, whether or not the CPU flushes it to
# zero.
TINY = float(np.finfo(np.float32).tiny)

CONV2D = {"direct": 4, "winograd2": 32, "winograd4": 64, "winograd6": 256}
CONV2D_BACKWARD_WEIGHT = {"direct": 4, "winograd4": 16, "winograd6": 64}
LINEAR = 4
# The tile whose pixels a Winograd algorithm mixes.
TILE = {"winograd2": 2, "winograd4": 4, "winograd6": 6}


def assert_within(actual, expected, bound, what="result"):
    """|actual - expected| <= bound everywhere; NaN and Inf exactly where the reference has them."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    special = ~np.isfinite(expected)
    assert np.array_equal(actual[special], expected[special], equal_nan=True), f"{what}: NaN or Inf differ"
    with np.errstate(invalid="ignore"):
        error = np.where(special, 0, np.abs(actual - expected))
    excess = error - np.where(special, 0, bound)
    # A NaN in actual makes excess NaN: `not <=` catches it, `>` would not.
    if excess.size and not excess.max() <= 0:
        worst = np.unravel_index(np.argmax(np.where(np.isnan(excess), np.inf, excess)), excess.shape)
        limit = np.broadcast_to(bound, excess.shape)[worst]
        raise AssertionError(
            f"{what} at {tuple(map(int, worst))}: {actual[worst]!r}, expected {expected[worst]!r}; off by "
            f"{error[worst]:.3g}, allowed {limit:.3g}; {int((~(excess <= 0)).sum())} of {excess.size} are out"
        )


def assert_exact(actual, expected, what="result"):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert_within(actual, expected, 0.0, what)


def relative_l2(actual, expected):
    """|actual - expected| / |expected|, the measure for whole nets and for pixels that Winograd leaks
    into."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), TINY))


def tile_maximum(b, size):
    """The maximum of b (N, H, W, K) over each size x size tile, at every pixel of the tile."""
    out = np.array(b)
    for i in range(0, b.shape[1], size):
        for j in range(0, b.shape[2], size):
            tile = b[:, i : i + size, j : j + size]
            out[:, i : i + size, j : j + size] = tile.max(axis=(1, 2), keepdims=True)
    return out


def _spread(size, x, algorithm):
    """size(x), of which a Winograd algorithm takes the maximum in each tile; tiles at the edges hang over, and what lies
    beyond the map is mixed in too."""
    if algorithm not in TILE:
        return size(x)
    h, w = x.shape[1:3]
    over = [(0, -side % TILE[algorithm]) for side in (h, w)]
    return tile_maximum(size(np.pad(x, ((0, 0), *over, (0, 0)))), TILE[algorithm])[:, :h, :w]


def conv2d_bound(x, w, b=None, pool=None, algorithm="direct"):
    """For z, for relu(z) (a ReLU brings no two numbers further apart) and for the pooled map (nor does a
    maximum)."""
    w, b = np.abs(w), None if b is None else np.abs(b)
    size = _spread(lambda x: conv2d.forward(x, w, b), np.abs(x), algorithm)
    return CONV2D[algorithm] * EPS32 * (max_pool2d.forward(size, pool == "ceil")[0] if pool else size)


def conv2d_backward_input_bound(g, w, algorithm="direct"):
    return (
        CONV2D[algorithm]
        * EPS32
        * _spread(lambda g: conv2d.backward_input(g, np.abs(w)), np.abs(g), algorithm)
    )


def conv2d_backward_weight_bound(g, x, size=3, algorithm="direct", before=(0, 0)):
    """before: what accumulate=True adds to."""
    dw, db = conv2d.backward_weight(np.abs(g), np.abs(x), size)
    if algorithm in TILE:
        dw = np.broadcast_to(dw.max(axis=(1, 2), keepdims=True), dw.shape)
    k = CONV2D_BACKWARD_WEIGHT[algorithm] * EPS32
    return k * (dw + np.abs(before[0])), k * (db + np.abs(before[1]))


def long_sum_bound(b, terms):
    """For sums of so many terms that the blocks (of about 512 terms) are many themselves.

    Adding m block sums of positives one after the other rounds m times, at a size that grows to the total:
    the roundings' deviation of 0.29 eps walks to 0.29 sqrt(m / 3) eps of it. Three times that, beside the
    blocks' own.
    """
    blocks = terms / 512
    return (CONV2D_BACKWARD_WEIGHT["direct"] + 3 * 0.29 * (blocks / 3) ** 0.5) * EPS32 * b


def linear_bound(x, w, b=None):
    return LINEAR * EPS32 * linear.forward(np.abs(x), np.abs(w), None if b is None else np.abs(b))


def linear_backward_input_bound(dy, w):
    return LINEAR * EPS32 * linear.backward_input(np.abs(dy), np.abs(w))


def linear_backward_weight_bound(dy, x, before=(0, 0)):
    dw, db = linear.backward_weight(np.abs(dy), np.abs(x))
    return LINEAR * EPS32 * (dw + np.abs(before[0])), LINEAR * EPS32 * (db + np.abs(before[1]))


def lrn_bound(y):
    """s is a sum of positives: `size` roundings of half an eps, times beta <= 1; the power and the product
    two more."""
    return 8 * EPS32 * np.abs(y) + TINY


def lrn_backward_bound(dy, x, **options):
    """Both terms as for y, and the window's sum on top. B has both terms' absolute values."""
    s = lrn.scale(x, options["size"], options["alpha"], options["k"])
    one_term = np.abs(dy) * s ** -options["beta"]
    both = np.abs(lrn.backward(-np.abs(dy), np.abs(x), **options)) + 2 * one_term
    return 16 * EPS32 * both + TINY


def softmax_bound(x, y):
    """Rounding x - m to float32 moves the exponent by |x - m| eps / 2, which exp makes a relative error; the
    sum is of positives and inherits its largest terms' errors, which are those near m."""
    distance = np.minimum(x.max(axis=-1, keepdims=True) - x, 200)  # exp(-200) is 0 in float32
    return (8 + distance) * EPS32 * y + TINY


def cross_entropy_bound(logits, labels, normalizer):
    """For the loss (log-sum, subtraction and the sum over rows each round) and for dlogits."""
    n = len(logits)
    top = logits.max(axis=-1, keepdims=True)
    distance = top - logits
    y = np.exp(-distance) / np.exp(-distance).sum(axis=-1, keepdims=True)
    row = np.abs(np.log(np.exp(-distance).sum(axis=-1))) + distance[np.arange(n), labels] + 1
    one_hot = np.eye(logits.shape[1])[labels]
    return 4 * EPS32 * row.sum() / normalizer, (softmax_bound(logits, y) + EPS32 * one_hot) / normalizer


def euclidean_loss_bound(x, target, labels, normalizer):
    """Differences and their sum are float64's: the loss and each element of dx are rounded once."""
    loss, dx = euclidean.loss(x, target, labels, normalizer)
    return EPS32 * loss + TINY, EPS32 * np.abs(dx) + TINY


def sgd_bound(p, g, v, lr, momentum, weight_decay):
    """Five roundings for v, one more for p; -> bounds for param and velocity."""
    velocity = np.abs(momentum * v) + lr * (np.abs(g) + weight_decay * np.abs(p))
    return 4 * EPS32 * (np.abs(p) + velocity), 4 * EPS32 * velocity

"""precision="bf16" on a CUDA device: maps and weights in bfloat16, sums in float32.

Bounds: the float64 reference gets the inputs as bfloat16 holds them. A result that is added up in float32 errs as in
tolerance.py,
and by 2^-8 of its size, the unit of 8 bits, wherever it is stored as bfloat16.
"""

import gc

import numpy as np
import pytest
import vggnet as vgg
from vggnet import _C, configs, ops

import tolerance
from reference import conv2d, linear, lrn, max_pool2d, net, softmax
from reference import dropout as dropout_reference
from reference import unfold as unfold_reference
from tolerance import assert_exact, assert_within

if not vgg.cuda.is_available():
    pytest.skip(f"{vgg.cuda.why_not()}", allow_module_level=True)

BF16 = 2.0**-8  # of the size of a value that is rounded to bfloat16


def narrow(array):
    """A bfloat16 tensor on the device, and what it holds as float64."""
    tensor = vgg.tensor(np.asarray(array, np.float32), device="cuda").to(dtype="bfloat16")
    return tensor, host(tensor)


def normal(rng, *shape):
    return narrow(rng.standard_normal(shape))


def wide(array):
    return vgg.tensor(np.asarray(array, np.float32), device="cuda")


def host(tensor):
    return tensor.to(dtype="float32").numpy().astype(np.float64)


def assert_stored(tensor, expected, bound=0.0, what="result"):
    """A bfloat16 result: `bound` is of the float32 sum before it was rounded."""
    assert tensor.dtype == "bfloat16"
    assert_within(host(tensor), expected, bound + BF16 * (np.abs(expected) + bound) + tolerance.TINY, what)


# ---------------------------------------------------------------- conversions


def test_conversions_are_the_hosts():
    """Every upper half, with lower halves on, beside and between what rounds to either side, and NaN."""
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    values = ((np.arange(1 << 16, dtype=np.uint32) << 16)[:, None] | lower).view(np.float32)
    here = vgg.tensor(values, dtype="bfloat16")
    there = vgg.tensor(values, device="cuda").to(dtype="bfloat16")
    assert there.device == "cuda:0"
    bits = [t.to("cpu").to(dtype="float32").numpy().view(np.uint32) for t in (here, there)]
    np.testing.assert_array_equal(*bits)
    np.testing.assert_array_equal(there.to(dtype="float32").numpy().view(np.uint32), bits[0])
    kept = vgg.empty(values.shape, "bfloat16", "cuda")
    version = kept.storage.version
    kept.copy_(wide(values))
    assert kept.storage.version == version + 1
    np.testing.assert_array_equal(kept.to("cpu").to(dtype="float32").numpy().view(np.uint32), bits[0])


# ---------------------------------------------------------------- convolution

SHAPES = [  # n, h, w, c, k, kernel_size
    (2, 6, 5, 8, 16, 3),
    (1, 5, 7, 3, 8, 3),  # 3 channels, as images have
    (2, 4, 6, 13, 5, 3),  # nothing is a multiple of 8
    (3, 3, 4, 16, 8, 1),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_conv2d(rng, shape):
    n, h, w, c, k, size = shape
    (x, x64), (weight, w64) = normal(rng, n, h, w, c), normal(rng, k, size, size, c)
    b64 = rng.standard_normal(k).astype(np.float32).astype(np.float64)
    b = wide(b64)
    z, bound = conv2d.forward(x64, w64, b64), tolerance.conv2d_bound(x64, w64, b64)
    assert_stored(ops.conv2d(x, weight, b, precision="bf16"), z, bound)
    assert_stored(
        ops.conv2d(x, weight, precision="bf16"), conv2d.forward(x64, w64), tolerance.conv2d_bound(x64, w64)
    )
    full = ops.conv2d(x, weight, b, relu=True, precision="bf16")
    assert_stored(full, np.maximum(z, 0), bound)
    for pool in ("floor", "ceil"):
        y, index = ops.conv2d(x, weight, b, relu=True, pool=pool, precision="bf16")
        expected, winners = max_pool2d.forward(host(full), pool == "ceil")
        assert_exact(host(y), expected)
        np.testing.assert_array_equal(index.numpy(), winners)


@pytest.mark.parametrize("masked", ["", "y", "pooled"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_conv2d_gradients(rng, shape, masked):
    n, h, w, c, k, size = shape
    (x, x64), (weight, w64) = normal(rng, n, h, w, c), normal(rng, k, size, size, c)
    options = {}
    if masked == "y":
        options = {"y": ops.conv2d(x, weight, relu=True, precision="bf16")}
    elif masked:
        y, index = ops.conv2d(x, weight, relu=True, pool=True, precision="bf16")
        options = {"y": y, "index": index}
    dy, dy64 = normal(rng, *(options["y"].shape if options else (n, h, w, k)))
    g = conv2d.fused_gradient(
        dy64,
        host(options["y"]) if options else None,
        options["index"].numpy() if "index" in options else None,
        x.shape,
    )
    dx = ops.conv2d_backward_input(dy, weight, **options, input_shape=x.shape, precision="bf16")
    assert_stored(dx, conv2d.backward_input(g, w64), tolerance.conv2d_backward_input_bound(g, w64), "dx")
    sums = ops.conv2d_backward_weight(dy, x, size, **options, precision="bf16")
    expected = conv2d.backward_weight(g, x64, size)
    bounds = tolerance.conv2d_backward_weight_bound(g, x64, size)
    for tensor, value, bound in zip(sums, expected, bounds, strict=True):
        assert tensor.dtype == "float32"
        assert_within(tensor.numpy(), value, bound)
    before = [t.numpy().astype(np.float64) for t in sums]
    ops.conv2d_backward_weight(dy, x, size, **options, precision="bf16", out=sums, accumulate=True)
    bounds = tolerance.conv2d_backward_weight_bound(g, x64, size, before=before)
    for tensor, old, value, bound in zip(sums, before, expected, bounds, strict=True):
        assert_within(tensor.numpy(), old + value, bound)


def test_odd_addresses(rng):
    """Views of an arena that no engine for 16 bytes may take."""
    (x, x64), (weight, w64) = normal(rng, 1, 3, 4, 8), normal(rng, 8, 3, 3, 8)
    arena = vgg.zeros((2 + x.nbytes,), "uint8", "cuda")
    odd = arena.view(2, x.shape, "bfloat16")
    odd.copy_(x)
    for relu in (False, True):
        z = conv2d.forward(x64, w64)
        y = ops.conv2d(odd, weight, relu=relu, precision="bf16")
        assert_stored(y, np.maximum(z, 0) if relu else z, tolerance.conv2d_bound(x64, w64))
    dx = ops.conv2d_backward_input(odd, weight, precision="bf16")
    assert_stored(dx, conv2d.backward_input(x64, w64), tolerance.conv2d_backward_input_bound(x64, w64))
    dw, _ = ops.conv2d_backward_weight(odd, x, precision="bf16")
    bound, _ = tolerance.conv2d_backward_weight_bound(x64, x64)
    assert_within(dw.numpy(), conv2d.backward_weight(x64, x64)[0], bound)


# ---------------------------------------------------------------- linear


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("n, i, o", [(1, 24, 16), (5, 37, 11), (40, 1030, 33)])
def test_linear(rng, n, i, o, logits):
    """With float32 results, as logits are, nothing is rounded; their gradient is, before it is multiplied."""
    (x, x64), (w, w64) = normal(rng, n, i), normal(rng, o, i)
    b64 = rng.standard_normal(o).astype(np.float32).astype(np.float64)
    out = vgg.empty((n, o), device="cuda") if logits else None
    y = ops.linear(x, w, wide(b64), precision="bf16", out=out)
    z, bound = linear.forward(x64, w64, b64), tolerance.linear_bound(x64, w64, b64)
    if logits:
        assert_within(y.numpy(), z, bound)
    else:
        assert_stored(y, z, bound)
        assert_stored(ops.linear(x, w, wide(b64), relu=True, precision="bf16"), np.maximum(z, 0), bound)
        plain = linear.forward(x64, w64)
        assert_stored(ops.linear(x, w, precision="bf16"), plain, tolerance.linear_bound(x64, w64))
    dy32 = rng.standard_normal((n, o)).astype(np.float32)
    rounded, g = narrow(dy32)
    dy = wide(dy32) if logits else rounded
    dx = ops.linear_backward_input(dy, w, precision="bf16")
    assert_stored(dx, linear.backward_input(g, w64), tolerance.linear_backward_input_bound(g, w64))
    dw, db = ops.linear_backward_weight(dy, x, precision="bf16")
    assert (dw.dtype, db.dtype) == ("float32", "float32")
    dw_bound, db_bound = tolerance.linear_backward_weight_bound(g, x64)
    assert_within(dw.numpy(), linear.backward_weight(g, x64)[0], dw_bound)
    entered = dy32.astype(np.float64) if logits else g
    assert_within(db.numpy(), linear.backward_weight(entered, x64)[1], 2 * db_bound)
    before = dw.numpy().astype(np.float64)
    ops.linear_backward_weight(dy, x, precision="bf16", out=(dw, db), accumulate=True)
    assert_within(
        dw.numpy(),
        before + linear.backward_weight(g, x64)[0],
        dw_bound + tolerance.EPS32 * np.abs(before) * 4,
    )


# ---------------------------------------------------------------- layers without weights


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_max_pool2d(rng, ceil_mode):
    """Exact, with few distinct values so that many windows have ties; NaN wins."""
    values = rng.choice(
        [-np.inf, -1, -0.0, 0.0, 1, 2.5, np.nan], (2, 5, 7, 9), p=[0.1, 0.2, 0.1, 0.2, 0.2, 0.1, 0.1]
    )
    x, x64 = narrow(values)
    y, index = ops.max_pool2d(x, ceil_mode=ceil_mode)
    expected, winners = max_pool2d.forward(x64, ceil_mode)
    assert_exact(host(y), expected)
    np.testing.assert_array_equal(index.numpy(), winners)
    dy, dy64 = normal(rng, *y.shape)
    dx = ops.max_pool2d_backward(dy, index, x.shape)
    assert dx.dtype == "bfloat16"
    assert_exact(host(dx), max_pool2d.backward(dy64, winners, x.shape))


def test_relu_and_add(rng):
    (x, x64), (dy, dy64) = normal(rng, 5, 77), normal(rng, 5, 77)
    y = ops.relu(x)
    assert y.dtype == "bfloat16"
    assert_exact(host(y), np.maximum(x64, 0))
    assert_exact(host(ops.relu_backward(dy, y)), np.where(x64 > 0, dy64, 0))
    assert np.isnan(host(ops.relu(narrow([np.nan, -1])[0]))).tolist() == [True, False]
    ops.add_(x, dy)
    assert_stored(x, x64 + dy64, tolerance.EPS32 * np.abs(x64 + dy64))


def test_lrn(rng):
    (x, x64), (dy, dy64) = narrow(20 * rng.standard_normal((2, 3, 12))), normal(rng, 2, 3, 12)
    y = lrn.forward(x64)
    assert_stored(ops.lrn(x), y, tolerance.lrn_bound(y))
    options = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0}
    assert_stored(
        ops.lrn_backward(dy, x), lrn.backward(dy64, x64), tolerance.lrn_backward_bound(dy64, x64, **options)
    )


def test_dropout(rng):
    """The masks of float32; the factor makes one rounding."""
    (x, x64), rows = normal(rng, 4, 30), np.arange(4) << 32
    for p in (0.5, 0.3):
        y = ops.dropout(x, p, 7, rows, 6)
        expected = dropout_reference.forward(x64, p, 7, rows, 6)
        assert_stored(y, expected, 2 * tolerance.EPS32 * np.abs(expected))
        assert_exact(host(ops.dropout_backward(x, p, 7, rows, 6)), host(y))
    assert_exact(host(ops.dropout(x, 0.0, 7, rows)), x64)


def test_unfold(rng):
    x, x64 = normal(rng, 2, 5, 4, 3)
    rows = ops.unfold(x, 3)
    assert rows.dtype == "bfloat16"
    assert_exact(host(rows), unfold_reference.forward(x64, 3))


# ---------------------------------------------------------------- refusals


def test_refusals(rng):
    """Dtypes that do not fit the precision, each other, or the device."""
    (x, _), (w, _) = normal(rng, 1, 4, 4, 8), normal(rng, 8, 3, 3, 8)
    (rows, _), (weights, _) = normal(rng, 2, 5), normal(rng, 3, 5)
    x32, w32 = (t.to(dtype="float32") for t in (x, w))
    cases = [
        (lambda: ops.conv2d(x, w), 'x has dtype bfloat16; expected float32 because precision is "float32"'),
        (lambda: ops.conv2d(x, w, precision="tf32"), 'expected float32 because precision is "tf32"'),
        (
            lambda: ops.conv2d(x32, w, precision="bf16"),
            'x has dtype float32; expected bfloat16 because precision is "bf16"',
        ),
        (lambda: ops.conv2d(x, w32, precision="bf16"), "w has dtype float32; expected bfloat16"),
        (lambda: ops.conv2d(x, w, out=vgg.empty(x.shape, device="cuda"), precision="bf16"), "out is float32"),
        (
            lambda: ops.conv2d_backward_input(x, w32, precision="bf16"),
            "w has dtype float32; expected bfloat16",
        ),
        (
            lambda: ops.conv2d_backward_weight(x32, x, precision="bf16"),
            "dy has dtype float32; expected bfloat16",
        ),
        (
            lambda: ops.conv2d_backward_weight(x, x, y=x32, precision="bf16"),
            "y has dtype float32; expected bfloat16",
        ),
        (
            lambda: ops.linear(rows, weights),
            'x has dtype bfloat16; expected float32 because precision is "float32"',
        ),
        (
            lambda: ops.linear(rows, weights.to(dtype="float32"), precision="bf16"),
            "w has dtype float32; expected bfloat16",
        ),
        (lambda: ops.relu_backward(rows, rows.to(dtype="float32")), "y has dtype float32; expected bfloat16"),
        (lambda: ops.lrn_backward(x, x32), "dy has dtype bfloat16; expected float32"),
        (lambda: ops.softmax(rows), "x has dtype bfloat16; expected float32"),
        (
            lambda: ops.cross_entropy(rows, np.zeros(2, np.int64)),
            "logits has dtype bfloat16; expected float32",
        ),
    ]
    for function, words in cases:
        with pytest.raises(ValueError) as error:
            function()
        assert words in str(error.value)
    here = x.to("cpu")
    for function in (
        lambda: ops.conv2d(here, here, precision="bf16"),
        lambda: ops.linear(here, here, precision="bf16"),
        lambda: ops.max_pool2d(here),
        lambda: ops.lrn(here),
        lambda: ops.dropout(here, 0.5, 0, np.arange(1)),
        lambda: ops.unfold(here, 2),
        lambda: ops.add_(here, here),
    ):
        with pytest.raises(
            ValueError, match='dtype bfloat16; expected float32 because device "cpu" computes in nothing else'
        ):
            function()
    with pytest.raises(
        ValueError, match=r'precision is \'bfloat16\'; expected one of "float32", "tf32", "bf16"'
    ):
        _C.linear_workspace(1, 2, 3, precision="bfloat16")


# ---------------------------------------------------------------- nets

NETS = ["A", "A-LRN", "C", "D"]
SMALL = {"num_classes": 10, "input_size": 32, "fc_width": 24, "init": "he", "device": "cuda"}


@pytest.fixture
def slim(monkeypatch):
    """The paper's nets with 8 and 16 channels instead of hundreds."""
    for name, text in configs.CONFIGS.items():
        for many, few in (("64", "8"), ("128", "8"), ("256", "16"), ("512", "16")):
            text = text.replace(many, few)
        monkeypatch.setitem(configs.CONFIGS, name, text)


def pixels(n, *size):
    return np.random.default_rng(n).standard_normal((n, *(size or (32, 32)), 3)).astype(np.float32)


def rounded(model):
    """The parameters as float64, weights as they are multiplied."""
    return {
        name: host(tensor.to(dtype="bfloat16")) if name.endswith("weight") else host(tensor)
        for name, tensor in model.parameters.items()
    }


def depth_of(config):
    return net.WEIGHT_LAYERS[config]


@pytest.mark.parametrize("config", NETS)
def test_every_layer_of_a_net(slim, config):
    """Each map is the layer's of the map before, to one rounding; scores and probabilities are float32."""
    model = vgg.VGG(config, **SMALL, precision="bf16")
    x, parameters = pixels(2), rounded(model)
    run = model.run(x, layers=["prob"])
    before = narrow(x)[1]
    for kind, name in net.layers(config):
        if kind == "dropout":
            continue
        w, b = parameters.get(f"{name}.weight"), parameters.get(f"{name}.bias")
        got = run[name]
        if kind == "conv":
            assert_stored(got, conv2d.forward(before, w, b), tolerance.conv2d_bound(before, w, b), name)
        elif kind == "relu":
            assert_exact(host(got), np.maximum(before, 0), name)
        elif kind == "pool":
            assert_exact(host(got), max_pool2d.forward(before)[0], name)
        elif kind == "lrn":
            y = lrn.forward(before)
            assert_stored(got, y, tolerance.lrn_bound(y), name)
        elif kind == "linear":
            flat = before.reshape(len(before), -1)
            z, bound = linear.forward(flat, w, b), tolerance.linear_bound(flat, w, b)
            if name == "fc8":
                assert got.dtype == "float32"
                assert_within(got.numpy(), z, bound, name)
            else:
                assert_stored(got, z, bound, name)
        else:
            assert got.dtype == "float32"
            y = softmax.forward(before)
            assert_within(got.numpy(), y, tolerance.softmax_bound(before, y), name)
        before = host(got)


@pytest.mark.parametrize("config", NETS)
def test_gradients_of_a_net(slim, config):
    """Against the float64 gradients of the maps that the run holds, so that no kink lies between them. A gradient is rounded as
    it enters and below each layer, each time by at most 2^-8 of its norm; sums average such errors rather than amplify them."""
    model = vgg.VGG(config, **SMALL, precision="bf16")
    x = pixels(3)
    run = model.run(x)
    maps = {name: host(run[name]) for name in run.layer_names}
    for kind, name in net.layers(config):
        if kind == "pool":
            block = [n for n in maps if n.startswith((f"relu{name[4]}_", f"norm{name[4]}_"))]
            maps[f"{name}.index"] = max_pool2d.forward(maps[block[-1]])[1]
    loss, dlogits = ops.cross_entropy(run.logits, np.arange(3))
    grads, dx = run.backward({"fc8": dlogits}, input=True)
    expected, expected_dx = net.backward(
        config, rounded(model), narrow(x)[1], maps, {"fc8": dlogits.numpy().astype(np.float64)}
    )
    assert (loss.dtype, dx.dtype) == ("float32", "bfloat16")
    weights = [name for name in model.parameters if name.endswith("weight")]
    roundings = 1
    for name in reversed(weights):
        for parameter in (name, name.replace("weight", "bias")):
            assert grads[parameter].dtype == "float32"
            error = tolerance.relative_l2(grads[parameter].numpy(), expected[parameter])
            assert error <= roundings * BF16, (parameter, error, roundings)
        roundings += 2 if config == "A-LRN" and name == "conv2_1.weight" else 1  # LRN has one of its own
    assert tolerance.relative_l2(host(dx), expected_dx) <= roundings * BF16


@pytest.mark.parametrize("config", NETS)
def test_nets_are_near_float32(slim, config):
    """Each layer rounds its weights and its map, each by at most 2^-8 of its norm; training makes the same way."""
    exact, model = (vgg.VGG(config, **SMALL, precision=precision) for precision in ("float32", "bf16"))
    x, labels = pixels(4), np.arange(4)
    bound = 2 * depth_of(config) * BF16
    scores = exact.forward(x).numpy()
    assert tolerance.relative_l2(model.forward(x).numpy(), scores) <= bound
    losses = []
    for one in (exact, model):
        parameters = list(one.parameters.values())
        velocities = [vgg.zeros(p.shape, device="cuda") for p in parameters]
        losses.append([])
        for step in range(4):
            rng = vgg.Rng(0, np.arange(4) + (step << 32))
            loss, grads = one.loss_and_gradients(x, labels, rng=rng)
            assert all(
                p.dtype == g.dtype == "float32" for p, g in zip(parameters, grads.values(), strict=True)
            )
            ops.sgd_(parameters, [grads[name] for name in one.parameters], velocities, lr=0.005)
            losses[-1].append(float(loss))
        losses[-1].append(float(ops.cross_entropy(one.forward(x), labels)[0]))
    # The loss of an image moves by at most twice what its scores do.
    moved = 2 * bound * np.abs(scores).max()
    assert np.abs(np.subtract(*losses)).max() <= moved
    assert losses[1][-1] < losses[1][0]


def test_maps_of_a_run(slim):
    """What `run`, `features` and `dense` give, and gradients that enter inside fused steps."""
    model = vgg.VGG("A", **SMALL, precision="bf16")
    exact = vgg.VGG("A", **SMALL)
    x, large = pixels(2), pixels(1, 64, 96)
    maps = model.features(x, ["conv2_1", "relu5_2", "fc8"])
    assert {name: t.dtype for name, t in maps.items()} == {
        "conv2_1": "bfloat16",
        "relu5_2": "bfloat16",
        "fc8": "float32",
    }
    run = model.run(x)
    assert host(run["relu5_2"]).tobytes() == host(maps["relu5_2"]).tobytes()
    for layer, dtype in (
        ("fc8", "float32"),
        ("prob", "float32"),
        ("relu7", "bfloat16"),
        ("pool5", "bfloat16"),
    ):
        dense = model.dense(large, layer=layer)
        assert dense.dtype == dtype
        assert tolerance.relative_l2(host(dense), exact.dense(large, layer=layer).numpy()) <= 2 * 11 * BF16
    tall = pixels(1, 416, 32)
    memory = model.memory_plan(1, size=(416, 32), layers=["pool5"])["maps"] * 9 // 10
    whole, bands = model.dense(tall), model.dense(tall, memory=memory)
    assert tolerance.relative_l2(bands.numpy(), whole.numpy()) <= 11 * BF16
    upstream = {"conv2_1": np.ones((2, 16, 16, 8), np.float32), "pool4": narrow(np.ones((2, 2, 2, 16)))[0]}
    grads, dx = run.backward(upstream, input=True)
    exact_grads, exact_dx = exact.run(x).backward(
        {"conv2_1": upstream["conv2_1"], "pool4": host(upstream["pool4"])}, input=True
    )
    assert dx.dtype == "bfloat16" and grads.keys() == exact_grads.keys()
    # Some ReLUs and maxima fall to the other side: a bound for these is the kinks' (tests above have none).
    assert tolerance.relative_l2(host(dx), exact_dx.numpy()) < 0.5


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("config", ["A", "A-LRN", "C"])
def test_memory_plan(slim, config, training):
    """To the byte; maps, and the gradients of maps, take about half."""
    model = vgg.VGG(config, **SMALL, precision="bf16")
    plan = model.memory_plan(5, training=training)
    labels = vgg.tensor(np.zeros(5, np.int64), device="cuda")
    gc.collect()
    before = vgg.cuda.memory_stats()["current"]
    _C.reset_peak_memory("cuda")
    x = vgg.zeros((5, 32, 32, 3), device="cuda")
    if training:
        velocities = [vgg.zeros(p.shape, device="cuda") for p in model.parameters.values()]
        _, grads = model.loss_and_gradients(x, labels)
        ops.sgd_(list(model.parameters.values()), list(grads.values()), velocities, lr=0.01)
    else:
        model.forward(x)
    assert vgg.cuda.memory_stats()["peak"] - before == plan.total - plan["parameters"]
    exact = vgg.VGG(config, **SMALL).memory_plan(5, training=training)
    wide, half = (sum(p.get(name, 0) for name in ("maps", "backward")) for p in (exact, plan))
    assert 0.4 * wide < half < 0.65 * wide


def test_weights_stay_float32(slim, tmp_path):
    """Steps too small for bfloat16 add up; copies follow the weights; a file holds the weights, and says what they were for."""
    model = vgg.VGG("A", **SMALL, precision="bf16")
    x = pixels(1)
    weight = model.parameters["fc8.weight"]
    scores = model.forward(x).numpy()
    values = weight.numpy().copy()
    for _ in range(4):
        ops.sgd_(weight, wide(-np.abs(values)), vgg.zeros(weight.shape, device="cuda"), 2.0**-12, 0.0, 0.0)
    assert (np.abs(weight.numpy() - values) > 0).all()
    weight.copy_(2 * values)
    np.testing.assert_array_equal(model.forward(x).numpy(), 2 * scores - model.parameters["fc8.bias"].numpy())
    path = tmp_path / "A.safetensors"
    model.save(path)
    assert vgg.load(path, device="cuda").precision == "bf16"
    here = vgg.load(path, precision="float32")
    np.testing.assert_array_equal(here.parameters["fc8.weight"].numpy(), 2 * values)
    half = vgg.load(path, device="cuda", weight_dtype="bfloat16")
    np.testing.assert_array_equal(half.forward(x).numpy(), model.forward(x).numpy())
    for function, words in (
        (
            lambda: vgg.load(path),
            r"A.safetensors: precision is 'bf16', which device 'cpu' does not compute in; expected a CUDA",
        ),
        (
            lambda: vgg.load(path, precision="bf16"),
            r"load: precision is 'bf16', .*; expected a CUDA device, or precision='float32'",
        ),
        (lambda: vgg.VGG("A", precision="bf16"), r"VGG: precision is 'bf16'.* weight_dtype='bfloat16'"),
    ):
        with pytest.raises(ValueError, match=words):
            function()

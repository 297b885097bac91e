"""Every protocol of the paper equals the naive evaluator, which shares no code with vggnet/."""

import functools
from pathlib import Path

import numpy as np
import pytest
import vggnet as vgg
from PIL import Image
from vggnet import data, evaluate, ops

import naive_evaluator as naive
from reference import net

KINDS = ["center", "ten-crop", "multi-crop", "dense", "combined"]
CROP = 32
CLASSES = 7
# Height and width: landscape, portrait and square. No long
# side is a multiple of 32 at any scale; at 34 the grid of crops is finer than the margin of two pixels, so some
# crops count several times.
SIZES = [(53, 71), (90, 61), (47, 47)]
SCALES = (34, 66)
CLOSE = 1e-5  # of posteriors

# Scores of crops, which several protocols share: (config, crops) -> (N, classes).
CROP_SCORES = {}


@pytest.fixture(scope="module", autouse=True)
def _forget():
    yield
    CROP_SCORES.clear()
    for function in (images, build, trained, expected):
        function.cache_clear()


@functools.cache
def images(channels):
    rng = np.random.default_rng(channels)
    return [picture(height, width, channels, rng) for height, width in SIZES]


def picture(height, width, channels, rng):
    """Smooth, so that neither rescaling nor cropping turns an image into noise."""
    coarse = rng.integers(0, 256, (5, 6, channels), np.uint8)
    rows, columns = np.arange(height) * 5 // height, np.arange(width) * 6 // width
    noise = rng.integers(-20, 21, (height, width, channels))
    return np.clip(coarse[rows][:, columns] + noise, 0, 255).astype(np.uint8)


@functools.cache
def build(config, rounding, channels=3):
    mean = (120.5, 110.25, 100.0)[:channels]
    model = vgg.VGG(
        config,
        num_classes=CLASSES,
        input_size=CROP,
        in_channels=channels,
        fc_width=24,
        mean=mean,
        pool_rounding=rounding,
    )
    shapes = {name: tensor.shape for name, tensor in model.parameters.items()}
    parameters = net.random_parameters(shapes, np.random.default_rng([*config.encode()]))
    parameters["fc8.weight"] *= np.float32(0.02)  # logits of a few units: no class wins outright
    model.load_parameters(parameters)
    return model, oracle(model, config)


def oracle(model, key):
    """`naive.posteriors` for a model's weights; scores of crops are kept under the key."""
    parameters = {name: tensor.numpy().astype(np.float64) for name, tensor in model.parameters.items()}
    ceil = model.pool_rounding == "ceil"

    def forward(x):
        place = key, hash(x.tobytes())  # crops of 32 x 32 halve evenly: floor and ceil are the same
        if place not in CROP_SCORES:
            CROP_SCORES[place] = net.forward(model.config, parameters, x, until="fc8")["fc8"]
        return CROP_SCORES[place]

    def dense(x):
        return net.dense(model.config, parameters, x, CROP, ceil)

    mean = model.preprocessing.mean
    return functools.partial(naive.posteriors, crop=CROP, mean=mean, forward=forward, dense=dense)


@functools.cache
def trained():
    """A net after some steps of SGD on real images, and its oracle."""
    sample = data.sample()
    model = vgg.VGG(
        "A", num_classes=10, input_size=CROP, in_channels=1, fc_width=24, init="xavier", mean=(73,), seed=1
    )
    x = np.stack([naive.rescale(sample.image(i), CROP) for i in range(16)]).astype(np.float32) - 73
    velocity = {name: vgg.zeros(p.shape) for name, p in model.parameters.items()}
    losses = []
    for _ in range(14):
        loss, grads = model.loss_and_gradients(x, sample.labels[:16], training=False)
        losses.append(float(loss))
        for name, gradient in grads.items():
            ops.sgd_(model.parameters[name], gradient, velocity[name], lr=0.003)
    assert losses[-1] < 0.6 * losses[0], losses
    return model, oracle(model, "trained")


@functools.cache
def expected(kind, rounding, scales, config="A", channels=3):
    return build(config, rounding, channels)[1](kind, images(channels), scales)


def dataset(channels=3):
    labels = np.argsort(expected("dense", "floor", SCALES, channels=channels), axis=1)[[0, 1, 2], [-1, -3, 0]]
    return data.ArrayDataset(images(channels), labels, [f"class {i}" for i in range(CLASSES)])


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
@pytest.mark.parametrize("kind", KINDS)
def test_protocol(kind, rounding):
    model, _ = build("A", rounding)
    for scales in (SCALES, SCALES[1:]):
        report = evaluate.evaluate(model, dataset(), evaluate.Protocol.paper(kind, scales))
        posteriors = expected(kind, rounding, scales)
        assert np.abs(report.posteriors - posteriors).max() < CLOSE
        assert (report.top1, report.top5) == pytest.approx(naive.errors(posteriors, dataset().labels))


def test_the_protocols_differ():
    """By far more than the tolerance: a test in which any protocol passes for another proves nothing."""
    found = [expected(kind, rounding, SCALES) for kind in KINDS for rounding in ("floor", "ceil")]
    found.append(expected("dense", "floor", SCALES[1:]))
    crops = {0: 1, 2: 3, 4: 5}  # rounding does not change crops of 32 x 32, which halve to 1 evenly
    for i, a in enumerate(found):
        for j, b in enumerate(found[:i]):
            if crops.get(j) != i:
                assert np.abs(a - b).max() > 20 * CLOSE, (i, j)
    assert (np.abs(np.array(found) - 1 / CLASSES) > 0.02).any(axis=(1, 2)).all()
    assert all(a.max() < 0.99 for a in found)


def test_orders_of_averaging():
    """Scores are averaged before the soft-max; the other order is another number, and is there by name."""
    model, _ = build("A", "floor")
    other = evaluate.Protocol("dense", SCALES, averaging="posteriors")
    report = evaluate.evaluate(model, dataset(), other)
    assert np.abs(report.posteriors - expected("dense", "floor", SCALES)).max() > 20 * CLOSE
    mirrored = evaluate.Protocol("dense", SCALES, mirror=False)
    report = evaluate.evaluate(model, dataset(), mirrored)
    assert np.abs(report.posteriors - expected("dense", "floor", SCALES)).max() > 20 * CLOSE


def test_gray():
    model, _ = build("A", "floor", 1)
    report = evaluate.evaluate(model, dataset(1), evaluate.Protocol.paper("dense", SCALES))
    assert np.abs(report.posteriors - expected("dense", "floor", SCALES, channels=1)).max() < CLOSE


@pytest.mark.parametrize("kind", ["dense", "multi-crop"])
def test_a_trained_net(kind):
    """On the gray items that it learned from: alone, two side by side, and cut to an odd size."""
    model, naively = trained()
    sample = data.sample()
    pixels = [sample.image(i) for i in range(4)]
    pictures = [pixels[0], np.concatenate(pixels[1:3], axis=1), pixels[3][:, 4:23]]
    posteriors = naively(kind, pictures, (34, 45))
    assert posteriors.max() > 0.4 and len(set(posteriors.argmax(axis=1))) > 1
    ours = evaluate.posteriors(model, pictures, evaluate.Protocol.paper(kind, (34, 45)))
    assert np.abs(ours - posteriors).max() < CLOSE


@pytest.mark.parametrize(
    "kind, rounding, bands",
    [("dense", "ceil", False), ("dense", "floor", True), ("multi-crop", "floor", False)],
)
def test_very_long_images(kind, rounding, bands, threads):
    """1 : 25 one way, and the other way 1 : 25 or 1 : 74; also cut into bands of columns and of rows."""
    threads(2)  # scratch, a part of what a band takes, grows with them
    model, naively = build("A", rounding)
    rng = np.random.default_rng(4)
    long = [picture(20, 500, 3, rng), picture(735 if bands else 250, 10, 3, rng)]
    memory = 14 << 20 if bands else 1 << 30
    for size in ((34, 850), (2499, 34) if bands else (850, 34)):
        assert (memory < model.memory_plan(2, size=size)["maps"]) == bands
    ours = evaluate.posteriors(model, long, evaluate.Protocol(kind, (34,), memory=memory))
    assert np.abs(ours - naively(kind, long, (34,))).max() < CLOSE


def test_gray_and_cmyk_files(tmp_path):
    """Files of all kinds of pixels, through the reader of folders; the oracle lets Pillow convert them."""
    rng = np.random.default_rng(6)
    colours = Image.fromarray(picture(41, 67, 3, rng))
    (tmp_path / "class 0").mkdir()
    kinds = {
        "cmyk.jpg": colours.convert("CMYK"),
        "portrait.jpg": colours.transpose(Image.Transpose.ROTATE_90).convert("CMYK"),
        "gray.jpg": colours.convert("L"),
        "gray.png": Image.fromarray(picture(50, 33, 1, rng)[:, :, 0]),
        "palette.png": colours.quantize(16),
        "bilevel.png": colours.convert("1"),
    }
    for name, image in kinds.items():
        image.save(tmp_path / "class 0" / name)
    model, naively = build("A", "floor")
    read = [np.asarray(Image.open(tmp_path / "class 0" / name).convert("RGB")) for name in sorted(kinds)]
    protocol = evaluate.Protocol("dense", SCALES[:1])
    model.classes = [f"class {i}" for i in range(CLASSES)]
    report = evaluate.evaluate(model, data.ImageFolder(tmp_path), protocol)
    model.classes = None
    assert np.abs(report.posteriors - naively("dense", read, SCALES[:1])).max() < CLOSE


def test_the_oracle_shares_no_code():
    here = Path(__file__).parent
    for path in (here / "naive_evaluator.py", *(here / "reference").glob("*.py")):
        assert "import vggnet" not in path.read_text() and "from vggnet" not in path.read_text(), path


def test_fusion():
    """Nets and protocols fuse by the mean of posteriors, in one pass or from reports."""
    a, b = build("A", "floor")[0], build("C", "ceil")[0]
    dense, crops = evaluate.Protocol.paper("dense", SCALES), evaluate.Protocol.paper("center", SCALES[:1])
    mean = (expected("dense", "floor", SCALES) + expected("center", "ceil", SCALES[:1], "C")) / 2
    report = evaluate.evaluate([(a, dense), (b, crops)], dataset())
    assert np.abs(report.posteriors - mean).max() < CLOSE
    assert (report.top1, report.top5) == pytest.approx(naive.errors(mean, dataset().labels))
    apart = evaluate.fuse([evaluate.evaluate(a, dataset(), dense), evaluate.evaluate(b, dataset(), crops)])
    assert apart.posteriors.tobytes() == report.posteriors.tobytes()


def test_batches_and_bands_change_nothing():
    model, _ = build("A", "floor")
    for kind in ("multi-crop", "dense"):
        whole = evaluate.evaluate(model, dataset(), evaluate.Protocol(kind, SCALES))
        small = evaluate.evaluate(model, dataset(), evaluate.Protocol(kind, SCALES, batch=7, memory=13 << 20))
        assert np.abs(whole.posteriors - small.posteriors).max() < 1e-6


def test_predict_is_the_same_core():
    model, _ = build("A", "floor")
    protocol = evaluate.Protocol.paper("combined", SCALES)
    best = model.predict(images(3), protocol, top=CLASSES)
    for row, posterior in zip(best, expected("combined", "floor", SCALES), strict=True):
        assert [c for c, _ in row] == list(np.argsort(-posterior, kind="stable"))
        assert [p for _, p in row] == pytest.approx(np.sort(posterior)[::-1], abs=CLOSE)


def test_the_naive_grid():
    """PAPER: floor(linspace(0, size - crop, 5) + 0.5), repeats kept."""
    assert naive.grid(256, 224, 5) == [0, 8, 16, 24, 32]
    assert naive.grid(227, 224, 5) == [0, 1, 2, 2, 3]
    assert naive.grid(224, 224, 5) == [0] * 5
    for side in range(32, 80):
        linspace = np.floor(np.linspace(0, side - 32, 5) + 0.5)
        assert naive.grid(side, 32, 5) == linspace.tolist()

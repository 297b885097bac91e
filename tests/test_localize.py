"""Boxes (paper, appendix A): overlaps, merging and both tests against plain loops; heads, training, what is refused."""

import dataclasses

import numpy as np
import pytest
import vggnet as vgg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from vggnet import _C, data, localize, picture, train
from vggnet.augment import Geometry
from vggnet.localize.locate import window_corners

import naive_localizer as naive
from helpers import raises

CLASSES = ["cat", "dog", "eel", "fox", "gnu", "hen", "owl"]
MEAN = [100.0, 110.0, 120.0]


def classifier(seed=1, **options):
    arguments = {
        "num_classes": 7,
        "input_size": 32,
        "fc_width": 16,
        "init": "he",
        "classes": CLASSES,
        "mean": MEAN,
    }
    model = vgg.VGG("A", seed=seed, **arguments | options)
    spread(model, 2.0)
    return model


def spread(model, deviation):
    """Make fc8's outputs on noise differ by about `deviation`."""
    x = np.random.default_rng(0).normal(0, 60, (4, model.input_size, model.input_size, 3)).astype(np.float32)
    weight = model.parameters["fc8.weight"]
    weight.copy_(deviation * weight.numpy() / model.forward(x).numpy().std())


def box_net(head, seed, base=None):
    """Boxes about the middle of each window, not all alike."""
    model = localize.from_classifier(base or classifier(), head, init="he", seed=seed)
    spread(model, 0.2)
    random = np.random.default_rng(seed)
    middle = np.tile([0.5, 0.5, 0.7, 0.6], model.outputs // 4) + random.normal(0, 0.1, model.outputs)
    model.parameters["fc8.bias"].copy_(middle.astype(np.float32))
    return model


class Boxed(data.ArrayDataset):
    """Noise of several sizes, each with one to three boxes."""

    def __init__(self, n=6, seed=3, channels=3):
        random = np.random.default_rng(seed)
        sizes = [(41, 67), (67, 41), (50, 50), (41, 67), (90, 33), (64, 96)]
        images = [random.integers(0, 256, (*sizes[i % 6], channels), dtype=np.uint8) for i in range(n)]
        self.places = []
        for image in images:
            height, width = image.shape[:2]
            start = random.uniform(0, 0.4, (random.integers(1, 4), 2)) * (width, height)
            self.places.append(
                np.hstack([start, start + random.uniform(0.3, 0.6, start.shape) * (width, height)])
            )
        super().__init__(images, random.integers(0, 7, n), CLASSES)

    def boxes(self, i):
        return self.places[i]


# ---- boxes

whole = st.integers(0, 12)
whole_boxes = st.tuples(whole, whole, whole, whole).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@given(whole_boxes, whole_boxes)
def test_iou_counts_pixels(a, b):
    masks = np.zeros((2, 24, 24), bool)
    for mask, (left, top, right, bottom) in zip(masks, (a, b), strict=True):
        mask[top:bottom, left:right] = True
    union = (masks[0] | masks[1]).sum()
    expected = (masks[0] & masks[1]).sum() / union if union else 0
    assert localize.iou(a, b) == pytest.approx(expected, rel=1e-12)
    assert localize.iou(a, b) == localize.iou(b, a) == pytest.approx(naive.iou(a, b), rel=1e-12)


def test_iou_broadcasts(rng):
    a, b = rng.uniform(0, 10, (3, 4)), rng.uniform(0, 10, (5, 4))  # some of them are inside out: empty
    expected = [[naive.iou(x, y) for y in b] for x in a]
    np.testing.assert_allclose(localize.iou(a[:, None], b), expected, rtol=1e-12)


def test_encode_and_decode_are_inverses(rng):
    low = rng.uniform(-50, 200, (20, 2))
    boxes = np.hstack([low, low + rng.uniform(1, 100, (20, 2))])
    numbers = localize.encode(boxes, 224)
    assert numbers.dtype == np.float32
    np.testing.assert_allclose(numbers[:, 0] * 224, (boxes[:, 0] + boxes[:, 2]) / 2, rtol=1e-5)
    np.testing.assert_allclose(numbers[:, 3] * 224, boxes[:, 3] - boxes[:, 1], rtol=1e-5)
    np.testing.assert_allclose(localize.decode(numbers, 224), boxes, atol=1e-4)
    assert localize.decode([0.5, 0.5, -0.1, 0.2], 10).tolist() == [5, 4, 5, 6]


coordinates = st.floats(0, 40, allow_nan=False)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(coordinates, coordinates, st.floats(1, 30), st.floats(1, 30), st.floats(0.01, 1)),
        max_size=8,
    ),
    st.sampled_from([0.3, 0.5, 0.8]),
)
def test_merge_against_plain_loops(drawn, overlap):
    boxes = [(x, y, x + w, y + h) for x, y, w, h, _ in drawn]
    scores = [score for *_, score in drawn]
    merged, sums = localize.merge(boxes, scores, overlap)
    expected = naive.merge(boxes, scores, overlap)
    assert len(merged) == len(expected) <= len(boxes)
    np.testing.assert_allclose(sums, [s for _, s in expected], rtol=1e-9)
    np.testing.assert_allclose(sorted(merged.tolist()), sorted(b for b, _ in expected), rtol=1e-9, atol=1e-9)
    assert sums.sum() == pytest.approx(sum(scores)) and (np.diff(sums) <= 0).all()
    apart = localize.iou(merged[:, None], merged)[~np.eye(len(merged), dtype=bool)]
    assert (apart < overlap).all()


def test_a_merged_box_is_the_mean_of_all_its_members():
    boxes = [[0, 0, 10, 10], [3, 0, 13, 10], [0.3, 0, 10.3, 10], [50, 50, 51, 51]]
    merged, sums = localize.merge(boxes, [1, 2, 4, 5])
    assert merged[0] == pytest.approx([1.1, 0, 11.1, 10]) and sums.tolist() == [7, 5]
    assert np.array_equal(boxes[1], [3, 0, 13, 10])  # the input is left alone


@pytest.mark.parametrize(
    "arguments, words",
    [
        (([[0, 0, 1, 1]], [1, 2]), ["merge: scores", "(2,)", "(1,)"]),
        (([[0, 0, 1, 1]], [1], 0.0), ["overlap is 0.0"]),
    ],
)
def test_merge_refuses(arguments, words):
    with raises(words):
        localize.merge(*arguments)


# ---- nets


@pytest.mark.parametrize("head, outputs", [("SCR", 4), ("PCR", 28)])
def test_a_box_net_has_the_classifiers_weights_and_a_random_last_layer(tmp_path, head, outputs):
    base = classifier()
    model = localize.from_classifier(base, head, seed=5)
    assert (model.head, model.outputs, model.num_classes, model.classes) == (head, outputs, 7, CLASSES)
    for name, p in model.parameters.items():
        if not name.startswith("fc8"):
            assert p.numpy().tobytes() == base.parameters[name].numpy().tobytes(), name
    last = model.parameters["fc8.weight"].numpy()
    assert last.shape == (outputs, 16) and not model.parameters["fc8.bias"].numpy().any()
    assert 0.005 < last.std() < 0.015  # N(0, 0.01)
    other = localize.from_classifier(base, head, seed=6).parameters["fc8.weight"].numpy()
    assert not np.array_equal(last, other)
    model.save(tmp_path / "boxes.safetensors")
    again = vgg.load(tmp_path / "boxes.safetensors")
    assert again.to_dict() == model.to_dict() and again.head == head
    for name, p in model.parameters.items():
        assert p.numpy().tobytes() == again.parameters[name].numpy().tobytes()


def test_a_box_net_is_no_classifier():
    model = box_net("SCR", 1)
    image = np.zeros((40, 40, 3), np.uint8)
    assert "prob" not in model.layer_names and "head='SCR'" in repr(model)
    assert model.forward(np.zeros((2, 32, 32, 3), np.float32)).shape == (2, 4)
    for call, what in (
        (lambda: model.predict(image), "predict"),
        (lambda: vgg.evaluate.evaluate(model, Boxed(2), "center"), "evaluate"),
        (lambda: model.loss_and_gradients(np.zeros((1, 32, 32, 3), np.float32), [0]), "loss_and_gradients"),
        (lambda: localize.from_classifier(model), "from_classifier"),
        (lambda: localize.locate(model, model, image), "classifier"),
        (lambda: train.fit(model, Boxed(2), recipe=RECIPE), "fit"),
    ):
        with raises([what, "predicts boxes", "SCR"]):
            call()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"head": "classes"}, ["head is 'classes'", "PCR"]),
        ({"head": "pcr"}, ["pcr"]),
        ({"init": "zero"}, ["init is 'zero'"]),
    ],
)
def test_from_classifier_refuses(options, words):
    with raises(words):
        localize.from_classifier(classifier(), **options)
    with raises(["head is 'none'"]):
        vgg.VGG("A", num_classes=2, input_size=32, fc_width=8, head="none")


# ---- the two tests


def dense_of(model):
    return lambda x: model.dense(x.astype(np.float32)).numpy().astype(np.float64)


def test_a_position_of_the_map_sees_its_window():
    """What lies at one window's corner, then at another's, moves the map alike; an image of the input's size is one window."""
    model, corners = classifier(), window_corners(10, 10)
    thing = np.random.default_rng(2).normal(0, 60, (1, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(model.dense(thing).numpy()[0, 0], model.forward(thing).numpy(), atol=1e-4)
    assert window_corners(1, 1).tolist() == [[[0, 0]]]
    around = []
    for i, j in ((3, 4), (5, 6)):
        x = np.zeros((1, 320, 320, 3), np.float32)
        left, top = corners[i, j]
        x[:, top : top + 32, left : left + 32] = thing
        around.append(model.dense(x).numpy()[0, i - 1 : i + 2, j - 1 : j + 2])
    np.testing.assert_allclose(around[0], around[1], atol=1e-4)
    assert np.abs(around[0]).max() > 0.1


@pytest.mark.parametrize("pool_rounding", ["floor", "ceil"])
def test_full_test_against_plain_loops(pool_rounding):
    base = classifier(pool_rounding=pool_rounding)
    nets, images, scales = [box_net("PCR", 2, base), box_net("SCR", 3, base)], Boxed(4), (40, 73)
    report = localize.full_test(nets, base, images, scales=scales)
    found = localize.locate(nets, base, [images.image(0)], scales=scales)
    pairs = [(dense_of(nets[0]), False), (dense_of(nets[1]), True)]
    hits = []
    for i in range(4):
        expected = naive.locate(images.image(i), scales, 32, MEAN, dense_of(base), pairs, 5)
        true = images.boxes(i)
        for guess, (label, posterior, box) in enumerate(expected):
            assert report.classes[i, guess] == label
            np.testing.assert_allclose(report.boxes[i, guess], box, atol=1e-3)
            if i == 0:
                assert found[0][guess].label == CLASSES[label]
                assert found[0][guess].probability == pytest.approx(posterior, abs=1e-5)
                np.testing.assert_allclose(found[0][guess].box, report.boxes[i, guess], atol=1e-4)
            assert report.ious[i, guess] == pytest.approx(max(naive.iou(box, t) for t in true), abs=1e-4)
        hits.append(
            [c == images.labels[i] and max(naive.iou(b, t) for t in true) > 0.5 for c, _, b in expected]
        )
    assert report.top1 == pytest.approx(100 * np.mean([not h[0] for h in hits]))
    assert report.top5 == pytest.approx(100 * np.mean([not any(h) for h in hits]))
    assert report.count == 4 and "73" in report.describe() and "2 nets" in report.describe()


@pytest.mark.parametrize("head", ["PCR", "SCR"])
def test_centre_crop_test_against_plain_loops(head):
    model, images = box_net(head, 2), Boxed()
    report = localize.center_crop_test(model, images, scale=37, batch=4)

    def numbers(x):
        return model.forward(x.astype(np.float32)).numpy()

    ious = []
    for i in range(6):
        label = images.labels[i]
        box = naive.centre_box(numbers, images.image(i), 37, 32, MEAN, 4 * label if head == "PCR" else 0)
        np.testing.assert_allclose(report.boxes[i, 0], box, atol=1e-3)
        ious.append(max(naive.iou(box, true) for true in images.boxes(i)))
    assert report.mean_iou == pytest.approx(np.mean(ious), abs=1e-4)
    assert report.top1 == report.top5 == pytest.approx(100 * np.mean([v <= 0.5 for v in ious]))
    assert 0 < report.mean_iou < 1 and np.array_equal(report.classes[:, 0], images.labels)
    assert "Centre crop at Q = 37" in report.describe() and "top-5" not in report.describe()


def test_errors_count_class_and_overlap():
    """An IoU of exactly 0.5 is wrong; so is the right box of another class, and an image that was not read."""
    report = localize.Report(
        test="by hand",
        labels=np.array([0, 1, 2, 0]),
        classes=np.array([[0, 1], [0, 1], [2, 0], [-1, -1]]),
        boxes=np.zeros((4, 2, 4)),
        ious=np.array([[0.5, 0.9], [0.9, 0.6], [0.8, 0.1], [0, 0]]),
        broken=[("d", "is broken")],
        seconds=1.0,
    )
    assert (report.top1, report.top5) == (75.0, 50.0)
    assert report.mean_iou == pytest.approx((0.5 + 0.6 + 0.8 + 0) / 4)


def test_a_window_that_knows_its_box_wins():
    """Windows of a constant net tell one box each; the class scores decide, and boxes of the wrong windows are left alone."""
    base = classifier()
    model = localize.from_classifier(base, "SCR")
    model.parameters["fc8.weight"].copy_(np.zeros((4, 16), np.float32))
    model.parameters["fc8.bias"].copy_(np.array([0.5, 0.5, 0.5, 0.5], np.float32))
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    ours = localize.locate(model, base, image, scales=64, top=7)[0]
    scores = base.dense(base.preprocessing.apply(image)[None]).numpy()[0]
    windows = _C.softmax(scores).numpy()
    for label, _, box in ours:
        i, j = divmod(int(windows[..., CLASSES.index(label)].argmax()), 3)
        assert box.tolist() == [32 * j + 8, 32 * i + 8, 32 * j + 24, 32 * i + 24]


def test_several_nets_are_merged_together():
    """Two nets whose boxes are shifted against each other: the mean of both."""
    base, nets = classifier(), []
    for x in (0.45, 0.55):
        net = localize.from_classifier(base, "SCR")
        net.parameters["fc8.weight"].copy_(np.zeros((4, 16), np.float32))
        net.parameters["fc8.bias"].copy_(np.array([x, 0.5, 0.5, 0.5], np.float32))
        nets.append(net)
    guess = localize.locate(nets, base, np.zeros((32, 32, 3), np.uint8), scales=32, top=1)[0][0]
    np.testing.assert_allclose(guess.box, [8, 8, 24, 24], atol=1e-5)


def test_locate_takes_what_predict_takes(tmp_path):
    base, net = classifier(classes=None), None
    net = box_net("SCR", 2, base)
    pixels = np.random.default_rng(1).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    results = [
        localize.locate(net, base, image, top=2) for image in (pixels, path, Image.open(path), [str(path)])
    ]
    for result in results:
        assert len(result) == 1 and len(result[0]) == 2 and type(result[0][0].label) is int
        np.testing.assert_array_equal(result[0][1].box, results[0][0][1].box)
    assert localize.locate(net, base, []) == []
    for options, words in (
        ({"top": 0}, ["top is 0", "7"]),
        ({"scales": 31}, ["scales is (31,)", "32"]),
        ({"scales": ()}, ["scales is ()"]),
    ):
        with raises(words):
            localize.locate(net, base, pixels, **options)
    with raises(["models is empty"]):
        localize.locate([], base, pixels)
    with raises(["models has a net that predicts classes"]):
        localize.locate(base, base, pixels)
    with raises(["input_size is 64", "32"]):
        localize.locate(localize.from_classifier(classifier(input_size=64)), classifier(), pixels)


# ---- data

RECIPE = train.Recipe(batch=4, lr=0.01, epochs=1, scale=36, rgb_shift=None, holdout=0, plateau_patience=9)


def test_data_sets_with_and_without_boxes(tmp_path):
    boxed = Boxed()
    assert isinstance(boxed, data.BoxDataset) and not isinstance(data.sample(), data.BoxDataset)
    part = data.Subset(boxed, [4, 1])
    np.testing.assert_array_equal(part.boxes(0), boxed.boxes(4))
    boxed = Boxed(14)
    held = data.split(boxed, 0.4, 1)[1]
    np.testing.assert_array_equal(held.boxes(0), boxed.boxes(int(held.indices[0])))
    model = box_net("SCR", 1)
    plain = data.ArrayDataset([boxed.image(0)], [0], CLASSES)
    for call in (
        lambda d: localize.center_crop_test(model, d),
        lambda d: train.fit(model, d, recipe=RECIPE, task=TASK),
    ):
        for images in (plain, data.Subset(plain, [0])):
            with raises(["ArrayDataset", "boxes(i)"], TypeError):
                call(images)
        with raises(["classes of", "not those of the model"]):
            call(localize.Canvases(data.sample()))
        with raises(["predicts classes, not boxes", "from_classifier"]):
            (train.fit(classifier(), boxed, recipe=RECIPE, task=TASK))


def test_images_without_a_box_are_left_out_by_with_boxes():
    boxed = Boxed()
    boxed.places[1] = boxed.places[4] = np.zeros((0, 4))
    assert localize.with_boxes(boxed).indices.tolist() == [0, 2, 3, 5]
    for call in (
        lambda: localize.center_crop_test(box_net("SCR", 1), boxed),
        lambda: train.fit(box_net("SCR", 1), boxed, recipe=RECIPE, task=TASK),
    ):
        with raises(["image ", "has no box", "with_boxes"]):
            call()
    boxed.places = [np.zeros((0, 4))] * 6
    with raises(["no image", "has a box"]):
        localize.with_boxes(boxed)


def test_broken_images_are_wrong():
    class Broken(Boxed):
        def image(self, i):
            if i == 150:
                raise vgg.ImageError("image 150 is broken")
            return super().image(i)

    report = localize.center_crop_test(box_net("PCR", 1), Broken(200), scale=33)
    assert report.broken == [("image 150", "image 150 is broken")]
    assert report.classes[150, 0] == -1 and np.isnan(report.boxes[150]).all() and report.ious[150, 0] == 0


@pytest.mark.parametrize("size", [(64, 80), (40, 40)])
def test_canvases_hold_their_items(size):
    items = data.Subset(data.sample(), np.arange(60))
    canvases = localize.Canvases(items, size=size, sides=(20, 36), seed=4)
    assert isinstance(canvases, data.BoxDataset) and len(canvases) == 60 and canvases.classes == items.classes
    corners = []
    for i in range(60):
        image, (left, top, right, bottom) = canvases.image(i), canvases.boxes(i)[0].astype(int)
        corners.append((left, top, right, bottom))
        bright = image[..., 0] >= 32
        assert image.shape == (*size, 1) and bright[top:bottom, left:right].sum() == bright.sum() > 0
        for edge in (bright[top, :], bright[bottom - 1, :], bright[:, left], bright[:, right - 1]):
            assert edge.any()
    assert len(set(corners)) > 50  # not two alike
    assert np.array_equal(
        canvases.image(3), localize.Canvases(items, size=size, sides=(20, 36), seed=4).image(3)
    )
    assert not np.array_equal(
        canvases.image(3), localize.Canvases(items, size=size, sides=(20, 36), seed=5).image(3)
    )
    assert canvases.name(0) == f"{items.name(0)} on a canvas"
    with raises(["sides is (20, 90)", "1 <= lowest"]):
        localize.Canvases(items, size=size, sides=(20, 90))


# ---- training

TASK = localize.BoxRegression()


def test_targets_are_the_largest_box_as_the_crop_shows_it():
    boxed = Boxed()
    boxed.places[0] = np.array([[1, 1, 5, 5], [10, 4, 30, 24], [0, 0, 3, 3]], np.float64)
    geometry = Geometry(
        np.array([0, 0]),
        np.array([[41, 67]] * 2),
        np.array([[82, 134]] * 2),
        np.array([2, 2]),
        np.array([4, 4]),
        np.array([False, True]),
        64,
    )  # twice as large: 20 8 60 48; in the crop 16 6 56 46; mirrored 8 6 48 46
    numbers, labels = TASK.targets(boxed, geometry)
    np.testing.assert_allclose(64 * numbers, [[36, 26, 40, 40], [28, 26, 40, 40]], rtol=1e-6)
    assert labels.tolist() == [boxed.labels[0]] * 2


@pytest.mark.parametrize("head", ["PCR", "SCR"])
def test_loss_compares_the_numbers_of_the_own_class(rng, head):
    classes = 7 if head == "PCR" else 1
    outputs = rng.uniform(0.2, 0.8, (3, 4 * classes)).astype(np.float32)
    numbers, labels = rng.uniform(0.2, 0.8, (3, 4)).astype(np.float32), np.array([6, 0, 3])
    value, gradient, wrong = TASK.loss(_C.tensor(outputs), (numbers, labels), 5)
    expected, short = np.zeros_like(outputs), 0.0
    for n, label in enumerate(labels if head == "PCR" else [0, 0, 0]):
        own = slice(4 * label, 4 * label + 4)
        expected[n, own] = (outputs[n, own] - numbers[n]) / 5
        boxes = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (outputs[n, own], numbers[n])]
        short += 1 - naive.iou(*boxes)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-6, atol=1e-8)
    assert value == pytest.approx(5 * (expected.astype(np.float64) ** 2).sum() / 2, rel=1e-6)
    assert wrong == pytest.approx(short, rel=1e-5)


def test_the_held_out_measure_is_the_centre_crop_test():
    model, recipe = box_net("PCR", 3), dataclasses.replace(RECIPE, scale=40)
    report = localize.center_crop_test(model, Boxed(), scale=40)
    assert TASK.measure(model, Boxed(), recipe, 4).error == pytest.approx(100 * (1 - report.mean_iou))


def test_training_learns_where_things_are():
    """From a net of random weights, some hundred clothes: far better than the best box that is the same for all images."""
    items, other = (
        data.Subset(data.sample(train=part), np.arange(count)) for part, count in ((True, 200), (False, 50))
    )
    canvases, unseen = (
        localize.Canvases(d, size=(40, 48), sides=(16, 32), seed=seed) for d, seed in ((items, 1), (other, 2))
    )
    base = vgg.VGG(
        "A",
        num_classes=10,
        input_size=32,
        in_channels=1,
        fc_width=64,
        dropout=0.0,
        init="xavier",
        mean=[20.0],
    )
    net = localize.from_classifier(base, "SCR", init="xavier")
    recipe = dataclasses.replace(RECIPE, epochs=3)
    history = train.fit(net, canvases, unseen, recipe=recipe, task=TASK, progress=False)
    report = localize.center_crop_test(net, unseen, scale=36)
    assert (
        history[-1].val_top1 == pytest.approx(100 * (1 - report.mean_iou)) and net.classes == canvases.classes
    )
    boxes = np.concatenate([canvases.boxes(i) for i in range(200)])
    same = localize.iou(boxes.mean(axis=0), np.concatenate([unseen.boxes(i) for i in range(50)])).mean()
    assert same < 0.4 and report.mean_iou > same + 0.1, (same, report.mean_iou)


# ---- pictures


def test_picture_of_boxes(tmp_path):
    """Found boxes are blue, the first thick; true ones are orange; both where they belong."""
    images = [np.full((30, 60, channels), 255, np.uint8) for channels in (3, 1)]
    guesses = [[("a", 0.75, np.array([10.0, 10, 30, 20]))], []]
    path = tmp_path / "boxes.png"
    picture.boxes(path, images, guesses, [np.array([[40.0, 5, 55, 25]]), np.zeros((0, 4))], columns=1)
    pixels = np.asarray(Image.open(path)).astype(int)
    blue, orange = (np.abs(pixels - colour).sum(axis=2) < 150 for colour in ((37, 99, 235), (234, 115, 23)))
    scale, left, top = 150 / 60, 12, 12
    for mask, box in ((blue, (10, 10, 30, 20)), (orange, (40, 5, 55, 25))):
        rows, columns = (np.flatnonzero(mask[:160].any(axis=axis)) for axis in (1, 0))
        edges = [columns[0] - left, rows[0] - top, columns[-1] + 1 - left, rows[-1] + 1 - top]
        np.testing.assert_allclose(np.array(edges) / scale, box, atol=1)
    assert not blue[180:].any() and not orange[180:].any()

"""Descriptors against plain NumPy, their files, the measures, the SVM and scikit-learn's pipelines (paper, appendix B)."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import vggnet as vgg
from PIL import Image
from vggnet import data, features
from vggnet.checkpoint import write_tensors
from vggnet.cli import main
from vggnet.features import Aggregation, Features

from helpers import ENVIRONMENT
from naive_evaluator import rescale
from reference import net

SCALES = (33, 64)


@pytest.fixture(scope="module")
def model():
    return vgg.VGG("A", num_classes=7, input_size=32, fc_width=16, init="he", seed=3)


@pytest.fixture(scope="module")
def images():
    """Sides that are no multiples of 32, both orientations, two of one shape."""
    random = np.random.default_rng(5)
    sizes = ((41, 67), (50, 33), (41, 67), (32, 32))
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.fixture(scope="module")
def dataset(images):
    return data.ArrayDataset(images, [0, 3, 2, 1], list("abcd"))


def naive(model, image, scales, layer, mirror=True):
    """A normalised descriptor for each scale: float64 throughout, one position after the other."""
    parameters = {name: tensor.numpy().astype(np.float64) for name, tensor in model.parameters.items()}
    each = []
    for q in scales:
        x = rescale(image, q).astype(np.float64) - np.array(model.preprocessing.mean)
        views = [x, x[:, ::-1]] if mirror else [x]
        sums = []
        for view in views:
            maps = net.forward(model.config, parameters, view[None], until="pool5")
            responses = maps[layer][0] if layer in maps else maps["pool5"][0]
            positions = []
            for h in responses.reshape(
                -1, responses.shape[-1]
            ):  # input_size 32: a window of fc6 is one position
                if layer == "relu7":
                    for name in ("fc6", "fc7"):
                        h = np.maximum(parameters[f"{name}.weight"] @ h + parameters[f"{name}.bias"], 0)
                positions.append(h)
            sums.append(np.mean(positions, axis=0))
        pooled = sum(sums) / len(sums)
        each.append(pooled / np.sqrt(np.sum(pooled * pooled)))
    return each


def close(ours, expected):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


# ---- descriptors


def test_scales_are_stacked_or_averaged(model, images):
    each = [naive(model, image, SCALES, "relu7") for image in images[:2]]
    stacked = features.descriptors(model, images[:2], Aggregation("relu7", SCALES, "stack"))
    averaged = features.descriptors(model, images[:2], Aggregation("relu7", SCALES, "mean"))
    assert stacked.shape == (2, 32) and averaged.shape == (2, 16)
    assert stacked.dtype == averaged.dtype == np.float32
    close(stacked, [np.concatenate(row) for row in each])
    close(averaged, [np.mean(row, axis=0) for row in each])
    assert (np.linalg.norm(averaged, axis=1) < 1 - 1e-6).all()  # normalised before, not after


@pytest.mark.parametrize("layer", ["relu3_2", "pool5"])
def test_any_layer(model, images, layer):
    ours = features.descriptors(model, images[1:2], Aggregation(layer, (33,), mirror=False))
    close(ours[0], naive(model, images[1], (33,), layer, mirror=False)[0])


def test_mirror_matters(model, images):
    with_mirror, without = (
        features.descriptors(model, images[:1], Aggregation(scales=(33,), mirror=mirror))[0]
        for mirror in (True, False)
    )
    close(without, naive(model, images[0], (33,), "relu7", mirror=False)[0])
    assert np.abs(with_mirror - without).max() > 1e-3


def test_models_are_stacked_each_with_its_own_aggregation(model, images):
    other = vgg.VGG("A-LRN", num_classes=3, input_size=64, fc_width=8, init="he", seed=1)
    pairs = [(model, Aggregation("relu7", SCALES, "stack")), (other, Aggregation("pool4", (64,)))]
    both = features.descriptors(pairs, images)
    np.testing.assert_array_equal(both[:, :32], features.descriptors(*pairs[0][:1], images, pairs[0][1]))
    np.testing.assert_array_equal(both[:, 32:], features.descriptors(*pairs[1][:1], images, pairs[1][1]))
    found = features.extract(pairs, data.ArrayDataset(images, [0] * 4, ["a"]))
    close(found.values, both)
    assert found.facts["columns"] == [
        {"model": "A", "scales": [33], "width": 16},
        {"model": "A", "scales": [64], "width": 16},
        {"model": "A-LRN", "scales": [64], "width": 512},
    ]


def test_result_does_not_depend_on_batches(model, images):
    whole = features.descriptors(model, images, Aggregation(scales=SCALES, batch=64))
    close(features.descriptors(model, images, Aggregation(scales=SCALES, batch=1)), whole)


def test_an_image_without_response_stays_zero(images):
    dark = vgg.VGG("A", num_classes=2, input_size=32, fc_width=4, init=None)
    assert not features.descriptors(dark, images[:1], Aggregation(scales=(33,))).any()


def test_scales_follow_the_input_size(model):
    assert Aggregation.for_model(model).scales == (37, 55, 73, 91, 110)
    assert Aggregation.for_model(model, "stack").scales == (37, 55, 73)
    whole = vgg.VGG("A", num_classes=2, fc_width=1, init=None)
    assert Aggregation.for_model(whole).scales == features.VOC_SCALES == (256, 384, 512, 640, 768)
    assert Aggregation.for_model(whole, "stack").scales == features.CALTECH_SCALES == (256, 384, 512)
    assert Aggregation.for_model(model, scales=40, layer="fc6") == Aggregation("fc6", (40,))


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"scales": (16, 33)}, "at least the model's input size, 32"),
        ({"layer": "relu9"}, "layer is 'relu9'; A has conv1_1"),
        ({"combine": "max"}, "combine is 'max'; expected one of 'mean', 'stack'"),
        ({"scales": (33, 33)}, "scales is .*different"),
        ({"filter": "cubic"}, "filter is 'cubic'"),
        ({"memory": 0}, "memory is 0"),
    ],
)
def test_bad_fields(model, images, fields, words):
    with pytest.raises(ValueError, match=words):
        features.descriptors(model, images, Aggregation(**{"scales": (33,)} | fields))


def test_bad_arguments(model, images):
    with pytest.raises(TypeError, match="mirror is 1"):
        Aggregation(mirror=1)
    with pytest.raises(ValueError, match="images is empty"):
        features.descriptors(model, [])
    with pytest.raises(ValueError, match="models is empty"):
        features.descriptors([], images)
    small = features.descriptors(model, images[:1], Aggregation("conv2_1", (16,)))  # before fc6 any size goes
    assert small.shape == (1, 128)


def test_the_description_names_every_choice(model):
    words = Aggregation("relu7", SCALES, "stack", filter="lanczos").describe()
    for part in ("relu7", "33, 64", "lanczos", "mirror", "L2 norm, at each scale (our inference", "stacked"):
        assert part in words
    assert "not normalised again" in Aggregation().describe()
    assert "mirror" not in Aggregation(mirror=False).describe()


# ---- over a data set


class Broken(data.ArrayDataset):
    """Image 2 cannot be read."""

    def image(self, i):
        if i == 2:
            raise vgg.ImageError("picture 2: no pixels in it")
        return super().image(i)


def test_extract_is_descriptors_and_tells_what_they_are(model, images, dataset):
    seen = []
    aggregation = Aggregation(scales=SCALES, batch=2)
    found = features.extract(model, dataset, aggregation, progress=lambda *done: seen.append(done))
    close(found.values, features.descriptors(model, images, aggregation))
    assert found.labels.tolist() == [0, 3, 2, 1] and found.rows.tolist() == [0, 1, 2, 3]
    assert found.names == [f"image {i}" for i in range(4)] and found.classes == list("abcd")
    assert seen[-1] == (4, 4) and seen == sorted(seen)
    assert found.facts["aggregations"][0]["description"] == aggregation.describe()
    assert found.facts["models"][0]["config"] == "A"


def test_broken_images_are_left_out(model, images):
    many = [images[3]] * 120
    found = features.extract(
        model, Broken(many, np.arange(120) % 2, ["a", "b"]), Aggregation("relu1_1", (32,))
    )
    assert len(found) == 119 and 2 not in found.rows and found.names[2] == "image 3"
    np.testing.assert_array_equal(found.labels, np.delete(np.arange(120) % 2, 2))
    assert found.broken == [("image 2", "picture 2: no pixels in it")]
    with pytest.raises(vgg.ImageError, match="picture 2"):
        features.extract(model, Broken(many, [0] * 120, ["a"]), Aggregation("relu1_1", (32,)), strict=True)


def test_files(tmp_path, model, dataset):
    found = features.extract(model, dataset, Aggregation("relu2_1", (32,)))
    found.broken = [("x", "y")]
    found.save(tmp_path / "f")
    again = Features.load(tmp_path / "f")
    assert vars(again).keys() == vars(found).keys()
    for name, value in vars(found).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    assert again.values.dtype == np.float32 and again.labels.dtype == np.int64
    content = bytearray((tmp_path / "f").read_bytes())
    content[-1] ^= 1
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(vgg.WeightsError, match="damaged"):
        Features.load(tmp_path / "f")
    write_tensors(tmp_path / "g", {"a": np.zeros(1, np.float32)}, {"format": "other"})
    with pytest.raises(vgg.WeightsError, match="not a file of features"):
        Features.load(tmp_path / "g")


# ---- measures


def devkit(scores, labels, rule):
    """Average precision as the development kits' loops have it, in fractions."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    positives = sum(label == 1 for label in labels)
    curve, tp, fp = [], 0, 0
    for i in order:
        tp, fp = tp + (labels[i] == 1), fp + (labels[i] == -1)
        if tp + fp:
            curve.append((Fraction(tp, positives), Fraction(tp, tp + fp)))
    if rule == "11-point":
        tops = (max((p for r, p in curve if r >= Fraction(t, 10)), default=0) for t in range(11))
        return float(sum(tops, Fraction(0)) / 11)
    area, before = Fraction(0), Fraction(0)
    for k, (r, _) in enumerate(curve):
        area += (r - before) * max(p for _, p in curve[k:])
        before = r
    return float(area)


@pytest.mark.parametrize("rule", ["11-point", "area"])
@pytest.mark.parametrize("n", [1, 2, 7, 40, 41])
def test_average_precision_is_the_development_kits(rng, rule, n):
    for _ in range(20):
        labels = rng.choice([-1, 0, 1], n, p=[0.5, 0.2, 0.3])
        labels[rng.integers(n)] = 1
        scores = rng.integers(0, 8, n) / 8  # with ties
        assert features.average_precision(scores, labels, rule) == pytest.approx(devkit(scores, labels, rule))


def test_the_two_rules_differ_and_difficult_images_are_ignored():
    scores, labels = [0.9, 0.8, 0.7, 0.6], [1, 0, -1, 1]
    assert features.average_precision(scores, labels, "area") == pytest.approx((1 + 2 / 3) / 2)
    assert features.average_precision(scores, labels) == pytest.approx((6 + 5 * 2 / 3) / 11)
    mean, each = features.mean_average_precision(np.array([scores, scores]).T, np.array([labels, labels]).T)
    assert mean == pytest.approx(each[0]) and each.shape == (2,)


@pytest.mark.parametrize(
    "scores, labels, rule, words",
    [
        ([1.0], [-1], "area", "at least one 1"),
        ([1.0, np.nan], [1, -1], "area", "NaN"),
        ([1.0], [1, 1], "area", "shape"),
        ([1.0], [2], "area", "expected 1"),
        ([1.0], [1], "auc", "rule is 'auc'"),
    ],
)
def test_average_precision_refuses(scores, labels, rule, words):
    with pytest.raises(ValueError, match=words):
        features.average_precision(scores, labels, rule)


def test_mean_class_recall_weighs_classes_equally():
    assert features.mean_class_recall([0, 0, 0, 0, 5], [0, 0, 0, 1, 0]) == pytest.approx(0.375)
    with pytest.raises(ValueError, match="shape"):
        features.mean_class_recall([], [])


# ---- the SVM


def blobs(rng, each=20, classes=3, width=12, noise=0.6):
    labels = np.repeat(np.arange(classes), each)
    x = rng.normal(size=(classes, width))[labels] + noise * rng.normal(size=(classes * each, width))
    return x / np.linalg.norm(x, axis=1, keepdims=True), labels


def test_svm_is_one_against_the_rest(rng):
    svm = pytest.importorskip("sklearn.svm")
    x, labels = blobs(rng, noise=1.5)
    ours = features.LinearSVM(C=2.0).fit(x, labels + 10)
    theirs = svm.LinearSVC(C=2.0, dual="auto", random_state=0).fit(x, labels)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-3)
    np.testing.assert_allclose(ours.decision_function(x), theirs.decision_function(x), atol=2e-3)
    assert ours.classes_.tolist() == [10, 11, 12] and ours.held_out_ == {}
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(x) + 10)


def test_svm_chooses_c_by_held_out_training_images(rng):
    from sklearn.model_selection import StratifiedShuffleSplit

    x, labels = blobs(rng, noise=2.5)
    y = np.minimum(labels, 1)  # unequal classes
    svm = features.LinearSVM(C=(1e-6, 1.0), repeats=2).fit(x, y)
    assert svm.held_out_[1e-6] < svm.held_out_[1.0] and svm.C_ == 1.0
    recalls = []
    for train, held in StratifiedShuffleSplit(2, test_size=0.2, random_state=0).split(x, y):
        alone = features.LinearSVM(C=1.0).fit(x[train], y[train])
        recalls.append(features.mean_class_recall(y[held], alone.predict(x[held])))
    assert svm.held_out_[1.0] == pytest.approx(np.mean(recalls))
    again = features.LinearSVM(C=1.0).fit(x, y)
    np.testing.assert_array_equal(svm.coef_, again.coef_)  # trained on all of them


def test_svm_of_several_labels_leaves_difficult_images_out(rng):
    x, labels = blobs(rng)
    truth = np.where(labels[:, None] == np.arange(3), 1, -1)
    truth[::4, 1] = 0
    one = features.LinearSVM(C=(0.1, 1.0)).fit(x, truth)
    moved = truth.copy()
    moved[::4, 0] *= -1  # another class's labels, which must not matter to class 1
    other = features.LinearSVM(C=one.C_).fit(x, moved)
    np.testing.assert_array_equal(one.coef_[1], other.coef_[1])
    assert np.abs(one.coef_[0] - other.coef_[0]).max() > 1e-3
    kept = truth[:, 1] != 0
    alone = features.LinearSVM(C=one.C_).fit(x[kept], truth[kept][:, 1:2])
    np.testing.assert_allclose(alone.coef_[0], one.coef_[1], atol=1e-6)
    mean, each = features.mean_average_precision(one.decision_function(x), truth, "area")
    assert mean > 0.9 and each.shape == (3,)


@pytest.mark.parametrize(
    "options, change, words",
    [
        ({"C": 0.0}, {}, "C is 0.0"),
        ({}, {"y": [0] * 6}, "single class"),
        ({}, {"y": [0, 1]}, "X has shape"),
        ({}, {"x": np.full((6, 2), np.nan)}, "NaN"),
        ({}, {"y": [0, 1, 2, 3, 4, 5]}, "too few to hold out"),
        ({"C": 1.0}, {"y": [[1, -1]] * 6}, "class 0 has 6 images and 0 others"),
        ({"C": 1.0}, {"y": [[2, -1]] * 6}, "several labels"),
    ],
)
def test_svm_refuses(options, change, words):
    arguments = {"x": np.eye(6, 2), "y": [0, 0, 0, 1, 1, 1]} | change
    with pytest.raises(ValueError, match=words):
        features.LinearSVM(**options).fit(arguments["x"], arguments["y"])


# ---- scikit-learn


def test_in_a_pipeline_and_a_search(tmp_path):
    pytest.importorskip("sklearn")
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    model = vgg.VGG("A", num_classes=2, input_size=32, in_channels=1, fc_width=8, init="he")
    model.save(tmp_path / "A.safetensors")
    random = np.random.default_rng(0)
    images = [
        np.clip(random.normal(level, 20, (32, 32, 1)), 0, 255).astype(np.uint8)
        for level in (60, 200)
        for _ in range(6)
    ]
    labels = np.repeat([4, 9], 6)
    transformer = features.VGGFeatures(model, scales=32, layer="relu3_2")
    same = clone(transformer.set_params(combine="stack"))
    assert same is not transformer and same.model is model and same.get_params() == transformer.get_params()
    expected = features.descriptors(model, images, Aggregation("relu3_2", (32,), "stack"))
    np.testing.assert_array_equal(same.fit_transform(images), expected)

    path = features.VGGFeatures(str(tmp_path / "A.safetensors"), scales=32, layer="relu3_2")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(path)).transform(images), expected)

    pipeline = make_pipeline(transformer, features.LinearSVM(C=1.0))
    search = GridSearchCV(pipeline, {"linearsvm__C": [0.1, 1.0]}, cv=2).fit(images, labels)
    assert search.best_score_ == 1.0 and search.predict(images).tolist() == labels.tolist()
    with pytest.raises(TypeError, match="sequence of images"):
        transformer.transform("photo.jpg")


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_scikit_learn_is_loaded_only_when_used():
    assert (
        run("import sys, vggnet.features; vggnet.features.extract; print('sklearn' in sys.modules)")
        == "False\n"
    )


def test_a_missing_scikit_learn_names_the_extra():
    code = """
import sys
sys.modules["sklearn"] = sys.modules["sklearn.base"] = None
import vggnet.features
try:
    vggnet.features.LinearSVM
except ImportError as error:
    print(error)
"""
    assert run(code) == "LinearSVM needs scikit-learn: pip install 'vggnet[svm]'\n"


# ---- the command


def test_the_command(tmp_path, capsys, model, images):

    model.save(tmp_path / "A.safetensors")
    for i, image in enumerate(images):
        folder = tmp_path / "photos" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    call = ["features", str(tmp_path / "photos"), "--out", str(tmp_path / "f.safetensors")]
    call += ["--model", str(tmp_path / "A.safetensors"), "--scales", "33,64", "--combine", "stack"]
    assert main([*call, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], result["width"], result["classes"]) == (4, 32, 2)
    found = Features.load(tmp_path / "f.safetensors")
    expected = features.descriptors(model, images, Aggregation("relu7", SCALES, "stack"))
    close(found.values, expected[[0, 2, 1, 3]])  # in order of class
    assert found.labels.tolist() == [0, 0, 1, 1] and found.names[0].endswith("a/0.png")
    assert main([*call, "--no-mirror"]) == 0
    assert "4 images of 2 classes, 32 features each" in capsys.readouterr().out
    assert np.abs(Features.load(tmp_path / "f.safetensors").values - found.values).max() > 1e-3
    for more, words in (
        (("--layer", "relu9"), "layer is 'relu9'"),
        (("--scales", "16"), "at least the model's input size"),
        (("--part", "trainval"), "expected train, val or test"),
        (("--layout", "caltech101", "--part", "test"), "no parts"),
    ):
        assert main([*call, *more]) == 2
        assert words in capsys.readouterr().err

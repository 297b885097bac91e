"""PASCAL VOC and Caltech-101 and -256, on small trees laid out as the originals are."""

from __future__ import annotations

import numpy as np
import pytest
import vggnet as vgg
from PIL import Image
from vggnet import data, features

CLASSES = ("aeroplane", "bicycle", "bird")
# Flags as in the files: padded to a width of two; 0 is an image with difficult objects of the class alone.
LABELS = {"000012": (1, -1, 0), "000017": (-1, 1, 1), "000023": (-1, -1, 1), "000026": (1, 1, -1)}
PARTS = {"train": ["000017", "000012"], "val": ["000023", "000026"], "trainval": sorted(LABELS)}


def picture(path, value, size=(40, 36)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2007"
    sets = root / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    for number, name in enumerate(LABELS):
        picture(root / "JPEGImages" / f"{name}.jpg", 50 * number)
    for part, names in PARTS.items():
        (sets / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))
        for column, label in enumerate(CLASSES):
            lines = [f"{name} {LABELS[name][column]:2d}\n" for name in names]
            (sets / f"{label}_{part}.txt").write_text("".join(lines[::-1] if label == "bird" else lines))
    for folder in ("Layout", "Segmentation"):
        (root / "ImageSets" / folder).mkdir()
        (root / "ImageSets" / folder / "train.txt").write_text("000012\n")
    return root


@pytest.mark.parametrize("part", PARTS)
def test_voc(voc, part):
    dataset = data.VOC(voc, part)
    assert (
        dataset.classes == list(CLASSES) and dataset.ids == PARTS[part] and len(dataset) == len(PARTS[part])
    )
    assert dataset.labels.dtype == np.int8
    assert dataset.labels.tolist() == [list(LABELS[name]) for name in PARTS[part]]
    assert dataset.name(0) == str(voc / "JPEGImages" / f"{PARTS[part][0]}.jpg")
    value = 50 * list(LABELS).index(PARTS[part][0])
    assert dataset.image(0).shape == (40, 36, 3) and abs(int(dataset.image(0)[0, 0, 0]) - value) <= 1


def test_voc_takes_the_rule_of_its_year(voc):
    assert data.VOC(voc, "train").rule == "11-point"
    for year, rule in (("VOC2009", "11-point"), ("VOC2010", "area"), ("VOC2012", "area")):
        voc = voc.rename(voc.with_name(year))
        assert data.VOC(voc, "train").rule == rule


def test_voc_from_images_to_average_precision(voc):
    model = vgg.VGG("A", num_classes=2, input_size=32, fc_width=4, init="he")
    found = features.extract(model, data.VOC(voc, "trainval"), features.Aggregation("relu2_1", (32,)))
    assert found.values.shape == (4, 128) and found.labels.shape == (4, 3)
    found.save(voc / "f.safetensors")
    assert features.Features.load(voc / "f.safetensors").labels.dtype == np.int8
    svm = features.LinearSVM(C=100.0).fit(found.values, found.labels)
    scores = svm.decision_function(found.values)
    mean, each = features.mean_average_precision(scores, found.labels, "11-point")
    assert 0 < mean <= 1 and len(each) == 3


def test_training_and_evaluation_refuse_several_labels(voc):
    dataset = data.VOC(voc, "train")
    model = vgg.VGG("A", num_classes=3, input_size=32, fc_width=4, init="he", classes=CLASSES)
    for use in (
        lambda: vgg.evaluate.evaluate(model, dataset, "center"),
        lambda: vgg.train.fit(model, dataset, None, vgg.train.Recipe(batch=2, epochs=1)),
        lambda: data.split(dataset, 0.5, seed=0),
    ):
        with pytest.raises(ValueError, match=r"labels of shape \(2, 3\), several an image"):
            use()


def test_voc_says_what_is_wrong(voc):
    with pytest.raises(data.DatasetNotFoundError, match="it has VOC2007: give one of these"):
        data.VOC(voc.parent)
    with pytest.raises(data.DatasetNotFoundError, match="part is 'test'"):
        data.VOC(voc, "test")
    sets = voc / "ImageSets" / "Main"
    (sets / "test.txt").write_text("000012\n")
    with pytest.raises(data.DatasetNotFoundError, match="no labels"):
        data.VOC(voc, "test")
    (sets / "bird_train.txt").write_text("000017  1\n")
    with pytest.raises(vgg.ImageError, match="no line for image 000012"):
        data.VOC(voc, "train")
    (sets / "bird_train.txt").write_text("000017  1\n000012 yes\n")
    with pytest.raises(vgg.ImageError, match="line 2: '000012 yes'"):
        data.VOC(voc, "train")
    (voc / "JPEGImages" / "000023.jpg").write_text("not a picture")
    with pytest.raises(vgg.ImageError, match="000023"):
        data.VOC(voc, "val").image(0)


def caltech(root, names, count):
    for name in names:
        for i in range(1, count + 1):
            picture(root / name / f"image_{i:04d}.jpg", 3 * i, (33, 33))
    return root


def test_caltech101(tmp_path):
    root = caltech(tmp_path, ("BACKGROUND_Google", "Faces", "Faces_easy", "airplanes"), 33)
    (root / "Faces" / "tmp").mkdir()
    (root / "Faces" / "notes.txt").write_text("a stray")
    Image.new("L", (40, 40), 7).save(root / "Faces" / "image_0001.jpg")  # some are gray
    dataset = data.Caltech101(root)
    assert dataset.classes == ["Faces", "Faces_easy", "airplanes"]
    assert len(dataset) == 99 and np.bincount(dataset.labels).tolist() == [33] * 3
    assert dataset.image(0).shape == (40, 40, 3) and dataset.name(98).endswith("image_0033.jpg")
    assert isinstance(dataset, data.Dataset)
    assert data.Caltech101(root, background=True).classes[0] == "BACKGROUND_Google"
    train, test = dataset.split(seed=1)
    assert np.bincount(train.labels).tolist() == [30] * 3 and np.bincount(test.labels).tolist() == [3] * 3
    assert not set(train.indices) & set(test.indices)


def test_caltech256(tmp_path):
    root = caltech(tmp_path, ("001.ak47", "002.american-flag", "257.clutter"), 2)
    (root / "001.ak47" / "RENAME2").write_text("a stray")
    dataset = data.Caltech256(root)
    assert dataset.classes == ["001.ak47", "002.american-flag"] and len(dataset) == 4
    assert (dataset.TRAIN, dataset.TEST) == (60, None)
    with pytest.raises(ValueError, match="label 0 has 2 images; expected more than train = 60"):
        dataset.split(seed=0)


def test_caltech_says_what_is_wrong(tmp_path):
    with pytest.raises(data.DatasetNotFoundError, match="Caltech256"):
        data.Caltech256(tmp_path / "none")
    with pytest.raises(vgg.ImageError, match="no folders"):
        data.Caltech101(tmp_path)
    (tmp_path / "ant").mkdir()
    with pytest.raises(vgg.ImageError, match="no .jpg files"):
        data.Caltech101(tmp_path)


def test_split_per_class():
    labels = np.repeat([5, 2, 9], [100, 31, 82])[np.random.default_rng(0).permutation(213)]
    train, test = data.split_per_class(labels, 30, 50, seed=0)
    assert {label: int(n) for label, n in zip(*np.unique(labels[train], return_counts=True), strict=True)} == {
        2: 30, 5: 30, 9: 30
    }  # fmt: skip
    assert [int((labels[test] == label).sum()) for label in (2, 5, 9)] == [1, 50, 50]
    assert not set(train) & set(test) and (np.diff(train) > 0).all()
    same, other = (data.split_per_class(labels, 30, 50, seed=seed)[0] for seed in (0, 1))
    np.testing.assert_array_equal(train, same)
    assert not np.array_equal(train, other)
    rest = data.split_per_class(labels, 30, None, seed=0)[1]
    assert len(rest) == 213 - 90
    for arguments, words in (
        ((labels, 0, None, 0), "train is 0"),
        ((labels[:, None], 1, 1, 0), "labels is int64 of shape"),
    ):
        with pytest.raises(ValueError, match=words):
            data.split_per_class(*arguments)

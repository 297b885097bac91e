"""ILSVRC-2012 as distributed and unpacked, from small files in its exact formats."""

import gzip
import io
import os
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vggnet import ImageError, VggError, data
from vggnet.data import ILSVRC2012, Dataset
from vggnet.data import tar as tar_module

import ilsvrc_tree

pytest.importorskip("scipy")

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """The same images in every layout."""
    root = tmp_path_factory.mktemp("ilsvrc")
    return {layout: ilsvrc_tree.make(root / layout, layout=layout) for layout in ilsvrc_tree.LAYOUTS}


@pytest.fixture
def tree(tmp_path):
    return ilsvrc_tree.make(tmp_path / "imagenet", classes=2, train=2, val=1)


def decoded(content, mode="RGB"):
    return np.asarray(Image.open(io.BytesIO(content)).convert(mode))


@pytest.mark.parametrize("layout", ilsvrc_tree.LAYOUTS)
@pytest.mark.parametrize("part", ["train", "val"])
def test_every_layout_is_the_same_data_set(trees, layout, part):
    tree = trees[layout]
    found = ILSVRC2012(tree.directory, part)
    assert isinstance(found, Dataset)
    assert found.synsets == tree.synsets == sorted(tree.synsets)
    assert found.classes == [
        "thing 0, Res 0",
        f"crane ({tree.synsets[1]})",
        "thing 2, Res 2",
        f"crane ({tree.synsets[3]})",
    ]
    expected = list(zip(tree.files[part], tree.labels[part], tree.boxes[part], strict=True))
    if part == "val" and layout == "folders":  # by class, then by name
        expected.sort(key=lambda entry: entry[1])
    assert len(found) == len(expected)
    for i, ((name, content), label, boxes) in enumerate(expected):
        assert Path(found.name(i)).name == Path(name).name
        assert found.labels[i] == label
        assert found.content(i) == content
        np.testing.assert_array_equal(found.image(i), decoded(content))
        assert found.boxes(i).dtype == np.float64
        np.testing.assert_array_equal(found.boxes(i), boxes)
    gray = ILSVRC2012(str(tree.directory), part, channels="gray", strict=True)
    np.testing.assert_array_equal(gray.image(0)[..., 0], decoded(expected[0][0][1], "L"))
    assert gray.strict and not found.strict


def test_names_say_where_an_image_lies(trees):
    tree = trees["archives"]
    first = tree.files["train"][0][0]
    assert ILSVRC2012(tree.directory).name(0) == f"{tree.directory / TRAIN}/{first}"
    folders = trees["folders"].directory
    assert Path(ILSVRC2012(folders).name(0)) == folders / "train" / first


def test_without_the_devkit_classes_are_wordnet_ids(tmp_path):
    tree = ilsvrc_tree.make(tmp_path / "a", layout="folders")
    os.rename(tree.directory / "ILSVRC2012_devkit_t12", tmp_path / "elsewhere")
    for part in ("train", "val"):
        found = ILSVRC2012(tree.directory, part)
        assert found.classes == found.synsets == tree.synsets
    flat = ilsvrc_tree.make(tmp_path / "b")
    (flat.directory / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    assert ILSVRC2012(flat.directory, "train").classes == tree.synsets
    with pytest.raises(data.DatasetNotFoundError, match=r"devkit_t12\.tar\.gz, which has the labels"):
        ILSVRC2012(flat.directory, "val")


def test_threads_read_the_archive_at_once(trees):
    found = ILSVRC2012(trees["archives"].directory)
    expected = [content for _, content in trees["archives"].files["train"]]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(found.content, list(range(len(found))) * 20)) == expected * 20


# ---- the index


def test_an_archive_is_looked_through_once(tree, monkeypatch):
    first = ILSVRC2012(tree.directory)
    assert (tree.directory / f".{TRAIN}.npz").is_file()
    monkeypatch.setattr(tar_module, "index", lambda *_, **__: pytest.fail("looked through again"))
    again = ILSVRC2012(tree.directory)
    assert [again.name(i) for i in range(4)] == [first.name(i) for i in range(4)]
    assert again.content(3) == first.content(3)


def test_another_archive_has_another_index(tree):
    before = ILSVRC2012(tree.directory)
    other = ilsvrc_tree.make(tree.directory.parent / "other", classes=2, train=3, val=1, seed=1)
    (other.directory / TRAIN).replace(tree.directory / TRAIN)
    after = ILSVRC2012(tree.directory)
    assert (len(before), len(after)) == (4, 6)
    assert [after.content(i) for i in range(6)] == [content for _, content in other.files["train"]]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no", "truncate", "other"])
def test_a_damaged_index_is_made_anew(tree, damage):
    expected = ILSVRC2012(tree.directory).content(0)
    index = tree.directory / f".{TRAIN}.npz"
    whole = index.read_bytes()
    if damage == "other":
        np.savez(index, sources=np.zeros((1, 2), np.int64), names=np.zeros(3))
    else:
        index.write_bytes(whole[: len(whole) // 2] if damage == "truncate" else damage)
    assert ILSVRC2012(tree.directory).content(0) == expected
    with np.load(index) as file:
        assert len(file["names"]) == 4


def test_the_index_of_a_folder_that_cannot_be_written_goes_to_the_cache(tree, monkeypatch):
    cache = tree.directory.parent / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    real = tar_module.replace_file

    def refuse(path, write):  # the superuser may write everywhere, so permissions would not do
        if Path(path).parent == tree.directory:
            raise PermissionError(13, "Permission denied", str(path))
        real(path, write)

    monkeypatch.setattr(tar_module, "replace_file", refuse)
    first = ILSVRC2012(tree.directory)
    assert not list(tree.directory.glob(".*"))
    assert len(list((cache / "vggnet").iterdir())) == 1
    monkeypatch.setattr(tar_module, "index", lambda *_, **__: pytest.fail("looked through again"))
    assert len(ILSVRC2012(tree.directory)) == len(first)
    monkeypatch.undo()
    monkeypatch.setattr(tar_module, "replace_file", lambda *_: (_ for _ in ()).throw(OSError("full")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "other"))
    assert len(ILSVRC2012(tree.directory)) == len(first)  # without any index


# ---- what may be wrong


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder") as caught:
        ILSVRC2012(tmp_path / "none")
    assert isinstance(caught.value, VggError)
    with pytest.raises(data.DatasetNotFoundError, match=f"neither {TRAIN} nor a folder train"):
        ILSVRC2012(tmp_path)
    with pytest.raises(data.DatasetNotFoundError, match=f"neither {VAL} nor a folder val"):
        ILSVRC2012(tmp_path, "val")
    with pytest.raises(ValueError, match='expected "train" or "val"'):
        ILSVRC2012(tmp_path, "test")
    with pytest.raises(ValueError, match='expected "RGB"'):
        ILSVRC2012(tmp_path, channels="BGR")


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_an_incomplete_download_is_noticed(tree, share):
    for name, part in ((TRAIN, "train"), (VAL, "val")):
        content = (tree.directory / name).read_bytes()
        (tree.directory / name).write_bytes(content[: int(share * len(content.rstrip(b"\0")))])
        with pytest.raises(ImageError, match=f"{name}: damaged or incomplete"):
            ILSVRC2012(tree.directory, part)


def test_an_archive_that_shrank_after_it_was_looked_through(tree):
    found = ILSVRC2012(tree.directory)
    with open(tree.directory / TRAIN, "r+b") as file:
        file.truncate(1600)
    with pytest.raises(ImageError, match=r"img_train\.tar/n\d+/n\d+_\d+\.JPEG: the archive ends within it"):
        found.image(3)
    (tree.directory / TRAIN).unlink()
    with pytest.raises(ImageError, match="No such file"):
        found.image(3)


def test_other_folders_than_wordnet_ids(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "train" / "cat" / "a.jpg")
    with pytest.raises(ImageError, match=r"cat: expected folders named by WordNet ids.*ImageFolder"):
        ILSVRC2012(tmp_path)


def test_images_and_devkit_must_fit_together(tmp_path):
    tree = ilsvrc_tree.make(tmp_path, layout="folders")
    folder = tmp_path / "train" / tree.synsets[2]
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(
        ImageError, match=f"no images of 1 of the devkit's 4 classes, as of {tree.synsets[2]}"
    ):
        ILSVRC2012(tmp_path)
    (tmp_path / "elsewhere").rename(tmp_path / "train" / "n09999999")
    with pytest.raises(ImageError, match=r"images of 'n09999999', which the devkit does not have"):
        ILSVRC2012(tmp_path)


def test_more_validation_images_than_labels(tmp_path):
    tree = ilsvrc_tree.make(tmp_path, layout="flat")
    truth = tmp_path / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
    (tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG").unlink()
    shorter = ILSVRC2012(tmp_path, "val")
    assert shorter.labels.tolist() == tree.labels["val"][1:]  # by number, not by place
    truth.write_text("1\n2\n")
    with pytest.raises(ImageError, match=r"val_00000003\.JPEG: no label for it among the 2"):
        ILSVRC2012(tmp_path, "val")
    truth.write_text("one\n")
    with pytest.raises(ImageError, match="ground_truth.txt: invalid literal"):
        ILSVRC2012(tmp_path, "val")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "meta.mat cannot be read"), (b"MATLAB 5.0 MAT-file" * 20, "meta.mat cannot be read"), (None, "no data/meta.mat")],
)  # fmt: skip
def test_a_damaged_devkit_is_named(tmp_path, content, message):
    tree = ilsvrc_tree.make(tmp_path, layout="flat")
    path = tree.directory / "ILSVRC2012_devkit_t12" / "data" / "meta.mat"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=message):
        ILSVRC2012(tmp_path)


def test_a_damaged_devkit_archive_is_named(tree):
    path = tree.directory / "ILSVRC2012_devkit_t12.tar.gz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ImageError, match=r"devkit_t12\.tar\.gz: damaged or incomplete archive"):
        ILSVRC2012(tree.directory)


def test_without_scipy_the_extra_is_named(tree, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match=r"pip install 'vggnet\[mat\]'"):
        ILSVRC2012(tree.directory)


# ---- boxes


def test_boxes_without_annotations(tree):
    found = ILSVRC2012(tree.directory)
    (tree.directory / "ILSVRC2012_bbox_train_v2.tar.gz").unlink()
    with pytest.raises(data.DatasetNotFoundError, match=r"no ILSVRC2012_bbox_train_v2\.tar\.gz"):
        found.boxes(0)


def annotate(objects):
    return "<annotation>" + "".join(
        f"<object><name>{name}</name><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax>"
        f"<ymax>{box[3]}</ymax></bndbox></object>"
        for name, box in objects
    ) + "</annotation>"  # fmt: skip


@pytest.mark.parametrize("unpacked", [False, True])
def test_boxes_of_other_synsets_and_without_pixels_are_left_out(tree, unpacked):
    """The real annotations call some dogs by their breed, and most training images have none."""
    own, other = tree.synsets
    stem = Path(tree.files["train"][0][0]).stem
    objects = [
        (own, (1, 2, 3, 4)),
        (other, (5, 6, 7, 8)),
        ("Scottish_deerhound", (0, 0, 9.5, 9)),
        (own, (3, 3, 3, 9)),
    ]
    entry = (f"{own}/{stem}.xml", annotate(objects).encode())
    if unpacked:
        path = tree.directory / "ILSVRC2012_bbox_train_v2" / entry[0]
        path.parent.mkdir(parents=True)
        path.write_bytes(entry[1])
    else:
        (tree.directory / "ILSVRC2012_bbox_train_v2.tar.gz").write_bytes(ilsvrc_tree.tar([entry], "w:gz"))
    for _ in range(2):  # the second time from what was kept
        found = ILSVRC2012(tree.directory)
        assert found.boxes(0).tolist() == [[1, 2, 3, 4], [0, 0, 9.5, 9]]
        assert found.boxes(1).shape == found.boxes(3).shape == (0, 4)


@pytest.mark.parametrize(
    "xml", ["<annotation>", "<annotation><object><name>n01440764</name></object></annotation>"]
)
def test_a_damaged_annotation_is_named(tree, xml):
    archive = tree.directory / "ILSVRC2012_bbox_val_v3.tgz"
    archive.write_bytes(ilsvrc_tree.tar([("val/ILSVRC2012_val_00000001.xml", xml.encode())], "w:gz"))
    with pytest.raises(ImageError, match=r"val_00000001\.xml: not an annotation"):
        ILSVRC2012(tree.directory, "val").boxes(0)
    archive.write_bytes(gzip.compress(b"no archive"))
    with pytest.raises(ImageError, match="bbox_val_v3.tgz: damaged"):
        ILSVRC2012(tree.directory, "val").boxes(0)
    archive.write_bytes(ilsvrc_tree.tar([("readme", b"")], "w:gz"))
    with pytest.raises(ImageError, match="no annotations in it"):
        ILSVRC2012(tree.directory, "val").boxes(0)


def test_the_archives_are_ordinary_ones(tree):
    """As tar unpacks them: the helper's files are what the class docstring says."""
    with tarfile.open(tree.directory / TRAIN) as outer:
        assert sorted(outer.getnames()) == [f"{wnid}.tar" for wnid in tree.synsets]
        with tarfile.open(fileobj=outer.extractfile(f"{tree.synsets[0]}.tar")) as inner:
            assert {name.partition("_")[0] for name in inner.getnames()} == {tree.synsets[0]}

"""Shards: how they are written, read, and ordered in training."""

import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import vggnet as vgg
from PIL import Image
from vggnet import ImageError, data, train
from vggnet.data import Shards, Subset, epoch_order, prepare
from vggnet.data import shards as shards_module
from vggnet.preprocess import rescale
from vggnet.rng import permutation

import ilsvrc_tree
from helpers import photos


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Parts of photos, 25 of two classes, with sides of 30 to 149."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(25):
        name = ("flower", "temple")[i % 2]
        height, width = rng.integers(30, 150, 2)
        pixels = photos()[1 - i % 2][10 * i :, 15 * i :][:height, :width]
        (root / name).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / name / f"{i:02d}.png")
    return data.ImageFolder(root)


def small(source, folder, **options):
    return prepare(source, folder, **{"short_side": 64, "per_shard": 10, "workers": 2} | options)


def tree_of(folder):
    """Names and contents of the files that matter."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".")
    }


@pytest.fixture(scope="module")
def written(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    assert small(source, folder) == []
    return folder


# ---- writing


def test_shards_are_webdatasets(source, written):
    """Read by tarfile alone: three files an image, named by its number, of images in random order."""
    files = {}
    for number, path in enumerate(sorted(written.glob("*.tar"))):
        assert path.name == f"shard-{number:06d}.tar"
        with tarfile.open(path) as archive:
            names = archive.getnames()
            assert names == sorted(names)
            assert len(names) == 3 * (10, 10, 5)[number]
            files |= {name: archive.extractfile(name).read() for name in names}
    assert (written / "classes.txt").read_text() == "flower\ntemple\n"
    origins = [json.loads(files[f"{i:09d}.json"])["name"] for i in range(25)]
    assert sorted(origins) == sorted(Path(source.name(i)).name for i in range(25))
    assert origins != sorted(origins)
    by_name = {Path(source.name(i)).name: i for i in range(25)}
    for i, name in enumerate(origins):
        k = by_name[name]
        assert int(files[f"{i:09d}.cls"]) == source.labels[k]
        assert json.loads(files[f"{i:09d}.json"])["class"] == source.classes[source.labels[k]]
        image = source.image(k)
        expected = io.BytesIO()
        fits = rescale(image, 64) if min(image.shape[:2]) > 64 else image
        Image.fromarray(fits).save(expected, "JPEG", quality=95)
        assert files[f"{i:09d}.jpg"] == expected.getvalue()


def test_threads_change_nothing(source, written, tmp_path):
    small(source, tmp_path, workers=1)
    assert tree_of(tmp_path) == tree_of(written)


def test_an_interrupted_call_goes_on(source, written, tmp_path):
    def stop(done, total):
        assert total == 25
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small(source, tmp_path, progress=stop)
    first = tmp_path / "shard-000000.tar"
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == [first.name]
    os.utime(first, ns=(1, 1))
    stale = tmp_path / ".shard-000001.tar.x.tmp"  # as a killed process leaves it
    stale.mkdir()
    (stale / "shard-000001.tar").write_bytes(b"half")
    steps = []
    small(source, tmp_path, progress=lambda *step: steps.append(step))
    assert steps == [(20, 25), (25, 25)]
    assert first.stat().st_mtime_ns == 1
    assert not stale.exists()
    assert tree_of(tmp_path) == tree_of(written)
    (tmp_path / "shard-000001.tar").unlink()
    small(source, tmp_path)
    assert tree_of(tmp_path) == tree_of(written)


def test_a_shard_is_whole_or_not_there(source, tmp_path, monkeypatch):
    real = shards_module._write

    def fail(path, **what):
        real(path, **what)
        with open(path, "r+b") as file:
            file.truncate(3000)
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(shards_module, "_write", fail)
    with pytest.raises(OSError, match="No space left"):
        small(source, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classes.txt", "prepare.json"]


def test_shards_of_other_settings_or_data_are_kept(source, written, tmp_path):
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    with pytest.raises(ValueError, match="whose short_side is 64, not 48"):
        small(source, tmp_path, short_side=48)
    with pytest.raises(ValueError, match="whose images is 25, not 24"):
        small(Subset(source, range(24)), tmp_path)
    with pytest.raises(ValueError, match="labels' checksum"):
        small(Subset(source, [24, *range(1, 25)]), tmp_path)
    assert tree_of(tmp_path) == tree_of(written)
    (tmp_path / "prepare.json").unlink()
    with pytest.raises(ValueError, match=r"holds \.tar files but no prepare\.json"):
        small(source, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_side": 0}, "short_side is 0"),
        ({"per_shard": 0}, "per_shard is 0"),
        ({"quality": 101}, "quality is 101"),
        ({"filter": "cubic"}, "filter is 'cubic'"),
    ],
)
def test_options_are_checked(source, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        small(source, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_broken_images_are_left_out_and_the_others_stay_as_they_were(source, tmp_path):
    class Damaged:
        classes, labels, name = source.classes, source.labels, source.name

        def __len__(self):
            return len(source)

        def image(self, i):
            if i == 3:
                raise ImageError("3 is broken")
            return source.image(i)

    with pytest.raises(ImageError, match="more than 1 %"):
        small(Damaged(), tmp_path / "a")
    often = [3] + [i % 25 for i in range(125) if i % 25 != 3]
    broken = small(Subset(Damaged(), often), tmp_path / "b")
    assert [(entry.index, entry.reason) for entry in broken] == [(0, "3 is broken")]
    assert small(Subset(source, often), tmp_path / "c") == []
    with_it, without = tree_of(tmp_path / "c"), tree_of(tmp_path / "b")
    (changed,) = [name for name in with_it if with_it[name] != without[name]]
    members = []
    for folder in ("b", "c"):
        with tarfile.open(tmp_path / folder / changed) as archive:
            members.append({name: archive.extractfile(name).read() for name in archive.getnames()})
    assert members[0].items() < members[1].items()
    assert len({name.partition(".")[0] for name in members[1].keys() - members[0].keys()}) == 1
    assert len(Shards(tmp_path / "b")) == 120


def test_gray_images_become_gray_jpegs(tmp_path):
    sample = Subset(data.sample(train=False), range(6))
    prepare(sample, tmp_path)
    found = Shards(tmp_path, channels="gray")
    assert found.classes == list(data.FASHION_MNIST_CLASSES)
    assert sorted(found.labels.tolist()) == sorted(sample.labels.tolist())
    assert found.image(0).shape == (28, 28, 1)
    assert Image.open(io.BytesIO(found.content(0))).mode == "L"


# ---- reading


def test_shards_are_a_data_set(source, written):
    found = Shards(str(written), strict=True)
    assert isinstance(found, data.Dataset)
    assert (len(found), found.classes, found.strict) == (25, source.classes, True)
    assert np.bincount(found.labels).tolist() == np.bincount(source.labels).tolist()
    assert found.name(12) == f"{written}/shard-000001.tar/000000012.jpg"
    with tarfile.open(written / "shard-000001.tar") as archive:
        assert found.content(12) == archive.extractfile("000000012.jpg").read()
        assert found.labels[12] == int(archive.extractfile("000000012.cls").read())
    assert min(found.image(12).shape[:2]) <= 64
    assert Shards(written, channels="gray").image(3).shape[2] == 1


def test_the_index_is_kept(written, tmp_path, monkeypatch):
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    first = Shards(tmp_path)
    assert (tmp_path / ".shards.npz").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "_index", lambda _: pytest.fail("looked through again"))
        again = Shards(tmp_path)
    assert again.labels.tolist() == first.labels.tolist()
    (tmp_path / "shard-000002.tar").unlink()
    assert len(Shards(tmp_path)) == 20


def test_archives_are_read_ahead_when_they_are_first_needed(written, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *what: asked.append(what[1:]), raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_WILLNEED", 3, raising=False)
    found = Shards(written)
    for i in (0, 3, 9, 12, 0, 13, 24):
        found.image(i)
    assert asked == [(0, 0, 3)] * 3


def test_shards_of_others(tmp_path):
    picture = io.BytesIO()
    Image.fromarray(photos()[0][:20, :30]).save(picture, "PNG")
    entries = [
        ("train/b.seg.png", b"no image of ours"),
        ("train/b.cls", b"2\n"),
        ("train/b.png", picture.getvalue()),
        ("train/a.PNG", picture.getvalue()),
        ("train/a.cls", b"0"),
        ("notes", b""),
    ]
    (tmp_path / "x-1.tar").write_bytes(ilsvrc_tree.tar(entries))
    found = Shards(tmp_path)
    assert found.labels.tolist() == [0, 2]
    assert found.classes == ["0", "1", "2"]
    assert found.image(1).shape == (20, 30, 3)
    assert found.name(1) == f"{tmp_path}/x-1.tar/train/b.png"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("a.jpg", b"x")], r"a\.jpg: no label beside it"),
        ([("a.jpg", b"x"), ("b.cls", b"1")], r"a\.jpg: no label beside it"),
        ([("a.jpg", b"x"), ("a.cls", b"cat")], r"a\.cls: holds b'cat'; expected the number"),
        ([("a.txt", b"x")], "no images in its .tar files"),
        ([("a.jpg", b"x"), ("a.cls", b"3")], r"class 3, but classes\.txt has 2 lines"),
        (None, "damaged or incomplete tar archive"),
    ],
)
def test_other_archives_are_refused(tmp_path, entries, message):
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    content = (
        ilsvrc_tree.tar([("a.jpg", b"x" * 3000)])[:2000] if entries is None else ilsvrc_tree.tar(entries)
    )
    (tmp_path / "s.tar").write_bytes(content)
    with pytest.raises(ImageError, match=message):
        Shards(tmp_path)


def test_no_shards(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no \.tar files in it"):
        Shards(tmp_path)
    with pytest.raises(data.DatasetNotFoundError, match="no such folder"):
        Shards(tmp_path / "none")
    with pytest.raises(ValueError, match='expected "RGB"'):
        Shards(tmp_path, channels="BGR")


# ---- the order of training


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """20 archives of 30 images."""
    folder = tmp_path_factory.mktemp("many")
    prepare(Subset(data.sample(train=False), range(600)), folder, per_shard=30)
    return Shards(folder, channels="gray")


def test_an_epoch_takes_some_archives_at_a_time_and_mixes_their_images(many):
    order = epoch_order(many, 5, 1)
    assert sorted(order.tolist()) == list(range(600))
    archives = order // 30
    windows = [set(archives[first : first + 240].tolist()) for first in (0, 240, 480)]
    assert [len(window) for window in windows] == [8, 8, 4]
    assert len(set.union(*windows)) == 20
    assert (np.diff(archives[:240]) == 0).mean() < 0.25  # an eighth, were they mixed well
    assert (np.sort(order[:240]) != order[:240]).any()
    for other in (epoch_order(many, 5, 2), epoch_order(many, 6, 1)):
        assert (other != order).mean() > 0.9
        assert set((other[:240] // 30).tolist()) != windows[0]
    assert (epoch_order(Shards(many.dir, channels="gray"), 5, 1) == order).all()


def test_a_part_of_shards_keeps_their_order(many):
    kept, held = data.split(many, 0.1, seed=3)
    whole = epoch_order(many, 5, 1)
    for part in (kept, held, Subset(kept, np.arange(50))):
        order = epoch_order(part, 5, 1)
        assert sorted(order.tolist()) == list(range(len(part)))
        chain = [part]
        while isinstance(chain[-1], Subset):
            chain.append(chain[-1].dataset)
        inner = order
        for subset in chain[:-1]:
            inner = subset.indices[inner]
        assert inner.tolist() == [i for i in whole.tolist() if i in set(inner.tolist())]


def test_other_data_sets_are_in_any_order():
    sample = data.sample(train=False)
    np.testing.assert_array_equal(epoch_order(sample, 5, 1), permutation(5, 1, 1000))
    np.testing.assert_array_equal(epoch_order(Subset(sample, [3, 4, 5]), 5, 1), permutation(5, 1, 3))


class Spy(data.ImageFolder):
    """Notes how its images are read."""

    def __init__(self, dir):
        super().__init__(dir)
        self.read = []

    def image(self, i):
        self.read.append((i, "whole"))
        return super().image(i)

    def rescaled_image(self, i, short_side, filter):
        self.read.append((i, short_side))
        return super().rescaled_image(i, short_side, filter)


def test_training_follows_the_order_and_only_training_decodes_less(tmp_path):
    for i in range(12):
        path = tmp_path / str(i % 2) / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(photos()[i % 2][i : i + 90, i : i + 150]).save(path, quality=95)

    class Ordered(Spy):
        def epoch_order(self, seed, epoch):
            return permutation(seed, epoch, 12)[::-1]

    recipe = train.Recipe(batch=4, epochs=2, scale=(32, 48), rgb_shift=None, lr=1e-3, seed=7)
    weights = []
    for threads in (1, 3):
        training, held = Ordered(tmp_path), Spy(tmp_path)
        model = vgg.VGG("A", num_classes=2, input_size=32, fc_width=8, init="xavier")
        train.fit(model, training, held, recipe, progress=False, threads=threads)
        weights.append(b"".join(p.numpy().tobytes() for p in model.parameters.values()))
        if threads == 1:
            expected = [*permutation(7, 0, 12)[::-1], *permutation(7, 1, 12)[::-1]]
            assert [i for i, _ in training.read] == expected
        assert {side for _, side in training.read} <= set(range(32, 49))
        assert {side for _, side in held.read} == {"whole"}
    assert weights[0] == weights[1]

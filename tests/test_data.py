"""Data sets in memory, in folders and in IDX files, the bundled sample, held-out parts, and reading ahead."""

import gc
import gzip
import importlib.util
import io
import logging
import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vggnet import ImageError, VggError, data
from vggnet.data import ArrayDataset, Dataset, FashionMNIST, ImageFolder, Loader, Subset, sample, split
from vggnet.data import fashion_mnist as fashion_mnist_module
from vggnet.rng import Purpose

from reference import philox

ROOT = Path(__file__).parent.parent


def numbered(n, classes=3):
    """n tiny images whose pixels, labels and names tell their number."""
    images = np.arange(n, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(3, 2)
    return ArrayDataset(images, np.arange(n) % classes, [f"class {c}" for c in range(classes)])


class Flaky:
    """A data set of which some images are broken and reading takes uneven time."""

    def __init__(self, n, broken=(), delay=0.0):
        self.inner = numbered(n)
        self.bad = frozenset(broken)
        self.delay = delay
        self.classes, self.labels = self.inner.classes, self.inner.labels
        self.reads = []

    def __len__(self):
        return len(self.inner)

    def image(self, i):
        time.sleep(self.delay * (i * 7 % 5))
        self.reads.append(i)
        if i in self.bad:
            raise ImageError(f"file{i}.jpg: truncated")
        return self.inner.image(i)

    def name(self, i):
        return f"file{i}.jpg"


def data_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("vggnet-data")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    if data_threads():
        gc.collect()
    assert data_threads() == []


# ---- arrays and subsets


def test_array_dataset(rng):
    images = rng.integers(0, 256, (4, 5, 6, 3), np.uint8)
    before = images.copy()
    d = ArrayDataset(images, [2, 0, 1, 2], ("a", "b", "c"), names=["w", "x", "y", "z"])
    assert len(d) == 4
    assert d.classes == ["a", "b", "c"]
    assert d.name(3) == "z"
    assert d.labels.dtype == np.int64
    assert d.labels.tolist() == [2, 0, 1, 2]
    np.testing.assert_array_equal(d.image(2), images[2])
    for view in (d.image(0), d.labels):
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0
    assert images.flags.writeable
    np.testing.assert_array_equal(images, before)
    assert ArrayDataset(images, [2, 0, 1, 2], list("abcde")).name(1) == "image 1"


def test_images_are_contiguous_also_of_other_layouts(rng):
    channels_first = rng.integers(0, 256, (2, 3, 5, 6), np.uint8)
    d = ArrayDataset(channels_first.transpose(0, 2, 3, 1), [0, 0], ["a"])
    assert d.image(1).flags.c_contiguous
    np.testing.assert_array_equal(d.image(1), channels_first[1].transpose(1, 2, 0))


def test_array_dataset_of_images_of_several_sizes():
    images = [np.full((3 + i, 4, 1), i, np.uint8) for i in range(3)]
    d = ArrayDataset(images, [0, 0, 1], ["a", "b"])
    assert [d.image(i).shape for i in range(3)] == [(3, 4, 1), (4, 4, 1), (5, 4, 1)]


def test_everything_is_a_dataset(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "a" / "x.png")
    for d in (numbered(3), Subset(numbered(3), [1]), sample(False), ImageFolder(tmp_path), Flaky(2)):
        assert isinstance(d, Dataset)


GOOD = np.zeros((2, 5, 6, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "classes", "message"),
    [
        (GOOD[:0], [], ["a"], "at least one image"),
        (GOOD / 255.0, [0, 0], ["a"], "multiply by 255"),
        (GOOD.transpose(0, 3, 1, 2), [0, 0], ["a"], r"transpose\(1, 2, 0\)"),
        (GOOD[..., 0], [0, 0], ["a"], r"images\[0\].*\[:, :, None\]"),
        ([GOOD[0], GOOD[1, :, :, :1]], [0, 0], ["a"], r"images\[1\]"),
        (GOOD, [0], ["a"], "1 labels for 2 images"),
        (GOOD, [0, 1], ["a"], r"0\.\.1; expected 0\.\.0"),
        (GOOD, [0, -1], ["a"], r"-1\.\."),
        (GOOD, [0.0, 0.0], ["a"], "integers"),
        (GOOD, [[0, 0]], ["a"], "integers of shape"),
        (GOOD, [0, 0], ["a", "a"], "'a' twice"),
        (GOOD, [0, 0], "a", "list of names"),
        (GOOD, [0, 0], [], "list of names"),
        (GOOD, [0, 0], [0], "list of names"),
    ],
)
def test_array_dataset_refuses(images, labels, classes, message):
    with pytest.raises(ValueError, match=message):
        ArrayDataset(images, labels, classes)


def test_array_dataset_refuses_other_numbers_of_names():
    with pytest.raises(ValueError, match="3 entries for 2 images"):
        ArrayDataset(GOOD, [0, 0], ["a"], names=["x", "y", "z"])


def test_subset():
    d = Subset(Subset(numbered(10), [8, 6, 4, 2]), np.array([3, 0, 0]))
    assert len(d) == 3
    assert [d.image(i)[0, 0, 0] for i in range(3)] == [2, 8, 8]
    assert d.labels.tolist() == [2, 2, 2]
    assert d.name(0) == "image 2"
    assert d.classes == numbered(1).classes
    assert not d.strict
    assert len(Subset(numbered(3), [])) == 0
    for bad in ([10], [-1], [0.5], [[1]]):
        with pytest.raises(ValueError, match="indices"):
            Subset(numbered(10), bad)


# ---- folders


def write(path, color=(0, 0, 0), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2), color).save(path, **options)


def test_image_folder(tmp_path):
    write(tmp_path / "dog" / "b.PNG", (1, 2, 3))
    write(tmp_path / "dog" / "a.jpeg", (200, 10, 10), quality=95)
    write(tmp_path / "Cat" / "img10.png")
    write(tmp_path / "Cat" / "img2.webp", (9, 9, 9), lossless=True)
    write(tmp_path / "Cat" / "deep" / "er" / "x.jpg")
    write(tmp_path / "Cat" / ".hidden" / "x.jpg")
    write(tmp_path / "Cat" / ".x.jpg")
    write(tmp_path / ".git" / "x.jpg")
    write(tmp_path / "loose.jpg")
    (tmp_path / "Cat" / "notes.txt").write_text("not an image")
    (tmp_path / "Cat" / "Thumbs.db").write_bytes(b"")
    d = ImageFolder(str(tmp_path))
    assert d.classes == ["Cat", "dog"]
    assert not d.strict
    names = [Path(d.name(i)).relative_to(tmp_path).as_posix() for i in range(len(d))]
    assert names == ["Cat/deep/er/x.jpg", "Cat/img10.png", "Cat/img2.webp", "dog/a.jpeg", "dog/b.PNG"]
    assert d.labels.tolist() == [0, 0, 0, 1, 1]
    assert d.labels.dtype == np.int64
    assert d.image(4).tolist() == [[[1, 2, 3]] * 3] * 2
    assert ImageFolder(tmp_path, channels="gray").image(2).tolist() == [[[9]] * 3] * 2


def test_image_folder_does_not_depend_on_the_order_of_the_file_system(tmp_path, monkeypatch):
    for name in ("b/2.png", "b/s/1.png", "a/3.png", "a/1.png", "b/r/1.png"):
        write(tmp_path / name)
    expected = [ImageFolder(tmp_path).name(i) for i in range(5)]
    assert expected == sorted(expected)
    real_walk, real_iterdir = os.walk, Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: reversed(list(real_iterdir(self))))

    def walk(*args, **kwargs):
        for parent, folders, files in real_walk(*args, **kwargs):
            folders.reverse()
            yield parent, folders, files[::-1]

    monkeypatch.setattr(os, "walk", walk)
    d = ImageFolder(tmp_path)
    assert [d.name(i) for i in range(5)] == expected
    assert d.classes == ["a", "b"]


def test_image_folder_follows_links_but_no_circle(tmp_path):
    write(tmp_path / "elsewhere" / "x.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere")
    d = ImageFolder(tmp_path / "set")
    assert d.classes == ["a"]
    assert len(d) == 1
    assert d.image(0).shape == (2, 3, 3)


def test_image_folder_errors_say_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder; expected a folder") as caught:
        ImageFolder(tmp_path / "none")
    assert isinstance(caught.value, VggError)
    (tmp_path / "file").touch()
    with pytest.raises(data.DatasetNotFoundError, match="not a folder"):
        ImageFolder(tmp_path / "file")
    with pytest.raises(ImageError, match="no folders in it;"):
        ImageFolder(tmp_path)
    write(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match=r"no folders in it, but images;.*cat"):
        ImageFolder(tmp_path)
    write(tmp_path / "cat" / "a.jpg")
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "a.bmp").touch()
    with pytest.raises(ImageError, match=r"dog: no images in this class; .*\.jpg"):
        ImageFolder(tmp_path)
    with pytest.raises(ValueError, match='expected "RGB"'):
        ImageFolder(tmp_path, channels="BGR")


def test_a_broken_file_stays_listed_and_is_named(tmp_path):
    write(tmp_path / "cat" / "good.jpg")
    (tmp_path / "cat" / "bad.jpg").write_bytes((tmp_path / "cat" / "good.jpg").read_bytes()[:200])
    d = ImageFolder(tmp_path)
    assert len(d) == 2
    with pytest.raises(ImageError, match=r"cat.bad\.jpg: "):
        d.image(0)


# ---- Fashion-MNIST


def idx(values):
    """The on-disk format: 0, 0, 8 (unsigned byte), number of dimensions; big-endian sizes; values."""
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def idx_dir(tmp_path, rng):
    """A folder of four files as Fashion-MNIST's, with 12 training and 7 test images."""
    for part, n in (("train", 12), ("t10k", 7)):
        images, labels = rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n, np.uint8)
        with gzip.open(tmp_path / f"{part}-images-idx3-ubyte.gz", "wb") as file:
            file.write(idx(images))
        with gzip.open(tmp_path / f"{part}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(idx(labels))
        np.savez(tmp_path / f"{part}.npz", images=images, labels=labels)
    return tmp_path


@pytest.mark.parametrize(("train", "part", "label"), [(True, "train", "train"), (False, "t10k", "test")])
def test_fashion_mnist(idx_dir, train, part, label):
    d = FashionMNIST(idx_dir, train=train)
    with np.load(idx_dir / f"{part}.npz") as expected:
        np.testing.assert_array_equal(
            np.stack([d.image(i) for i in range(len(d))])[..., 0], expected["images"]
        )
        np.testing.assert_array_equal(d.labels, expected["labels"])
    assert d.image(0).shape == (28, 28, 1)
    assert d.name(5) == f"Fashion-MNIST {label} 5"
    assert len(d.classes) == 10
    assert d.classes[0] == "T-shirt/top"
    assert d.classes[9] == "Ankle boot"


def test_missing_fashion_mnist_says_how_to_get_it(idx_dir, monkeypatch):
    (idx_dir / "t10k-labels-idx1-ubyte.gz").unlink()
    assert len(FashionMNIST(idx_dir)) == 12
    with pytest.raises(FileNotFoundError, match="apt install dataset-fashion-mnist") as caught:
        FashionMNIST(idx_dir, train=False)
    message = str(caught.value)
    assert isinstance(caught.value, VggError)
    assert f"{idx_dir} has no t10k-labels-idx1-ubyte.gz." in message
    for part in ("train", "t10k"):
        assert f"{part}-images-idx3-ubyte.gz" in message
        assert f"{part}-labels-idx1-ubyte.gz" in message
    monkeypatch.setattr(fashion_mnist_module, "FASHION_MNIST_DIR", str(idx_dir / "none"))
    with pytest.raises(
        data.DatasetNotFoundError, match=r"no train-images-idx3-ubyte\.gz and no train-labels"
    ):
        FashionMNIST()


IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
FEW = np.zeros((3, 28, 28), np.uint8)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (IMAGES, b"", "begins with nothing"),
        (IMAGES, gzip.compress(b""), "begins with nothing"),
        (IMAGES, b"<html>", "gzip"),
        (IMAGES, gzip.compress(idx(FEW))[:-30], "truncated gzip"),
        (IMAGES, gzip.compress(idx(FEW)[:11]), "within its header"),
        (IMAGES, gzip.compress(idx(FEW)[:-1]), "only 2351 follow"),
        (IMAGES, gzip.compress(idx(FEW) + b"x"), "more follow"),
        (IMAGES, gzip.compress(idx(FEW.astype(np.uint8)[0])), "begins with 00000802; expected 00000803"),
        (IMAGES, gzip.compress(b"\0\0\x0d\x03" + idx(FEW)[4:]), "begins with 00000d03"),
        (IMAGES, gzip.compress(idx(FEW[:, :27])), r"\(27, 28\) pixels"),
        (IMAGES, gzip.compress(idx(FEW)), "12 labels for the 3 images"),
        (LABELS, gzip.compress(idx(np.zeros(0, np.uint8))), "0 labels for the 12 images"),
        (LABELS, gzip.compress(idx(np.full(12, 10, np.uint8))), r"label 10; expected 0\.\.9"),
    ],
    ids=range(13),
)
def test_a_damaged_idx_file_is_named(idx_dir, name, content, message):
    (idx_dir / name).write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        FashionMNIST(idx_dir)
    assert str(caught.value).startswith(str(idx_dir / "train-"))


def test_flipped_bits_in_a_gzip_file_are_noticed(idx_dir):
    content = (idx_dir / IMAGES).read_bytes()
    for position in range(60, len(content), 997):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        (idx_dir / IMAGES).write_bytes(damaged)
        with pytest.raises(ImageError, match="train-images"):
            FashionMNIST(idx_dir)


# ---- the sample


def test_sample():
    train, test = sample(), sample(train=False)
    assert np.bincount(train.labels).tolist() == [400] * 10
    assert np.bincount(test.labels).tolist() == [100] * 10
    assert train.classes == test.classes == list(data.FASHION_MNIST_CLASSES)
    assert {train.image(i).shape for i in range(0, 4000, 99)} == {(28, 28, 1)}
    assert train.name(0).startswith("Fashion-MNIST train ")
    assert test.name(0).startswith("Fashion-MNIST test ")
    assert (
        len({train.image(i).tobytes() for i in range(4000)} & {test.image(i).tobytes() for i in range(1000)})
        == 0
    )
    train_again = sample()
    assert not np.shares_memory(train.image(0), train_again.image(0))


def test_sample_is_small_quick_and_licensed():
    folder = ROOT / "vggnet" / "sample"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2.5e6
    assert "Zalando SE" in (folder / "LICENSE-fashion-mnist").read_text()
    sample()
    seconds = []
    for _ in range(5):
        start = time.process_time()  # others may use the machine too
        sample()
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.1


def test_a_damaged_sample_is_noticed(tmp_path, monkeypatch):
    content = bytearray(fashion_mnist_module._SAMPLE.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "sample.npz").write_bytes(content)
    monkeypatch.setattr(fashion_mnist_module, "_SAMPLE", tmp_path / "sample.npz")
    with pytest.raises(ImageError, match="damaged"):
        sample()


@pytest.fixture
def make_sample():
    spec = importlib.util.spec_from_file_location("make_sample", ROOT / "tools" / "make_sample.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_selection_of_the_sample(make_sample):
    labels = np.arange(5000) * 7 % 10
    chosen = make_sample.select(labels, "test")
    assert np.bincount(labels[chosen]).tolist() == [100] * 10
    assert (np.diff(chosen) > 0).all()
    # Another 4,000 images later in the file leave the keys, so the order among the first, as they were.
    more = make_sample.select(np.arange(9000) * 7 % 10, "test")
    assert set(more[more < 5000]) <= set(chosen)
    assert set(make_sample.select(labels, "train")) != set(chosen)


@pytest.mark.skipif(
    not Path(data.FASHION_MNIST_DIR).is_dir(), reason="dataset-fashion-mnist is not installed"
)
def test_the_sample_is_of_the_original(make_sample):
    for train, part, count in ((True, "train", 60000), (False, "test", 10000)):
        original = FashionMNIST(train=train)
        assert len(original) == count
        chosen = make_sample.select(original.labels, part)
        d = sample(train)
        np.testing.assert_array_equal(d.labels, original.labels[chosen])
        for i, origin in enumerate(chosen):
            np.testing.assert_array_equal(d.image(i), original.image(int(origin)))
            assert d.name(i) == original.name(int(origin))


# ---- split


def test_split_is_balanced_and_disjoint():
    labels = np.repeat([0, 1, 2, 3], [40, 11, 1, 2])
    d = ArrayDataset(np.zeros((54, 2, 2, 1), np.uint8), labels, list("abcde"))
    train, held = split(d, 0.25, seed=3)
    assert np.bincount(held.labels, minlength=4).tolist() == [10, 3, 0, 1]  # floor(n / 4 + 0.5), never all
    assert sorted([*train.indices, *held.indices]) == list(range(54))
    assert (np.diff(train.indices) > 0).all()
    assert (np.diff(held.indices) > 0).all()
    assert np.bincount(split(d, 0.99, 0)[1].labels, minlength=4).tolist() == [39, 10, 0, 1]


def test_split_depends_on_the_seed_alone():
    d = numbered(60)
    one, again, other = (split(d, 0.2, seed)[1].indices.tolist() for seed in (1, 1, 2))
    assert one == again != other
    # Of each class those are held out whose Philox keys are smallest, on every machine.
    words = philox.bits(1, np.arange(60), Purpose.HOLDOUT, 2).astype(object)
    keys = words[:, 0] * 2**32 + words[:, 1]
    assert one == sorted(i for c in range(3) for i in sorted(range(c, 60, 3), key=keys.__getitem__)[:4])


def test_split_refuses():
    for fraction in (0, 1, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="0 < fraction < 1"):
            split(numbered(9), fraction, 0)
    with pytest.raises(ValueError, match="holds out none"):
        split(numbered(9), 0.1, 0)


# ---- reading ahead


def collect(batches):
    return [
        (indices.tolist(), [int(image[0, 0, 0]) for image in images], labels.tolist())
        for indices, images, labels in batches
    ]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 9, 100])
@pytest.mark.parametrize("lookahead", [None, 1, 3, 50])
def test_loader_keeps_the_order(workers, batch_size, lookahead):
    d = Flaky(41, delay=1e-4)
    loader = Loader(d, batch_size, workers=workers, lookahead=lookahead)
    order = np.random.default_rng(5).permutation(41)
    for given, expected in ((None, np.arange(41)), (order, order), (order[:7], order[:7]), ([], [])):
        got = collect(loader.batches(given))
        pieces = [list(expected[i : i + batch_size]) for i in range(0, len(expected), batch_size)]
        assert got == [(piece, piece, [i % 3 for i in piece]) for piece in pieces]
    assert len(loader) == -(-41 // batch_size) == len(list(loader))
    assert loader.broken == []


def test_loader_gives_int64():
    indices, images, labels = next(iter(Loader(numbered(5), 2)))
    assert indices.dtype == labels.dtype == np.int64
    assert images[0].dtype == np.uint8


def test_transform_runs_in_the_threads_with_the_index():
    seen = []

    def transform(image, index):
        seen.append((threading.current_thread().name, index))
        return image + np.uint8(index)

    loader = Loader(numbered(10), 4, transform=transform, workers=2)
    assert [v for _, values, _ in collect(loader) for v in values] == [2 * i for i in range(10)]
    assert sorted(index for _, index in seen) == list(range(10))
    assert all(name.startswith("vggnet-data") for name, _ in seen)
    assert collect(loader.batches([3], lambda image, index: image * 0)) == [([3], [0], [0])]


@pytest.mark.parametrize("lookahead", [1, 5, 16])
def test_lookahead_is_bounded(lookahead):
    d = Flaky(100)
    batches = Loader(d, 4, workers=3, lookahead=lookahead).batches()
    for k in range(1, 8):
        next(batches)
        time.sleep(0.01)
        assert len(d.reads) <= 4 * k + lookahead
    deadline = time.time() + 5
    while len(d.reads) < min(28 + lookahead - 3, 100) and time.time() < deadline:
        time.sleep(0.01)
    assert len(d.reads) >= 28 + lookahead - 3  # and it does read ahead, up to a piece
    batches.close()


def test_broken_images_are_skipped_logged_once_and_counted(caplog):
    d = Flaky(300, broken=[5, 6, 250])
    loader = Loader(d, 2, workers=2)
    with caplog.at_level(logging.WARNING, "vggnet"):
        for _ in range(2):
            got = collect(loader)
            assert [i for indices, *_ in got for i in indices] == [i for i in range(300) if i not in d.bad]
    assert got[2] == ([4], [4], [1])
    assert got[3][0] == [7]
    assert [entry.index for entry in loader.broken] == [5, 6, 250]
    assert loader.broken[0] == data.Broken(5, "file5.jpg", "file5.jpg: truncated")
    assert [record.getMessage() for record in caplog.records] == [
        f"skipped a broken image: file{i}.jpg: truncated" for i in (5, 6, 250)
    ]


def test_a_batch_without_any_image_is_left_out():
    got = collect(Loader(Flaky(400, broken=[2, 3]), 2).batches(range(8)))
    assert [indices for indices, *_ in got] == [[0, 1], [4, 5], [6, 7]]


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_parts_of_a_loader_make_up_its_batches(parts):
    """The sizes are numpy.array_split's; a part gives out every batch, also where it has nothing of it."""
    order = np.random.default_rng(parts).permutation(300)[:43]  # batches of 8, the last of 3
    whole = [order[start : start + 8] for start in range(0, 43, 8)]
    got = [list(Loader(Flaky(300), 8).batches(order, part=(r, parts))) for r in range(parts)]
    for r, batches in enumerate(got):
        assert len(batches) == len(whole)
        for batch, (indices, images, labels) in zip(whole, batches, strict=True):
            np.testing.assert_array_equal(indices, np.array_split(batch, parts)[r])
            assert indices.dtype == labels.dtype == np.int64 and len(images) == len(labels) == len(indices)


def test_a_part_without_a_readable_image_is_given_out_empty():
    loader = Loader(Flaky(400, broken=[2, 3]), 4)
    got = list(loader.batches(range(8), part=(1, 2)))
    assert [indices.tolist() for indices, _, _ in got] == [[], [6, 7]]
    with pytest.raises(ValueError, match=r"part is \(2, 2\); expected"):
        loader.batches(part=(2, 2))


def test_processes_count_broken_images_together(caplog):
    d = Flaky(200, broken=[1, 90, 150])
    loaders = [Loader(d, 100) for _ in range(2)]
    for r, loader in enumerate(loaders):
        list(loader.batches(part=(r, 2)))
    assert [[b.index for b in loader.broken] for loader in loaders] == [[1], [90, 150]]
    loaders[0].note_broken(loaders[1].broken[:1])
    loaders[0].note_broken(loaders[0].broken)  # known already
    with pytest.raises(ImageError, match="3 of the 200 images listed are broken"):
        loaders[0].note_broken(loaders[1].broken)
    assert len(caplog.records) == 3  # by the one that met it, alone


def test_more_than_one_percent_broken_stops():
    assert sum(len(values) for _, values, _ in collect(Loader(Flaky(200, [3, 100]), 16))) == 198
    d = Flaky(200, [3, 100, 150, 151])
    loader = Loader(d, 16)
    with pytest.raises(
        ImageError, match=r"3 of the 200 images listed are broken, more than 1 %: file3\.jpg: .*; file1"
    ):
        list(loader)
    assert len(loader.broken) == 3
    with pytest.raises(ImageError, match="1 of the 99 images listed"):
        list(Loader(Flaky(99, [98]), 16))
    assert len(list(Loader(Flaky(100, [98]), 16))) == 7


def test_strict_stops_at_the_first(tmp_path):
    d = Flaky(1000, [7])
    with pytest.raises(ImageError, match=r"^file7\.jpg: truncated$"):
        list(Loader(d, 4, strict=True))
    for i in range(101):
        write(tmp_path / "a" / f"{i:03}.png")
    (tmp_path / "a" / "050.png").write_bytes(b"")
    assert len(list(Loader(ImageFolder(tmp_path), 4))) == 26
    for strict_set in (
        ImageFolder(tmp_path, strict=True),
        Subset(ImageFolder(tmp_path, strict=True), range(101)),
    ):
        with pytest.raises(ImageError, match=r"050\.png: the file is empty"):
            list(Loader(strict_set, 4))


def test_an_image_error_of_the_transform_counts_as_broken():
    def transform(image, index):
        if index == 9:
            raise ImageError("too elongated")
        return image

    loader = Loader(numbered(200), 8, transform=transform)
    assert sum(len(images) for _, images, _ in loader) == 199
    assert loader.broken == [data.Broken(9, "image 9", "too elongated")]


def test_what_was_read_ahead_is_given_up():
    gate = threading.Event()

    def transform(image, index):
        assert index < 8 or gate.wait(30)
        return image

    d = Flaky(100)
    batches = Loader(d, 8, transform=transform, workers=1, lookahead=32).batches()
    next(batches)
    threading.Timer(0.5, gate.set).start()
    batches.close()  # while image 8 is being read
    assert d.reads == list(range(9))  # not even the rest of what the thread had taken


def test_other_exceptions_come_through_and_threads_end():
    def transform(image, index):
        if index == 9:
            raise KeyError("a bug")
        return image

    got = []
    with pytest.raises(KeyError, match="a bug"):
        got.extend(Loader(numbered(200), 4, transform=transform, workers=3))
    assert len(got) == 2
    assert data_threads() == []


def consumer(loader):
    for indices, _, _ in loader:
        1 / indices[0].item()


def test_threads_end_when_the_loop_is_left():
    d = Flaky(200, delay=1e-3)
    for _ in Loader(d, 4, workers=4):
        assert 1 <= len(data_threads()) <= 4
        break
    gc.collect()
    assert data_threads() == []
    assert len(d.reads) < 50
    with pytest.raises(ZeroDivisionError):
        consumer(Loader(d, 4, workers=4))
    batches = Loader(d, 4).batches()
    next(batches)
    batches.close()
    assert data_threads() == []


def test_a_loader_that_is_never_iterated_starts_no_thread():
    batches = Loader(numbered(10), 2).batches()
    assert data_threads() == []
    with pytest.raises(ValueError, match="indices"):
        Loader(numbered(10), 2).batches([10])  # at once, not at the first batch
    del batches


@pytest.mark.parametrize("argument", ["batch_size", "workers", "lookahead"])
def test_loader_refuses(argument):
    with pytest.raises(ValueError, match=f"{argument} is 0"):
        Loader(numbered(10), **({"batch_size": 2} | {argument: 0}))


def test_memory_does_not_pile_up():
    """Images that the consumer dropped are freed while it goes on."""
    alive = 0
    highest = 0
    lock = threading.Lock()

    class Tracked(np.ndarray):
        def __del__(self):
            nonlocal alive
            with lock:
                alive -= 1

    def transform(image, index):
        nonlocal alive, highest
        with lock:
            alive += 1
            highest = max(highest, alive)
        return image.copy().view(Tracked)

    for batch in Loader(numbered(200), 8, transform=transform, workers=2, lookahead=8):
        del batch
    assert highest <= 8 + 8 + 8


CTRL_C = """
import signal, sys, threading, time, _thread
import numpy as np
from vggnet.data import ArrayDataset, Loader
d = ArrayDataset(np.zeros((1000, 2, 2, 1), np.uint8), np.zeros(1000, int), ["a"])
def slow(image, index):
    time.sleep(0.01)
    return image
threading.Timer(0.3, _thread.interrupt_main).start()
try:
    for batch in Loader(d, 16, transform=slow, workers=2):
        pass
except KeyboardInterrupt:
    print("stopped", sum(t.name.startswith("vggnet-data") for t in threading.enumerate()))
"""


def test_ctrl_c_ends_the_threads():
    result = subprocess.run(
        [sys.executable, "-c", CTRL_C], capture_output=True, text=True, timeout=30, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "stopped 0\n"


def test_images_of_a_folder_are_decoded_and_rescaled_ahead(tmp_path, rng):
    from vggnet.preprocess import rescale

    for i in range(6):
        (tmp_path / f"class{i % 2}").mkdir(exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), np.uint8)).save(buffer, "PNG")
        (tmp_path / f"class{i % 2}" / f"{i}.png").write_bytes(buffer.getvalue())
    d = ImageFolder(tmp_path)
    for indices, images, labels in Loader(d, 4, transform=lambda image, index: rescale(image, 16)):
        for i, image, label in zip(indices, images, labels, strict=True):
            np.testing.assert_array_equal(image, rescale(d.image(int(i)), 16))
            assert d.labels[i] == label
            assert min(image.shape[:2]) == 16

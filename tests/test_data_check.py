"""`vggnet data`: what is found in folders of images, and the statistics of their pixels."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from vggnet import data
from vggnet.augment import PixelStatistics, pixel_statistics
from vggnet.data import Finding, check, checking
from vggnet.data.checking import KINDS

import ilsvrc_tree
from helpers import ENVIRONMENT, photos


def vggnet(*args):
    return subprocess.run(
        [sys.executable, "-m", "vggnet", *map(str, args)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
    )


@pytest.fixture
def folder(tmp_path):
    """Two classes of good photos."""
    for k, name in enumerate(("flower", "temple")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            pixels = photos()[1 - k][i : i + 80, i : i + 100]
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.jpg")
    return tmp_path / "photos"


def test_good_images_are_good(folder):
    steps = []
    assert check(data.ImageFolder(folder), progress=lambda *step: steps.append(step)) == []
    assert steps == [(6, 6)]
    done = vggnet("data", "check", "--data", folder)
    assert (done.returncode, done.stdout) == (0, "6 images: nothing wrong\n")


@pytest.fixture
def spoilt(folder):
    """One file of every kind of trouble."""
    flower, temple = folder / "flower", folder / "temple"
    picture = Image.fromarray(photos()[0][:70, :90])
    picture.convert("CMYK").save(temple / "printed.jpg")
    picture.save(temple / "named.jpg", "PNG")
    picture.crop((0, 0, 80, 63)).save(temple / "small.png")
    whole = (flower / "0.jpg").read_bytes()
    (flower / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (flower / "page.jpg").write_bytes(b"<html>no</html>")
    (flower / "twin.jpg").write_bytes(whole)  # within its class: no label can be wrong
    (temple / "stray.jpg").write_bytes(whole)
    return folder


def test_everything_wrong_is_found(spoilt):
    found = check(data.ImageFolder(spoilt), workers=3)
    flower, temple = (f"{spoilt}/{name}" for name in ("flower", "temple"))
    assert [(entry.kind, entry.name) for entry in found] == [
        ("broken", f"{flower}/half.jpg"),
        ("broken", f"{flower}/page.jpg"),
        ("suffix", f"{temple}/named.jpg"),
        ("cmyk", f"{temple}/printed.jpg"),
        ("tiny", f"{temple}/small.png"),
        ("duplicate", f"{temple}/stray.jpg"),
    ]
    assert found[1].what == "the file is an HTML page, not an image (a failed download?)"
    assert found[2].what == "in truth a PNG file"
    assert found[4] == Finding("tiny", f"{temple}/small.png", "80 x 63 pixels")
    assert found[5].what == f"the same file as {flower}/0.jpg, of class 'flower'"
    assert [entry.kind for entry in check(data.ImageFolder(spoilt), tiny=63)].count("tiny") == 0
    assert check(data.ImageFolder(spoilt), workers=1) == found


def test_check_on_the_command_line(spoilt):
    done = vggnet("data", "check", "--data", spoilt)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"broken: {spoilt}/flower/half.jpg: ")
    assert lines[-1] == "13 images: 2 broken, 1 cmyk, 1 suffix, 1 tiny, 1 duplicate"
    done = vggnet("data", "check", "--data", spoilt, "--json", "--ignore", "broken,tiny,duplicate")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["counts"] == {"cmyk": 1, "suffix": 1}
    assert [entry["kind"] for entry in report["findings"]] == ["suffix", "cmyk"]
    done = vggnet("data", "check", "--data", spoilt, "--ignore", ",".join(KINDS))
    assert (done.returncode, done.stdout) == (0, "13 images: nothing wrong\n")
    for args, message in (
        (("--ignore", "ugly"), "--ignore ugly: expected some of broken"),
        (("--data", "sample"), "--data sample: has no image files"),
    ):
        done = vggnet("data", "check", "--data", spoilt, *args)
        assert done.returncode == 2 and message in done.stderr


def test_equal_digests_of_unequal_files_are_no_duplicates(folder, monkeypatch):
    class Constant:
        def __init__(self, content, digest_size):
            pass

        def digest(self):
            return b"\x01" * 8

    monkeypatch.setattr(checking.hashlib, "blake2b", Constant)
    assert check(data.ImageFolder(folder)) == []


def test_ilsvrc_and_shards_are_checked_too(tmp_path):
    tree = ilsvrc_tree.make(tmp_path / "imagenet", classes=2, train=3, sizes=(64, 70))
    assert check(data.ILSVRC2012(tree.directory)) == []
    entries = [("a.jpg", tree.files["train"][0][1][:99]), ("a.cls", b"0")]
    (tmp_path / "s.tar").write_bytes(ilsvrc_tree.tar(entries))
    assert [(entry.kind, entry.name) for entry in check(data.Shards(tmp_path))] == [
        ("broken", f"{tmp_path}/s.tar/a.jpg")
    ]


# ---- statistics


def test_statistics_of_a_data_set_are_exact_for_any_number_of_threads(folder):
    images = data.ImageFolder(folder)
    expected = pixel_statistics(images.image(i) for i in range(len(images)))
    steps = []
    for workers in (1, 3):
        assert data.statistics(images, workers=workers, progress=lambda *s: steps.append(s)) == expected
    assert steps == [(6, 6)] * 2
    gray = data.statistics(data.ImageFolder(folder, channels="gray"))
    assert len(gray.mean) == len(gray.eigenvalues) == 1


def test_stats_on_the_command_line(folder, tmp_path):
    out = tmp_path / "stats.json"
    done = vggnet("data", "stats", "--data", folder, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    written = json.loads(out.read_text())
    assert json.loads(done.stdout) == written
    assert list(written) == ["mean", "covariance", "eigenvalues", "eigenvectors", "pixels", "images"]
    images = data.ImageFolder(folder)
    assert PixelStatistics.from_dict(written) == data.statistics(images)
    text = vggnet("data", "stats", "--data", folder).stdout
    assert text.splitlines()[0].split() == ["images", "6"]
    assert f"{written['mean'][0]:.4f}" in text


# ---- prepare, and what --data takes


def test_prepare_and_read_shards_on_the_command_line(folder, tmp_path):
    out = tmp_path / "shards" / "train"
    args = ("data", "prepare", "--data", folder, "--out", out, "--short-side", "32", "--per-shard", "4")
    done = vggnet(*args)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Wrote {out}: 2 shards, ")
    assert min(data.Shards(out).image(0).shape[:2]) == 32
    report = json.loads(vggnet(*args, "--json").stdout)
    assert (report["images"], report["shards"], report["broken"]) == (6, 2, [])
    for where in (out, out.parent):
        done = vggnet("data", "stats", "--data", where, "--json")
        assert json.loads(done.stdout)["images"] == 6
    done = vggnet(*args, "--quality", "99")
    assert done.returncode == 1 and "whose quality is 95, not 99" in done.stderr
    assert vggnet(*args, "--quality", "101").returncode == 2


@pytest.mark.parametrize("layout", ["archives", "folders", "flat"])
def test_the_folder_of_ilsvrc_is_recognised(tmp_path, layout):
    from vggnet.cli.common import has_val, open_data

    tree = ilsvrc_tree.make(tmp_path, classes=2, layout=layout)
    assert has_val(str(tmp_path)) and not has_val("sample")
    for part, name in (("train", "train"), ("val", "val"), ("test", "val")):
        found = open_data(str(tmp_path), part, channels=1)
        assert isinstance(found, data.ILSVRC2012)
        assert (found.part, found.channels, found.synsets) == (name, "gray", tree.synsets)


def test_content_of_a_file_that_has_gone(folder):
    images = data.ImageFolder(folder)
    (folder / "flower" / "0.jpg").unlink()
    assert [entry.what for entry in check(images)] == ["No such file or directory"]
    assert np.asarray(Image.open(io.BytesIO(images.content(1)))).shape == (80, 100, 3)

"""`benchmarks/`: options, reports from canned results, and that the systems which are here compute the same net."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import vggnet as vgg
from PIL import Image
from vggnet import data

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def peers():
    sys.path.append(str(ROOT))  # last: vggnet is the one under test
    yield importlib.import_module("benchmarks.bench_peers")
    sys.path.remove(str(ROOT))


RESULTS = {
    "machine": {"cpu": "a CPU", "isa": "avx2", "threads": 2, "peak": 2e11, "bandwidth": 4e10},
    "commit": "abc123",
    "environment": {"VGGNET_ISA": "avx2"},
    "rounds": 3,
    "systems": {
        "vggnet": {"name": "vggnet", "version": "1", "settings": "auto"},
        "torch": {"name": "PyTorch", "version": "2", "settings": "eager"},
        "ncnn": {"name": "ncnn", "version": "3", "settings": "float32"},
    },
    "cases": {
        "batch1": {
            "vggnet": {"ms": 50.0, "peak_bytes": 8e8, "loading_peak_bytes": 1e9},
            "torch": {"ms": 125.0, "peak_bytes": 9e8, "loading_peak_bytes": 2e9, "relative_l2": 1e-6},
            "ncnn": {"ms": 75.0, "peak_bytes": 1e9, "loading_peak_bytes": 3e9, "relative_l2": 2e-6},
        },
        "train32": {
            "vggnet": {"ms": 100.0, "peak_bytes": 3e9, "loading_peak_bytes": 1e9},
            "torch": {"ms": 500.0, "peak_bytes": 4e9, "loading_peak_bytes": 2e9, "relative_l2": 3e-3},
        },
    },
    "import_seconds": {"vggnet": 0.1, "torch": 2.0, "ncnn": 0.05},
    "installed_bytes": {
        name: {"alone": 1e6, "with_dependencies": 2e6} for name in ("vggnet", "torch", "ncnn")
    },
}


def test_the_table_tells_times_ratios_and_settings(peers):
    lines = peers.table(RESULTS).splitlines()
    assert lines[0].startswith("a CPU, avx2, 2 threads, VGGNET_ISA=avx2; multiply-add peak 200 GFLOP/s")
    assert "| inference, batch 1 | 50.0 | 125.0 (2.50x) | 75.0 (1.50x) |" in lines
    assert "| training step, batch 32 | 100.0 | 500.0 (5.00x) |  |" in lines
    assert "| peak memory, training step, batch 32, GB | 3.00 | 4.00 (1.33x) |  |" in lines
    assert "| import, ms | 100 | 2000 (20.00x) | 50 (0.50x) |" in lines
    assert "- ncnn 3: float32" in lines
    assert lines[-2:] == [
        "- class scores differ from vggnet's by at most 2.0e-06 (relative L2)",
        "- gradients of conv1_1 differ from vggnet's by at most 3.0e-03 (relative L2)",
    ]


def test_a_report_replaces_its_part_of_the_page(peers, tmp_path):
    prefix = tmp_path / "speed"
    page = prefix.with_suffix(".md")
    peers.write(RESULTS, prefix)
    first = page.read_text()
    page.write_text("Before.\n" + first + "After.\n")
    peers.write(RESULTS | {"rounds": 7}, prefix)
    text = page.read_text()
    assert text == "Before.\n" + first.replace("3 rounds", "7 rounds") + "After.\n"
    assert json.loads(prefix.with_suffix(".json").read_text())["rounds"] == 7
    with Image.open(prefix.with_suffix(".png")) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape[2] == 3 and pixels.shape[1] > 800
    blue = (np.abs(pixels.astype(int) - (0x25, 0x63, 0xEB)).sum(axis=2) < 20).any(axis=0)
    assert blue[116:180].all()  # our bar of the first panel, 50 of 125 of the longest


def test_options(peers):
    options = peers.parser().parse_args(["--cases", "batch64,import", "--systems", "vggnet,ncnn"])
    assert (options.cases, options.systems) == (["batch64", "import"], ["vggnet", "ncnn"])
    assert options.rounds == 3 and options.out is None
    for wrong in (["--cases", "batch"], ["--systems", "caffe"]):
        with pytest.raises(SystemExit) as exit:
            peers.parser().parse_args(wrong)
        assert exit.value.code == 2


def test_what_systems_can_do(peers):
    supports = peers.systems.supports
    assert all(supports("vggnet", case) for case in peers.CASES[:-2])
    assert supports("torch", "train16") and not supports("openvino", "train16")
    assert supports("ncnn", "batch1") and supports("ncnn", "dense384") and not supports("ncnn", "batch8")


def test_a_missing_peer_is_named(peers, tmp_path, capsys):
    if importlib.util.find_spec("ncnn"):
        pytest.skip("ncnn is installed")
    options = ["--systems", "ncnn", "--cases", "size", "--folder", str(tmp_path)]
    assert peers.main(options) == 1
    assert "No package metadata was found for ncnn" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_roofline_of_the_page_is_what_its_command_computes(peers, tmp_path):
    roofline = importlib.import_module("benchmarks.bench_roofline")
    page, copy = ROOT / "docs" / "cuda.md", tmp_path / "cuda.md"
    copy.write_bytes(page.read_bytes())
    assert roofline.main(["--update", str(copy)]) == 0
    assert copy.read_text() == page.read_text()


def part_that_works(device, seconds):
    yield f"on {device}"


def part_that_raises(device, seconds):
    yield "half of it"
    raise ValueError("the other half")


def part_that_crashes(device, seconds):
    yield "until now"
    os.kill(os.getpid(), signal.SIGKILL)


def part_that_hangs(device, seconds):
    yield "soon"
    time.sleep(100)


def test_a_part_of_the_gpu_check_that_fails_leaves_the_report_whole(peers, tmp_path):
    gpu_check, out = importlib.import_module("benchmarks.bench_gpu_check"), tmp_path / "report.md"
    parts = {f.__name__: f for f in (part_that_raises, part_that_crashes, part_that_works)}
    assert gpu_check.check(parts, "cuda:7", 60, out) == ["part_that_raises", "part_that_crashes"]
    _, raised, crashed, worked = out.read_text().split("\n## ")
    assert raised.startswith("part_that_raises: FAILED\n\nhalf of it\n\n```\nTraceback")
    assert "ValueError: the other half" in raised
    assert crashed.strip() == "part_that_crashes: FAILED with status -9\n\nuntil now"
    assert worked.strip() == "part_that_works\n\non cuda:7"
    assert gpu_check.run_part(part_that_hangs, "cuda", 1.0)[1] == "stopped after 1 s"
    assert gpu_check.check({"late": part_that_works}, "cuda", 0, out) == ["late"]
    assert out.read_text().strip().endswith("## late: no time was left")


def test_cost_of_protocols(peers, tmp_path, capsys):
    evaluation = importlib.import_module("benchmarks.bench_evaluation")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    options = ["--net", "A", "--size", "32", "--images", str(tmp_path / "photo.png"), "--rounds", "1"]
    chosen = ["--protocols", "center:32,multi-crop:36/40"]
    assert evaluation.main([*options, *chosen, "--json"]) == 0
    center, crops = json.loads(capsys.readouterr().out)["rows"]
    assert (center["kind"], center["scales"], center["passes"]) == ("center", [32], 1)
    assert (crops["kind"], crops["scales"], crops["passes"]) == ("multi-crop", [36, 40], 100)
    assert crops["gflop"] == pytest.approx(100 * center["gflop"])
    assert center["ms"] > 0
    assert evaluation.main([*options, *chosen]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[-1] == "100.0"
    with pytest.raises(SystemExit) as exit:
        evaluation.main([*options, "--protocols", "sparse:32"])
    assert exit.value.code == 2


@pytest.fixture(scope="module")
def folder(peers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("net")
    peers.write_net(folder, vgg.VGG("A", input_size=64, fc_width=24, init="he"))
    return folder


@pytest.mark.parametrize("kind", ["batch", "dense", "train"])
def test_torch_computes_the_same_net(peers, folder, kind):
    pytest.importorskip("torch")
    systems = peers.systems
    x = systems.images(2, 96 if kind == "dense" else 64)[: 1 if kind == "dense" else 2]
    answers = []
    for system in (systems.Vggnet, systems.Torch):
        loaded = system(folder, kind, x.shape, vgg.get_num_threads())
        call = loaded.step(x, systems.labels(2)) if kind == "train" else None
        answers.append(loaded.forward(x)() if call is None else call(False).copy())
    ours, theirs = answers
    assert ours.shape == {"batch": (2, 1000), "dense": (1, 2, 2, 1000), "train": (64, 3, 3, 3)}[kind]
    assert np.linalg.norm(ours - theirs) <= peers.AGREEMENT[kind] * np.linalg.norm(theirs)


# ---- transfer


@pytest.fixture(scope="module")
def transfer():
    sys.path.append(str(ROOT))
    yield importlib.import_module("benchmarks.bench_transfer")
    sys.path.remove(str(ROOT))


def test_transfer_compares_in_pairs(transfer):
    def run(seed, gain):
        recalls = {
            "pixels": {n: [70.0, 72.0] for n in transfer.LABELLED},
            "scales stacked": {n: [70.0 + gain, 71.0 + gain] for n in transfer.LABELLED},
        }
        return {
            "seed": seed,
            "learned": ["Bag", "Coat"],
            "new": ["Shirt"],
            "training_seconds": 1,
            "seconds": 2,
            "error_on_learned": 3.5,
            "recalls": recalls,
        }

    text = transfer.report([run(0, 2.0), run(1, 0.5)])
    assert "seed 1: learned Bag, Coat (error 3.5 %" in text
    assert text.count("71.0 +- 1.2") == len(transfer.LABELLED)  # pixels: 70, 72, 70, 72
    assert text.count("71.8 +- 1.0 (+0.8, 3/4)") == len(transfer.LABELLED)


def test_transfer_takes_the_first_images_of_some_classes(transfer):
    sample = data.sample()
    part = transfer.some_of(sample, [7, 2], 3)
    assert (
        part.classes == [sample.classes[7], sample.classes[2]] and part.labels.tolist() == [0] * 3 + [1] * 3
    )
    own = [int(name.split()[-1]) for name in (part.name(i) for i in range(6))]
    assert own == [
        int(sample.name(i).split()[-1]) for c in (7, 2) for i in np.flatnonzero(sample.labels == c)[:3]
    ]
    np.testing.assert_array_equal(part.image(3), sample.image(int(np.flatnonzero(sample.labels == 2)[0])))


def test_reading(peers, capsys):
    reading = importlib.import_module("benchmarks.bench_reading")
    assert reading.main(["--scale", "64", "--crop", "32", "--seconds", "0.01", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["source"] for row in rows] == list(reading.SOURCES)
    assert all(row["images_per_second"] == pytest.approx(1e3 / row["training_ms"]) for row in rows)
    assert reading.main(["--source", "shard of 256", "--scale", "300", "--seconds", "0.01"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == reading.HEADER


def test_localize(peers, tmp_path, capsys):
    localize = importlib.import_module("benchmarks.bench_localize")
    options = ["--out", str(tmp_path), "--images", "80", "--class-epochs", "1", "--box-epochs", "1"]
    assert localize.main([*options, "--heads", "SCR", "--json"]) == 0
    text = capsys.readouterr().out
    results = json.loads(text[text.index("{") :])["results"]
    assert 0 <= results["SCR"]["full"]["top-5 error"] <= results["SCR"]["full"]["top-1 error"] <= 100
    assert vgg.load(tmp_path / "SCR.safetensors").head == "SCR" and (tmp_path / "boxes.png").is_file()

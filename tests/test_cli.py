"""The command line, run as a process: exit status, output, messages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import vggnet as vgg
from PIL import Image
from vggnet.cli import common
from vggnet.cli import evaluate as evaluate_command
from vggnet.preprocess import FILTERS

from helpers import ENVIRONMENT

COMMANDS = (
    "quickstart",
    "train",
    "evaluate",
    "predict",
    "features",
    "bench",
    "info",
    "data prepare",
    "data check",
    "data stats",
)
NET = ("--config", "A", "--input-size", "32", "--fc-width", "16", "--init", "xavier", "--batch", "8")


def vggnet(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vggnet", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=ENVIRONMENT,
        timeout=300,
    )


def fine(*args: object, cwd: Path | None = None) -> str:
    """The standard output of a command that must succeed."""
    done = vggnet(*args, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training and test images of two classes: bright and dark; a broken file stays outside."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 6)):
        for name, level in (("bright", 200), ("dark", 50)):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(random.normal(level, 20, (40, 36 + i, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    (root / "broken.jpg").write_text("not a picture")
    return root


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "A.safetensors"
    vgg.VGG("A", num_classes=2, input_size=32, fc_width=16, init="he", classes=["bright", "dark"]).save(path)
    return path


# ---- usage


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_common_options(command):
    text = fine(*command.split(), "--help")
    for part in (f"vggnet {command}", "examples:", "--device", "--threads", "--seed", "--json"):
        assert part in text


def test_choices_are_those_of_the_package():
    assert evaluate_command.KINDS == vgg.evaluate.KINDS
    assert common.FILTERS == FILTERS


def test_version_tells_the_build():
    text = fine("--version")
    assert vgg.__version__ in text
    assert vgg.build_info()["isa"] in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "COMMAND"),
        (("conquer",), "invalid choice"),
        (("train",), "--data and --out are needed"),
        (("train", "--data", "sample", "--out", "x", "--batch", "0"), "--batch"),
        (("train", "--data", "sample", "--out", "x", "--scale", "5,3"), "--scale"),
        (("train", "--data", "sample", "--out", "x", "--val", "1.5"), "--val"),
        (("train", "--data", "sample", "--dry-run"), "--dry-run goes with --paper"),
        (("train", "--data", "sample", "--out", "x", "--stages", "256"), "--stages goes with --paper"),
        (
            ("train", "--data", "sample", "--out", "x", "--paper", "D", "--scale", "36"),
            "--scale goes without",
        ),
        (("train", "--data", "sample", "--out", "x", "--paper", "D", "--stages", "384"), "begins with"),
        (("train", "--data", "sample", "--out", "x", "--lr-multipliers", "fc8"), "LAYER=NUMBER"),
        (("evaluate", "x"), "--data"),
        (("evaluate", "x", "--data", "sample", "--protocol", "dense,sparse"), "'sparse'"),
        (("evaluate", "x", "--data", "sample", "--memory", "3X"), "--memory"),
        (("evaluate", "x", "--data", "sample", "--paper", "table4:D:jiter"), "near to it: table4:D:jitter"),
        (
            ("evaluate", "x", "--data", "sample", "--paper", "table3:A", "--scales", "300"),
            "leave out --scales",
        ),
        (("evaluate", "x", "--data", "sample", "--scaled"), "goes with --paper"),
        (("evaluate", "x", "--fuse", "a.npz"), "leave out MODEL"),
        (("predict", "x"), "IMAGE"),
        (("bench", "--batch", "0"), "--batch"),
        (("quickstart", "--images", "3"), "at least 100"),
    ],
)
def test_wrong_usage_is_2(args, message, tmp_path):
    done = vggnet(*args, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("evaluate", "absent.safetensors", "--data", "sample"), "absent.safetensors"),
        (("predict", "absent.safetensors", "a.jpg"), "absent.safetensors"),
        (("evaluate", "MODEL", "--data", "nowhere"), "nowhere"),
        (("evaluate", "MODEL", "--data", "FOLDER", "--part", "val"), "val"),
        (("evaluate", "MODEL", "--data", "FOLDER", "--scales", "16"), "input size, 32"),
        (("evaluate", "MODEL", "--data", "fashion-mnist:."), "train-images"),
        (
            ("evaluate", "MODEL", "--data", "FOLDER", "--paper", "table4:D:384"),
            "needs net D trained with S = 384",
        ),
        (("evaluate", "MODEL", "--data", "FOLDER", "--paper", "table3:A"), "--scaled"),
        (("evaluate", "--fuse", "absent.npz"), "absent.npz"),
        (("evaluate", "--fuse", "MODEL"), "or damaged"),
        (("info", "--device", "cuda:63"), "no CUDA device" if vgg.cuda.why_not() else "expected one of"),
        (("train", "--resume", "."), "train.json"),
        (("train", "--data", "FOLDER", "--out", "o", "--input-size", "33"), "multiple of 32"),
    ],
)
def test_failures_are_1_with_one_line(args, message, model_file, folder, tmp_path):
    words = {"MODEL": str(model_file), "FOLDER": str(folder)}
    done = vggnet(*(words.get(arg, arg) for arg in args), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith(f"vggnet {args[0]}: ")
    assert message in lines[-1]
    assert "Traceback" not in done.stderr


def test_a_closed_pipe_is_quiet():
    process = subprocess.Popen(
        [sys.executable, "-m", "vggnet", "info"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


# ---- info, evaluate, predict


def test_info():
    facts = json.loads(fine("info", "--json"))
    assert facts["version"] == vgg.__version__
    assert facts["isa"] in facts["isa_available"]
    assert "cuda" in fine("info")


def test_info_on_a_model(model_file):
    facts = json.loads(fine("info", model_file, "--json"))
    assert facts["config"] == "A"
    assert facts["classes"] == ["bright", "dark"]
    assert facts["layers"][0] == "conv1_1"


def test_evaluate_one_protocol_in_full(model_file, folder):
    text = fine("evaluate", model_file, "--data", folder, "--scales", "32,40")
    assert "A dense" in text
    assert "Q = 32, 40" in text
    assert "sum-pooled" in text
    assert "12" in text


def test_evaluate_several_as_json(model_file, folder, tmp_path):
    other, saved = tmp_path / "other.safetensors", tmp_path / "posteriors"
    other.write_bytes(model_file.read_bytes())
    out = fine(
        *("evaluate", model_file, other, "--data", folder, "--protocol", "center,dense"),
        *("--scales", "40", "--json", "--posteriors", saved),
    )
    reports = json.loads(out)["reports"]
    names = ["A center", "other center", "A + other center", "A dense", "other dense", "A + other dense"]
    assert [r["name"] for r in reports] == names
    assert reports[0]["top1"] == reports[1]["top1"] == reports[2]["top1"]
    assert {(r["count"], r["top5"]) for r in reports} == {(12, 0)}
    files = ["A+other-center", "A+other-dense", "A-center", "A-dense", "other-center", "other-dense"]
    assert sorted(path.name for path in saved.iterdir()) == [f"{name}.npz" for name in files]
    stored = vgg.evaluate.Report.load(saved / "A+other-dense.npz")
    assert stored.labels.tolist() == [0] * 6 + [1] * 6
    assert stored.to_dict() | {"name": "A + other dense"} == reports[5]
    each = [saved / "A-dense.npz", saved / "other-dense.npz"]
    fused = json.loads(fine("evaluate", "--fuse", *each, "--json"))["reports"]
    assert [r["name"] for r in fused] == ["A-dense", "other-dense", "A-dense + other-dense"]
    assert fused[2]["top1"] == reports[5]["top1"]


def test_evaluate_rows_of_the_paper(model_file, folder, tmp_path):
    rows = json.loads(fine("evaluate", "--paper", "list", "--json"))["rows"]
    assert rows == [row.to_dict() for row in vgg.evaluate.paper_rows()]
    text = fine("evaluate", "--paper", "list")
    assert [line.split()[0] for line in text.splitlines()[1:32]] == [row["name"] for row in rows]

    other = tmp_path / "B.safetensors"
    vgg.VGG("B", num_classes=2, input_size=32, fc_width=16, init="he", classes=["bright", "dark"]).save(other)
    options = ("--data", folder, "--scaled", "--paper")
    text = fine("evaluate", model_file, other, *options, "table3:A,table3:B,table4:B")
    for part in ("table3:A  37", "28.7 %", "table4:B  32, 37, 41", "in proportion", "Our inferences"):
        assert part in text
    done = vggnet("evaluate", model_file, other, *options, "table3:A")
    assert done.returncode == 1 and "B.safetensors, of net B, belongs to no row" in done.stderr

    fine("evaluate", model_file, *options, "table3:A", "--posteriors", tmp_path / "stored", "--filter", "box")
    text = fine("evaluate", "--fuse", tmp_path / "stored" / "table3-A.npz", "--paper", "table3:A", "--scaled")
    assert "29.6 %" in text and "box" in text


def test_predict(model_file, folder):
    image = folder / "test" / "dark" / "0.png"
    answer = json.loads(fine("predict", model_file, image, "--json", "--protocol", "center"))["images"][0]
    assert answer["image"] == str(image)
    assert {t["class"] for t in answer["top"]} == {"bright", "dark"}
    assert sum(t["probability"] for t in answer["top"]) == pytest.approx(1, abs=1e-6)
    expected = vgg.load(model_file).predict(image, protocol="center")[0]
    assert [t["class"] for t in answer["top"]] == [name for name, _ in expected]
    assert "%" in fine("predict", model_file, image, "--top", "1")


def test_predict_names_a_broken_image_and_goes_on(model_file, folder):
    done = vggnet("predict", model_file, folder / "broken.jpg", folder / "test" / "dark" / "0.png")
    assert done.returncode == 1
    assert "broken.jpg" in done.stderr
    assert "0.png" in done.stdout
    assert "Traceback" not in done.stderr


# ---- bench


def test_bench(tmp_path):
    options = ("--config", "A", "--input-size", "32", "--fc-width", "16", "--seconds", "0", "--threads", "1")
    result = json.loads(fine("bench", *options, "--json", "--batch", "2"))
    assert (result["config"], result["batch"], result["direction"]) == ("A", 2, "forward")
    assert result["machine"]["threads"] == 1
    assert [row["layer"] for row in result["rows"]][::10] == ["conv1_1", "fc8"]
    text = fine("bench", *options, "--direction", "training")
    for part in ("backward_weight", "of floor", "images/s", "times the least", "SGD"):
        assert part in text


# ---- train


def test_train_evaluate_and_resume_bit_for_bit(folder, tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    summary = json.loads(fine("train", "--data", folder, *NET, "--epochs", "2", "--out", straight, "--json"))
    assert summary["last"]["epoch"] == 2
    assert summary["stopped_by"] == "epochs"
    for name in ("model.safetensors", "history.csv", "history.jsonl", "curves.png", "train.json"):
        assert (straight / name).stat().st_size > 0
    fine("train", "--data", folder, *NET, "--epochs", "1", "--out", stopped)
    again = vggnet("train", "--data", folder, *NET, "--epochs", "1", "--out", stopped)
    assert again.returncode == 2
    assert "--resume" in again.stderr
    remembered = {"data": str(folder), "val": None, "checkpoint_every": None, "init_from": None}
    assert json.loads((stopped / "train.json").read_text()) == remembered
    fine("train", "--resume", stopped, "--epochs", "2")
    assert (stopped / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
    assert vgg.load(straight / "model.safetensors").classes == ["bright", "dark"]
    deeper = fine(
        *("train", "--data", folder, *NET, "--config", "B", "--epochs", "1", "--out", tmp_path / "B"),
        *("--init-from", straight / "model.safetensors", "--scale", "32,48", "--val", "0.2"),
    )
    assert "vggnet evaluate" in deeper
    for checkpoint in stopped.glob("checkpoint-*"):
        checkpoint.unlink()
    anew = vggnet("train", "--resume", stopped)
    assert anew.returncode == 1
    assert "no checkpoint yet: start the run again" in anew.stderr


def test_trained_weights_keep_their_mean(folder, tmp_path):
    pretrained = tmp_path / "pretrained.safetensors"
    vgg.VGG("A", num_classes=3, input_size=32, fc_width=16, init="xavier", mean=(7, 8, 9)).save(pretrained)
    start = ("train", "--data", folder, *NET, "--iterations", "1", "--init-from", pretrained)
    fine(*start, "--out", tmp_path / "kept")
    assert vgg.load(tmp_path / "kept" / "model.safetensors").preprocessing.mean == (7, 8, 9)
    fine(*start, "--mean", "1,2,3", "--out", tmp_path / "told")
    assert vgg.load(tmp_path / "told" / "model.safetensors").preprocessing.mean == (1, 2, 3)
    other = vggnet(*start, "--in-channels", "1", "--out", tmp_path / "gray")
    assert other.returncode == 2 and "takes images of 3 channels" in other.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_saves_and_says_how_to_go_on(folder, tmp_path, number, status):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "vggnet",
            "train",
            "--data",
            str(folder),
            *NET,
            "--epochs",
            "1000",
            "--out",
            str(out),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith("epoch 2"):
            process.send_signal(number)
            break
    _stdout, rest = process.communicate(timeout=120)
    assert process.returncode == status, "".join(seen) + rest
    assert "; saved " in rest
    assert f"vggnet train --resume {out}" in rest
    assert "Traceback" not in rest
    fine("train", "--resume", out, "--epochs", "4")


def test_train_in_stages(folder, tmp_path):
    """A chain in miniature: its plan, its run, and one that goes on; statistics from a file."""
    stats = tmp_path / "stats.json"
    fine("data", "stats", "--data", folder, "--out", stats)
    options = (*NET[2:6], "--batch", "8", "--epochs", "1", "--scales", "34,36,40", "--stats", stats)
    command = ("train", "--data", folder, "--paper", "B", "--images-per-second", "50", *options)
    plan = fine(*command, "--dry-run")
    assert [line.split()[:2] for line in plan.splitlines()[1:3]] == [["A", "A"], ["256", "B"]]
    costs = json.loads(fine(*command, "--dry-run", "--json", "--init", "xavier"))
    assert [(c["stage"]["name"], c["images"], c["iterations"]) for c in costs] == [("256", 36, 5)]
    out = tmp_path / "B"
    done = vggnet(*command, "--out", out)
    assert done.returncode == 0, done.stderr
    assert plan.splitlines()[1] in done.stderr
    assert "256/model.safetensors" in done.stdout
    model = vgg.load(out / "256" / "model.safetensors")
    assert list(model.preprocessing.mean) == json.loads(stats.read_text())["mean"]
    assert model.preprocessing.to_dict()["covariance"] == json.loads(stats.read_text())["covariance"]
    again = vggnet(*command, "--out", out)
    assert again.returncode == 2 and "--resume" in again.stderr
    trained = (out / "256" / "model.safetensors").read_bytes()
    (out / "256" / "model.safetensors").unlink()
    summary = json.loads(fine("train", "--resume", out, "--json"))
    assert [stage["name"] for stage in summary["stages"]] == ["A", "256"]
    assert (out / "256" / "model.safetensors").read_bytes() == trained
    other = vggnet("train", "--resume", out, "--epochs", "2")
    assert other.returncode == 2 and "resumed unchanged" in other.stderr


# ---- quickstart


def test_quickstart_small(tmp_path):
    result = json.loads(
        fine("quickstart", "--epochs", "1", "--images", "100", "--out", "q", "--json", cwd=tmp_path)
    )
    assert [r["protocols"][0]["kind"] for r in result["reports"]] == [
        "center",
        "dense",
        "multi-crop",
        "combined",
    ]
    assert all(r["count"] == 20 for r in result["reports"])
    out = tmp_path / "q"
    for name in ("curves.png", "predictions.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 600
    images = sorted((out / "images").iterdir())
    assert len(images) == 10
    text = fine("predict", out / "model.safetensors", *images[:2])
    assert images[0].name in text
    text = fine(
        "quickstart", "--epochs", "1", "--images", "100", "--out", "q", cwd=tmp_path
    )  # again: replaced
    assert "multi-crop" in text
    assert "Next:" in text

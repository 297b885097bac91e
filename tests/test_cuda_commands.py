"""Every command with ``--device cuda``: the same answers as on the CPU, with nets of a few channels.

One process for all, since an emulator takes its time; `narrow` cannot reach others."""

import json

import numpy as np
import pytest
import vggnet as vgg
from PIL import Image
from safetensors.numpy import load_file
from vggnet import _C, cli

pytestmark = [
    pytest.mark.skipif(not vgg.cuda.is_available(), reason=f"{vgg.cuda.why_not()}"),
    pytest.mark.usefixtures("narrow"),
]
DEVICES = ("cpu", "cuda:0")


def command(capsys, *arguments):
    """What the command prints as JSON."""
    assert cli.main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of small images, in train/ and val/."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for label, name in enumerate(("dark", "light")):
            (root / part / name).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(100 * label, 100 * label + 150, (36, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "A.safetensors"
    vgg.VGG("A", num_classes=2, input_size=32, fc_width=8, init="he", classes=["dark", "light"]).save(path)
    return path


def test_train(capsys, tmp_path, folder):
    """Two updates in parts of a batch, a checkpoint, and the rest after it: the same curves."""
    rows = {}
    for device in DEVICES:
        out = tmp_path / device.replace(":", "")
        options = ["--data", folder, "--config", "A", "--input-size", 32, "--fc-width", 8, "--init", "he"]
        options += [
            "--batch",
            4,
            "--micro-batch",
            2,
            "--scale",
            "34",
            "--lr",
            "0.001",
            "--mean",
            "120,120,120",
        ]
        command(capsys, "train", *options, "--iterations", 1, "--out", out, "--device", device)
        rows[device] = command(capsys, "train", "--resume", out, "--iterations", 2, "--device", device)
        rows[device] = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
        rows[device].append({k: v.numpy() for k, v in vgg.load(out / "model.safetensors").parameters.items()})
    (*cpu, cpu_weights), (*cuda, cuda_weights) = rows.values()
    assert [row["iteration"] for row in cuda] == [row["iteration"] for row in cpu]
    np.testing.assert_allclose(
        [row["train_loss"] for row in cuda], [row["train_loss"] for row in cpu], rtol=1e-4
    )
    for name, weights in cpu_weights.items():
        np.testing.assert_allclose(
            cuda_weights[name], weights, rtol=0, atol=1e-4 * (1e-3 + abs(weights).max())
        )


def test_train_with_cuda_graphs(capsys, tmp_path, folder):
    """The same bits as without."""
    options = [
        "--data",
        folder,
        "--config",
        "A",
        "--input-size",
        32,
        "--fc-width",
        8,
        "--init",
        "he",
        "--batch",
        2,
    ]
    options += ["--scale", "34", "--lr", "0.001", "--mean", "120,120,120", "--iterations", 2]
    trained = []
    for out, more in ((tmp_path / "plain", []), (tmp_path / "captured", ["--cuda-graph"])):
        command(capsys, "train", *options, *more, "--out", out, "--device", "cuda")
        trained.append({k: v.numpy() for k, v in vgg.load(out / "model.safetensors").parameters.items()})
    for name, weights in trained[0].items():
        np.testing.assert_array_equal(trained[1][name], weights)
    arguments = ["train", *options, "--cuda-graph", "--out", tmp_path / "cpu"]
    assert cli.main([*map(str, arguments)]) == 1
    assert "cuda_graph=True needs a CUDA device; the model is on cpu" in capsys.readouterr().err


@pytest.mark.parametrize("protocol", ["center", "ten-crop", "dense", "multi-crop", "combined"])
def test_evaluate(capsys, tmp_path, folder, model, protocol):
    options = ["--data", folder, "--protocol", protocol, "--scales", "36", "--grid", 2]
    posteriors, used = [], _C.memory_stats("cuda")["allocations"]
    for device in DEVICES:
        out = tmp_path / device[:4]
        said = command(capsys, "evaluate", model, *options, "--posteriors", out, "--device", device)
        assert said["reports"][0]["count"] == 6
        assert _C.memory_stats("cuda")["allocations"] > used or device == "cpu"
        posteriors.append(np.load(next(out.glob("*.npz")))["posteriors"])
    np.testing.assert_allclose(posteriors[1], posteriors[0], rtol=1e-4)


def test_predict(capsys, folder, model):
    files = sorted((folder / "val" / "light").iterdir())[:2]
    options = ["--protocol", "center", "--precision", "tf32"]
    said = [command(capsys, "predict", model, *files, *options, "--device", device) for device in DEVICES]
    cpu, cuda = ([image["top"] for image in answer["images"]] for answer in said)
    for expected, got in zip(cpu, cuda, strict=True):
        assert [row["class"] for row in got] == [row["class"] for row in expected]
        np.testing.assert_allclose(
            [row["probability"] for row in got], [row["probability"] for row in expected], rtol=1e-4
        )


def test_features(capsys, tmp_path, folder, model):
    arrays = []
    for device in DEVICES:
        out = tmp_path / f"{device[:4]}.safetensors"
        options = ["--model", model, "--out", out, "--scales", "34,36", "--device", device]
        assert command(capsys, "features", folder, *options)["images"] == 6
        arrays.append(load_file(out))
    for name, array in arrays[0].items():
        np.testing.assert_allclose(arrays[1][name], array, rtol=1e-4, atol=1e-5)


def test_quickstart(capsys, tmp_path):
    said = command(
        capsys,
        "quickstart",
        "--out",
        tmp_path,
        "--images",
        100,
        "--epochs",
        1,
        "--device",
        "cuda",
        "--seed",
        1,
    )
    assert len(said["reports"]) > 1
    assert vgg.load(tmp_path / "model.safetensors").config == "A"


def test_info(capsys, model):
    assert command(capsys, "info", "--device", "cuda")["cuda"] == {"built": True, "why_not": None}
    assert command(capsys, "info", model, "--device", "cuda")["config"] == "A"


def test_bench_refuses_an_emulator(capsys):
    if vgg.cuda.properties()["clock"]:
        result = command(
            capsys, "bench", "--config", "A", "--input-size", 32, "--fc-width", 8, "--device", "cuda"
        )
        assert result["total"]["ms"] > 0
        return
    assert cli.main(["bench", "--device", "cuda", "--input-size", "32", "--fc-width", "8"]) == 1
    assert "whose times mean nothing" in capsys.readouterr().err


def test_bf16(capsys, tmp_path, folder):
    """A net trained with bf16 says so in its file, which every command keeps to; the CPU reads it with --precision float32."""
    run, val = tmp_path / "run", folder / "val"
    small = ["--config", "A", "--input-size", "32", "--fc-width", "8", "--precision", "bf16"]
    options = [*small, "--init", "he", "--batch", 4, "--scale", "34", "--lr", "0.001", "--device", "cuda"]
    options += ["--mean", "120,120,120"]
    command(capsys, "train", "--data", folder, *options, "--iterations", 1, "--out", run)
    command(capsys, "train", "--resume", run, "--iterations", 3, "--device", "cuda")
    losses = [json.loads(line)["train_loss"] for line in (run / "history.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all()
    path = run / "model.safetensors"
    assert vgg.load(path, device="cuda").precision == "bf16"
    assert command(capsys, "info", path)["precision"] == "bf16"

    test = ["evaluate", path, "--data", folder, "--protocol", "dense", "--scales", "36"]
    posteriors = []
    for name, device in (("gpu", ["cuda"]), ("cpu", ["cpu", "--precision", "float32"])):
        command(capsys, *test, "--posteriors", tmp_path / name, "--device", *device)
        posteriors.append(np.load(next((tmp_path / name).glob("*.npz")))["posteriors"])
    assert not np.array_equal(*posteriors)
    np.testing.assert_allclose(*posteriors, atol=0.02)
    image = next((val / "light").iterdir())
    said = command(capsys, "predict", path, image, "--protocol", "center", "--device", "cuda")
    assert sum(row["probability"] for row in said["images"][0]["top"]) == pytest.approx(1, abs=1e-5)
    out = tmp_path / "features.safetensors"
    command(capsys, "features", val, "--model", path, "--out", out, "--scales", "34", "--device", "cuda")
    assert all(array.dtype == np.float32 for name, array in load_file(out).items() if name == "features")

    for arguments in (test, ["predict", path, image], ["features", val, "--model", path, "--out", out]):
        assert cli.main([*map(str, arguments), "--device", "cpu"]) == 1
        words = capsys.readouterr().err
        assert "model.safetensors: precision is 'bf16', which device 'cpu' does not compute in" in words
        assert "--precision float32" in words
    plain = tmp_path / "plain.safetensors"
    command(capsys, "convert", path, plain, "--precision", "float32", "--verify")
    assert command(capsys, "info", plain)["precision"] == "float32"
    options = ["--data", folder, *small[:-2], "--iterations", 1, "--batch", 2, "--out", tmp_path / "tuned"]
    command(capsys, "train", *options, "--scale", 34, "--init-from", path)
    for arguments in (
        ["bench", *small],
        ["train", "--data", str(folder), *small, "--out", str(tmp_path / "none")],
    ):
        assert cli.main(arguments) == 1
        assert "VGG: precision is 'bf16'" in capsys.readouterr().err

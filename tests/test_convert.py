"""What all formats share: which file is whose, starting from another number of classes, and files that are none."""

import itertools
import json
import logging

import numpy as np
import pytest
import vggnet as vgg
from vggnet import convert
from vggnet.cli import main
from vggnet.cli.convert import FORMATS

from foreign import same_parameters


def model_a(**options):
    return vgg.VGG("A", num_classes=4, input_size=64, fc_width=6, init="he", classes=list("abcd"), **options)


@pytest.mark.parametrize("name", ["x.safetensors", "x.caffemodel"])
def test_other_classes_draw_fc8_anew_and_keep_the_rest(narrow, tmp_path, caplog, name):
    model, path = model_a(seed=3), tmp_path / name
    convert.write(model, path)
    assert not caplog.records
    with caplog.at_level(logging.INFO, "vggnet"):
        tuned = vgg.load(path, num_classes=7)
    assert "has 4 classes: fc8 is drawn anew for 7, all other weights are kept" in caplog.text
    assert (tuned.num_classes, tuned.classes) == (7, None)
    drawn = vgg.VGG("A", num_classes=7, input_size=64, fc_width=6, seed=tuned.seed)
    for parameter, tensor in tuned.parameters.items():
        source = drawn if parameter.startswith("fc8") else model
        np.testing.assert_array_equal(tensor.numpy(), source.parameters[parameter].numpy(), parameter)
    same_parameters(vgg.load(path, num_classes=4), model)
    with pytest.raises(ValueError, match="num_classes is 7, the file has 4: .* weight_dtype='float32'"):
        vgg.load(path, num_classes=7, weight_dtype="bfloat16")
    with pytest.raises(ValueError, match="num_classes is 0"):
        vgg.load(path, num_classes=0)
    assert vgg.load(path, weight_dtype="bfloat16").weight_dtype == "bfloat16"


def test_config_names_the_net_of_our_own_files_too(narrow, tmp_path):
    path = tmp_path / "x.safetensors"
    model_a().save(path)
    assert vgg.load(path, config="A").config == "A"
    with pytest.raises(vgg.WeightsError, match="holds net A; expected D"):
        vgg.load(path, config="D")


@pytest.mark.parametrize("suffix", [suffix for f in convert.FORMATS.values() for suffix in f.suffixes])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "HTML"),
        (b"", "empty|cut short"),
        (b"{}" * 100, "damaged|cut short|no file of"),
    ],
)
def test_what_is_no_file_of_weights_is_named(tmp_path, suffix, content, message):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(vgg.WeightsError, match=message) as caught:
        vgg.load(path)
    assert str(path) in str(caught.value)


def test_what_cannot_be_done_is_said(narrow, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file: .*missing"):
        vgg.load(tmp_path / "missing.caffemodel")
    with pytest.raises(ValueError, match="format is 'darknet'; expected one of 'vggnet'"):
        convert.write(model_a(), tmp_path / "x", format="darknet")
    path = tmp_path / "x.safetensors"
    model_a().save(path)
    with pytest.raises(ValueError, match="rounded for inference"):
        convert.write(vgg.load(path, weight_dtype="bfloat16"), tmp_path / "x.caffemodel")


# ---- verify, and the command


@pytest.mark.parametrize("format", [name for name, f in convert.FORMATS.items() if f.write])
def test_verify_compares_weights_and_scores(narrow, tmp_path, format):
    model = model_a(mean=(120.5, 110.0, 100.25))
    path = tmp_path / f"x{'.safetensors' if format == 'torchvision' else convert.FORMATS[format].suffixes[0]}"
    convert.write(model, path, format=format)
    result = convert.verify(model, path, format=format)
    assert result["parameters"] == model.num_parameters and result["largest"] > 0
    assert (result["runtime"], result["scores"] > 0) == (
        ("onnxruntime", True) if format == "onnx" else ("vggnet", False)
    )

    def refused(other, message):
        with pytest.raises(vgg.WeightsError, match=message):
            convert.verify(other, path, format=format)

    changed = model_a(mean=(120.5, 110.0, 100.25))
    changed.load_parameters({n: p.numpy() + (n == "fc7.bias") for n, p in changed.parameters.items()})
    refused(changed, "fc7.bias is not what the model has")
    refused(model_a(mean=(120.5, 110.0, 110.25)), "class scores of a random image")
    refused(model_a(mean=(120.5, 110.0, 100.25), pool_rounding="ceil"), "pool_rounding is 'floor'")
    deeper = vgg.VGG("B", num_classes=4, input_size=64, fc_width=6)
    refused(deeper, "fit net B|holds net A")


def command(capsys, *arguments):
    status = main(["convert", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_the_command_converts_and_verifies(narrow, tmp_path, capsys):
    model = model_a()
    model.save(tmp_path / "a.safetensors")
    chain = ["a.safetensors", "b.caffemodel", "c.onnx", "d.safetensors"]
    for source, target in itertools.pairwise(chain):
        status, out, err = command(capsys, tmp_path / source, tmp_path / target, "--verify")
        assert (status, err) == (0, "")
        assert "net A" in out and "all weights are equal bit for bit" in out and "mean 123.68" in out
    same_parameters(vgg.load(tmp_path / "d.safetensors"), model)
    assert (tmp_path / "b.prototxt").exists()

    status, out, _ = command(
        capsys, tmp_path / "a.safetensors", tmp_path / "tv.safetensors", "--to", "torchvision", "--json"
    )
    facts = json.loads(out)
    assert (status, facts["format"], facts["config"], facts["verified"]) == (0, "torchvision", "A", None)
    renamed = (tmp_path / "b.caffemodel").rename(tmp_path / "weights.bin")
    options = ["--from", "caffe", "--num-classes", "3", "--config", "A-LRN"]
    status, out, err = command(capsys, renamed, tmp_path / "e.safetensors", *options)
    assert status == 0 and "net A-LRN" in out and "3 classes" in out and "fc8 is drawn anew for 3" in err
    assert vgg.load(tmp_path / "e.safetensors").num_classes == 3


def test_the_command_says_what_it_cannot(narrow, tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    model_a().save(path)
    for arguments, expected, message in (
        ((path, path), 2, "IN and OUT are one file"),
        ((path, tmp_path / "x.pth"), 1, "written as safetensors"),
        ((path, tmp_path / "x.mat"), 1, "matconvnet files are only read"),
        ((path, tmp_path / "x.onnx", "--config", "D"), 1, "holds net A; expected D"),
        ((path, tmp_path / "none" / "x.onnx"), 1, "no such directory"),
    ):
        status, out, err = command(capsys, *arguments)
        assert (status, out) == (expected, "")
        assert message in err


def test_the_command_knows_every_format():
    assert tuple(convert.FORMATS) == FORMATS

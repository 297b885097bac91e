"""What all formats share: which file is whose, starting from another number of classes, and files that are none."""

import logging

import numpy as np
import pytest
import vggnet as vgg
from vggnet import convert

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

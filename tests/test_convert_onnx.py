"""ONNX files: onnxruntime computes what we do, and onnx, where it is installed, finds them valid."""

import json

import numpy as np
import pytest
import vggnet as vgg
from vggnet import convert
from vggnet.convert import onnx as ours

from foreign import check_scores, random_images, same_parameters

onnxruntime = pytest.importorskip("onnxruntime", reason="a foreign reader of what is written")

CONFIGS = ("A", "A-LRN", "B", "C", "D", "E")
MEAN = (120.5, 110.0, 100.25)


def written(path, config="D", **options):
    options = {"mean": MEAN, "num_classes": 4, "input_size": 64, "fc_width": 6, "init": "he"} | options
    model = vgg.VGG(config, **options)
    convert.write(model, path)
    return model


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
@pytest.mark.parametrize("config", CONFIGS)
def test_onnxruntime_computes_the_same(narrow, tmp_path, config, rounding):
    path = tmp_path / "x.onnx"
    model = written(path, config, pool_rounding=rounding, classes=list("abcd"))
    session = onnxruntime.InferenceSession(path)
    (image,) = session.get_inputs()
    assert (image.name, image.shape, image.type) == ("image", ["N", 3, 64, 64], "tensor(float)")
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("fc8", ["N", 4]), ("prob", ["N", 4])]
    images = random_images(np.random.default_rng(0), n=3)
    feed = images.astype(np.float32).transpose(0, 3, 1, 2)
    scores, posteriors = session.run(None, {"image": feed})
    check_scores(model, images, scores)
    exponentials = np.exp(scores - scores.max(1, keepdims=True))
    np.testing.assert_allclose(
        posteriors, exponentials / exponentials.sum(1, keepdims=True), rtol=1e-4, atol=1e-30
    )
    meta = session.get_modelmeta()
    assert (meta.producer_name, meta.graph_name) == ("vggnet", f"VGG-{config}")
    assert "RGB pixels on the 0..255 scale" in meta.description
    assert json.loads(meta.custom_metadata_map["vggnet"])["classes"] == list("abcd")

    back = vgg.load(path)
    same_parameters(model, back)
    assert back.to_dict() == model.to_dict()


def test_gray(narrow, tmp_path):
    path = tmp_path / "gray.onnx"
    model = written(path, in_channels=1, mean=(100.0,))
    images = random_images(np.random.default_rng(0), channels=1)
    feed = images.astype(np.float32).transpose(0, 3, 1, 2)
    check_scores(model, images, onnxruntime.InferenceSession(path).run(["fc8"], {"image": feed})[0])


@pytest.mark.parametrize("config", ["A-LRN", "C"])
def test_the_checker_of_onnx(narrow, tmp_path, config):
    onnx = pytest.importorskip("onnx", reason="its checker reads what is written")
    written(tmp_path / "x.onnx", config)
    proto = onnx.load(tmp_path / "x.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert (proto.ir_version, proto.opset_import[0].version) == (ours.IR_VERSION, ours.OPSET)
    attributes = {"FLOAT": ours.FLOAT, "INT": ours.INT, "INTS": ours.INTS}
    assert {name: onnx.AttributeProto.AttributeType.Value(name) for name in attributes} == attributes


def test_other_onnx_files_are_not_read(narrow, tmp_path):
    path = tmp_path / "x.onnx"
    written(path)
    content = path.read_bytes()
    for what, by, message in (
        (b"vggnet", b"tensor", "no ONNX file that vggnet wrote"),
        (b'"pool_rounding"', b'"pool_foundling"'[:15], "metadata describe no model"),
        (b"conv1_1.weight", b"conv1_1.height", "has no conv1_1.weight"),
    ):
        path.write_bytes(content.replace(what, by))
        with pytest.raises(vgg.WeightsError, match=message):
            vgg.load(path)

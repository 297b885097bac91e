"""MatConvNet's files, made by SciPy as MATLAB writes them: cells of structs, of its newer and its older versions."""

import numpy as np
import pytest
import vggnet as vgg
from vggnet.convert import mat5

from foreign import CLASSES, MEAN, SIDE, check_scores, random_images, random_net, scores

io = pytest.importorskip("scipy.io", reason="needs the extra mat")

CONFIGS = ("A", "A-LRN", "B", "C", "D", "E")
AVERAGE = np.reshape(MEAN, (1, 1, 3))
DESCRIPTION = ["tench, Tinca tinca", "goldfish", "great white shark", "tiger shark"]


def cell(items):
    array = np.empty((1, len(items)), object)
    array[0, :] = items
    return array


def matconvnet(config, weights, *, old=False, pad=(0, 0, 0, 0), average=AVERAGE, param=None):
    """The variables of a net: filters (rows, columns, inputs, outputs), fully connected ones too, biases (1, outputs)."""
    layers = []
    for name, (w, b) in weights.items():
        side = {"fc6": SIDE}.get(name, 1)
        filters = (w if w.ndim == 4 else w.reshape(len(w), -1, side, side)).transpose(2, 3, 1, 0)
        layer = {"type": "conv", "name": name, "stride": [1.0, 1.0], "pad": [1.0] * 4}
        layers.append(
            layer
            | ({"filters": filters, "biases": b[None]} if old else {"weights": cell([filters, b[None]])})
        )
        if name != "fc8":
            layers.append({"type": "relu", "name": f"relu{name}"})
        if name == "conv1_1" and config == "A-LRN":
            layers.append({"type": "normalize", "name": "norm1", "param": param or [5.0, 2.0, 1e-4, 0.75]})
        if name == "conv1_1" or name == "conv5_1":
            layers.append({"type": "pool", "name": "pool", "method": "max", "pad": list(map(float, pad))})
    layers.append({"type": "softmax", "name": "prob"})
    normalization = {"imageSize": [224.0, 224.0, 3.0], "averageImage": average}
    classes = {"name": cell(["n01440764"] * CLASSES), "description": cell(DESCRIPTION)}
    rest = {"normalization": normalization, "classes": classes}
    return {"layers": cell(layers), **(rest if old else {"meta": rest})}


def write(path, variables, compressed=False):
    io.savemat(path, variables, do_compression=compressed)
    return path


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("config", CONFIGS)
def test_nets(narrow, tmp_path, rng, config, old):
    weights, images = random_net(config, rng), random_images(rng)
    average = np.broadcast_to(np.float32(MEAN), (8, 6, 3)) if old else AVERAGE
    net = matconvnet(config, weights, old=old, average=average)
    model = vgg.load(write(tmp_path / "imagenet-vgg-verydeep-16.mat", net, compressed=old))
    assert (model.config, model.pool_rounding, model.classes) == (config, "floor", DESCRIPTION)
    np.testing.assert_allclose(model.preprocessing.mean, MEAN, rtol=1e-6)
    check_scores(model, images, scores(config, weights, (images - np.array(MEAN)).transpose(0, 3, 1, 2)))


def test_what_a_file_may_leave_out_or_say_otherwise(narrow, tmp_path, rng):
    path = tmp_path / "x.mat"
    weights = random_net("A", rng)
    weights["fc8"] = tuple(array[:1] for array in weights["fc8"])  # MATLAB drops a last axis of 1
    net = matconvnet("A", weights, pad=(0, 1, 0, 1))
    layers = net["layers"]
    layers[0, -2]["weights"][0, 0] = layers[0, -2]["weights"][0, 0][..., 0]
    for variables in ({"layers": layers}, {"net": {"layers": layers}}):
        model = vgg.load(write(path, variables))
        assert (model.num_classes, model.pool_rounding, model.classes) == (1, "ceil", None)
        assert model.preprocessing.mean == MEAN
        np.testing.assert_array_equal(model.parameters["fc8.weight"].numpy(), weights["fc8"][0])


def test_what_it_cannot_be(narrow, tmp_path, rng):
    path = tmp_path / "x.mat"
    weights = random_net("A", rng)

    def refused(variables, message):
        with pytest.raises(vgg.WeightsError, match=message) as caught:
            vgg.load(write(path, variables))
        assert str(path) in str(caught.value)

    refused({"x": np.ones(3)}, "has the variables x; expected a net of MatConvNet")
    refused(matconvnet("A-LRN", weights, param=[5.0, 1.0, 1e-4, 0.75]), "norm1 has .* expected")
    refused(matconvnet("A", {n: a for n, a in weights.items() if n != "fc7"}), "has no fc7.weight")
    refused({"layers": cell([{"type": "conv"}])}, "layers are not those of MatConvNet")
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124, b" ") + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n")
    with pytest.raises(vgg.WeightsError, match="save it with the option '-v7'"):
        vgg.load(path)


def test_the_same_as_scipy_reads(tmp_path):
    """Types, sizes, nesting and names of all that a variable may be, compressed or not."""
    path = tmp_path / "x.mat"
    variables = {
        "numbers": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "bytes": np.arange(7, dtype=np.uint8)[None],
        "narrow": np.array([[1.0, 2.0], [3.0, -4.0]]),
        "text": "Grüße, 語",
        "empty": np.empty((0, 3)),
        "cells": cell([np.eye(2), "x", cell([np.float64(3)])]),
        "struct": {"a": np.int64(5), "longer_name": {"b": "c"}},
        "structs": np.array([(1.0, "p"), (2.0, "q")], [("n", object), ("s", object)]),
    }
    for compressed in (False, True):
        io.savemat(path, variables, do_compression=compressed)
        read = mat5.read(path)
        assert list(read) == list(variables)
        for name in ("numbers", "bytes", "narrow", "empty"):
            np.testing.assert_array_equal(read[name], variables[name])
            assert read[name].dtype == variables[name].dtype
        assert read["text"] == "Grüße, 語"
        assert read["cells"][1] == "x" and (read["cells"][0] == np.eye(2)).all() and read["cells"][2][0] == 3
        assert read["struct"]["a"] == 5 and read["struct"]["longer_name"] == {"b": "c"}
        assert [(float(s["n"].item()), s["s"]) for s in read["structs"]] == [(1.0, "p"), (2.0, "q")]

"""Damaged files of every format: a model or a WeightsError that names the file, never another exception."""

import importlib

import numpy as np
import pytest
import vggnet as vgg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vggnet import convert

from foreign import random_net
from test_convert_caffe import new_net, v1_net

WRITTEN = {
    "x.safetensors": "vggnet",
    "tv.safetensors": "torchvision",
    "x.caffemodel": "caffe",
    "x.onnx": "onnx",
}
FORMATS = [
    *WRITTEN,
    "v1.caffemodel",
    "new.caffemodel",
    "keras.h5",
    "keras3.h5",
    "old.mat",
    "new.mat",
    "zip.pth",
    "old.pth",
]


@pytest.fixture
def files(narrow, tmp_path, monkeypatch):
    """Makes a good file of a format."""
    rng = np.random.default_rng(0)

    def make(name):
        path = tmp_path / name
        if name in WRITTEN:
            model = vgg.VGG("D", num_classes=4, input_size=64, fc_width=6, init="he")
            convert.write(model, path, format=WRITTEN[name])
        elif path.suffix == ".caffemodel":
            path.write_bytes(
                (v1_net if name == "v1.caffemodel" else new_net)(random_net("D", rng)).SerializeToString()
            )
        elif path.suffix == ".h5":
            keras = _others("test_convert_keras", "h5py")
            layout = keras.save_weights if name == "keras.h5" else keras.save_weights_3
            keras.write(path, keras.keras_arrays(random_net("D", rng)), layout)
        elif path.suffix == ".mat":
            mat = _others("test_convert_matconvnet", "scipy.io")
            net = mat.matconvnet("D", random_net("D", rng), old=name == "old.mat")
            mat.write(path, net, compressed=name == "new.mat")
        else:
            torch = importlib.import_module("test_convert_torchvision")
            torch.stand_ins(monkeypatch)
            state = torch.tensors(torch.state_dict("D", random_net("D", rng)))
            (torch.zip_pth if name == "zip.pth" else torch.legacy_pth)(path, state)
        return path

    return make


def _others(module, package):
    pytest.importorskip(package, reason="the format needs it")
    return importlib.import_module(module)


def damages(size, changes=6):
    """Some bytes changed, most of them near the start or the end, where headers and directories are, and perhaps a cut."""
    near = st.integers(0, min(size - 1, 2000))
    position = st.one_of(near, near.map(lambda i: size - 1 - i), st.integers(0, size - 1))
    return st.tuples(
        st.lists(st.tuples(position, st.integers(0, 255)), max_size=changes),
        st.one_of(st.just(size), st.integers(0, size)),
    )


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files(files, name):
    path = files(name)
    vgg.load(path)
    content = path.read_bytes()
    damaged = path.with_name(f"damaged{path.suffix}")
    loaded = 0

    @settings(
        max_examples=60,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    # HDF5's library itself crashes on some changed bytes, one in a thousand or so; files that are cut it refuses.
    @given(damages(len(content), changes=0 if path.suffix == ".h5" else 6))
    def load(damage):
        nonlocal loaded
        changes, end = damage
        changed = bytearray(content)
        for position, value in changes:
            changed[position] = value
        damaged.write_bytes(changed[:end])
        message = None
        try:
            vgg.load(damaged)
        except vgg.WeightsError as error:
            message = str(error)
        assert message is None or str(damaged) in message
        loaded += message is None

    load()
    assert loaded  # whole files, or with another weight

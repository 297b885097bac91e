"""Keras' files: the three layouts of HDF5, made by h5py as Keras writes them."""

import io
import zipfile

import numpy as np
import pytest
import vggnet as vgg

from foreign import MEAN, SIDE, check_scores, random_images, random_net, same_parameters, scores

h5py = pytest.importorskip("h5py", reason="needs the extra keras")

NAMES = {f"conv{b}_{n}": f"block{b}_conv{n}" for b in range(1, 6) for n in range(1, 5)}
NAMES |= {"fc6": "fc1", "fc7": "fc2", "fc8": "predictions"}


def keras_arrays(weights):
    """{layer: (kernel, bias)} as TensorFlow orders them: HWIO; (in, out), fc1's inputs by (row, column, channel)."""
    arrays = {}
    for name, (w, b) in weights.items():
        if name == "fc6":
            w = w.reshape(len(w), -1, SIDE, SIDE).transpose(2, 3, 1, 0).reshape(-1, len(w))
        arrays[NAMES[name]] = (w.transpose(2, 3, 1, 0) if w.ndim == 4 else w if name == "fc6" else w.T, b)
    return arrays


def save_weights(root, arrays, parts=("{}_W_1:0", "{}_b_1:0")):
    """Keras 1 and 2: a group a layer, "weight_names" in order; layers without weights too."""
    layers = ["input_1", *arrays, "flatten"]
    root.attrs["layer_names"] = [name.encode() for name in layers]
    for layer in layers:
        group = root.create_group(layer)
        names = [part.format(layer) for part in parts] if layer in arrays else []
        group.attrs["weight_names"] = [name.encode() for name in names]
        for name, array in zip(names, arrays.get(layer, ()), strict=True):
            group.create_dataset(name, data=array)


def save(root, arrays):
    """Keras' model.save: the same in "model_weights", arrays a group deeper."""
    root.attrs["model_config"] = b"{}"
    save_weights(root.create_group("model_weights"), arrays, ("{0}/kernel", "{0}/bias"))


def save_weights_3(root, arrays):
    """Keras 3: layers by class and number, in alphabetical order; their names beside "vars"."""
    root.create_group("vars").attrs["name"] = "vgg16"
    root.create_group("layers/max_pooling2d/vars").attrs["name"] = "block1_pool"
    for number, (layer, weights) in enumerate(arrays.items()):
        group = root.create_group(f"layers/{'conv2d' if 'conv' in layer else 'dense'}_{number}/vars")
        group.attrs["name"] = layer
        for i, array in enumerate(weights):
            group.create_dataset(str(i), data=array)


LAYOUTS = (save_weights, save, save_weights_3)


def write(path, arrays, layout=save_weights):
    with h5py.File(path, "w") as root:
        layout(root, arrays)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", ["D", "E"])
def test_layouts(narrow, tmp_path, rng, config, layout):
    weights, images = random_net(config, rng), random_images(rng)
    model = vgg.load(write(tmp_path / "vgg.h5", keras_arrays(weights), layout))
    assert (model.config, model.pool_rounding, model.preprocessing.mean) == (config, "floor", MEAN)
    x = (images - np.array(MEAN))[..., ::-1].transpose(
        0, 3, 1, 2
    )  # Keras' preprocess_input: BGR minus the mean
    check_scores(model, images, scores(config, weights, x))


def test_the_archive_of_keras_3(narrow, tmp_path, rng):
    arrays = keras_arrays(random_net("D", rng))
    expected = vgg.load(write(tmp_path / "vgg.weights.h5", arrays, save_weights_3))
    content = io.BytesIO()
    with h5py.File(content, "w") as root:
        save_weights_3(root, arrays)
    path = tmp_path / "vgg.keras"
    for method, message in ((zipfile.ZIP_STORED, None), (zipfile.ZIP_DEFLATED, "compressed")):
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("config.json", "{}")
            archive.writestr("model.weights.h5", content.getvalue())
        if message is None:
            same_parameters(vgg.load(path), expected)
        else:
            with pytest.raises(vgg.WeightsError, match=message):
                vgg.load(path)


def test_what_it_cannot_be(narrow, tmp_path, rng):
    path = tmp_path / "x.h5"
    arrays = keras_arrays(random_net("D", rng))

    def refused(arrays, message, layout=save_weights):
        with pytest.raises(vgg.WeightsError, match=message) as caught:
            vgg.load(write(path, arrays, layout))
        assert str(path) in str(caught.value)

    refused({n: a for n, a in arrays.items() if "block" in n}, "has no fc6.weight")  # Keras' "notop"
    refused(arrays | {"dense_1": arrays["fc2"]}, "has a layer dense_1 with weights")
    theano = {n: (k.transpose(3, 2, 0, 1) if k.ndim == 4 else k, b) for n, (k, b) in arrays.items()}
    refused(theano, "th_kernels")
    refused({n: (k.astype(np.int32), b) for n, (k, b) in arrays.items()}, "no array of floats in this file")
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(vgg.WeightsError, match="not a readable file of Keras"):
        vgg.load(path)


def test_arrays_of_other_files_and_sizes_out_of_thin_air_are_refused(narrow, tmp_path, rng):
    arrays = keras_arrays(random_net("D", rng))
    other, path = tmp_path / "other.h5", tmp_path / "x.h5"
    with h5py.File(other, "w") as root:
        root["kernel"] = arrays["fc2"][0]
    shape = arrays["fc2"][0].shape
    layout = h5py.VirtualLayout(shape, "f4")
    layout[...] = h5py.VirtualSource(other, "kernel", shape)

    def outside(group, name):
        group[name] = h5py.ExternalLink(other, "/kernel")

    def external(group, name):
        group.create_dataset(name, shape, "f4", external=[(other, 0, h5py.h5f.UNLIMITED)])

    def virtual(group, name):
        group.create_virtual_dataset(name, layout)

    def empty(group, name):
        group.create_dataset(name, (1 << 20, 1 << 20), "f4", chunks=(1, 1 << 10))

    for replace in (outside, external, virtual, empty):
        write(path, arrays)
        with h5py.File(path, "r+") as root:
            del root["fc2/fc2_W_1:0"]
            replace(root["fc2"], "fc2_W_1:0")
        with pytest.raises(vgg.WeightsError, match="fc2's fc2_W_1:0 is no array of floats in this file"):
            vgg.load(path)


def test_without_h5py(narrow, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    (tmp_path / "x.h5").write_bytes(b"x")
    with pytest.raises(ImportError, match=r"pip install 'vggnet\[keras\]'"):
        vgg.load(tmp_path / "x.h5")

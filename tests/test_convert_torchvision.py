"""torchvision's state dicts: .pth of both formats, read without unpickling, and .safetensors, read and written.

The .pth files are made by Python's pickle on stand-ins of torch's classes; where torch is installed, by torch, too.
"""

import io
import os
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import vggnet as vgg
from safetensors.numpy import load_file, save_file
from vggnet import convert
from vggnet.convert import pth

from foreign import check_scores, random_images, random_net, same_parameters, scores

CONFIGS = ("A", "B", "D", "E")
# Positions of the convolutions in torchvision's `features`, counted by hand: conv, ReLU, ..., pool.
FEATURES = {
    "A": (0, 3, 6, 8, 11, 13, 16, 18),
    "B": (0, 2, 5, 7, 10, 12, 15, 17, 20, 22),
    "D": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "E": (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34),
    "A-LRN": (0, 4, 7, 9, 12, 14, 17, 19),
}
FEATURES["C"] = FEATURES["D"]
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def state_dict(config, weights):
    names = [f"features.{i}" for i in FEATURES[config]] + [f"classifier.{i}" for i in (0, 3, 6)]
    return OrderedDict(
        (f"{name}.{part}", array)
        for name, arrays in zip(names, weights.values(), strict=True)
        for part, array in zip(("weight", "bias"), arrays, strict=True)
    )


def torchvision_scores(config, weights, images, mean=MEAN, std=STD):
    return scores(config, weights, ((images / 255 - mean) / std).transpose(0, 3, 1, 2))


# ---- .pth files without torch: Python's pickle, and stand-ins that it takes for torch's classes


class Storage:
    """What the pickler names by a persistent id."""

    def __init__(self, array, key):
        self.array, self.key = array, key


class Tensor:
    def __init__(self, array, key, rebuild="_rebuild_tensor_v2", call=()):
        strides = tuple(stride // array.itemsize for stride in array.strides)
        base = array if array.base is None else array.base
        self.arguments = (Storage(base, key), 0, array.shape, strides, *call)
        self.rebuild = rebuild

    def __reduce__(self):
        return getattr(sys.modules["torch._utils"], self.rebuild), self.arguments


KINDS = {
    "f": "FloatStorage",
    "d": "DoubleStorage",
    "e": "HalfStorage",
    "l": "LongStorage",
    "H": "BFloat16Storage",
}


@pytest.fixture
def fake_torch(monkeypatch):
    stand_ins(monkeypatch)


def stand_ins(monkeypatch):
    """Modules of torch's names with nothing in them but what a pickle names."""
    modules = {name: types.ModuleType(name) for name in ("torch", "torch._utils", "torch.nn.parameter")}

    def stand_in(module, name):
        def function(*_):
            raise AssertionError("a reader called it")

        function.__module__, function.__qualname__, function.__name__ = module, name, name
        setattr(modules[module], name, function)

    for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"):
        stand_in("torch._utils", name)
    stand_in("torch.nn.parameter", "Parameter")
    for name in KINDS.values():
        stand_in("torch", name)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def pickled(value, view=(), protocol=2):
    """-> bytes, storages by key."""
    storages = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if not isinstance(value, Storage):
                return None
            storages[value.key] = value.array.ravel("K")  # as it lies in memory
            kind = getattr(sys.modules["torch"], KINDS[value.array.dtype.char])
            return ("storage", kind, value.key, "cpu", value.array.size, *view)

    out = io.BytesIO()
    Pickler(out, protocol).dump(value)
    return out.getvalue(), storages


def zip_pth(path, value, *, compression=zipfile.ZIP_STORED, byteorder=b"little", **options):
    content, storages = pickled(value, **options)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", byteorder)
        archive.writestr("archive/version", b"3\n")
        for key, array in storages.items():
            order = ">" if byteorder == b"big" else "<"
            archive.writestr(f"archive/data/{key}", array.astype(array.dtype.newbyteorder(order)).tobytes())
    return path


def legacy_pth(path, value):
    content, storages = pickled(value, view=(None,))
    with path.open("wb") as file:
        for head in (pth.MAGIC, pth.VERSION, {"little_endian": True, "type_sizes": {"int": 4}}):
            file.write(pickle.dumps(head, 2))
        file.write(content)
        file.write(pickle.dumps(list(storages), 2))
        for array in storages.values():
            file.write(struct.pack("<q", array.size) + array.tobytes())
    return path


def tensors(arrays, **options):
    return OrderedDict(
        (name, Tensor(array, str(i), call=(False, OrderedDict()), **options))
        for i, (name, array) in enumerate(arrays.items())
    )


@pytest.mark.parametrize("make", [zip_pth, legacy_pth])
@pytest.mark.parametrize("config", CONFIGS)
def test_pth_made_without_torch(narrow, fake_torch, tmp_path, rng, config, make):
    weights, images = random_net(config, rng), random_images(rng)
    state = tensors(state_dict(config, weights))
    state._metadata = OrderedDict([("", {"version": 1})])  # as torch.nn.Module.state_dict does: a BUILD
    model = vgg.load(make(tmp_path / "vgg.pth", state))
    assert (model.config, model.pool_rounding) == (config, "floor")
    np.testing.assert_allclose(model.preprocessing.mean, 255 * MEAN, rtol=1e-12)
    check_scores(model, images, torchvision_scores(config, weights, images))


def test_what_else_a_state_dict_may_be(narrow, fake_torch, tmp_path, rng):
    """A checkpoint of a training script, parameters, other types, views of one storage, protocol 4, big-endian machines."""
    arrays = state_dict("A", random_net("A", rng))
    expected = vgg.load(zip_pth(tmp_path / "plain.pth", tensors(arrays)))
    utils = sys.modules["torch._utils"]

    class Parameter:
        def __init__(self, tensor):
            self.tensor = tensor

        def __reduce__(self):
            return utils._rebuild_parameter, (self.tensor, True, OrderedDict())

    class OldParameter(Parameter):
        def __reduce__(self):
            return sys.modules["torch.nn.parameter"].Parameter, (self.tensor,), (True, False, OrderedDict())

    doubles = {name: array.astype(np.float64) for name, array in arrays.items()}
    shared = np.concatenate([array.ravel() for array in arrays.values()])
    views, offset = OrderedDict(), 0
    for name, array in arrays.items():
        views[name] = Tensor(array, "0", call=(False, OrderedDict()))
        strides = views[name].arguments[3]
        views[name].arguments = (Storage(shared, "0"), offset, array.shape, strides, False, OrderedDict())
        offset += array.size
    turned = {name: np.asfortranarray(array) for name, array in arrays.items()}
    variants = {
        "checkpoint": {
            "epoch": 3,
            "best": 0.25,
            "big": 1 << 40,
            "flags": [True, None, (), []],
            "state_dict": tensors({f"module.{name}": array for name, array in arrays.items()}),
            "optimizer": {"state": {}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]},
        },
        "parameters": {name: Parameter(tensor) for name, tensor in tensors(arrays).items()},
        "old parameters": {name: OldParameter(tensor) for name, tensor in tensors(arrays).items()},
        "oldest": tensors(arrays, rebuild="_rebuild_tensor"),
        "doubles": tensors(doubles),
        "views": views,
        "not contiguous": tensors(turned),
    }
    for name, value in variants.items():
        path = tmp_path / f"{name}.pth"
        for protocol in (2, 4):
            same_parameters(vgg.load(zip_pth(path, value, protocol=protocol)), expected)
        same_parameters(vgg.load(zip_pth(path, value, byteorder=b"big")), expected)
        same_parameters(vgg.load(legacy_pth(path, value)), expected)

    halves = {name: array.astype(np.float16) for name, array in arrays.items()}
    brains = {name: (array.view(np.uint32) >> 16).astype(np.uint16) for name, array in arrays.items()}
    for narrow_arrays, error in ((halves, 2**-11), (brains, 2**-7)):
        model = vgg.load(zip_pth(tmp_path / "narrow.pth", tensors(narrow_arrays)))
        for name, parameter in model.parameters.items():
            np.testing.assert_allclose(
                parameter.numpy(), expected.parameters[name].numpy(), rtol=error, atol=1e-6
            )


# ---- what a .pth must not do


class Runs:
    """Reduces to a call, as a malicious pickle does."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("make", [zip_pth, legacy_pth])
@pytest.mark.parametrize(
    "function", [os.system, eval, exec, __import__, getattr, io.open, OrderedDict.fromkeys]
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_calls_are_refused_and_not_run(fake_torch, tmp_path, make, function, protocol):
    evil = tmp_path / "evil"
    value = {"state_dict": {"features.0.weight": Runs(function, f"open({os.fspath(evil)!r}, 'w')")}}
    path = (
        make(tmp_path / "x.pth", value) if protocol == 2 else zip_pth(tmp_path / "x.pth", value, protocol=4)
    )
    with pytest.raises(vgg.WeightsError, match=r"asks for .*; nothing was run"):
        vgg.load(path)
    assert not evil.exists()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x02(cos\nsystem\nX\x02\x00\x00\x00lso.", "asks for os.system"),
        (b"\x80\x02(X\x02\x00\x00\x00lsios\nsystem\n.", "instruction INST"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"\x80\x02]\x8c\x06system\x8c\x02os\x93.", "asks for system.os"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "damaged"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "a call of torch.FloatStorage"),
        (b"\x80\x02X\x01\x00\x00\x00a)R.", "a call of a str"),
        (b"\x80\x02}))s.", "a key is a tuple"),
        (b"\x80\x02)a.", "damaged"),
        (b"\x80\x02]K\x01K\x02s.", "keys and values for a list"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "damaged"),
        (b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.", "damaged|instruction BINUNICODE8"),
        (b"\x80\x02t.", "damaged"),
        (b"\x80\x02}", "damaged"),
        (b"\x80\x02}.", "no state dict"),
        (b"\x80\x02]q\x00h\x00a.", "no state dict"),  # a list that holds itself
        (b"", "damaged"),
    ],
)
def test_programs_that_build_no_state_dict(tmp_path, program, message):
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", program)
    with pytest.raises(vgg.WeightsError, match=message):
        vgg.load(path)


def test_tensors_outside_of_their_storage_are_refused(narrow, fake_torch, tmp_path, rng):
    arrays = state_dict("A", random_net("A", rng))

    def refused(**changes):
        state = tensors(arrays)
        names = ("storage", "offset", "shape", "strides")
        tensor = state["features.3.weight"]
        values = dict(zip(names, tensor.arguments[:4], strict=True)) | changes
        tensor.arguments = (*(values[name] for name in names), *tensor.arguments[4:])
        for make in (zip_pth, legacy_pth):
            with pytest.raises(vgg.WeightsError, match="damaged"):
                vgg.load(make(tmp_path / "x.pth", state))

    refused(offset=1)
    refused(offset=-1)
    refused(shape=(10**9, 10**9, 1, 1), strides=(0, 0, 0, 0))
    refused(shape=(3, 2, 3, 4))
    refused(strides=(-18, 9, 3, 1))
    refused(strides=(18, 9, 3))
    refused(shape="abcd")
    refused(storage=3)
    refused(shape=(0, 1 << 70), strides=(1, 1))
    state = tensors(arrays)
    path = zip_pth(tmp_path / "x.pth", state, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(vgg.WeightsError, match="compressed"):
        vgg.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat.jpg", b"")
    with pytest.raises(vgg.WeightsError, match="no data.pkl"):
        vgg.load(path)
    for old in (bytes(257) + b"ustar" + bytes(250), b"\x80\x02K\x01.", b"hello" * 100):
        path.write_bytes(old)
        with pytest.raises(vgg.WeightsError, match="tar archive|no file of PyTorch"):
            vgg.load(path)


# ---- safetensors


def test_safetensors_with_torchvisions_names(narrow, tmp_path, rng):
    weights, images = random_net("D", rng), random_images(rng)
    arrays = state_dict("D", weights)
    path = tmp_path / "vgg16.safetensors"
    save_file(arrays, path)
    model = vgg.load(path)
    check_scores(model, images, torchvision_scores("D", weights, images))
    timm = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}
    renamed = {}
    for name, array in arrays.items():
        layer, part = name.rsplit(".", 1)
        if part == "weight" and layer in ("classifier.0", "classifier.3"):  # which are convolutions there
            array = array.reshape(len(array), -1, *((2, 2) if layer == "classifier.0" else (1, 1)))
        renamed[f"{timm.get(layer, layer)}.{part}"] = array
    save_file(renamed, path)
    same_parameters(vgg.load(path), model)


@pytest.mark.parametrize("config", list(FEATURES))
@pytest.mark.parametrize("channels", [3, 1])
def test_what_is_written_has_torchvisions_names_and_comes_back(narrow, tmp_path, config, channels):
    model = vgg.VGG(
        config, num_classes=4, input_size=64, fc_width=6, init="he", in_channels=channels,
        mean=(120.5, 110.0, 100.25)[:channels], pool_rounding="ceil", classes=list("abcd"),
    )  # fmt: skip
    path = tmp_path / "x.safetensors"
    convert.write(model, path, format="torchvision")
    back = vgg.load(path)
    same_parameters(model, back)
    assert back.to_dict() == model.to_dict()
    arrays = load_file(path)
    layers = {f"features.{i}" for i in FEATURES[config]} | {f"classifier.{i}" for i in (0, 3, 6)}
    assert {name.rsplit(".", 1)[0] for name in arrays} == layers
    names = [f"features.{i}" for i in FEATURES[config]] + [f"classifier.{i}" for i in (0, 3, 6)]
    ours = [name.removesuffix(".weight") for name in model.parameters if name.endswith(".weight")]
    weights = {
        our: (arrays[f"{their}.weight"], arrays[f"{their}.bias"])
        for our, their in zip(ours, names, strict=True)
    }
    images = random_images(np.random.default_rng(0), channels=channels)
    mean = np.array(model.preprocessing.mean) / 255
    check_scores(model, images, torchvision_scores(config, weights, images, mean, 1 / 255))
    with pytest.raises(ValueError, match="written as safetensors"):
        convert.write(model, tmp_path / "x.pth")


def test_what_is_no_net_of_the_paper(narrow, tmp_path, rng):
    path = tmp_path / "x.safetensors"
    arrays = state_dict("D", random_net("D", rng))

    def refused(arrays, message):
        save_file(arrays, path)
        with pytest.raises(vgg.WeightsError, match=message) as caught:
            vgg.load(path)
        assert str(caught.value).count(str(path)) == 1

    refused(arrays | {"features.1.running_mean": np.ones(2, np.float32)}, "batch normalisation")
    refused({n: a for n, a in arrays.items() if n.startswith("features")}, "has no fc6.weight")
    refused(arrays | {"features.31.weight": arrays["features.28.weight"]}, "not those of torchvision's vgg11")
    refused(
        arrays | {"classifier.0.weight": arrays["classifier.0.weight"] * np.float32("nan")},
        "no finite numbers",
    )
    metadata = {"vggnet": '{"format": "torchvision", "model": "[]", "sha256": ""}'}
    save_file(arrays, path, metadata)
    with pytest.raises(vgg.WeightsError, match="do not match the SHA-256"):
        vgg.load(path)


# ---- torch itself


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip(
        "torch", reason="a foreign reader and writer of .pth (pip install torch==2.13.0)"
    )


def torch_net(torch, config, model):
    """torchvision's module, as far as its state dict and its forward pass go."""
    layers = []
    for layer in model.layers:
        if layer.kind == "conv":
            layers.append(
                torch.nn.Conv2d(layer.inputs, layer.outputs, layer.window, padding=layer.window // 2)
            )
        elif layer.kind == "lrn":
            layers.append(torch.nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0))
        elif layer.kind == "pool":
            layers.append(torch.nn.MaxPool2d(2))
        elif layer.kind == "relu" and "6" not in layer.name and "7" not in layer.name:
            layers.append(torch.nn.ReLU())
    head = [layer for layer in model.layers if layer.kind == "linear"]
    linear = [torch.nn.Linear(layer.inputs, layer.outputs) for layer in head]
    relu, dropout = torch.nn.ReLU(), torch.nn.Dropout()
    classifier = torch.nn.Sequential(linear[0], relu, dropout, linear[1], relu, dropout, linear[2])
    net = torch.nn.Sequential(
        OrderedDict(features=torch.nn.Sequential(*layers), flatten=torch.nn.Flatten(), classifier=classifier)
    )
    return net.eval()


@pytest.mark.parametrize("config", ["A-LRN", "C", "E"])
def test_torch_reads_what_is_written_and_writes_what_is_read(narrow, tmp_path, torch, config):
    model = vgg.VGG(config, num_classes=4, input_size=64, fc_width=6, init="he", mean=(120.5, 110.0, 100.25))
    convert.write(model, tmp_path / "x.safetensors", format="torchvision")
    net = torch_net(torch, config, model)
    net.load_state_dict({n: torch.tensor(a) for n, a in load_file(tmp_path / "x.safetensors").items()})
    images = random_images(np.random.default_rng(0))
    x = model.preprocessing.apply(images)
    with torch.no_grad():
        check_scores(model, images, net(torch.tensor(x).permute(0, 3, 1, 2)).numpy())

    for name, options in {"new": {}, "old": {"_use_new_zipfile_serialization": False}}.items():
        torch.save(net.state_dict(), tmp_path / f"{name}.pth", **options)
        back = vgg.load(tmp_path / f"{name}.pth", config=config)
        check_scores(
            back,
            images,
            net(torch.tensor((images / 255 - MEAN) / STD).float().permute(0, 3, 1, 2)).detach().numpy(),
        )
    torch.save(net, tmp_path / "whole.pth")
    with pytest.raises(vgg.WeightsError, match=r"asks for torch.nn.* Save model.state_dict\(\)"):
        vgg.load(tmp_path / "whole.pth")

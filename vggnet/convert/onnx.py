"""ONNX files: written, for inference by other programs; read as far as they are these.

The graph takes RGB pixels (N, C, H, W) and subtracts the mean itself, before the first convolution pads with zeros. Values and
weights have the names of the layers. Dropout is left out. ONNX's LRN divides alpha by the size of the window, as Caffe's does.
"""

from __future__ import annotations

import importlib
import json
import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._C import WeightsError
from .._version import __version__
from ..checkpoint import replace_file
from .layouts import ONNX, Array, Foreign
from .wire import Fields, Numbers, Record
from .wire import write as write_message

if TYPE_CHECKING:
    from ..configs import Layer
    from ..models import VGG

OPSET, IR_VERSION = (
    13,
    7,
)  # of ONNX 1.8 (2020): the first with which every operation here has its form of today
INPUT, OUTPUTS = "image", ("fc8", "prob")
MEAN = "mean"  # name of the array that the graph subtracts

# Numbers of the fields of onnx.proto that are read or written.
TENSOR: Numbers = {"dims": 1, "data_type": 2, "name": 8, "raw_data": 9}
ATTRIBUTE: Numbers = {"name": 1, "f": 2, "i": 3, "ints": 8, "type": 20}
NODE: Numbers = {"input": 1, "output": 2, "name": 3, "op_type": 4, "attribute": (5, ATTRIBUTE)}
SHAPE: Numbers = {"dim": (1, {"dim_value": 1, "dim_param": 2})}
TYPE: Numbers = {"tensor_type": (1, {"elem_type": 1, "shape": (2, SHAPE)})}
VALUE: Numbers = {"name": 1, "type": (2, TYPE), "doc_string": 3}
GRAPH: Numbers = {
    "node": (1, NODE),
    "name": 2,
    "initializer": (5, TENSOR),
    "input": (11, VALUE),
    "output": (12, VALUE),
}
MODEL: Numbers = {
    "ir_version": 1,
    "producer_name": 2,
    "producer_version": 3,
    "doc_string": 6,
    "graph": (7, GRAPH),
    "opset_import": (8, {"domain": 1, "version": 2}),
    "metadata_props": (14, {"key": 1, "value": 2}),
}
FLOAT32 = 1  # a data_type and elem_type
FLOAT, INT, INTS = 1, 2, 7  # types of an attribute


# ---- writing


def write(model: VGG, path: Path) -> None:
    """Write a .onnx file for batches of any size; weights change their order, nothing else."""
    weights = ONNX.theirs(model)
    side, channels = model.input_size, model.in_channels
    mean = np.array(model.preprocessing.mean, np.float32).reshape(1, channels, 1, 1)
    order = model.preprocessing.channels
    image = (
        f"{order} pixels on the 0..255 scale, (N, {channels}, {side}, {side}) float32: a crop of an isotropically rescaled "
        f"image. The graph subtracts the mean, {model.preprocessing.mean}."
    )
    graph: Fields = [
        *(("node", node) for node in _nodes(model)),
        ("name", f"VGG-{model.config}"),
        ("initializer", _tensor(MEAN, mean, mean.shape)),
        *(("initializer", _tensor(name, array, _shape(name, array))) for name, array in weights.items()),
        ("input", [*_value(INPUT, (channels, side, side)), ("doc_string", image)]),
        *(("output", _value(name, (model.num_classes,))) for name in OUTPUTS),
    ]
    text = (
        f"Net {model.config} of Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition. "
        f"Input {INPUT}: {image} Outputs: fc8, class scores before soft-max, and prob, after it, both (N, {model.num_classes})."
    )
    message: Fields = [
        ("ir_version", IR_VERSION),
        ("producer_name", "vggnet"),
        ("producer_version", __version__),
        ("doc_string", text),
        ("graph", graph),
        ("opset_import", [("domain", ""), ("version", OPSET)]),
        ("metadata_props", [("key", "vggnet"), ("value", json.dumps(model.to_dict()))]),
        ("metadata_props", [("key", "preprocessing"), ("value", json.dumps(model.preprocessing.to_dict()))]),
    ]

    def write_file(temporary: Path) -> None:
        with temporary.open("wb") as file:
            write_message(file, message, MODEL)

    replace_file(path, write_file)


def _nodes(model: VGG) -> Iterator[Fields]:
    yield _node("Sub", MEAN + "_subtracted", [INPUT, MEAN])
    below = MEAN + "_subtracted"
    for layer in model.layers:
        if layer.kind == "dropout":
            continue
        if layer.name == "fc6":
            yield _node("Flatten", "flat", [below], axis=1)
            below = "flat"
        kind, attributes = _kind(model, layer)
        yield _node(kind, layer.name, [below, *layer.parameter_shapes], **attributes)
        below = layer.name


def _kind(model: VGG, layer: Layer) -> tuple[str, dict[str, int | float | list[int]]]:
    """ONNX' operation of a layer, and its attributes."""
    match layer.kind:
        case "conv":
            return "Conv", {"kernel_shape": [layer.window] * 2, "pads": [layer.window // 2] * 4}
        case "linear":
            return "Gemm", {"transB": 1}
        case "pool":
            rounding = int(model.pool_rounding == "ceil")
            return "MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": rounding}
        case "lrn":
            return "LRN", {"alpha": 5e-4, "beta": 0.75, "bias": 2.0, "size": 5}
        case "softmax":
            return "Softmax", {"axis": 1}
        case _:
            return "Relu", {}


def _node(kind: str, name: str, inputs: list[str], **attributes: int | float | list[int]) -> Fields:
    fields: list[tuple[str, int | str | Fields]] = [("input", value) for value in inputs]
    fields += [("output", name), ("name", name), ("op_type", kind)]
    for key, value in attributes.items():
        field: Fields
        if isinstance(value, float):
            field = [("name", key), ("f", value), ("type", FLOAT)]
        elif isinstance(value, int):
            field = [("name", key), ("i", value), ("type", INT)]
        else:
            field = [("name", key), *(("ints", size) for size in value), ("type", INTS)]
        fields.append(("attribute", field))
    return fields


def _shape(name: str, array: Array) -> tuple[int, ...]:
    """A fully connected weight is written (out, in), its array has four axes."""
    flat = name.startswith("fc") and array.ndim == 4
    return (len(array), math.prod(array.shape[1:])) if flat else array.shape


def _tensor(name: str, array: Array, shape: tuple[int, ...]) -> Fields:
    return [*(("dims", size) for size in shape), ("data_type", FLOAT32), ("name", name), ("raw_data", array)]


def _value(name: str, sizes: tuple[int, ...]) -> list[tuple[str, str | Fields]]:
    """An input or output: a batch, and its other axes."""
    dims: list[tuple[str, Fields]] = [("dim", [("dim_param", "N")])]
    dims += [("dim", [("dim_value", size)]) for size in sizes]
    return [("name", name), ("type", [("tensor_type", [("elem_type", FLOAT32), ("shape", dims)])])]


# ---- reading


def read(path: Path) -> Foreign:
    """The net in a file that `write` wrote. The file is mapped, its arrays are views of it."""
    with path.open("rb") as file:
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    file_model = Record(content, MODEL)
    metadata = {entry.text("key"): entry.text("value") for entry in file_model.inner("metadata_props")}
    if "vggnet" not in metadata:
        raise WeightsError("is no ONNX file that vggnet wrote; others are not read")
    try:
        model = json.loads(metadata["vggnet"])
        mean, rounding, classes = tuple(model["mean"]), model["pool_rounding"], model["classes"]
        lrn = model["config"] == "A-LRN"
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"its metadata describe no model: {error!r}") from error
    arrays: dict[str, Array] = {}
    for graph in file_model.inner("graph"):
        for tensor in graph.inner("initializer"):
            name, shape = tensor.text("name"), tensor.integers("dims")
            values = tensor.reals("raw_data")
            if math.prod(shape) != values.size or not values.size or not shape:
                raise WeightsError(f"{name} has {values.size} numbers for the shape {tuple(shape)}: damaged")
            if name != MEAN:
                arrays[name] = values.reshape(shape)
    return Foreign(ONNX.ours(arrays), lrn=lrn, mean=mean, pool_rounding=rounding, classes=classes)


def run(path: Path, images: Array) -> Array:
    """Class scores (N, classes) of uint8 images (N, H, W, C), by onnxruntime."""
    onnxruntime = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    scores: Array = session.run(["fc8"], {INPUT: images.astype(np.float32).transpose(0, 3, 1, 2)})[0]
    return scores

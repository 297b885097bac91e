"""Caffe's files: a .caffemodel is read, and written with its .prototxt.

Both are a NetParameter message of Caffe's caffe.proto, one binary with the weights, one as text without. Files of 2014, such as
the authors' VGG_ILSVRC_16_layers.caffemodel, hold V1LayerParameter messages and blobs with num, channels, height and width;
later ones LayerParameter and a shape. Caffe's pooling rounds up, and its LRN divides alpha by the size of the window.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from .._C import WeightsError
from ..checkpoint import replace_file, write_text
from .layouts import CAFFE, Array, Foreign
from .wire import Fields, Numbers, Record
from .wire import write as write_message

if TYPE_CHECKING:
    from ..configs import Layer
    from ..models import VGG

LRN = {"local_size": 5, "alpha": 5e-4, "beta": 0.75, "k": 2.0}  # the paper's 1e-4 times local_size
LRN_DEFAULTS = {"local_size": 5, "alpha": 1.0, "beta": 0.75, "k": 1.0}  # Caffe's, of fields that are absent

SHAPE: Numbers = {"dim": 1}
BLOB: Numbers = {
    "num": 1,
    "channels": 2,
    "height": 3,
    "width": 4,
    "data": 5,
    "shape": (7, SHAPE),
    "double_data": 8,
}
PARAMETERS: dict[str, Numbers] = {
    "transform_param": {"scale": 1, "mean_value": 5},
    "convolution_param": {"num_output": 1, "pad": 3, "kernel_size": 4},
    "dropout_param": {"dropout_ratio": 1},
    "inner_product_param": {"num_output": 1},
    "lrn_param": {"local_size": 1, "alpha": 2, "beta": 3, "k": 5},
    "pooling_param": {"pool": 1, "kernel_size": 2, "stride": 3, "round_mode": 13},
    "input_param": {"shape": (1, SHAPE)},
}
LAYER: Numbers = {
    "name": 1,
    "type": 2,
    "bottom": 3,
    "top": 4,
    "blobs": (7, BLOB),
    "transform_param": (100, PARAMETERS["transform_param"]),
    "convolution_param": (106, PARAMETERS["convolution_param"]),
    "dropout_param": (108, PARAMETERS["dropout_param"]),
    "inner_product_param": (117, PARAMETERS["inner_product_param"]),
    "lrn_param": (118, PARAMETERS["lrn_param"]),
    "pooling_param": (121, PARAMETERS["pooling_param"]),
    "input_param": (143, PARAMETERS["input_param"]),
}
LAYER_V1: Numbers = {
    "v0": 1,
    "name": 4,
    "type": 5,
    "blobs": (6, BLOB),
    "lrn_param": (18, PARAMETERS["lrn_param"]),
    "pooling_param": (19, PARAMETERS["pooling_param"]),
    "transform_param": (36, PARAMETERS["transform_param"]),
}
NET: Numbers = {"name": 1, "layers": (2, LAYER_V1), "layer": (100, LAYER)}
LRN_V1 = 15  # type of V1LayerParameter


class Pool(IntEnum):
    MAX = 0


class Rounding(IntEnum):
    FLOOR = 1


# ---- reading


def read(path: Path) -> Foreign:
    """The net in a .caffemodel file. The file is mapped, its arrays are views of it."""
    with path.open("rb") as file:
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    net = Record(content, NET)
    parameters: dict[str, Array] = {}
    lrn = False
    mean: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    rounding: Literal["floor", "ceil"] = "ceil"
    for layer in [*net.inner("layers"), *net.inner("layer")]:
        if "v0" in layer:
            raise WeightsError(
                "its layers are of Caffe's oldest format (V0): upgrade it with Caffe's tool upgrade_net_proto_binary"
            )
        name = layer.text("name")
        for part, blob in zip(("weight", "bias"), layer.inner("blobs"), strict=False):
            parameters[f"{name}.{part}"] = _array(f"{name}.{part}", blob)
        for window in layer.inner("lrn_param"):
            _check_lrn(name, window)
            lrn = True
        for pooling in layer.inner("pooling_param"):
            if pooling.integers("round_mode") == [Rounding.FLOOR]:
                rounding = "floor"
        for transform in layer.inner("transform_param"):
            mean = tuple(map(float, transform.reals("mean_value")[::-1])) or mean  # BGR
            scale = tuple(map(float, transform.reals("scale"))) or scale
    if not parameters:
        raise WeightsError("holds no layer with weights")
    return Foreign(CAFFE.ours(parameters), lrn=lrn, mean=mean, scale=scale, pool_rounding=rounding)


def _array(name: str, blob: Record) -> Array:
    """The numbers of a blob with its shape; a fully connected weight of V1, (1, 1, out, in), has two axes."""
    values = blob.reals("double_data", "<f8") if "double_data" in blob else blob.reals("data")
    if "shape" in blob:
        shape = [size for record in blob.inner("shape") for size in record.integers("dim")]
    else:
        shape = [(blob.integers(axis) or [1])[-1] for axis in ("num", "channels", "height", "width")]
        if name.startswith("fc") and shape[:2] == [1, 1]:
            shape = shape[2:]
    if math.prod(shape) != values.size or not values.size or not shape:
        raise WeightsError(f"{name} has {values.size} numbers for the shape {tuple(shape)}: damaged")
    return values.reshape(shape)


def _check_lrn(name: str, window: Record) -> None:
    found = dict(LRN_DEFAULTS)
    for field in found:
        for value in window.integers(field) if field == "local_size" else window.reals(field):
            found[field] = float(value)
    if not all(math.isclose(found[field], value, rel_tol=1e-6) for field, value in LRN.items()):
        raise WeightsError(f"its response normalisation {name} has {found}; expected the paper's, {LRN}")


# ---- writing


def write(model: VGG, path: Path) -> None:
    """Write the weights to `path`, and the net beside it, to a .prototxt of the same name: a deploy net of one image.

    Weights change their order, nothing else. What Caffe ignores, but `read` finds again, is written too: the mean, as
    mean_value of the input layer; and for pooling that rounds down round_mode, in the .caffemodel alone, since a text with a
    field that is unknown to an older Caffe is an error. For images of the input's size both roundings are one.
    """
    name = f"VGG-{model.config}"
    net: Fields = [("name", name), *(("layer", layer) for layer in _layers(model))]

    def write_binary(temporary: Path) -> None:
        with temporary.open("wb") as file:
            write_message(file, net, NET)

    replace_file(path, write_binary)
    head = [
        f"# The net of {path.name}, written by vggnet. Input: BGR pixels on the 0..255 scale minus mean_value, which Caffe's",
        "# Input layer does not subtract: whoever fills it does. Caffe's pooling rounds up; at this input size nothing is odd.",
    ]
    write_text(path.with_suffix(".prototxt"), "\n".join([*head, *_lines(net)]) + "\n")


def _layers(model: VGG) -> Iterator[Fields]:
    """The layers of a deploy net, by Caffe's fields."""
    weights = CAFFE.theirs(model)
    side = model.input_size
    yield [
        ("name", "data"),
        ("type", "Input"),
        ("top", "data"),
        ("transform_param", [("mean_value", value) for value in model.preprocessing.mean[::-1]]),
        ("input_param", [("shape", [("dim", size) for size in (1, model.in_channels, side, side)])]),
    ]
    below = "data"
    for layer in model.layers:
        kind, parameters = _kind(model, layer)
        top = below if layer.kind in ("relu", "dropout") else layer.name  # which are done in place
        blobs = [_blob(layer.kind, weights[name]) for name in layer.parameter_shapes]
        yield [
            ("name", layer.name),
            ("type", kind),
            ("bottom", below),
            ("top", top),
            *(("blobs", blob) for blob in blobs),
            *parameters,
        ]
        below = top


def _kind(model: VGG, layer: Layer) -> tuple[str, Fields]:
    """Caffe's type of a layer, and its parameters."""
    match layer.kind:
        case "conv":
            sizes = [("num_output", layer.outputs), ("pad", layer.window // 2), ("kernel_size", layer.window)]
            return "Convolution", [("convolution_param", sizes)]
        case "linear":
            return "InnerProduct", [("inner_product_param", [("num_output", layer.outputs)])]
        case "pool":
            rounding = [("round_mode", Rounding.FLOOR)] if model.pool_rounding == "floor" else []
            window = [("pool", Pool.MAX), ("kernel_size", 2), ("stride", 2)]
            return "Pooling", [("pooling_param", window + rounding)]
        case "lrn":
            return "LRN", [("lrn_param", list(LRN.items()))]
        case "dropout":
            return "Dropout", [("dropout_param", [("dropout_ratio", float(model.dropout))])]
        case "relu":
            return "ReLU", []
        case "softmax":
            return "Softmax", []


def _blob(kind: str, array: Array) -> Fields:
    outputs, *inputs = array.shape
    shape = (outputs, math.prod(inputs)) if kind == "linear" and inputs else array.shape
    return [("data", array), ("shape", [("dim", size) for size in shape])]


def _lines(fields: Fields, indent: str = "") -> Iterator[str]:
    """A message in protocol buffers' text format, but for what only the .caffemodel holds."""
    for name, value in fields:
        if name in ("blobs", "round_mode"):
            continue
        if isinstance(value, str):
            yield f'{indent}{name}: "{value}"'
        elif isinstance(value, IntEnum):
            yield f"{indent}{name}: {value.name}"
        elif isinstance(value, int | float):
            yield f"{indent}{name}: {value}"
        elif not isinstance(value, np.ndarray):
            yield f"{indent}{name} {{"
            yield from _lines(value, indent + "  ")
            yield f"{indent}}}"

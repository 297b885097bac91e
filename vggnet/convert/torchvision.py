"""State dicts in torchvision's layout: .pth and .safetensors are read, .safetensors is written.

torchvision's nets see (pixel / 255 - mean) / deviation, padded with zeros, which are pixels of the mean. With conv1_1's weights
divided by 255 deviation, pixel - 255 mean gives the same, at the border too. Written files hold the weights as they are, for
images normalised with the model's mean / 255 and a deviation of 1 / 255, as the metadata says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .._C import WeightsError
from ..checkpoint import read_tensors, write_tensors
from ..configs import CONFIGS
from . import pth
from .layouts import TIMM_HEAD, TORCHVISION, Array, Foreign, torchvision_names

if TYPE_CHECKING:
    from ..models import VGG

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB, 0..1 scale, of torchvision's models
FORMAT = "torchvision"  # in the metadata of what is written


def read(path: Path) -> Foreign:
    """The net in a .pth file, or in a .safetensors file with torchvision's names."""
    arrays, metadata = read_tensors(path) if path.suffix == ".safetensors" else (pth.read(path), {})
    if any(name.endswith("running_mean") for name in arrays):
        raise WeightsError(
            "has batch normalisation (vgg16_bn and the like), which the paper's nets don't have; expected the weights "
            "of vgg11, vgg13, vgg16 or vgg19"
        )
    config, parameters = _named(arrays)
    net = Foreign(TORCHVISION.ours(parameters), lrn=config == "A-LRN")
    if metadata.get("format") != FORMAT:
        mean, scale = (255 * value for value in MEAN), (1 / (255 * value) for value in DEVIATION)
        return replace(net, mean=tuple(mean), scale=tuple(scale))
    try:
        model = json.loads(metadata["model"])
        return replace(
            net, mean=tuple(model["mean"]), pool_rounding=model["pool_rounding"], classes=model["classes"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"its metadata describe no model: {error!r}") from error


def _named(arrays: Mapping[str, Array]) -> tuple[str, dict[str, Array]]:
    """A net that has these layers, and its parameters by our names."""
    layers = {name.rpartition(".")[0] for name in arrays}
    convs = {layer for layer in layers if layer.startswith("features.")}
    for config in CONFIGS:
        names = torchvision_names(config) | TIMM_HEAD
        if convs == {name for name in names if name.startswith("features.")} and layers <= names.keys():
            break
    else:
        raise WeightsError(
            f"its layers {', '.join(sorted(layers)[:4])}, ... are not those of torchvision's vgg11, vgg13, vgg16 or vgg19"
        )
    parameters = {}
    for name, array in arrays.items():
        layer, _, part = name.rpartition(".")
        parameters[f"{names[layer]}.{part}"] = array
    return config, parameters


def write(model: VGG, path: Path) -> None:
    """Write the state dict to a .safetensors file: torchvision's names and order, weights bit for bit.

    torchvision's own classes take it when input_size is 224 and the net is A, B, D or E.

    Raises
    ------
    ValueError
        When `path` has another suffix: PyTorch's own files are pickles, which are not written.
    """
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path}: torchvision's state dict is written as safetensors; give the file that suffix"
        )
    parameters = TORCHVISION.theirs(model)
    arrays = {}
    for theirs, ours in torchvision_names(model.config).items():
        weight, bias = parameters[f"{ours}.weight"], parameters[f"{ours}.bias"]
        arrays[f"{theirs}.weight"] = weight.reshape(len(weight), -1) if ours.startswith("fc") else weight
        arrays[f"{theirs}.bias"] = bias
    mean = [value / 255 for value in model.preprocessing.mean]
    metadata = {
        "format": FORMAT,
        "model": json.dumps(model.to_dict()),
        "normalize": json.dumps({"mean": mean, "std": [1 / 255] * len(mean)}),
    }
    write_tensors(path, arrays, metadata)
